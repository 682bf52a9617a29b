"""Finds, reads and verifies the models on disk: `<models path>/<name>/<version>/{manifest.json,model.onnx}`.

`session_cache` loads their networks.
"""

import errno
import hashlib
import logging
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError
from pydantic_core import from_json

from inference_service.contract.manifest import MANIFEST_FILE, Manifest
from inference_service.contract.part import NETWORK_FILE, NetworkFile
from inference_service.contract.task_message import NAME_PATTERN, VERSION_PATTERN
from inference_service.contract.validation import first_problem
from inference_service.core.errors import ModelInvalid, ModelNotFound, StorageUnavailable
from inference_service.engine.onnx_file import MAX_NETWORK_BYTES, NetworkContent, check_self_contained, is_truncated

logger = logging.getLogger(__name__)

CARD_FILE = "README.md"
MAX_MANIFEST_BYTES = 2**20
_MAX_EXTERNAL_BYTES = 2**34
# A link to itself leads nowhere, like one to a missing file.
_NO_FILE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}


@dataclass(frozen=True)
class Model:
    """An installed model.

    Attributes:
        manifest: The content of the model's manifest.json.
        manifest_sha256: SHA-256 of manifest.json.
        folder: The folder of the model's files.
    """

    manifest: Manifest = field(compare=False)
    manifest_sha256: str
    folder: Path

    @property
    def title(self) -> str:
        """Name and version."""
        return _title(self.manifest)

    def read_network(self, network: NetworkFile) -> NetworkContent:
        """Reads a network and verifies it. The caller loads these bytes, not the files, which may change.

        Raises:
            ModelNotFound: A file is missing.
            ModelInvalid: A sha256 differs from the manifest, or a part of the network lies in a file that the manifest
                does not list.
            StorageUnavailable: A file cannot be read.
        """
        content = NetworkContent(
            self._read_verified(network.file, network.sha256, MAX_NETWORK_BYTES),
            {
                name: self._read_verified(name, sha256, _MAX_EXTERNAL_BYTES)
                for name, sha256 in network.external_data.items()
            },
        )
        check_self_contained(content.network, external=content.external_data)
        return content

    def _read_verified(self, name: str, sha256: str, max_bytes: int) -> bytes:
        content = _read(self.folder, name, max_bytes=max_bytes)
        digest = hashlib.sha256(content).hexdigest()
        if digest != sha256:
            raise ModelInvalid(f"model {_title(self.manifest)}: expected sha256 {sha256} of {name}, got {digest}")
        return content


FindModel = Callable[[str, str | None], Model]
"""Finds a model by its name, and by its version or as the highest one; raises the errors of `find_model`."""


@dataclass(frozen=True)
class Inventory:
    """The models on disk.

    Attributes:
        folders: The folder of each complete version of each model, sorted by name and version.
        errors: The error of each model that cannot be read.
    """

    folders: list[Path]
    errors: list[StorageUnavailable]


def find_model(models_path: Path, name: str, version: str | None = None) -> Model:
    """Finds a model by name and version.

    Args:
        models_path: The folder of all models.
        name: The model's name.
        version: Version of the model; None: the highest, compared number by number, that is wholly installed.

    Raises:
        ModelNotFound: No such model is installed.
        ModelInvalid: The model's manifest is invalid.
        StorageUnavailable: The models cannot be read.
    """
    check_names(name, version)
    versions = _versions(models_path / name)
    if not versions:
        names = dict.fromkeys(folder.parent.name for folder in list_models(models_path))
        raise ModelNotFound(f"model {name!r} is not installed; MODELS_PATH holds {', '.join(names) or 'no model'}")
    if version is None:
        version = (_complete(versions) or list(versions))[-1]
    elif version not in versions:
        raise ModelNotFound(f"model {name!r} has no version {version}; installed: {', '.join(versions)}")
    return read_model(models_path / name / version)


def complete_versions(models_path: Path, name: str) -> list[str]:
    """Lists the versions of a model that are wholly installed, in ascending order.

    Raises:
        ModelNotFound: It is not the name of a model.
        StorageUnavailable: The models cannot be read.
    """
    check_names(name, None)
    return _complete(_versions(models_path / name))


def version_order(version: str) -> list[int]:
    """Returns the key by which versions are sorted.

    >>> sorted(["10", "9.1", "9"], key=version_order)
    ['9', '9.1', '10']
    """
    return [int(part) for part in version.split(".")]


def take_inventory(models_path: Path) -> Inventory:
    """Lists the models, and logs each one that cannot be read.

    Raises:
        StorageUnavailable: The folder of all models cannot be read.
    """
    inventory = Inventory([], [])
    for folder in sorted(_subfolders(models_path, NAME_PATTERN)):
        try:
            inventory.folders.extend(folder / version for version in _complete(_versions(folder)))
        except StorageUnavailable as error:
            logger.warning("model %s is skipped: %s", folder.name, error)
            inventory.errors.append(error)
    return inventory


def list_models(models_path: Path) -> list[Path]:
    """Lists the folder of each complete version of each model that can be read, sorted by name and version.

    Raises:
        StorageUnavailable: No model can be read.
    """
    inventory = take_inventory(models_path)
    if inventory.errors and not inventory.folders:
        raise inventory.errors[0]
    return inventory.folders


