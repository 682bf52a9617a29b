"""The state of Redis: its run, the depths of the queues, and the deployment to which they belong."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from redis.exceptions import NoPermissionError

from inference_service.jobs.queues.celery_app import App, open_channel, redis_key, shares_of_tenants
from inference_service.jobs.queues.lists import all_lists, keys_of

_OWNER_KEY = "inference_service.deployment"


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


def owner_key(app: App) -> str:
    """Returns the key in Redis that holds the id of the deployment to which the queues belong."""
    return redis_key(app, _OWNER_KEY)


def fetch_redis_state(app: App) -> RedisState:
    """Asks Redis for its run id, which changes when it restarts, for the depths of the queues and for their owner.

    Raises:
        QueueUnavailable: Redis does not answer or refuses.
    """
    with open_channel(app) as channel:
        client = channel.client
        pipeline = client.pipeline(transaction=False).info("server")
        names = all_lists(shares_of_tenants(app))
        keys = [redis_key(app, name) for name in names]
        for key in keys:
            pipeline.llen(key)
        pipeline.exists(*(each for key in keys for each in keys_of(key)[1:]))
        owner, server, *depths, prioritised = _answers(pipeline.get(owner_key(app)))
        if prioritised:
            depths = [sum(client.llen(each) for each in keys_of(key)) for key in keys]
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
    with open_channel(app) as channel:
        channel.client.set(owner_key(app), str(deployment_id), nx=True)
