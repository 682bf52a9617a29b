"""Installs a version of a model, and removes it: each in one step, so that no one sees a part of it."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from inference_service.core.errors import BadRequest
from inference_service.core.scratch_space import scratch_folder

# Hidden: no worker looks into it.
_STAGING_PREFIX = ".new-"


@contextmanager
def staging(models_path: Path) -> Iterator[Path]:
    """Creates a folder beside the models, on their disk, in which a version grows; removes it in the end.

    Those that killed processes have left are removed first.
    """
    models_path.mkdir(parents=True, exist_ok=True)
    with scratch_folder(models_path, prefix=_STAGING_PREFIX) as folder:
        yield folder


def install(folder: Path, target: Path) -> None:
    """Moves a complete version into its place. It is there whole, or not at all, also after a crash of the machine.

    Args:
        folder: The version's files, in a folder of `staging`.
        target: Its place, `<models path>/<name>/<version>`.

    Raises:
        BadRequest: There is one already, or another process was faster.
    """
    for path in folder.iterdir():
        path.chmod(0o644)
        _sync(path)
    folder.chmod(0o755)
    _sync(folder)
    target.parent.mkdir(exist_ok=True)
    try:
        if target.exists():
            raise FileExistsError
        os.rename(folder, target)
    except OSError as error:
        if not target.exists():
            raise
        shutil.rmtree(folder, ignore_errors=True)
        raise BadRequest(f"model {target.parent.name} has a version {target.name} already") from error
    _sync(target.parent)
    _sync(target.parent.parent)


def uninstall(target: Path) -> None:
    """Removes a version, and the folder of its model if that was the last one.

    Raises:
        BadRequest: The folder of the models cannot be written.
    """
    try:
        with staging(target.parent.parent) as folder:
            os.rename(target, folder / target.name)
            if not any(target.parent.iterdir()):
                target.parent.rmdir()
    except OSError as error:
        raise BadRequest(f"model {target.parent.name} {target.name} cannot be removed: {error.strerror}") from error


def _sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
