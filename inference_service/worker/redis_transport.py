"""Kombu's Redis transport, made robust against list items that are not messages.

Kombu mistakes an error caused by a broken item for a connection error: the worker ends, or reconnects for ever.
"""

import logging
from queue import Empty
from typing import Any

from kombu.transport import TRANSPORT_ALIASES
from kombu.transport import redis as kombu_redis
from redis.exceptions import DataError

from inference_service.worker.message_check import MAX_NESTING, nests_deeper

logger = logging.getLogger(__name__)

_TRANSPORT = f"{__name__}:Transport"
_KOMBU_ERRORS = kombu_redis.Transport.connection_errors + kombu_redis.Transport.channel_errors
# Kombu counts KeyError and DataError among the errors of Redis, but broken messages raise them.
CONNECTION_ERRORS = tuple(error for error in _KOMBU_ERRORS if error not in (KeyError, DataError))
_RAISED_ON: tuple[type[Exception], ...] = (Empty, *CONNECTION_ERRORS)


def install() -> None:
    """Makes new Redis connections of this process use this transport.

    Kombu's table of URL schemes is changed, as a scheme also decides about TLS and sockets: kombu would use an
    explicitly named transport without TLS for rediss://, and ignore it for redis+socket:// and after a failover.
    """
    TRANSPORT_ALIASES.update(redis=_TRANSPORT, rediss=_TRANSPORT)


class Channel(kombu_redis.Channel):
    """Drops list items that are not messages, and logs none of their content."""

    def _brpop_read(self, **options: object) -> object:
        try:
            return super()._brpop_read(**options)  # type: ignore[misc]  # missing in the stubs
        except _RAISED_ON:
            raise
        except Exception as error:
            logger.error("dropped a queue item that is not a message (%s)", type(error).__name__)
            return True


class Transport(kombu_redis.Transport):
    """Kombu's Redis transport with the channel class above."""

    Channel = Channel

    def _deliver(self, message: Any, queue: str | None) -> None:
        if nests_deeper(message, MAX_NESTING):
            raise ValueError(f"a message's envelope nests at most {MAX_NESTING} levels")
        # If the sender named an exchange that does not exist, a message put back would be lost.
        message["properties"]["delivery_info"] |= {"exchange": "", "routing_key": queue}
        super()._deliver(message, queue)
