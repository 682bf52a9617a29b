"""The Celery application that sends messages to the queues and consumes them, and its connection to Redis."""

import ssl
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from celery import Celery
from kombu import Queue
from kombu.exceptions import OperationalError
from kombu.utils.scheduling import priority_cycle
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from inference_service.contract.task_message import TASK_NAME
from inference_service.core.errors import QueueUnavailable
from inference_service.core.settings import Settings
from inference_service.jobs.queues.lists import OVERFLOW_QUEUE, PRIORITY_QUEUE, all_lists
from inference_service.jobs.queues.refusals import refusal

App = Celery
"""The type of the Celery application, for modules that do not import Celery."""

_UNACKED_KEYS = ("unacked_key", "unacked_index_key", "unacked_mutex_key")

# A job stops at its time limit; if native code prevents that, Celery kills the process this much later.
_HARD_LIMIT_MARGIN_S = 60
_SOCKET_TIMEOUT_S = 10.0
_CONNECT_TIMEOUT_S = 5
_HEALTH_CHECK_INTERVAL_S = 5
_SENTINEL_TIMEOUT_S = 2.0


def make_app(settings: Settings, *, socket_timeout_s: float = _SOCKET_TIMEOUT_S) -> App:
    """Makes the Celery application, with which a client sends and a worker consumes.

    Args:
        settings: Address of Redis, and the limits.
        socket_timeout_s: How long to wait for an answer of Redis.
    """
    hard_limit_s = settings.time_limit_s + _HARD_LIMIT_MARGIN_S
    prefix = settings.redis_prefix
    shares = settings.tenants or ({settings.tenant: 1} if settings.tenant else {})
    app = Celery("inference_service", broker=settings.broker_url, set_as_current=False)
    app.conf.update(
        broker_use_ssl=_tls(settings),
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        # Undeclared: messages go to a queue by its name, so nothing depends on kombu's tables of routes in Redis.
        task_queues=[Queue(prefix + name, no_declare=True) for name in all_lists(shares)],
        task_default_queue=prefix + OVERFLOW_QUEUE,
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
            "health_check_interval": _HEALTH_CHECK_INTERVAL_S,
            # Kombu's own prefix leaves out the keys of scripts and of some commands.
            "key_prefix": prefix,
            "tenants": shares,
            **{name: prefix + name.removesuffix("_key") for name in _UNACKED_KEYS},
            "fanout_prefix": f"/{{db}}.{prefix}",
            **_sentinel_options(settings),
        },
    )
    return app


def _tls(settings: Settings) -> dict[str, object] | None:
    if not settings.redis_tls:
        return None
    authorities = {"ssl_ca_certs": str(settings.tls_ca_path)} if settings.tls_ca_path else {}
    return {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_check_hostname": True, **authorities}


def _sentinel_options(settings: Settings) -> dict[str, object]:
    """The options with which kombu asks sentinels for the primary; it ignores them for a Redis server."""
    password = settings.redis_sentinel_password
    tls = _tls(settings)
    return {
        "master_name": settings.redis_sentinel_master,
        "sentinel_kwargs": {
            "username": settings.redis_sentinel_username,
            "password": None if password is None else password.get_secret_value(),
            # If a sentinel does not answer, the next one is asked soon.
            "socket_timeout": _SENTINEL_TIMEOUT_S,
            "retry": Retry(NoBackoff(), retries=0),
            **({} if tls is None else {"ssl": True, **tls}),
        },
    }


def redis_key(app: App, name: str) -> str:
    """Returns the key in Redis, with the deployment's prefix; for a queue it is also the name for Celery."""
    return f"{app.conf.broker_transport_options['key_prefix']}{name}"


def shares_of_tenants(app: App) -> Mapping[str, int]:
    """Returns the share of each tenant."""
    shares: Mapping[str, int] = app.conf.broker_transport_options["tenants"]
    return shares


@contextmanager
def open_channel(app: App) -> Iterator[Any]:
    """Opens a channel of kombu, whose `client` sends commands to Redis, for the block.

    Raises:
        QueueUnavailable: Redis does not answer or refuses, also a command in the block.
    """
    with _mapped_errors(), app.connection_or_acquire() as connection:
        connection.ensure_connection(max_retries=1, interval_start=0, timeout=_CONNECT_TIMEOUT_S)
        yield connection.default_channel


@contextmanager
def _mapped_errors() -> Iterator[None]:
    try:
        yield
    except (OperationalError, RedisError) as error:
        raise QueueUnavailable(refusal(error)) from error


def send(app: App, job_id: UUID, request: Mapping[str, Any], *, queue: str) -> None:
    """Puts a job's message on a queue.

    Args:
        app: The Celery application.
        job_id: The job, and the id of the Celery task.
        request: The request as the JSON of the task contract.
        queue: The queue, or a tenant's list of it.

    Raises:
        QueueUnavailable: Redis does not answer or refuses.
    """
    with _mapped_errors():
        app.send_task(
            TASK_NAME,
            kwargs={"job_id": str(job_id), "request": request},
            task_id=str(job_id),
            queue=redis_key(app, queue),
        )


class UrgentFirst(priority_cycle):  # type: ignore[type-arg]  # generic in the stubs only
    """The order in which kombu asks Redis for messages: the priority queue is drained before the overflow queue."""

    def update(self, it: Iterable[str]) -> None:
        """Sorts the queues that the worker consumes."""
        super().update(sorted(it, key=lambda key: not key.endswith(PRIORITY_QUEUE)))
