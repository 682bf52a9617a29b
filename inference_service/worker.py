"""A worker process: its role, its providers, its queues. Celery does the rest."""

import logging
import os
import socket
from enum import StrEnum
from pathlib import Path

from celery import signals

from inference_service.consumer import SafeConsumer
from inference_service.engine import Engine
from inference_service.errors import InternalError
from inference_service.logs import configure_logging
from inference_service.machine import usable_cpus
from inference_service.providers import GPUS, log_providers
from inference_service.queues import OVERFLOW_QUEUE, PRIORITY_QUEUE, make_app
from inference_service.settings import Settings
from inference_service.tasks import JobRunner, register
from inference_service.transport import install

logger = logging.getLogger(__name__)


class Role(StrEnum):
    """What a worker is there for."""

    GPU = "gpu"
    CPU = "cpu"


# A queue is drained before the next one is looked at.
_QUEUES = {Role.GPU: (PRIORITY_QUEUE, OVERFLOW_QUEUE), Role.CPU: (OVERFLOW_QUEUE,)}
_CONCURRENCY = {Role.GPU: 1, Role.CPU: 2}


def run_worker(role: Role, settings: Settings) -> int:
    """Runs a worker until it is told to stop.

    Returns:
        The exit status.

    Raises:
        InternalError: No ONNX Runtime works here, or none of the GPUs that REQUIRE_GPU asks for.
    """
    configure_logging(settings.log_level, settings.log_format)
    signals.setup_logging.connect(_keep_logging)
    providers = settings.effective_onnx_providers
    log_providers(settings.onnx_providers, providers)
    _check_gpu(role, settings, providers)
    concurrency = settings.worker_concurrency or _CONCURRENCY[role]
    threads = settings.intra_op_threads or max(1, usable_cpus() // concurrency)
    logger.info("role %s: queues %s, concurrency %d, threads %d", role, list(_QUEUES[role]), concurrency, threads)
    install()
    engine = Engine(
        tuple(providers),
        threads,
        strict=settings.require_gpu and role is Role.GPU,
        precision=settings.onnx_precision,
        batch=settings.window_batch,
        jobs=concurrency,
    )
    app = make_app(settings)
    name = f"{role}-{os.getpid()}@{socket.gethostname()}"
    register(app, JobRunner(app, settings, engine, worker=name))
    if settings.health_path is not None:
        _touch_while_consuming(settings.health_path)
    worker = app.Worker(
        hostname=name,
        consumer_cls=SafeConsumer,
        pool="prefork",
        concurrency=concurrency,
        queues=list(_QUEUES[role]),
        quiet=True,
        without_gossip=True,
        without_mingle=True,
    )
    worker.start()
    return int(worker.exitcode or 0)


def _check_gpu(role: Role, settings: Settings, providers: list[str]) -> None:
    if role is not Role.GPU or any(provider in GPUS for provider in providers):
        return
    if settings.require_gpu:
        raise InternalError(
            "REQUIRE_GPU is set and no requested GPU provider is usable: check the driver with nvidia-smi, that the "
            "container sees the GPU, and that the extra `gpu` is installed"
        )
    logger.warning("role gpu runs on the CPU: no requested GPU provider is usable here")


def _keep_logging(**_: object) -> None:
    """Listening is what keeps Celery from setting up the logging anew."""


def _touch_while_consuming(path: Path) -> None:
    """Celery's heartbeat beats in its event loop while the broker is connected, so a stale file means trouble."""

    def touch(**_: object) -> None:
        path.touch()

    signals.worker_ready.connect(touch, weak=False)
    signals.heartbeat_sent.connect(touch, weak=False)
