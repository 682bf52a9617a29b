"""Checks whether a Redis server is fit for the queues: it takes writes, evicts nothing, and has memory left."""

from typing import Any

from inference_service.core.errors import QueueUnavailable
from inference_service.jobs.queues.celery_app import App, open_channel, redis_key
from inference_service.jobs.queues.lists import OVERFLOW_QUEUE
from inference_service.jobs.queues.refusals import CLUSTER

_MIN_FREE_SHARE = 0.05


def find_memory(app: App) -> str:
    """Checks Redis, and describes the memory that it has left.

    Raises:
        QueueUnavailable: Redis does not answer, refuses to take messages, or may lose them.
    """
    with open_channel(app) as channel:
        client = channel.client
        info = client.info()
        if info.get("cluster_enabled"):
            raise QueueUnavailable(CLUSTER)
        _try_write(client, redis_key(app, OVERFLOW_QUEUE))
    policy = str(info.get("maxmemory_policy", "noeviction"))
    # The other policies evict keys with an expiry alone, and the queues have none.
    if policy.startswith("allkeys"):
        raise QueueUnavailable(f"Redis may evict messages (maxmemory-policy {policy}): set noeviction")
    limit = int(info.get("maxmemory", 0))
    if not limit:
        return "with no limit of its memory"
    free = max(0, limit - int(info["used_memory"]))
    if free < _MIN_FREE_SHARE * limit:
        raise QueueUnavailable(f"Redis is almost full: {free} bytes of its maxmemory {limit} are free; raise it")
    return f"with {free} bytes of memory free"


def _try_write(client: Any, queue: str) -> None:
    """Sends the command that puts a message on a queue, in a transaction that is never executed.

    Redis refuses it at once where it would refuse the message: for lack of rights or memory, or as a replica. So the
    check works for a user who may only send messages, and leaves none behind.
    """
    with client.client() as single:
        single.execute_command("MULTI")
        single.execute_command("LPUSH", queue, "")
        single.connection.disconnect()
