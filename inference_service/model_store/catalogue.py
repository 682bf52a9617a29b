"""Lists models with the places where they are, for the operator."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from inference_service.contract.manifest import Manifest
from inference_service.contract.model_index import ModelIndex
from inference_service.core.errors import ModelError
from inference_service.engine.model_registry import Model, list_models, read_model, version_order
from inference_service.model_store.model_cache import ModelCache
from inference_service.model_store.stored_models import StoredModels

Place = Literal["installed", "stored", "cached"]


@dataclass(frozen=True)
class CatalogueEntry:
    """A version of a model.

    Attributes:
        name: Name of the model.
        version: The version.
        places: Where it is: under MODELS_PATH, in MODELS_BUCKET, in the cache of this machine.
        manifest: Its manifest; None: it is damaged.
        problem: Why the stored version cannot be used, or that the installed one differs from it; empty: nothing.
    """

    name: str
    version: str
    places: Sequence[Place]
    manifest: Manifest | None
    problem: str = ""


def list_everywhere(models_path: Path, stored: StoredModels, cache: ModelCache, scratch: Path) -> list[CatalogueEntry]:
    """Lists the installed and the stored models, sorted by name and version.

    Args:
        models_path: The folder of the installed models.
        stored: The stored models.
        cache: The cache of this machine.
        scratch: A folder for temporary files.

    Raises:
        ModelError: An installed model is invalid.
        StorageUnavailable: Models cannot be read, or the storage does not answer or refuses.
    """
    installed = {(folder.parent.name, folder.name): read_model(folder) for folder in list_models(models_path)}
    indexes = {(index.name, index.version): index for index in stored.inventory({})}
    titles = sorted(installed.keys() | indexes.keys(), key=lambda title: (title[0], version_order(title[1])))
    return [_entry(title, installed.get(title), indexes.get(title), (stored, cache), scratch) for title in titles]


def _entry(
    title: tuple[str, str],
    model: Model | None,
    index: ModelIndex | None,
    sources: tuple[StoredModels, ModelCache],
    scratch: Path,
) -> CatalogueEntry:
    stored, cache = sources
    places: list[Place] = [] if model is None else ["installed"]
    problem = ""
    manifest = None if model is None else model.manifest
    if index is not None:
        places += ["stored", "cached"] if cache.has(index) else ["stored"]
        if model is None:
            try:
                folder = scratch / index.name / index.version
                folder.mkdir(parents=True)
                manifest = stored.fetch_manifest(index, folder).manifest
            except ModelError as error:
                problem = error.message
        elif model.manifest_sha256 != index.manifest_sha256:
            problem = "the installed version has another manifest than the stored one"
    return CatalogueEntry(*title, places, manifest, problem)
