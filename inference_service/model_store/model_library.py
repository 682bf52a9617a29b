"""All models that a machine can run: the installed ones, and the stored ones, which it fetches at need."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache, partial
from pathlib import Path

from inference_service.contract.model_index import ModelIndex
from inference_service.core.errors import ModelNotFound
from inference_service.core.settings import Settings
from inference_service.engine.model_registry import (
    FindModel,
    Model,
    complete_versions,
    find_model,
    read_model,
    version_order,
)
from inference_service.jobs.storage.object_storage import Storage
from inference_service.model_store.model_cache import ModelCache
from inference_service.model_store.stored_models import Report, StoredModels, no_report

logger = logging.getLogger(__name__)


class ModelLibrary:
    """The installed models and, where there are any, the stored ones.

    Args:
        models_path: The folder of the installed models. A version in it is taken in place of a stored one.
        stored: The stored models, and the cache that they are fetched into; None: there are none.
    """

    def __init__(self, models_path: Path, stored: tuple[StoredModels, ModelCache] | None) -> None:
        self._models_path = models_path
        self._stored = stored

    @classmethod
    def of(cls, settings: Settings, storage: Storage) -> "ModelLibrary":
        """Returns the models of MODELS_PATH and MODELS_BUCKET.

        Raises:
            ConfigurationError: The cache cannot be used.
        """
        stored = StoredModels.of(settings, storage)
        if stored is None:
            return cls(settings.models_path, None)
        model_cache = ModelCache(settings.usable_models_cache_path, settings.models_cache_bytes)
        # This process may replace one that was killed while it fetched a model.
        model_cache.remove_abandoned()
        return cls(settings.models_path, (stored, model_cache))

    @contextmanager
    def lending(self, report: Report = no_report) -> Iterator[FindModel]:
        """Yields a function that finds models and fetches those that are stored alone.

        The models stay in the cache until the block ends. The function raises the errors of `find_model`, of
        `StoredModels.fetch` and of `ModelCache.holding`.

        Args:
            report: Called while a model is fetched, here or by another process.
        """
        with ExitStack() as held:
            # A model that several parts crop by is found once.
            yield cache(partial(self._find, held, report))

    def _find(self, held: ExitStack, report: Report, name: str, version: str | None) -> Model:
        installed = complete_versions(self._models_path, name)
        if self._stored is None or version in installed:
            return find_model(self._models_path, name, version)
        stored, model_cache = self._stored
        index = _find_stored(stored, name, version, installed)
        if index is not None:
            folder = held.enter_context(
                model_cache.holding(index, lambda target: stored.fetch(index, target, report), lambda: report(0.0))
            )
            return read_model(folder)
        try:
            return find_model(self._models_path, name, version)
        except ModelNotFound as error:
            available = stored.versions(name, again=True)
            others = f"stored: {', '.join(available)}" if available else "and MODELS_BUCKET has none of that name"
            raise ModelNotFound(f"{error}; {others}") from error


def _find_stored(stored: StoredModels, name: str, version: str | None, installed: list[str]) -> ModelIndex | None:
    """Reads the index of the version that is to run; None where that one is installed, or there is none."""
    for again in (False, True):
        chosen = version or max([*stored.versions(name, again=again), *installed], key=version_order, default=None)
        if chosen is None or chosen in installed:
            return None
        # Unless it was removed after the listing.
        with suppress(ModelNotFound):
            return stored.read_index(name, chosen)
    return None