def require_models(models_path: Path) -> list[Path]:
    """Lists the folders of the installed models like `list_models`.

    Raises:
        ModelNotFound: No model is installed.
        StorageUnavailable: No model can be read.
    """
    folders = list_models(models_path)
    if not folders:
        raise ModelNotFound(f"no model is installed under MODELS_PATH {models_path}")
    return folders


def read_model(folder: Path) -> Model:
    """Reads the manifest in a model's folder.

    Raises:
        ModelNotFound: There is none.
        ModelInvalid: The manifest violates the schema or contradicts the folder's name.
        StorageUnavailable: The manifest cannot be read.
    """
    title = f"{folder.parent.name} {folder.name}"
    content = _read(folder, MANIFEST_FILE, max_bytes=MAX_MANIFEST_BYTES)
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError as error:
        raise ModelInvalid(f"model {title}: {MANIFEST_FILE} is invalid at {first_problem(error)}") from error
    if (manifest.name, manifest.version) != (folder.parent.name, folder.name):
        raise ModelInvalid(f"model {title}: {MANIFEST_FILE} is for {_title(manifest)}")
    return Model(manifest, hashlib.sha256(content).hexdigest(), folder)


def check_names(name: str, version: str | None) -> None:
    """Raises ModelNotFound if they cannot be the name and the version of a model."""
    if not re.fullmatch(NAME_PATTERN, name) or (version is not None and not re.fullmatch(VERSION_PATTERN, version)):
        raise ModelNotFound(f"{name!r} {version or ''} is not the name and version of a model".replace("  ", " "))


def _versions(folder: Path) -> dict[str, str | None]:
    """Lists the versions of a model in ascending order, each with what it lacks; None where it is complete.

    A version lacks something while it is copied. That is logged, because it is skipped where another one will do.
    """
    numbers = (child.name for child in _subfolders(folder, VERSION_PATTERN))
    versions: dict[str, str | None] = {}
    for version in sorted(numbers, key=version_order):
        with _mapped_errors():
            versions[version] = _missing_part(folder / version)
        if versions[version] is not None:
            logger.warning("model %s: version %s is skipped: it lacks %s", folder.name, version, versions[version])
    return versions


def _complete(versions: Mapping[str, str | None]) -> list[str]:
    return [version for version, missing_part in versions.items() if missing_part is None]


def _missing_part(folder: Path) -> str | None:
    """Names a file of a version that is missing or truncated; None where all are whole."""
    if not _is_file(folder / MANIFEST_FILE):
        return MANIFEST_FILE
    content = _read(folder, MANIFEST_FILE, max_bytes=MAX_MANIFEST_BYTES)
    networks = _network_files(content)
    for name, external in networks.items():
        for file in (name, *external):
            if not _is_file(folder / file):
                return file
    if _is_partial_json(content):
        return f"a part of {MANIFEST_FILE}"
    for name in networks:
        with (folder / name).open("rb") as network:
            if is_truncated(network, os.fstat(network.fileno()).st_size):
                return f"a part of {name}"
    return None


def _network_files(manifest: bytes) -> dict[str, list[str]]:
    """Lists the network files of a manifest, each with its external data; model.onnx where it is invalid."""
    try:
        networks = Manifest.model_validate_json(manifest).network_files
    except ValidationError:
        return {NETWORK_FILE: []}
    return {name: list(network.external_data) for name, network in networks.items()}


def _is_partial_json(content: bytes) -> bool:
    """Returns True if JSON ends before its last bracket; False for whole JSON, and for text that never was JSON."""
    try:
        from_json(content)
    except ValueError:
        try:
            from_json(content, allow_partial=True)
        except ValueError:
            return not content
        return True
    return False


def _subfolders(folder: Path, pattern: str) -> list[Path]:
    """Lists the folders in a folder whose names match a pattern; none where the folder does not exist."""
    with _mapped_errors():
        if not _is_folder(folder):
            return []
        return [child for child in folder.iterdir() if re.fullmatch(pattern, child.name) and _may_be_folder(child)]


def _may_be_folder(path: Path) -> bool:
    """Returns True for a folder, and for an entry that cannot be read: its reader gets the error."""
    try:
        return _is_folder(path)
    except OSError:
        return True


def _is_folder(path: Path) -> bool:
    return stat.S_ISDIR(_mode(path))


def _is_file(path: Path) -> bool:
    """Returns True for a regular file: a FIFO or a device could be read without end."""
    return stat.S_ISREG(_mode(path))


def _mode(path: Path) -> int:
    """Returns the type of a file; 0 where there is none. `Path.is_file` would take an I/O error for that too."""
    try:
        return path.stat().st_mode
    except OSError as error:
        if error.errno in _NO_FILE:
            return 0
        raise


def _read(folder: Path, name: str, *, max_bytes: int) -> bytes:
    title = f"{folder.parent.name} {folder.name}"
    with _mapped_errors():
        if not _is_file(folder / name):
            raise ModelNotFound(f"model {title} has no {name}")
        size = (folder / name).stat().st_size
        if size > max_bytes:
            raise ModelInvalid(f"model {title}: {name} has {size} bytes; at most {max_bytes} are read")
        return (folder / name).read_bytes()


@contextmanager
def _mapped_errors() -> Iterator[None]:
    """Maps errors of the disk or share with the models. They are the machine's, so another attempt may succeed."""
    try:
        yield
    except OSError as error:
        raise StorageUnavailable(f"this worker cannot read its models: {error.strerror}") from error


def _title(manifest: Manifest) -> str:
    return f"{manifest.name} {manifest.version}"
