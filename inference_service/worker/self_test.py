"""Tests whether this worker's machine can run jobs, and keeps the worker from jobs while it cannot.

A machine that cannot would be the fastest to take the jobs of all others, and to fail them. It is tested before the
worker takes its first job, and after each failure that may be its fault. The supervisor repeats a failed test. A test
may not show too little memory: the worker is also paused after it has lost several jobs in a row.
"""

import logging
import mmap
import shutil
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, closing, nullcontext, suppress
from functools import partial
from pathlib import Path
from uuid import UUID

from inference_service.contract.model_index import ModelIndex
from inference_service.core.errors import (
    ConfigurationError,
    InternalError,
    ModelInvalid,
    ModelNotFound,
    ServiceError,
    StorageRefused,
    StorageUnavailable,
)
from inference_service.core.execution import CPU
from inference_service.core.settings import Settings
from inference_service.engine.model_registry import read_model, take_inventory
from inference_service.engine.providers import PROBE_LIMIT_S, run_probe
from inference_service.jobs.storage.object_storage import Storage, StoredObject
from inference_service.jobs.workers.worker_registry import InstalledModel
from inference_service.model_store.stored_models import StoredModels

logger = logging.getLogger(__name__)

_STORAGE_TIMEOUT_S = 5.0
LONGEST_TEST_S = PROBE_LIMIT_S + 60.0
"""More than the self-test takes, if each server and the probe just meet their time limits."""
# No scan fits into less. Jobs whose files are larger than the free space fail, and go to other workers.
_MIN_FREE_DISK_BYTES = 64 * 2**20
_WRITTEN_BYTES = 4096
_NO_LOCK = nullcontext()
# Of different jobs in a row: a job that kills its process, and its neighbour's, says nothing of the machine.
_MAX_LOSSES = 3
_PAUSED, _LOSSES = 0, 1
_LOST_JOB = slice(2, 18)


def key_for_test(settings: Settings, name: str) -> str:
    """Returns the key of the object with which the object storage is tested, in the bucket of the results."""
    root = (settings.output_prefix_root or "").removesuffix("/")
    return "/".join(filter(None, (root, "self-tests", name)))


