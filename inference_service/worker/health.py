"""Whether a worker is well, told by the file that it touches; asks no server."""

from datetime import UTC, datetime, timedelta
from pathlib import Path


def is_fresh(health_path: Path, *, within: timedelta) -> bool:
    """Whether a worker touched its health file lately."""
    try:
        touched = datetime.fromtimestamp(health_path.stat().st_mtime, tz=UTC)
    except FileNotFoundError:
        return False
    return datetime.now(tz=UTC) - touched < within
