"""The settings of one worker's jobs, and the connections and sessions of each of its processes."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import ParamSpec, TypeVar

from inference_service.core.execution import ExecutionOptions
from inference_service.core.retry import retrying
from inference_service.core.scratch_space import ScratchSpace
from inference_service.core.settings import Settings
from inference_service.core.tracing import Tracing
from inference_service.engine.session_cache import SessionCache
from inference_service.jobs.database import Database, connect, is_database_outage
from inference_service.jobs.storage.object_storage import Storage
from inference_service.model_store.model_library import ModelLibrary
from inference_service.worker.self_test import SelfTest

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


@dataclass(frozen=True)
class JobContext:
    """The context of a worker's jobs.

    It is created before the child processes are forked. Each child opens its own connections, and loads its own
    models, on first use.

    Attributes:
        settings: The worker's settings.
        execution: How models run in this worker.
        scratch_space: For temporary files.
        worker: The worker's name in rows and logs.
        self_test: Tests the worker's machine.
        started_at: When the worker started, by the monotonic clock. A new worker does not know the others yet.
        tracing: Makes the spans of attempts.
    """

    settings: Settings
    execution: ExecutionOptions
    scratch_space: ScratchSpace
    worker: str
    self_test: SelfTest
    started_at: float = -math.inf
    tracing: Tracing = field(default_factory=Tracing)

    @cached_property
    def database(self) -> Database:
        """This process's connections to Postgres."""
        return connect(self.settings)

    @cached_property
    def storage(self) -> Storage:
        """This process's client of the object storage; it retries during an outage."""
        return Storage(self.settings, retry_for_s=self.settings.outage_patience_s)

    @cached_property
    def models(self) -> ModelLibrary:
        """The models that this worker can run."""
        return ModelLibrary.of(self.settings, self.storage)

    @cached_property
    def sessions(self) -> SessionCache:
        """The models that this process has loaded."""
        return SessionCache()

    def retry_database(
        self, call: Callable[Parameters, Result], *args: Parameters.args, **kwargs: Parameters.kwargs
    ) -> Result:
        """Makes a call that needs Postgres, and repeats it during an outage.

        Raises:
            DatabaseUnavailable: The outage lasts longer than `OUTAGE_PATIENCE_S`.
        """
        repeat = retrying(is_database_outage, timeout_s=self.settings.outage_patience_s)
        return repeat(call, *args, **kwargs)
