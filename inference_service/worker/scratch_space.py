"""Temporary files of a worker's jobs. They contain scans, so they are removed soon after a job or a process dies."""

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import UUID

_PREFIX = "inference-service-worker-"
_LOCK_SUFFIX = ".lock"
# A younger lock file may belong to a worker that has created it and not locked it yet.
_MIN_LOCK_AGE_S = 60.0


class ScratchSpace:
    """One worker's folder, with a folder in it for each attempt.

    A lock on a file beside the folder shows that it is in use. The worker and its children hold the lock.

    Args:
        parent: Folder to create the worker's folder in; None takes the system's folder for temporary files.
    """

    def __init__(self, parent: Path | None) -> None:
        descriptor, name = tempfile.mkstemp(prefix=_PREFIX, suffix=_LOCK_SUFFIX, dir=parent)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        self._lock = descriptor
        self._lock_path = Path(name)
        self._path = self._lock_path.with_suffix("")
        self._path.mkdir(mode=0o700)

    @contextmanager
    def folder(self, job_id: UUID) -> Iterator[Path]:
        """Creates a folder for one attempt and removes it when the block ends."""
        with tempfile.TemporaryDirectory(prefix=f"{job_id}-{os.getpid()}-", dir=self._path) as folder:
            yield Path(folder)

    def remove(self, job_id: UUID, pid: int) -> None:
        """Removes the folder of a job whose process is dead."""
        for folder in self._path.glob(f"{job_id}-{pid}-*"):
            shutil.rmtree(folder, ignore_errors=True)

    def remove_abandoned(self) -> int:
        """Removes the folders of dead workers on this machine, and returns their number."""
        removed = 0
        for lock_path in self._path.parent.glob(f"{_PREFIX}*{_LOCK_SUFFIX}"):
            with suppress(OSError), lock_path.open("rb") as lock:
                young = lock_path.stat().st_mtime >= time.time() - _MIN_LOCK_AGE_S
                if lock_path == self._lock_path or young:
                    continue
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock_path.with_suffix(""), ignore_errors=True)
                lock_path.unlink()
                removed += 1
        return removed

    def close(self) -> None:
        """Removes the worker's folder and releases the lock."""
        shutil.rmtree(self._path, ignore_errors=True)
        self._lock_path.unlink(missing_ok=True)
        os.close(self._lock)
