"""The two Redis queues and the Celery application that speaks to them."""

import ssl
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from celery import Celery
from kombu import Queue
from kombu.exceptions import OperationalError
from kombu.utils.scheduling import priority_cycle
from redis.exceptions import AuthenticationError, RedisError

from inference_service.contract.task_message import TASK_NAME, Priority
from inference_service.core.errors import QueueUnavailable
from inference_service.core.settings import Settings

# What other modules call the application.
App = Celery

PRIORITY_QUEUE = "priority"
OVERFLOW_QUEUE = "overflow"
QUEUES = (PRIORITY_QUEUE, OVERFLOW_QUEUE)
"""In the order in which a worker that consumes both drains them."""

# A job ends itself at its limit; one that hangs where Python cannot act is killed so much later.
_HARD_LIMIT_MARGIN_S = 60
_SOCKET_TIMEOUT_S = 30.0
_CONNECT_TIMEOUT_S = 5


def make_app(settings: Settings, *, socket_timeout_s: float = _SOCKET_TIMEOUT_S) -> App:
    """The Celery application, for a client to send with or a worker to run.

    Args:
        settings: Say where Redis is, and the limits.
        socket_timeout_s: How long a Redis that says nothing is waited for.
    """
    hard_limit_s = settings.time_limit_s + _HARD_LIMIT_MARGIN_S
    app = Celery("inference_service", broker=settings.broker_url, set_as_current=False)
    app.conf.update(
        broker_use_ssl=_tls(settings),
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        task_queues=[Queue(PRIORITY_QUEUE), Queue(OVERFLOW_QUEUE)],
        task_default_queue=OVERFLOW_QUEUE,
        task_create_missing_queues=False,
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_time_limit=hard_limit_s,
        worker_prefetch_multiplier=1,
        worker_redirect_stdouts=False,
        # The lease makes a redelivery harmless, so a blip of Redis need not kill a job in its middle.
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_connection_retry=True,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "visibility_timeout": settings.visibility_timeout_s,
            # Look for such messages every ten seconds, not every hundred.
            "unacked_restore_throttle": 1,
            "queue_order_strategy": f"{__name__}:UrgentFirst",
            "socket_timeout": socket_timeout_s,
            "socket_keepalive": True,
        },
    )
    return app


def _tls(settings: Settings) -> dict[str, object] | None:
    if not settings.broker_url.startswith("rediss:"):
        return None
    authorities = {"ssl_ca_certs": str(settings.tls_ca_path)} if settings.tls_ca_path else {}
    return {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_check_hostname": True, **authorities}


@dataclass(frozen=True)
class RedisState:
    """Redis as it is now.

    Attributes:
        run_id: Another one after each restart, which may have cost messages.
        depths: How many messages wait in each queue.
    """

    run_id: str
    depths: Mapping[str, int]


def fetch_redis_state(app: App) -> RedisState:
    """Asks Redis who it is and what waits there.

    Raises:
        QueueUnavailable: Redis does not answer or refuses.
    """
    with _mapped_errors(), app.connection_or_acquire() as connection:
        connection.ensure_connection(max_retries=1, interval_start=0, timeout=_CONNECT_TIMEOUT_S)
        pipeline = connection.default_channel.client.pipeline(transaction=False).info("server")
        for queue in QUEUES:
            pipeline.llen(queue)
        server, *depths = pipeline.execute()
    return RedisState(server["run_id"], dict(zip(QUEUES, depths, strict=True)))


def queue_for(
    priority: object, depths: Mapping[str, int], *, priority_max_depth: int | None, has_cpu_worker: Callable[[], bool]
) -> str:
    """Where a job's message goes.

    Args:
        priority: The job's; whatever is not urgent is routine.
        depths: How many messages wait in each queue.
        priority_max_depth: An urgent job goes to the overflow queue where so many wait for the GPU, and fewer there.
        has_cpu_worker: Whether anybody but the GPU takes from there; asked only where it matters.
    """
    if priority != Priority.URGENT:
        return OVERFLOW_QUEUE
    full = priority_max_depth is not None and depths[PRIORITY_QUEUE] >= priority_max_depth
    spills = full and depths[OVERFLOW_QUEUE] < depths[PRIORITY_QUEUE] and has_cpu_worker()
    return OVERFLOW_QUEUE if spills else PRIORITY_QUEUE


def send(app: App, job_id: UUID, request: Mapping[str, Any], *, queue: str) -> None:
    """Puts a job's message on a queue; the request is the contract's JSON.

    Raises:
        QueueUnavailable: Redis does not answer or refuses.
    """
    with _mapped_errors():
        app.send_task(
            TASK_NAME,
            kwargs={"job_id": str(job_id), "request": request},
            task_id=str(job_id),
            queue=queue,
        )


def set_consuming(app: App, queue: str, *, worker: str, consuming: bool) -> None:
    """Has a worker take up a queue or drop it; done in its own event loop, as its consumer is not made for threads.

    Raises:
        QueueUnavailable: Redis does not answer or refuses.
    """
    change = app.control.add_consumer if consuming else app.control.cancel_consumer
    with _mapped_errors():
        change(queue, destination=[worker])


class UrgentFirst(priority_cycle):  # type: ignore[type-arg]  # generic in the stubs only
    """The order of queues that kombu asks Redis in, whenever a worker took them up: one is drained before the next."""

    def update(self, it: Iterable[str]) -> None:
        """Takes the queues up."""
        super().update(sorted(it, key=QUEUES.index))


@contextmanager
def _mapped_errors() -> Iterator[None]:
    try:
        yield
    except (OperationalError, RedisError) as error:
        if isinstance(error.__cause__ or error, AuthenticationError):
            raise QueueUnavailable("Redis refuses the password, or asks for one") from error
        raise QueueUnavailable("Redis does not answer") from error
