"""The two queues in Redis, and the Celery application that sends to them and consumes them."""

import ssl
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from celery import Celery
from kombu import Queue
from kombu.exceptions import OperationalError
from kombu.utils.scheduling import priority_cycle
from redis.exceptions import RedisError

from inference_service.contract.task_message import TASK_NAME
from inference_service.core.errors import QueueUnavailable
from inference_service.core.settings import Settings
from inference_service.jobs.queue_refusals import refusal

App = Celery
"""The type of the Celery application, for modules that do not import Celery."""

PRIORITY_QUEUE = "priority"
OVERFLOW_QUEUE = "overflow"
QUEUES = (PRIORITY_QUEUE, OVERFLOW_QUEUE)
"""The queues, in the order in which a worker that consumes both drains them."""

# A Celery client may give a message a priority. Kombu puts it on a list of its own, with one of these suffixes: its
# default separator or the one of Celery's manual, and the priority. The service has no such priorities.
_PRIORITY_SUFFIXES = tuple(f"{separator}{priority}" for separator in ("\x06\x16", ":") for priority in range(1, 10))
LISTS_PER_QUEUE = 1 + len(_PRIORITY_SUFFIXES)
"""Number of lists in Redis that hold messages for one queue."""

# A job stops at its time limit; if native code prevents that, Celery kills the process this much later.
_HARD_LIMIT_MARGIN_S = 60
_SOCKET_TIMEOUT_S = 30.0
_CONNECT_TIMEOUT_S = 5


def make_app(settings: Settings, *, socket_timeout_s: float = _SOCKET_TIMEOUT_S) -> App:
    """Makes the Celery application, with which a client sends and a worker consumes.

    Args:
        settings: Address of Redis, and the limits.
        socket_timeout_s: How long to wait for an answer of Redis.
    """
    hard_limit_s = settings.time_limit_s + _HARD_LIMIT_MARGIN_S
    app = Celery("inference_service", broker=settings.broker_url, set_as_current=False)
    app.conf.update(
        broker_use_ssl=_tls(settings),
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        # Undeclared: messages go to a queue by its name, so nothing depends on kombu's tables of routes in Redis.
        task_queues=[Queue(name, no_declare=True) for name in QUEUES],
        task_default_queue=OVERFLOW_QUEUE,
        task_create_missing_queues=False,
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_time_limit=hard_limit_s,
        worker_prefetch_multiplier=1,
        # Everyone who may publish to Redis could stop workers and read their settings.
        worker_enable_remote_control=False,
        worker_redirect_stdouts=False,
        # The lease makes a redelivery harmless, so a short outage of Redis does not end running jobs.
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_connection_retry=True,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "visibility_timeout": settings.visibility_timeout_s,
            # Check for unacknowledged messages to restore every 10 s instead of every 100 s.
            "unacked_restore_throttle": 1,
            "queue_order_strategy": f"{__name__}:UrgentFirst",
            "priority_steps": [0],
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
    """The state of Redis at one time.

    Attributes:
        run_id: Identifies the run of the server. It changes at a restart, which may lose messages.
        depths: Number of messages that wait in each queue.
    """

    run_id: str
    depths: Mapping[str, int]


def lists_of(queue: str) -> tuple[str, ...]:
    """Returns the lists in Redis that hold messages for a queue: its own, and those of Celery's message priorities."""
    return (queue, *(f"{queue}{suffix}" for suffix in _PRIORITY_SUFFIXES))


def fetch_redis_state(app: App) -> RedisState:
    """Asks Redis for its run id, which changes when it restarts, and for the depths of the queues.

    Raises:
        QueueUnavailable: Redis does not answer or refuses.
    """
    with mapped_errors(), app.connection_or_acquire() as connection:
        connection.ensure_connection(max_retries=1, interval_start=0, timeout=_CONNECT_TIMEOUT_S)
        client = connection.default_channel.client
        pipeline = client.pipeline(transaction=False).info("server")
        for queue in QUEUES:
            pipeline.llen(queue)
        server, *depths, prioritised = pipeline.exists(
            *(key for queue in QUEUES for key in lists_of(queue)[1:])
        ).execute()
        if prioritised:
            depths = [sum(client.llen(key) for key in lists_of(queue)) for queue in QUEUES]
    return RedisState(server["run_id"], dict(zip(QUEUES, depths, strict=True)))


def send(app: App, job_id: UUID, request: Mapping[str, Any], *, queue: str) -> None:
    """Puts a job's message on a queue.

    Args:
        app: The Celery application.
        job_id: The job, and the id of the Celery task.
        request: The request as the JSON of the task contract.
        queue: The queue.

    Raises:
        QueueUnavailable: Redis does not answer or refuses.
    """
    with mapped_errors():
        app.send_task(
            TASK_NAME,
            kwargs={"job_id": str(job_id), "request": request},
            task_id=str(job_id),
            queue=queue,
        )


class UrgentFirst(priority_cycle):  # type: ignore[type-arg]  # generic in the stubs only
    """The order in which kombu asks Redis for messages: the priority queue is drained before the overflow queue."""

    def update(self, it: Iterable[str]) -> None:
        """Sorts the queues that the worker consumes."""
        super().update(sorted(it, key=QUEUES.index))


@contextmanager
def mapped_errors() -> Iterator[None]:
    """Maps errors of Redis in the block to QueueUnavailable."""
    try:
        yield
    except (OperationalError, RedisError) as error:
        raise QueueUnavailable(refusal(error)) from error
