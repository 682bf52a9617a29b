"""The heartbeat of a worker, and the file whose age shows the worker's health. No server is asked."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path


def heartbeat_receiver(
    health_path: Path | None, *, is_consuming: Callable[[], bool], record: Callable[[], None]
) -> Callable[..., None]:
    """Returns a receiver for the signals that Celery sends from the event loop while the broker is connected.

    The worker has a heartbeat only while it consumes a queue: no heartbeat means a problem.

    Args:
        health_path: The file to touch at each heartbeat; None: no file.
        is_consuming: Returns True while the worker consumes a queue.
        record: Called at each heartbeat.
    """

    def on_heartbeat(**_: object) -> None:
        if not is_consuming():
            return
        record()
        if health_path is not None:
            health_path.touch()

    return on_heartbeat


def is_fresh(health_path: Path, *, within: timedelta) -> bool:
    """Returns True if a worker touched its health file within a period."""
    try:
        touched = datetime.fromtimestamp(health_path.stat().st_mtime, tz=UTC)
    except FileNotFoundError:
        return False
    return datetime.now(tz=UTC) - touched < within
