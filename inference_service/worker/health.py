"""A worker's health, judged by the age of the file that it touches. No server is asked."""

from datetime import UTC, datetime, timedelta
from pathlib import Path


def is_fresh(health_path: Path, *, within: timedelta) -> bool:
    """Whether a worker touched its health file within a period."""
    try:
        touched = datetime.fromtimestamp(health_path.stat().st_mtime, tz=UTC)
    except FileNotFoundError:
        return False
    return datetime.now(tz=UTC) - touched < within
