"""Temporary files of processes. They contain scans, so those of dead processes on this machine are removed soon."""

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from uuid import UUID

_PREFIX = "inference-service-"
_LOCK_SUFFIX = ".lock"


class ScratchSpace:
    """One process's folder for temporary files, and for a worker a folder in it for each attempt.

    A lock on a file beside the folder shows that it is in use. The process and its children hold the lock.

    Args:
        parent: Folder to create the process's folder in; None takes the system's folder for temporary files.
        prefix: Start of the folder's name, by which folders of dead processes are found.

    Attributes:
        path: The process's folder.
    """

    def __init__(self, parent: Path | None, *, prefix: str = _PREFIX) -> None:
        descriptor, name = tempfile.mkstemp(prefix=prefix, dir=parent)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        self._prefix = prefix
        self._lock = descriptor
        self._lock_path = Path(name).with_suffix(_LOCK_SUFFIX)
        # Renamed once it is locked, so that no process finds the lock of a living one free.
        Path(name).rename(self._lock_path)
        self.path = Path(name)
        self.path.mkdir(mode=0o700)

    @contextmanager
    def folder(self, job_id: UUID) -> Iterator[Path]:
        """Creates a folder for one attempt and removes it when the block ends."""
        with tempfile.TemporaryDirectory(prefix=f"{job_id}-{os.getpid()}-", dir=self.path) as folder:
            yield Path(folder)

    def remove(self, job_id: UUID, pid: int) -> None:
        """Removes the folder of a job whose process is dead."""
        for folder in self.path.glob(f"{job_id}-{pid}-*"):
            shutil.rmtree(folder, ignore_errors=True)

    def remove_abandoned(self) -> int:
        """Removes the folders of dead processes on this machine, and returns their number."""
        removed = 0
        for lock_path in self.path.parent.glob(f"{self._prefix}*{_LOCK_SUFFIX}"):
            with suppress(OSError):
                # Opening a FIFO or a device, which anyone may have put there, could wait for ever.
                if not stat.S_ISREG(lock_path.lstat().st_mode):
                    continue
                with open(lock_path, "rb", opener=_open_at_once) as lock:
                    # Raises BlockingIOError while the process lives.
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(lock_path.with_suffix(""), ignore_errors=True)
                    lock_path.unlink()
                    removed += 1
        return removed

    def close(self) -> None:
        """Removes the process's folder and releases the lock."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock_path.unlink(missing_ok=True)
        os.close(self._lock)


@contextmanager
def scratch_folder(parent: Path | None, *, prefix: str = _PREFIX) -> Iterator[Path]:
    """Creates a folder for temporary files and removes it when the block ends; removes those of dead processes first.

    Args:
        parent: Folder to create it in; None takes the system's folder for temporary files.
        prefix: Start of the folder's name, by which folders of dead processes are found.
    """
    with closing(ScratchSpace(parent, prefix=prefix)) as scratch_space:
        scratch_space.remove_abandoned()
        yield scratch_space.path


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOFOLLOW)
