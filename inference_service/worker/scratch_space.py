"""The folder for a worker's temporary files, which hold scans: none outlives its job for long, whatever dies."""

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
# A lock file this young may belong to a worker that is about to take the lock.
_SETTLED_AFTER_S = 60.0


class ScratchSpace:
    """One worker's folder. A lock on a file beside it, held by the worker and its children, says that it is in use.

    Args:
        parent: Where; None takes the system's folder for temporary files.
    """

    def __init__(self, parent: Path | None) -> None:
        handle, name = tempfile.mkstemp(prefix=_PREFIX, suffix=_LOCK_SUFFIX, dir=parent)
        fcntl.flock(handle, fcntl.LOCK_EX)
        self._lock, self._lock_path = handle, Path(name)
        self._path = self._lock_path.with_suffix("")
        self._path.mkdir(mode=0o700)

    @contextmanager
    def folder(self, job_id: UUID) -> Iterator[Path]:
        """A folder for one attempt, removed when the block ends."""
        with tempfile.TemporaryDirectory(prefix=f"{job_id}-{os.getpid()}-", dir=self._path) as folder:
            yield Path(folder)

    def remove(self, job_id: UUID, pid: int) -> None:
        """Removes what a dead process has left of a job."""
        for folder in self._path.glob(f"{job_id}-{pid}-*"):
            shutil.rmtree(folder, ignore_errors=True)

    def remove_abandoned(self) -> int:
        """Removes the folders of workers that are dead, and says how many there were."""
        removed = 0
        for lock_path in self._path.parent.glob(f"{_PREFIX}*{_LOCK_SUFFIX}"):
            with suppress(OSError), lock_path.open("rb") as lock:
                settled = lock_path.stat().st_mtime < time.time() - _SETTLED_AFTER_S
                if lock_path == self._lock_path or not settled:
                    continue
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock_path.with_suffix(""), ignore_errors=True)
                lock_path.unlink()
                removed += 1
        return removed

    def close(self) -> None:
        """Removes the folder."""
        shutil.rmtree(self._path, ignore_errors=True)
        self._lock_path.unlink(missing_ok=True)
        os.close(self._lock)
