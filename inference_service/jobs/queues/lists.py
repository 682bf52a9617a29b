"""Names of the lists in Redis that hold messages.

Each queue of jobs has a list, and one more for each tenant: `overflow`, `overflow.radiology`. A worker takes from the
lists of a queue in turn. In Redis, the deployment's prefix precedes the names.
"""

from collections.abc import Iterable, Mapping

PRIORITY_QUEUE = "priority"
OVERFLOW_QUEUE = "overflow"
QUEUES = (PRIORITY_QUEUE, OVERFLOW_QUEUE)
"""The queues, in the order in which a worker that consumes both drains them."""
CANCELLATIONS = "cancellations"
"""The list of the messages that cancel jobs. Nothing consumes it: sweeps read it."""

# A Celery client may give a message a priority. Kombu puts it on a list of its own, with one of these suffixes: its
# default separator or the one of Celery's manual, and the priority. The service has no such priorities.
_PRIORITY_SUFFIXES = tuple(f"{separator}{priority}" for separator in ("\x06\x16", ":") for priority in range(1, 10))
KEYS_PER_LIST = 1 + len(_PRIORITY_SUFFIXES)
"""Number of keys in Redis that may hold messages of one list."""


def list_of(queue: str, tenant: str | None) -> str:
    """Returns the list that holds a tenant's messages for a queue; for no tenant, the queue's own.

    >>> list_of("overflow", "radiology")
    'overflow.radiology'
    """
    return f"{queue}.{tenant}" if tenant else queue


def all_lists(tenants: Iterable[str]) -> list[str]:
    """Returns each queue's own list and those of the tenants."""
    return [list_of(queue, tenant) for queue in QUEUES for tenant in (None, *tenants)]


def queue_of(name: str) -> str:
    """Returns the queue to which a list belongs."""
    return name.partition(".")[0]


def depth_of(depths: Mapping[str, int], queue: str) -> int:
    """Returns the number of messages that wait in a queue, by the depths of all lists."""
    return sum(depth for name, depth in depths.items() if queue_of(name) == queue)


def keys_of(key: str) -> tuple[str, ...]:
    """Returns the keys that may hold messages of a list: its own, and those of Celery's message priorities."""
    return (key, *(f"{key}{suffix}" for suffix in _PRIORITY_SUFFIXES))
