"""Kombu's Redis transport, with a script that takes each message in place of BRPOP.

The script takes a message and records it as unacknowledged in one step, so that a worker that dies holds no message
that Redis does not know of. It returns no item above a size, and the worker parses no item before `message_check`.
A script cannot wait. If the queues are empty, Redis announces their next change (CLIENT TRACKING), and the worker asks
again. It also asks every second.
"""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import cached_property
from queue import Empty
from types import MappingProxyType
from typing import Any
from uuid import uuid4

from kombu.transport import TRANSPORT_ALIASES, virtual
from kombu.transport import redis as kombu_redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from inference_service.contract.task_message import MAX_MESSAGE_BYTES
from inference_service.jobs.queues.lists import CANCELLATIONS, KEYS_PER_LIST, all_lists, keys_of, list_of
from inference_service.worker.messages.message_check import NoJob, task_message
from inference_service.worker.messages.redis_scripts import GIVE_BACK, TAKE, TIDY

logger = logging.getLogger(__name__)

_TRANSPORT = f"{__name__}:Transport"
_SENTINEL_TRANSPORT = f"{__name__}:SentinelTransport"
# Longest wait for an announcement, as some servers and proxies make none.
_LONGEST_WAIT_S = 1.0
# Pause before the worker connects again to a Redis that refuses the script, for example because it is a replica now.
_REFUSAL_PAUSE_S = 1.0


def install() -> None:
    """Makes new Redis connections of this process use this transport.

    Kombu's table of URL schemes is changed, as a scheme also decides about TLS and sockets: kombu would use an
    explicitly named transport without TLS for rediss://, and ignore it for redis+socket:// and after a failover.
    """
    TRANSPORT_ALIASES.update(redis=_TRANSPORT, rediss=_TRANSPORT, sentinel=_SENTINEL_TRANSPORT)


