"""The worker's parent process: checks the configuration, then runs Celery's worker and the supervisor."""

import logging
import os
import socket
import time
from collections.abc import Callable
from secrets import token_hex
from typing import Any
from uuid import UUID

from billiard.einfo import ExceptionInfo
from billiard.exceptions import Terminated, WorkerLostError
from celery import signals
from celery.apps.worker import Worker as CeleryWorker
from celery.concurrency.base import BasePool
from celery.worker import state
from celery.worker.request import Request

from inference_service.core.errors import ConfigurationError, TimeLimit
from inference_service.core.execution import GPU_PROVIDERS, ExecutionOptions
from inference_service.core.host import usable_cpus
from inference_service.core.log_config import configure_logging
from inference_service.core.scratch_space import ScratchSpace
from inference_service.core.settings import Settings
from inference_service.core.tracing import Tracing
from inference_service.engine.model_registry import require_models
from inference_service.engine.providers import log_providers
from inference_service.jobs.database import limit_response_time
from inference_service.jobs.queues.celery_app import App, make_app, redis_key
from inference_service.jobs.queues.lists import QUEUES
from inference_service.jobs.workers.worker_registry import ROLE_QUEUES, Role, WorkerIdentity
from inference_service.worker.deployment import take_redis
from inference_service.worker.health import heartbeat_receiver
from inference_service.worker.job_context import JobContext
from inference_service.worker.messages.redis_transport import install
from inference_service.worker.self_test import SelfTest
from inference_service.worker.supervisor import Supervisor
from inference_service.worker.task import TaskHandler, register

logger = logging.getLogger(__name__)

_DEFAULT_CONCURRENCY = {Role.GPU: 1, Role.CPU: 2}


def run_worker(role: Role, settings: Settings) -> int:
    """Runs a worker until a signal stops it.

    Returns:
        The exit status.

    Raises:
        ConfigurationError: ONNX Runtime does not work, or REQUIRE_GPU is set and no requested GPU is usable, or Redis
            belongs to another deployment.
        ModelNotFound: No model is installed, and MODELS_BUCKET is not set.
        OtherRedisInUse: The deployment's live workers use another Redis.
    """
    configure_logging(settings.log_level, settings.log_format)
    signals.setup_logging.connect(_keep_logging)
    providers = settings.effective_onnx_providers
    log_providers(settings.onnx_providers, providers)
    _check_gpu(role, settings, providers)
    if settings.models_bucket is None:
        require_models(settings.models_path)
    execution = _execution_options(role, settings, providers)
    queues = list(ROLE_QUEUES[role])
    logger.info(
        "role %s: queues %s, concurrency %d, threads %d", role, queues, execution.concurrency, execution.threads
    )
    install()
    limit_response_time()
    take_redis(settings)
    scratch_space = ScratchSpace(settings.usable_work_path)
    try:
        worker = _worker_name(role)
        self_test = SelfTest(settings, scratch_space.path, worker=worker)
        problem = self_test.problem(with_engine=False)
        if problem is not None:
            logger.error("this worker takes no jobs yet: %s", problem)
            self_test.paused = True
        tracing = Tracing(worker)
        # In the child processes, which make the spans.
        signals.worker_process_shutdown.connect(lambda **_: tracing.close(), weak=False)
        return _run(role, JobContext(settings, execution, scratch_space, worker, self_test, time.monotonic(), tracing))
    finally:
        scratch_space.close()


def _run(role: Role, context: JobContext) -> int:
    app = make_app(context.settings)

    def consumer() -> Any:
        """Celery's consumer; None until it is connected for the first time."""
        found = getattr(celery_worker, "consumer", None)
        return found if getattr(found, "task_consumer", None) is not None else None

    def consumed_queues() -> list[str]:
        tasks = getattr(consumer(), "task_consumer", None)
        return [queue for queue in QUEUES if tasks is not None and tasks.consuming_from(redis_key(app, queue))]

    def consume_wanted_queues(**_: object) -> None:
        """Adds and removes queues, in the event loop, because Celery's consumer is not thread-safe."""
        if consumer() is None or supervisor.stopping:
            return
        consumed = consumed_queues()
        wanted = supervisor.wanted_queues
        for queue in wanted:
            if queue not in consumed:
                consumer().add_task_queue(redis_key(app, queue))
        for queue in consumed:
            if queue not in wanted:
                consumer().cancel_task_queue(redis_key(app, queue))

    supervisor = Supervisor(
        context.settings,
        WorkerIdentity(context.worker, role, context.execution.concurrency, list(context.execution.providers)),
        context.scratch_space,
        context.self_test,
        consumed_queues=consumed_queues,
        messages_taken=_messages_taken,
    )
    register(app, TaskHandler(context), _supervised_request(supervisor))
    on_heartbeat = heartbeat_receiver(
        context.settings.health_path,
        is_working=lambda: bool(consumed_queues()) or (context.self_test.paused and consumer() is not None),
        find_problem=lambda: supervisor.problem,
        record=supervisor.record_heartbeat,
    )
    _connect_signals(supervisor, consume_wanted_queues, on_heartbeat)
    celery_worker = _celery_worker(app, role, context)
    try:
        celery_worker.start()
    finally:
        supervisor.stop()
    return int(celery_worker.exitcode or supervisor.gave_up)