class SelfTest:
    """The tests of one worker's machine, and whether the worker is paused. Its child processes share the latter.

    Args:
        settings: The worker's settings.
        scratch_path: Folder of the worker's temporary files.
        worker: Name of the worker.
    """

    def __init__(self, settings: Settings, scratch_path: Path, *, worker: str) -> None:
        self._settings = settings
        self._scratch_path = scratch_path
        self._key = key_for_test(settings, worker)
        self._indexes: dict[StoredObject, ModelIndex] = {}
        self._conflicts: set[tuple[str, str]] = set()
        # Shared with children that are forked later.
        self._shared = mmap.mmap(-1, _LOST_JOB.stop)

    @property
    def paused(self) -> bool:
        """Whether the worker takes no jobs because a test has failed, or because it has lost several jobs in a row."""
        return self._shared[_PAUSED] != 0

    @paused.setter
    def paused(self, paused: bool) -> None:
        self._shared[_PAUSED] = int(paused)

    @property
    def losses(self) -> int:
        """Number of different jobs in a row that were lost here: since the last one that succeeded."""
        return self._shared[_LOSSES]

    def count_loss(self, job_id: UUID) -> None:
        """Counts a job whose process died or could not allocate memory, and pauses the worker if it is one too many."""
        if self._shared[_LOST_JOB] == job_id.bytes:
            return
        self._shared[_LOST_JOB] = job_id.bytes
        self._shared[_LOSSES] = min(self.losses + 1, _MAX_LOSSES)
        if self.losses == _MAX_LOSSES:
            self.paused = True

    def end_losses(self) -> None:
        """Records that a job has succeeded."""
        self._shared[_LOSSES] = 0

    def problem_of_losses(self) -> str | None:
        """Returns why losses have paused the worker, once. The next loss in a row pauses it again."""
        if self.losses < _MAX_LOSSES:
            return None
        self._shared[_LOSSES] = _MAX_LOSSES - 1
        return (
            "the last jobs lost their processes or could not allocate memory: "
            "check the memory of this machine and the memory limit of the worker"
        )

    def problem(self, *, with_engine: bool, fork_lock: AbstractContextManager[object] = _NO_LOCK) -> str | None:
        """Tests the machine.

        Args:
            with_engine: Whether to test ONNX Runtime too, which takes a second or more.
            fork_lock: Held while a connection is open.

        Returns:
            The first problem; None if there is none.
        """
        tests: list[Callable[[], object]] = [
            self._test_disk,
            partial(self._test_models, fork_lock),
            partial(self._test_storage, fork_lock),
        ]
        if with_engine:
            tests.append(self._test_engine)
        for test in tests:
            try:
                test()
            except ServiceError as error:
                return error.message
        return None

    def may_explain(self, error: ServiceError) -> bool:
        """Returns True if the machine may be the reason for a job's error, so that `problem_behind` tests it."""
        return isinstance(error, StorageUnavailable | InternalError)

    def problem_behind(self, error: ServiceError) -> str | None:
        """Tests the machine if it may be the reason for a job's error, and pauses the worker if it is.

        Returns:
            The problem of the machine; None if the error is the job's own.
        """
        if not self.may_explain(error):
            return None
        problem = self.problem(with_engine=isinstance(error, InternalError))
        if problem is not None:
            self.paused = True
        return problem

    def usable_models(self, fork_lock: AbstractContextManager[object] = _NO_LOCK) -> tuple[list[InstalledModel], bool]:
        """Lists the models that this machine can run: those that it can read, and the stored ones.

        Args:
            fork_lock: Held while a connection is open.

        Returns:
            The models, and whether all could be read.

        Raises:
            StorageUnavailable: The folder of all models cannot be read.
        """
        inventory = take_inventory(self._settings.models_path)
        found = {}
        complete = not inventory.errors
        for folder in inventory.folders:
            try:
                model = read_model(folder)
            except (ModelInvalid, ModelNotFound):
                continue  # its author's fault, or it was just removed
            except StorageUnavailable:
                complete = False
                continue
            found[model.manifest.name, model.manifest.version] = model.manifest_sha256
        try:
            stored = self._stored_models(fork_lock)
        except StorageUnavailable as error:
            logger.warning("stored models are not listed: %s", error)
            stored, complete = {}, False
        conflicts = {title for title, sha256 in stored.items() if found.setdefault(title, sha256) != sha256}
        for name, version in conflicts - self._conflicts:
            logger.warning("model %s %s is also stored with another manifest: the installed one runs", name, version)
        self._conflicts = conflicts
        return [InstalledModel(name, version, sha256) for (name, version), sha256 in sorted(found.items())], complete

    def _stored_models(self, fork_lock: AbstractContextManager[object]) -> dict[tuple[str, str], str]:
        """The SHA-256 of the manifest of each stored model, by name and version."""
        if self._settings.models_bucket is None:
            return {}
        with fork_lock, closing(Storage(self._settings, read_timeout_s=_STORAGE_TIMEOUT_S)) as storage:
            stored = StoredModels.of(self._settings, storage)
            indexes = [] if stored is None else stored.inventory(self._indexes)
        return {(index.name, index.version): index.manifest_sha256 for index in indexes}

    def _test_disk(self) -> None:
        try:
            with tempfile.TemporaryFile(dir=self._scratch_path) as file:
                file.write(bytes(_WRITTEN_BYTES))
            free_bytes = shutil.disk_usage(self._scratch_path).free
        except OSError as error:
            raise ConfigurationError(f"no temporary file can be written to WORK_PATH: {error.strerror}") from error
        if free_bytes < _MIN_FREE_DISK_BYTES:
            raise ConfigurationError(
                f"the disk with the temporary files (WORK_PATH) is full: {free_bytes} bytes are free, "
                f"and at least {_MIN_FREE_DISK_BYTES} are needed"
            )

    def _test_models(self, fork_lock: AbstractContextManager[object]) -> None:
        models, complete = self.usable_models(fork_lock)
        if self._settings.models_bucket is not None:
            self._settings.usable_models_cache_path  # noqa: B018 - raises where it is not usable
        if not models:
            problem = "no model is installed" if complete else "none of the models can be read"
            stored = "" if self._settings.models_bucket is None else " or MODELS_BUCKET"
            raise ConfigurationError(f"{problem} under MODELS_PATH{stored}")

    def _test_storage(self, fork_lock: AbstractContextManager[object]) -> None:
        bucket = self._settings.minio_output_bucket
        with fork_lock, closing(Storage(self._settings, read_timeout_s=_STORAGE_TIMEOUT_S)) as storage:
            storage.try_out(bucket, self._key)
            # Jobs succeed without the right to remove.
            with suppress(StorageRefused):
                storage.remove(bucket, self._key)

    def _test_engine(self) -> None:
        # Without its GPU a worker goes on: the jobs run on a CPU.
        if any(result.provider == CPU and result.reason is None for result in run_probe()):
            return
        raise ConfigurationError("ONNX Runtime does not work any more; `inference-service providers` tells more")
