"""Kombu's Redis transport, which goes on where an item of a queue's list is no message.

Kombu takes any error of a broken item for one of its own: the worker ends, or reconnects for ever.
"""

import logging
from queue import Empty
from typing import Any

from kombu.transport import TRANSPORT_ALIASES
from kombu.transport import redis as kombu_redis
from redis.exceptions import DataError

logger = logging.getLogger(__name__)

# Celery's own headers nest five levels; what nests hundreds of levels cannot be written as JSON or pickled again.
MOST_LEVELS = 32

_NAME = f"{__name__}:Transport"
_ERRORS = kombu_redis.Transport.connection_errors + kombu_redis.Transport.channel_errors
# Trouble with Redis, not with a message. Kombu counts these two as well, but a broken message raises them.
TROUBLE = tuple(error for error in _ERRORS if error not in (KeyError, DataError))
_NO_FAULT_OF_THE_ITEM: tuple[type[Exception], ...] = (Empty, *TROUBLE)


def install() -> None:
    """Makes this process use the transport for Redis from its next connection on.

    Kombu's table of schemes is changed because a URL's scheme decides more than the transport: an explicit transport
    would send rediss:// unencrypted and be dropped for redis+socket:// and at a failover.
    """
    TRANSPORT_ALIASES.update(redis=_NAME, rediss=_NAME)


def nests_deeper(value: object, levels: int) -> bool:
    """Whether a JSON value nests deeper than a number of levels: `[[1]]` nests two levels."""
    layer = [value]
    for _ in range(levels):
        layer = [inner for outer in layer for inner in _inside(outer)]
    return any(isinstance(item, dict | list) for item in layer)


def _inside(value: object) -> list[object]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


class Channel(kombu_redis.Channel):
    """Drops what is no message, with one line in the log that holds nothing of it."""

    def _brpop_read(self, **options: object) -> object:
        try:
            return super()._brpop_read(**options)  # type: ignore[misc]  # missing in the stubs
        except _NO_FAULT_OF_THE_ITEM:
            raise
        except Exception as error:
            logger.error("an item of a queue is no message and was dropped (%s)", type(error).__name__)
            return True


class Transport(kombu_redis.Transport):
    """The Redis transport with such channels."""

    Channel = Channel

    def _deliver(self, message: Any, queue: str | None) -> None:
        if nests_deeper(message, MOST_LEVELS):
            raise ValueError(f"a message's envelope nests at most {MOST_LEVELS} levels")
        # Where a sender names an exchange that does not exist, the message would be lost when it goes back.
        message["properties"]["delivery_info"] |= {"exchange": "", "routing_key": queue}
        super()._deliver(message, queue)
