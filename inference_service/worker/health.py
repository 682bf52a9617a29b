"""The heartbeat of a worker, and the file whose age shows the worker's health. No server is asked.

The file is empty, or says why the worker is paused.
"""

from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path


def heartbeat_receiver(
    health_path: Path | None,
    *,
    is_working: Callable[[], bool],
    find_problem: Callable[[], str | None],
    record: Callable[[], None],
) -> Callable[..., None]:
    """Returns a receiver for the signals that Celery sends from the event loop while the broker is connected.

    The worker has a heartbeat only while it consumes a queue, or is paused: no heartbeat means a problem.

    Args:
        health_path: The file to touch at each heartbeat; None: no file.
        is_working: Returns True while the worker consumes a queue or is paused.
        find_problem: Returns why the worker is paused; None if it is not.
        record: Called at each heartbeat.
    """
    written: str | None = None

    def on_heartbeat(**_: object) -> None:
        nonlocal written
        if not is_working():
            return
        record()
        if health_path is None:
            return
        health_path.touch()
        problem = find_problem() or ""
        if problem != written:
            # The disk may be full.
            with suppress(OSError):
                health_path.write_text(problem, encoding="utf-8")
                written = problem

    return on_heartbeat


def pause_reason(health_path: Path) -> str | None:
    """Returns why the worker is paused, as its health file says; None if it is not."""
    return health_path.read_text(encoding="utf-8") or None


def is_fresh(health_path: Path, *, within: timedelta) -> bool:
    """Returns True if a worker touched its health file within a period."""
    try:
        touched = datetime.fromtimestamp(health_path.stat().st_mtime, tz=UTC)
    except FileNotFoundError:
        return False
    return datetime.now(tz=UTC) - touched < within
