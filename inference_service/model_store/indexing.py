"""The index of an installed model, and its comparison with the stored one."""

from pathlib import Path

from pydantic import ValidationError

from inference_service.contract.manifest import MANIFEST_FILE
from inference_service.contract.model_index import IndexedFile, ModelIndex
from inference_service.core.errors import BadRequest, ModelInvalid
from inference_service.core.files import Checksum
from inference_service.engine.model_registry import Model


def index_of(model: Model) -> ModelIndex:
    """Makes the index of an installed model: it lists all plain files of its folder but the hidden ones.

    Raises:
        ModelInvalid: A file has a name that an index cannot have, or the manifest or a network has changed.
    """
    manifest = model.manifest
    try:
        files = {path.name: IndexedFile(**vars(Checksum.of_file(path))) for path in model_files(model.folder)}
        index = ModelIndex(name=manifest.name, version=manifest.version, files=files)
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"]))
        raise ModelInvalid(f"model {model.title} has a file that cannot be stored: {place}") from error
    expected = {MANIFEST_FILE: model.manifest_sha256, **network_hashes(model)}
    for name, sha256 in expected.items():
        if name not in files or files[name].sha256 != sha256:
            raise ModelInvalid(f"model {model.title}: {name} is missing, or is not the file of its manifest")
    return index


def model_files(folder: Path) -> list[Path]:
    """The files of a model, without hidden ones."""
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))


def network_hashes(model: Model) -> dict[str, str]:
    """The SHA-256 of each file that the networks of a model consist of."""
    networks = model.manifest.network_files
    return {
        name: sha256
        for network in networks.values()
        for name, sha256 in {network.file: network.sha256, **network.external_data}.items()
    }


def require_equal(index: ModelIndex, stored: ModelIndex | None) -> None:
    """Raises BadRequest if a version is stored already, with other files."""
    if stored is not None and stored != index:
        raise BadRequest(f"model {index.title} is stored already, with other files: give these another version")