class QoS(kombu_redis.QoS):
    """Counts this worker's unacknowledged messages; the scripts record them in Redis."""

    # Missing in kombu's stubs, like the attributes below.
    channel: Any
    _remove_from_indices: Callable[[str], Any]

    def append(self, message: Any, delivery_tag: str) -> None:
        """Counts a message that the script has recorded already."""
        virtual.QoS.append(self, message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        """Acknowledges a message. The slot is free again even if Redis cannot be told, and gives the message again."""
        try:
            super().ack(delivery_tag)
        finally:
            virtual.QoS.ack(self, delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Gives a message back or drops it, and frees its slot in any case."""
        try:
            super().reject(delivery_tag, requeue=requeue)
        finally:
            virtual.QoS.ack(self, delivery_tag)

    def restore_by_tag(self, tag: str, client: object = None, leftmost: bool = False) -> None:
        """Gives a message back to its queue, behind all others if `leftmost`."""
        self._run(GIVE_BACK, tag, "LPUSH" if leftmost else "RPUSH")

    def restore_visible(self, *_: object, **__: object) -> None:
        """Gives back the messages of all workers that were taken before the visibility timeout."""
        removed = self._run(TIDY, self.visibility_timeout, self.channel.sep)
        if removed:
            logger.error("removed %d entries from kombu's keys in Redis that were no messages", removed)

    def forget(self, tag: str) -> None:
        """Removes the record of a message that was never counted."""
        self._remove_from_indices(tag).execute()

    def _run(self, script: str, *arguments: object) -> Any:
        options = self.channel.connection.client.transport_options
        lists = (options["key_prefix"] + name for name in (*all_lists(options["tenants"]), CANCELLATIONS))
        keys = (self.unacked_key, self.unacked_index_key, *lists)
        with self.channel.conn_or_acquire() as client:
            return client.eval(script, len(keys), *keys, *arguments)


class Turns:
    """The order in which a worker looks into a queue's lists, so that each tenant has its share of the messages.

    Args:
        shares: How many messages of each tenant are taken while all have some. Messages without a tenant have one.
    """

    def __init__(self, shares: Mapping[str, int]) -> None:
        self._cycle: list[str | None] = [None]
        for tenant, share in shares.items():
            self._cycle += [tenant] * share

    def order(self) -> list[str | None]:
        """Returns each tenant once; None stands for the messages without one."""
        return list(dict.fromkeys(self._cycle))

    def taken(self, tenant: str | None) -> None:
        """Records that a message was taken, and passes the turn on."""
        turn = self._cycle.index(tenant) + 1
        self._cycle = self._cycle[turn:] + self._cycle[:turn]


class Channel(kombu_redis.Channel):
    """Asks Redis for messages by the script, one question at a time.

    `_asked` has the queue and the tenant of each list of the last question. `_in_poll` is kombu's: the connection while
    an answer or an announcement is pending, and None otherwise.
    """

    QoS = QoS
    qos: Any
    connection: Any
    connection_errors: tuple[type[Exception], ...]
    _brpop_sent_at: float
    _closing: bool
    _queue_cycle: Any

    _tag = ""
    _asked: Mapping[str, tuple[str, str | None]] = MappingProxyType({})
    _announce = False
    _waiting = False
    _announcements_refused = False

    def stop_waiting(self, *, after_s: float = 0.0) -> None:
        """Lets the channel ask again, if it has waited for an announcement this long."""
        if self._waiting and time.monotonic() >= self._brpop_sent_at + after_s:
            self._waiting = False
            self._in_poll = None

    def close(self) -> None:
        """Closes the channel, without waiting for an announcement."""
        self.stop_waiting()
        super().close()

    def _connparams(self, asynchronous: bool = False) -> dict[str, Any]:
        parameters: dict[str, Any] = super()._connparams(asynchronous)  # type: ignore[misc]
        # Announcements need version 3 of the protocol.
        return parameters | ({"protocol": 3} if asynchronous else {})

    @cached_property
    def _turns(self) -> dict[str, Turns]:
        """The turns of each queue."""
        shares = self.connection.client.transport_options["tenants"]
        return defaultdict(lambda: Turns(shares))

    def _brpop_start(self, timeout: float | None = None) -> None:
        self._ask(announce=False)

    def _ask(self, *, announce: bool) -> None:
        """Sends the script.

        Args:
            announce: Whether Redis announces the next change of the queues if they are empty. Otherwise it sends
                nothing but the answer, as a worker that has no free slot does not read.
        """
        queues = self._queue_cycle.consume(len(self.active_queues))
        if not queues:
            return
        self._tag = str(uuid4())
        self._asked = {
            list_of(queue, tenant): (queue, tenant) for queue in queues for tenant in self._turns[queue].order()
        }
        keys = [self.unacked_key, self.unacked_index_key, *(key for name in self._asked for key in keys_of(name))]
        connection = self.client.connection
        self._in_poll = connection
        self._brpop_sent_at = time.monotonic()
        self._announce = announce
        self._waiting = False
        connection.send_packed_command(
            connection.pack_commands(
                [
                    ("CLIENT", "TRACKING", *(("ON", "NOLOOP") if announce else ("OFF",))),
                    ("EVAL", TAKE, len(keys), *keys, self._tag, MAX_MESSAGE_BYTES, KEYS_PER_LIST),
                ]
            )
        )

    def _brpop_read(self, **options: object) -> bool:
        connection = self.client.connection
        try:
            answer = self._read(connection)
        except self.connection_errors:
            connection.disconnect()
            raise
        if answer is None:
            raise Empty
        self._in_poll = None
        queue, tenant = self._asked[answer[0].decode()]
        self._queue_cycle.rotate(queue)
        self._turns[queue].taken(tenant)
        self._deliver(queue, tenant, answer[1])
        return True

    def _read(self, connection: Any) -> list[bytes] | None:
        """Reads an answer or an announcement; returns queue and item if the answer contains one."""
        if self._waiting:
            connection.read_response(push_request=True)
            self.stop_waiting()
            return None
        self._read_tracking(connection)
        try:
            answer: list[bytes] | None = connection.read_response()
        except ResponseError as error:
            time.sleep(_REFUSAL_PAUSE_S)
            raise RedisConnectionError(f"Redis gives no messages: {error}") from error
        if answer is not None:
            if self._announce:
                connection.send_command("CLIENT", "TRACKING", "OFF")
                self._read_tracking(connection)
        elif self._announce:
            self._waiting = True
            if connection.can_read(0):
                return self._read(connection)
        elif not self._closing:
            self._ask(announce=True)
        return answer

    def _read_tracking(self, connection: Any) -> None:
        try:
            connection.read_response()
        except ResponseError as error:
            if not self._announcements_refused:
                logger.warning("Redis does not announce messages, so this worker asks every second: %s", error)
            self._announcements_refused = True

    def _deliver(self, queue: str, tenant: str | None, item: bytes) -> None:
        try:
            message = task_message(item, tenant=tenant)
        except NoJob as error:
            logger.error("dropped a queue item of %d bytes: %s", len(item), error)
            self.qos.forget(self._tag)
            return
        message["properties"] = {
            "delivery_tag": self._tag,
            "delivery_info": {"exchange": "", "routing_key": queue},
        }
        self.connection._deliver(message, queue)


class _Poller(kombu_redis.MultiChannelPoller):
    _channels: set[Channel]

    def on_poll_start(self) -> None:
        for channel in self._channels:
            channel.stop_waiting(after_s=_LONGEST_WAIT_S)
        super().on_poll_start()


class Transport(kombu_redis.Transport):
    """Kombu's Redis transport with the channel class above."""

    Channel = Channel

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)
        self.cycle = _Poller()


class SentinelChannel(Channel, kombu_redis.SentinelChannel):
    """The channel class above, connected to the primary that sentinels name."""


class SentinelTransport(Transport, kombu_redis.SentinelTransport):
    """Kombu's transport for sentinels, with the channel class above."""

    Channel = SentinelChannel
