"""A worker process: its role, its providers, its queues. Celery does the rest."""

import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path
from secrets import token_hex
from uuid import UUID

from billiard.einfo import ExceptionInfo
from billiard.exceptions import Terminated, WorkerLostError
from celery import signals
from celery.concurrency.base import BasePool
from celery.worker import state
from celery.worker.request import Request

from inference_service.core.errors import ConfigurationError, TimeLimit
from inference_service.core.execution import GPU_PROVIDERS, ExecutionOptions
from inference_service.core.host import usable_cpus
from inference_service.core.log_config import configure_logging
from inference_service.core.settings import Settings
from inference_service.engine.model_registry import require_models
from inference_service.engine.providers import log_providers
from inference_service.jobs.celery_app import QUEUES, make_app
from inference_service.jobs.database import limit_response_time
from inference_service.jobs.worker_registry import ROLE_QUEUES, Role, WorkerIdentity
from inference_service.worker.consumer import SafeConsumer
from inference_service.worker.redis_transport import install
from inference_service.worker.scratch_space import ScratchSpace
from inference_service.worker.supervisor import Supervisor
from inference_service.worker.task import JobRunner, register

logger = logging.getLogger(__name__)

_CONCURRENCY = {Role.GPU: 1, Role.CPU: 2}


def run_worker(role: Role, settings: Settings) -> int:
    """Runs a worker until it is told to stop.

    Returns:
        The exit status.

    Raises:
        ConfigurationError: No ONNX Runtime works here, or none of the GPUs that REQUIRE_GPU asks for.
        ModelNotFound: No model is installed.
    """
    configure_logging(settings.log_level, settings.log_format)
    signals.setup_logging.connect(_keep_logging)
    providers = settings.effective_onnx_providers
    log_providers(settings.onnx_providers, providers)
    _check_gpu(role, settings, providers)
    require_models(settings.models_path)
    concurrency = settings.worker_concurrency or _CONCURRENCY[role]
    threads = settings.intra_op_threads or max(1, usable_cpus() // concurrency)
    logger.info("role %s: queues %s, concurrency %d, threads %d", role, list(ROLE_QUEUES[role]), concurrency, threads)
    install()
    limit_response_time()
    execution = ExecutionOptions(
        tuple(providers),
        threads,
        strict=settings.require_gpu and role is Role.GPU,
        precision=settings.onnx_precision,
        batch_size=settings.window_batch,
        concurrency=concurrency,
        gpu=settings.gpu_options,
    )
    app = make_app(settings)
    # In containers the process is always 1, and those on the host's network share its name too.
    name = f"{role}-{os.getpid()}-{token_hex(3)}@{socket.gethostname()}"
    scratch_space = ScratchSpace(settings.usable_work_path)

    def consumed() -> list[str]:
        consumer = getattr(getattr(worker, "consumer", None), "task_consumer", None)
        return [queue for queue in QUEUES if consumer is not None and consumer.consuming_from(queue)]

    identity = WorkerIdentity(name, role, concurrency, providers)
    supervisor = Supervisor(settings, identity, scratch_space, queues=consumed, taken=_taken)
    register(app, JobRunner(settings, execution, scratch_space, worker=name), _watched_by(supervisor))
    _follow(supervisor, settings.health_path, consumes=lambda: bool(consumed()))
    worker = app.Worker(
        hostname=name,
        consumer_cls=SafeConsumer,
        pool="prefork",
        concurrency=concurrency,
        queues=list(ROLE_QUEUES[role]),
        quiet=True,
        without_gossip=True,
        without_mingle=True,
    )
    try:
        worker.start()
    finally:
        supervisor.stop()
        scratch_space.close()
    return int(worker.exitcode or supervisor.gave_up)


def _check_gpu(role: Role, settings: Settings, providers: list[str]) -> None:
    if role is not Role.GPU or any(provider in GPU_PROVIDERS for provider in providers):
        return
    if settings.require_gpu:
        raise ConfigurationError(
            "REQUIRE_GPU is set and no requested GPU provider is usable: check the driver with nvidia-smi, that the "
            "container sees the GPU, and that the extra `gpu` is installed"
        )
    logger.warning("role gpu runs on the CPU: no requested GPU provider is usable here")


def _keep_logging(**_: object) -> None:
    """Listening is what keeps Celery from setting up the logging anew."""


def _taken() -> int | None:
    """How many messages this worker has taken; None while it runs any."""
    return None if state.reserved_requests else sum(state.total_count.values())


def _watched_by(supervisor: Supervisor) -> type[Request]:
    """Celery's view of a task in the parent, which learns first that a child is dead."""

    class WatchedRequest(Request):
        def on_failure(self, exc_info: ExceptionInfo, send_failed_event: bool = True, return_ok: bool = False) -> None:
            error = getattr(exc_info.exception, "exc", exc_info.exception)
            lost = isinstance(error, WorkerLostError | Terminated | SystemExit | KeyboardInterrupt)
            # Celery would log a lost child with a traceback of this process, which says nothing of the child's end.
            super().on_failure(exc_info, send_failed_event, return_ok or lost)
            if lost and self.worker_pid:
                logger.warning("process %s, which ran job %s, is gone: %s", self.worker_pid, self.id, error)
                supervisor.lost(UUID(self.id), int(self.worker_pid))

        def cancel(self, pool: BasePool, signal: int | None = None, emit_retry: bool = True) -> None:
            # Only a worker that is to stop at once does so, and says that it stops when its jobs are ended already.
            supervisor.stopping(at_once=True)
            super().cancel(pool, signal, emit_retry)

        def on_timeout(self, soft: bool, timeout: float) -> None:
            super().on_timeout(soft, timeout)
            if self.worker_pid:
                error = TimeLimit(f"the job was still running after {timeout:g} s")
                supervisor.lost(UUID(self.id), int(self.worker_pid), error)

    return WatchedRequest


def _follow(supervisor: Supervisor, health_path: Path | None, *, consumes: Callable[[], bool]) -> None:
    """Celery's heartbeat beats in its event loop while the broker is connected, so that its absence means trouble."""

    def beat(**_: object) -> None:
        if not consumes():
            return
        supervisor.beat()
        if health_path is not None:
            health_path.touch()

    signals.worker_ready.connect(lambda **_: supervisor.start(), weak=False)
    signals.worker_ready.connect(beat, weak=False)
    signals.heartbeat_sent.connect(beat, weak=False)
    signals.worker_shutting_down.connect(lambda **_: supervisor.stopping(), weak=False)
