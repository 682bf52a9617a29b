"""The queues in Redis, and the Celery application that sends to them and consumes them.

Each queue of jobs has a list in Redis, and one more for each tenant: `overflow`, `overflow.radiology`. A worker takes
from the lists of a queue in turn.
"""

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
from redis.backoff import NoBackoff
from redis.exceptions import NoPermissionError, RedisError
from redis.retry import Retry

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
CANCELLATIONS = "cancellations"
"""The list of the messages that cancel jobs. Nothing consumes it: sweeps read it."""
_UNACKED_KEYS = ("unacked_key", "unacked_index_key", "unacked_mutex_key")

# A Celery client may give a message a priority. Kombu puts it on a list of its own, with one of these suffixes: its
# default separator or the one of Celery's manual, and the priority. The service has no such priorities.
_PRIORITY_SUFFIXES = tuple(f"{separator}{priority}" for separator in ("\x06\x16", ":") for priority in range(1, 10))
LISTS_PER_QUEUE = 1 + len(_PRIORITY_SUFFIXES)
"""Number of lists in Redis that hold messages for one queue."""

_OWNER_KEY = "inference_service.deployment"

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
        task_queues=[
            Queue(prefix + queue_of_tenant(queue, tenant), no_declare=True)
            for queue in QUEUES
            for tenant in (None, *shares)
        ],
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


@dataclass(frozen=True)
class RedisState:
    """The state of Redis at one time.

    Attributes:
        run_id: Identifies the run of the server. It changes at a restart, which may lose messages.
        depths: Number of messages that wait in each list, which is a queue or a tenant's list of it.
        place: The run, the number of the database and the prefix of the keys: where the queues are.
        owner: The id of the deployment that the queues belong to; None if no worker has claimed them yet, or if this
            user of Redis may not know.
    """

    run_id: str
    depths: Mapping[str, int]
    place: str = ""
    owner: str | None = None


def depth_of(depths: Mapping[str, int], queue: str) -> int:
    """Returns the depth of a queue: the sum over its lists."""
    return sum(depth for name, depth in depths.items() if queue_of_list(name) == queue)


def redis_key(app: App, name: str) -> str:
    """Returns the key in Redis, with the deployment's prefix; for a queue it is also the name for Celery."""
    return f"{app.conf.broker_transport_options['key_prefix']}{name}"


def queue_of_tenant(queue: str, tenant: str | None) -> str:
    """Returns the name of the list that holds a tenant's messages for a queue."""
    return f"{queue}.{tenant}" if tenant else queue


def queue_of_list(name: str) -> str:
    """Returns the queue to which a list belongs: the part of the name before the tenant."""
    return name.partition(".")[0]


def known_tenants(app: App) -> Mapping[str, int]:
    """Returns the tenants and their shares."""
    shares: Mapping[str, int] = app.conf.broker_transport_options["tenants"]
    return shares


def lists_of_queues(app: App) -> list[str]:
    """Returns the names of all queues, and of all tenants' lists of each."""
    return [queue_of_tenant(queue, tenant) for queue in QUEUES for tenant in (None, *known_tenants(app))]


def owner_key(app: App) -> str:
    """Returns the key in Redis that holds the id of the deployment to which the queues belong."""
    return redis_key(app, _OWNER_KEY)


def lists_of(key: str) -> tuple[str, ...]:
    """Returns the lists in Redis that hold messages for a queue: its own, and those of Celery's message priorities."""
    return (key, *(f"{key}{suffix}" for suffix in _PRIORITY_SUFFIXES))


def fetch_redis_state(app: App) -> RedisState:
    """Asks Redis for its run id, which changes when it restarts, for the depths of the queues and for their owner.

    Raises:
        QueueUnavailable: Redis does not answer or refuses.
    """
    with mapped_errors(), app.connection_or_acquire() as connection:
        connection.ensure_connection(max_retries=1, interval_start=0, timeout=_CONNECT_TIMEOUT_S)
        client = connection.default_channel.client
        pipeline = client.pipeline(transaction=False).info("server")
        names = lists_of_queues(app)
        keys = [redis_key(app, name) for name in names]
        for key in keys:
            pipeline.llen(key)
        pipeline.exists(*(each for key in keys for each in lists_of(key)[1:]))
        owner, server, *depths, prioritised = _answers(pipeline.get(owner_key(app)))
        if prioritised:
            depths = [sum(client.llen(each) for each in lists_of(key)) for key in keys]
        number = client.connection_pool.connection_kwargs.get("db", 0)
    place = f"run {server['run_id']}, database {number}, prefix {redis_key(app, '')!r}"
    return RedisState(server["run_id"], dict(zip(names, depths, strict=True)), place, owner)


def _answers(pipeline: Any) -> list[Any]:
    """Runs a pipeline and returns its last answer first; None in place of that one if the user may not read it."""
    *answers, last = pipeline.execute(raise_on_error=False)
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer
    if isinstance(last, NoPermissionError):
        last = None
    elif isinstance(last, Exception):
        raise last
    return [last.decode(errors="replace") if isinstance(last, bytes) else last, *answers]


def claim_queues(app: App, deployment_id: UUID) -> None:
    """Makes a deployment the owner of the queues, unless they have one.

    Raises:
        QueueUnavailable: Redis does not answer or refuses.
    """
    with mapped_errors(), app.connection_or_acquire() as connection:
        connection.ensure_connection(max_retries=1, interval_start=0, timeout=_CONNECT_TIMEOUT_S)
        connection.default_channel.client.set(owner_key(app), str(deployment_id), nx=True)


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
    with mapped_errors():
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


@contextmanager
def mapped_errors() -> Iterator[None]:
    """Maps errors of Redis in the block to QueueUnavailable."""
    try:
        yield
    except (OperationalError, RedisError) as error:
        raise QueueUnavailable(refusal(error)) from error
