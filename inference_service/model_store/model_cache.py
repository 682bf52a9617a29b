"""The fetched models of one machine: a folder that several processes share, each version in it fetched once.

`<cache>/<digest of the index>/<name>/<version>/` has the files of a version. Beside them, the file `size` reserves the
room of the version, and a lock on the file `lock` protects it: a shared one while a job uses the version, an exclusive
one while it is fetched or removed. The time of `lock` is that of the last use. Locks end with their processes.
"""

import fcntl
import hashlib
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from inference_service.contract.manifest import MANIFEST_FILE
from inference_service.contract.model_index import ModelIndex
from inference_service.core.errors import ModelError, ModelInvalid, StorageUnavailable
from inference_service.core.files import Checksum
from inference_service.engine.model_folder import install, staging

logger = logging.getLogger(__name__)

_LOCK_FILE = "lock"
_SIZE_FILE = "size"
_ENTRY = re.compile(r"[0-9a-f]{64}")
_POLL_S = 0.1
# The disk may hold scans and results, too; a worker is paused when it is full.
_KEPT_FREE_BYTES = 2**28


class ModelCache:
    """The cache in a folder.

    Args:
        folder: The folder.
        max_bytes: Largest size of all versions together.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes

    def has(self, index: ModelIndex) -> bool:
        """Returns True if a version is in the cache."""
        return _is_whole(self._folder / index.digest, index)

    def remove_abandoned(self) -> None:
        """Removes the staging folders that killed processes have left."""
        with staging(self._folder):
            pass

    @contextmanager
    def holding(self, index: ModelIndex, fetch: Callable[[Path], None], wait: Callable[[], None]) -> Iterator[Path]:
        """Yields the folder of a version, which stays in the cache until the block ends.

        Args:
            index: The version's index.
            fetch: Fetches the version into a folder, if it is not in the cache.
            wait: Called while another process fetches it. It may raise an error.

        Raises:
            ModelInvalid: The version is larger than the cache.
            StorageUnavailable: The cache has no room, or cannot be written; or the files in it were damaged, and the
                next attempt fetches them again.
        """
        entry = self._folder / index.digest
        try:
            lock = self._acquire(entry, index, fetch, wait)
        except PermissionError as error:
            raise StorageUnavailable(
                "this worker cannot write its cache of models: it belongs to another user (MODELS_CACHE_PATH)"
            ) from error
        folder = _version_folder(entry, index)
        try:
            os.utime(entry / _LOCK_FILE)
            yield folder
        except ModelError as error:
            if _is_intact(folder, index):
                raise
            # Without it the version counts as missing.
            (folder / MANIFEST_FILE).unlink(missing_ok=True)
            raise StorageUnavailable(
                f"the files of model {index.title} were damaged on this worker's disk, and will be fetched again"
            ) from error
        finally:
            os.close(lock)

    def _acquire(self, entry: Path, index: ModelIndex, fetch: Callable[[Path], None], wait: Callable[[], None]) -> int:
        """Returns the descriptor of the shared lock on a version that is whole."""
        while True:
            lock = _lock(entry, fcntl.LOCK_SH)
            if lock is not None:
                if _is_whole(entry, index):
                    return lock
                os.close(lock)
                lock = _lock(entry, fcntl.LOCK_EX)
            if lock is None:
                wait()
                time.sleep(_POLL_S)
                continue
            try:
                if not _is_whole(entry, index):
                    self._fill(entry, index, fetch)
            finally:
                os.close(lock)

    def _fill(self, entry: Path, index: ModelIndex, fetch: Callable[[Path], None]) -> None:
        """Fetches a version whose exclusive lock is held. If that fails, nothing of it stays."""
        try:
            shutil.rmtree(entry / index.name, ignore_errors=True)
            self._reserve(entry, index)
            logger.info("fetching model %s: %d bytes", index.title, index.size_bytes)
            with staging(self._folder) as staged:
                folder = _version_folder(staged, index)
                folder.mkdir(parents=True)
                fetch(folder)
                install(folder, _version_folder(entry, index))
        except BaseException:
            with suppress(OSError):
                _remove(entry)
            raise

    def _reserve(self, entry: Path, index: ModelIndex) -> None:
        """Reserves room for a version. Those that were not used for the longest time, and are not now, make room."""
        if index.size_bytes > self._max_bytes:
            raise ModelInvalid(
                f"the stored model {index.title} has {index.size_bytes} bytes; "
                f"this worker fetches at most {self._max_bytes} (MODELS_CACHE_BYTES)"
            )
        with (self._folder / _LOCK_FILE).open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for other in sorted(self._others(entry), key=_last_use):
                if self._missing_bytes(entry, index) > 0 and _remove_unused(other):
                    logger.info("removed an unused model from the cache: %s", other.name)
            if self._missing_bytes(entry, index) > 0:
                raise StorageUnavailable(
                    f"the cache has no room for model {index.title} beside the models that jobs use now: "
                    "raise MODELS_CACHE_BYTES, or free space on its disk"
                )
            (entry / _SIZE_FILE).write_text(str(index.size_bytes))

    def _missing_bytes(self, entry: Path, index: ModelIndex) -> int:
        """Returns the size by which a version does not fit into the cache or onto its disk; 0 or less if it does."""
        others_bytes = sum(map(_reserved_bytes, self._others(entry)))
        free_bytes = shutil.disk_usage(self._folder).free
        return index.size_bytes + max(others_bytes - self._max_bytes, _KEPT_FREE_BYTES - free_bytes)

    def _others(self, entry: Path) -> list[Path]:
        return [child for child in self._folder.iterdir() if _ENTRY.fullmatch(child.name) and child != entry]


def _version_folder(entry: Path, index: ModelIndex) -> Path:
    return entry / index.name / index.version


def _is_whole(entry: Path, index: ModelIndex) -> bool:
    """Returns True if all files of a version are there with their sizes, and the manifest is the one of the index.

    The manifest has the hash of each network, and networks are verified when they are loaded.
    """
    folder = _version_folder(entry, index)
    try:
        manifest_sha256 = hashlib.sha256((folder / MANIFEST_FILE).read_bytes()).hexdigest()
        sizes = {name: (folder / name).stat().st_size for name in index.files}
    except OSError:
        return False
    return manifest_sha256 == index.manifest_sha256 and all(
        size == index.files[name].size_bytes for name, size in sizes.items()
    )


def _is_intact(folder: Path, index: ModelIndex) -> bool:
    """Returns True if all files have the content that the index lists."""
    with suppress(OSError):
        return all(
            Checksum.of_file(folder / name) == Checksum(file.sha256, file.size_bytes)
            for name, file in index.files.items()
        )
    return False


def _reserved_bytes(entry: Path) -> int:
    with suppress(OSError, ValueError):
        return int((entry / _SIZE_FILE).read_text())
    return 0


def _last_use(entry: Path) -> float:
    """Returns the time of the last use; 0 for an entry without a version, as a killed process leaves it."""
    with suppress(OSError):
        if any(child.is_dir() for child in entry.iterdir()):
            return (entry / _LOCK_FILE).stat().st_mtime
    return 0.0


def _lock(entry: Path, mode: int) -> int | None:
    """Returns the descriptor of the lock of an entry, which is made if needed; None if another process has it."""
    lock = _open_lock(entry)
    if _try_lock(lock, mode) and _is_current(lock, entry):
        return lock
    os.close(lock)
    return None


def _open_lock(entry: Path) -> int:
    while True:
        with suppress(FileNotFoundError):
            return os.open(entry / _LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
        # Other processes make and remove it, too.
        with suppress(FileExistsError):
            entry.mkdir(parents=True)


def _try_lock(lock: int, mode: int) -> bool:
    try:
        fcntl.flock(lock, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_current(lock: int, entry: Path) -> bool:
    """Returns False if the entry was removed, and perhaps made again, before the lock was obtained."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(lock), (entry / _LOCK_FILE).stat())
    return False


def _remove_unused(entry: Path) -> bool:
    """Removes an entry unless a process uses it."""
    lock = _lock(entry, fcntl.LOCK_EX)
    if lock is None:
        return False
    try:
        _remove(entry)
    finally:
        os.close(lock)
    return True


def _remove(entry: Path) -> None:
    """Removes an entry whose exclusive lock is held. The size goes after the files, and the lock last."""
    for child in entry.iterdir():
        if child.is_dir():
            shutil.rmtree(child, ignore_errors=True)
    (entry / _SIZE_FILE).unlink(missing_ok=True)
    (entry / _LOCK_FILE).unlink(missing_ok=True)
    # Another process may have made its lock in it at this moment.
    with suppress(OSError):
        entry.rmdir()
