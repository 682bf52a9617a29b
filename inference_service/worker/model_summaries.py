"""Reads the summaries of a worker's models from their manifests, installed or stored: each of them once."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, closing, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from inference_service.contract.model_summary import ModelSummary
from inference_service.core.errors import ModelError, ModelInvalid, ModelNotFound, StorageUnavailable
from inference_service.core.settings import Settings
from inference_service.engine.model_registry import Model, read_model
from inference_service.jobs.storage.object_storage import Storage
from inference_service.jobs.workers.worker_registry import InstalledModel
from inference_service.model_store.stored_models import StoredModels

logger = logging.getLogger(__name__)

_STORAGE_TIMEOUT_S = 5.0


class SummaryReader:
    """Reads summaries of models.

    Args:
        settings: The worker's settings.
        scratch_path: Folder of the worker's temporary files.
        fork_lock: Held while a connection is open, so that no fork copies one.
    """

    def __init__(self, settings: Settings, scratch_path: Path, fork_lock: AbstractContextManager[object]) -> None:
        self._settings = settings
        self._scratch_path = scratch_path
        self._fork_lock = fork_lock
        # None: the manifest with this SHA-256 is invalid.
        self._known: dict[str, ModelSummary | None] = {}

    def read(self, models: Sequence[InstalledModel]) -> Mapping[str, ModelSummary]:
        """Returns the summaries of models, by the SHA-256 of their manifests.

        Those that cannot be read now are left out; the next call tries again.
        """
        for model in models:
            if model.manifest_sha256 not in self._known:
                try:
                    self._known[model.manifest_sha256] = ModelSummary.of(self._find(model).manifest)
                except ModelInvalid as error:
                    logger.warning("%s", error)
                    self._known[model.manifest_sha256] = None
                except ModelNotFound:
                    continue  # it was just removed or replaced
                except StorageUnavailable as error:
                    logger.warning("summaries of models are not read: %s", error)
                    break
        found = {model.manifest_sha256: self._known.get(model.manifest_sha256) for model in models}
        self._known = {sha256: found[sha256] for sha256 in found.keys() & self._known.keys()}
        return {sha256: summary for sha256, summary in found.items() if summary is not None}

    def _find(self, wanted: InstalledModel) -> Model:
        with suppress(ModelError):
            model = read_model(self._settings.models_path / wanted.name / wanted.version)
            if model.manifest_sha256 == wanted.manifest_sha256:
                return model
        with self._fork_lock, closing(Storage(self._settings, read_timeout_s=_STORAGE_TIMEOUT_S)) as storage:
            stored = StoredModels.of(self._settings, storage)
            index = None if stored is None else stored.read_index(wanted.name, wanted.version)
            if stored is None or index is None or index.manifest_sha256 != wanted.manifest_sha256:
                raise ModelNotFound(f"model {wanted.name} {wanted.version} was just removed or replaced")
            with TemporaryDirectory(dir=self._scratch_path) as scratch:
                folder = Path(scratch) / wanted.name / wanted.version
                folder.mkdir(parents=True)
                return stored.fetch_manifest(index, folder)