def _worker_name(role: Role) -> str:
    """Returns a unique name: in containers the process ids are alike, and containers may share a host name."""
    return f"{role}-{os.getpid()}-{token_hex(3)}@{socket.gethostname()}"


def _execution_options(role: Role, settings: Settings, providers: list[str]) -> ExecutionOptions:
    concurrency = settings.worker_concurrency or _DEFAULT_CONCURRENCY[role]
    return ExecutionOptions(
        tuple(providers),
        threads=settings.intra_op_threads or max(1, usable_cpus() // concurrency),
        strict=settings.require_gpu and role is Role.GPU,
        precision=settings.onnx_precision,
        batch_size=settings.window_batch,
        concurrency=concurrency,
        gpu=settings.gpu_options,
    )


def _celery_worker(app: App, role: Role, context: JobContext) -> CeleryWorker:
    return app.Worker(
        hostname=context.worker,
        pool="prefork",
        concurrency=context.execution.concurrency,
        queues=[redis_key(app, queue) for queue in ROLE_QUEUES[role]],
        quiet=True,
        without_gossip=True,
        without_mingle=True,
    )


def _check_gpu(role: Role, settings: Settings, providers: list[str]) -> None:
    if role is not Role.GPU or any(provider in GPU_PROVIDERS for provider in providers):
        return
    if settings.require_gpu:
        raise ConfigurationError(
            "REQUIRE_GPU is set and no requested GPU provider is usable: check that nvidia-smi shows the driver, that "
            "the container sees the GPU, and that the extra `gpu` is installed"
        )
    logger.warning("role gpu runs on the CPU: no requested GPU provider is usable")


def _keep_logging(**_: object) -> None:
    """Does nothing: Celery leaves logging alone if this signal has a receiver."""


def _messages_taken() -> int | None:
    """Returns the number of messages that this worker has taken; None while a message is being handled."""
    return None if state.reserved_requests else sum(state.total_count.values())


def _supervised_request(supervisor: Supervisor) -> type[Request]:
    """Returns Celery's request class for the parent process, extended to report dead children to the supervisor."""

    class SupervisedRequest(Request):
        def on_failure(self, exc_info: ExceptionInfo, send_failed_event: bool = True, return_ok: bool = False) -> None:
            error = getattr(exc_info.exception, "exc", exc_info.exception)
            lost = isinstance(error, WorkerLostError | Terminated | SystemExit | KeyboardInterrupt)
            pid = self.worker_pid
            if not (lost and pid):
                super().on_failure(exc_info, send_failed_event, return_ok)
                return
            # Otherwise Celery logs a traceback of this process, which says nothing of the child's end.
            super().on_failure(exc_info, send_failed_event, True)
            logger.warning("process %s, which ran job %s, is gone: %s", pid, self.id, error)
            supervisor.child_lost(UUID(self.id), int(pid))

        def cancel(self, pool: BasePool, signal: int | None = None, emit_retry: bool = True) -> None:
            # Celery calls this only in a worker that stops at once, and signals its shutdown after the jobs have ended.
            supervisor.begin_shutdown(at_once=True)
            super().cancel(pool, signal, emit_retry)

        def on_timeout(self, soft: bool, timeout: float) -> None:
            super().on_timeout(soft, timeout)
            if self.worker_pid:
                error = TimeLimit(f"the job was still running after {timeout:g} s")
                supervisor.child_lost(UUID(self.id), int(self.worker_pid), error)

    return SupervisedRequest


def _connect_signals(supervisor: Supervisor, *receivers: Callable[..., None]) -> None:
    """Connects the supervisor, and receivers that the event loop calls at its start and then every two seconds."""
    signals.worker_ready.connect(lambda **_: supervisor.start(), weak=False)
    for receiver in receivers:
        signals.worker_ready.connect(receiver, weak=False)
        signals.heartbeat_sent.connect(receiver, weak=False)
    signals.worker_shutting_down.connect(lambda **_: supervisor.begin_shutdown(), weak=False)
