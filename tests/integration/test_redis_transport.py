"""Kombu takes messages by the worker's transport from a real Redis that no worker uses."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import pytest
from celery import Celery
from faults import wait_for
from fuzz import redis_keys
from kombu import Connection, Consumer, Message
from queue_items import CLIENTS, python_item
from redis import Redis
from redis.exceptions import ResponseError

from inference_service.contract.task_message import MAX_MESSAGE_BYTES, TASK_NAME
from inference_service.core.settings import Settings
from inference_service.jobs.queues.celery_app import make_app
from inference_service.jobs.queues.lists import OVERFLOW_QUEUE, PRIORITY_QUEUE
from inference_service.jobs.queues.redis_state import fetch_redis_state
from inference_service.worker.messages.redis_transport import Channel

LIMIT_S = 30.0
REQUEST = {"input": {"key": "scan"}, "model": "ct-tissue"}
KEYS = ("unacked", "unacked_index", *(f"_kombu.binding.{queue}" for queue in (PRIORITY_QUEUE, OVERFLOW_QUEUE)))


@pytest.fixture
def restricted_url(redis: Redis, settings: Settings) -> Iterator[Callable[[str], str]]:
    """Makes a user of Redis whose rights end with this rule, and returns the address with that user."""

    def make(rule: str) -> str:
        redis.acl_setuser(
            "limited", enabled=True, passwords=["+p"], keys=["*"], channels=["*"], commands=["+@all", rule]
        )
        return f"redis://limited:p@{settings.broker_url.rpartition('@')[2]}"

    yield make
    redis.acl_deluser("limited")


@dataclass
class Taker:
    """A consumer of both queues, without a worker.

    Attributes:
        connection: Kombu's connection.
        channel: The channel of the worker's transport.
        taken: The messages taken so far.
    """

    connection: Any
    channel: Any
    taken: list[Message] = field(default_factory=list)

    def take(self, *, limit_s: float = LIMIT_S) -> str:
        """Takes a message and returns the id of its job."""
        count = len(self.taken)
        while len(self.taken) == count:
            self.connection.drain_events(timeout=limit_s)
        return str(self.taken[-1].headers["id"])

    def take_all(self) -> list[str]:
        """Takes messages until none comes, and returns the ids of their jobs."""
        ids = []
        with suppress(TimeoutError):
            while True:
                ids.append(self.take(limit_s=0.3))
        return ids

    def ask(self) -> None:
        """Sends the question for a message, and does not read the answer."""
        self.connection.transport.cycle.on_poll_start()


@pytest.fixture
def make_taker(settings: Settings) -> Callable[..., Any]:
    @contextmanager
    def make(*, slots: int = 0, url: str = settings.broker_url, prefix: str = "", **options: object) -> Iterator[Taker]:
        app = make_app(settings.model_copy(update={"redis_prefix": prefix}))
        with Connection(
            url,
            transport="inference_service.worker.messages.redis_transport:Transport",
            transport_options={**app.conf.broker_transport_options, **options},
        ) as connection:
            channel = connection.channel()
            assert isinstance(channel, Channel)
            channel.basic_qos(prefetch_count=slots)
            taker = Taker(connection, channel)
            with Consumer(channel, list(app.conf.task_queues), on_message=taker.taken.append, accept=["json"]):
                yield taker

    return make


def push(redis: Redis, queue: str = OVERFLOW_QUEUE, **changes: object) -> str:
    job_id = str(uuid4())
    redis.lpush(queue, python_item(job_id, [[], {"job_id": job_id, "request": REQUEST}, {}], **changes))
    return job_id


def test_a_message_is_recorded_as_unacknowledged_until_it_is_acknowledged(
    redis: Redis, make_taker: Callable[..., Any]
) -> None:
    job_id = push(redis)
    with make_taker() as taker:
        assert taker.take() == job_id
        (tag,) = redis.hkeys("unacked")
        assert redis.zrange("unacked_index", 0, -1) == [tag]
        taker.taken[0].ack()
    assert redis.keys() == []


def test_no_message_is_lost_between_redis_and_the_worker(redis: Redis, make_taker: Callable[..., Any]) -> None:
    """A worker dies after Redis has answered, and before the worker reads the answer."""
    job_id = push(redis)
    with make_taker() as taker:
        taker.ask()
        wait_for(lambda: redis.llen(OVERFLOW_QUEUE) == 0)
        taker.channel.client.connection.disconnect()
        assert taker.taken == []
    assert redis.hlen("unacked") == 1
    with make_taker(visibility_timeout=-1) as other:
        other.channel.qos.restore_visible()
        assert other.take() == job_id


def test_a_worker_takes_no_more_messages_than_it_has_slots(redis: Redis, make_taker: Callable[..., Any]) -> None:
    """A client that gives every message the same delivery tag, such as celery-ts, does not blur the count."""
    for _ in range(10):
        redis.lpush(OVERFLOW_QUEUE, json.dumps(CLIENTS["celery-ts"](str(uuid4()), REQUEST)))
    with make_taker(slots=2) as taker:
        assert len(taker.take_all()) == 2
        for acknowledged in range(3):
            taker.taken[acknowledged].ack()
            assert len(taker.take_all()) == 1
            assert redis.hlen("unacked") == 2
    assert redis.llen(OVERFLOW_QUEUE) == 10 - 3


@pytest.mark.parametrize("end", [Message.ack, Message.requeue])
def test_a_message_that_cannot_be_acknowledged_holds_no_slot(
    redis: Redis, make_taker: Callable[..., Any], restricted_url: Callable[[str], str], end: Callable[[Message], None]
) -> None:
    first, second = push(redis), push(redis)
    with make_taker(slots=1, url=restricted_url("-hdel")) as taker:
        assert taker.take() == first
        with pytest.raises(ResponseError):
            end(taker.taken[0])
        assert taker.take() == second
        restricted_url("+hdel")


@pytest.mark.parametrize("client", CLIENTS)
def test_messages_of_other_languages_are_taken(redis: Redis, make_taker: Callable[..., Any], client: str) -> None:
    job_id = str(uuid4())
    redis.lpush(OVERFLOW_QUEUE, json.dumps(CLIENTS[client](job_id, REQUEST)))
    with make_taker() as taker:
        assert taker.take() == job_id


def test_a_waiting_worker_gets_the_next_message_at_once(redis: Redis, make_taker: Callable[..., Any]) -> None:
    """Redis announces it: the consumer below looks at its connection only when something arrives."""
    with make_taker() as taker:
        for queue in (OVERFLOW_QUEUE, PRIORITY_QUEUE, OVERFLOW_QUEUE):
            sent: list[str] = []

            def send(queue: str = queue, sent: list[str] = sent) -> None:
                wait_for(lambda: taker.channel._waiting)
                sent.append(push(redis, queue))

            sender = threading.Thread(target=send)
            sender.start()
            taken = taker.take()
            sender.join()
            assert [taken] == sent
            taker.taken[-1].ack()


def test_a_redis_that_announces_nothing_is_asked_again(
    redis: Redis,
    make_taker: Callable[..., Any],
    restricted_url: Callable[[str], str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with make_taker(url=restricted_url("-client|tracking")) as taker:
        assert taker.take_all() == []
        job_id = push(redis)
        wait_for(lambda: taker.take_all() == [job_id])
    assert caplog.text.count("Redis does not announce messages") == 1


def test_an_oversized_item_stays_in_redis_and_fails_its_job(redis: Redis, make_taker: Callable[..., Any]) -> None:
    job_id = str(uuid4())
    redis.lpush(OVERFLOW_QUEUE, python_item(job_id, b"\0" * 10**7))
    with make_taker() as taker:
        sent_before = redis.info("stats")["total_net_output_bytes"]
        assert taker.take() == job_id
        assert redis.info("stats")["total_net_output_bytes"] - sent_before < 50_000
        _, arguments, _ = json.loads(taker.taken[0].body)
        assert arguments == {"job_id": None, "refused": f"the message has more than {MAX_MESSAGE_BYTES} bytes"}
        assert redis.hstrlen("unacked", taker.taken[0].delivery_tag) < 10_000


def test_an_item_that_is_not_a_message_is_dropped(
    redis: Redis, make_taker: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    redis.lpush(OVERFLOW_QUEUE, b"MUELLER^HANS", b"x" * 10**6)
    job_id = push(redis)
    with make_taker(slots=1) as taker:
        assert taker.take_all() == [job_id]
        assert redis.hlen("unacked") == 1
    assert caplog.text.count("dropped a queue item") == 2
    assert "MUELLER" not in caplog.text


def test_celerys_message_priorities_are_ignored(
    redis: Redis, make_taker: Callable[..., Any], settings: Settings
) -> None:
    """Clients put such messages on lists of their own. They count, and urgent jobs come first."""
    routine = [push(redis) for _ in range(3)]
    client = Celery(broker=settings.broker_url)
    sent = []
    for queue, priority, options in (
        (OVERFLOW_QUEUE, 3, {}),
        (PRIORITY_QUEUE, 9, {}),
        (PRIORITY_QUEUE, 4, {"priority_steps": list(range(10)), "sep": ":"}),
    ):
        job_id = str(uuid4())
        client.conf.broker_transport_options = options
        with client.connection_for_write() as connection:
            arguments = {"job_id": job_id, "request": REQUEST}
            client.send_task(
                TASK_NAME, kwargs=arguments, task_id=job_id, queue=queue, priority=priority, connection=connection
            )
        sent.append(job_id)
    client.close()
    with closing(make_app(settings)) as app:
        assert fetch_redis_state(app).depths == {PRIORITY_QUEUE: 2, OVERFLOW_QUEUE: 4}
    with make_taker() as taker:
        ids = taker.take_all()
    assert set(ids[:2]) == set(sent[1:])
    assert ids[2:] == [*routine, sent[0]]


def test_garbage_in_kombus_keys_is_removed(
    redis: Redis, make_taker: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    separator = "\x06\x16"
    good = f"{OVERFLOW_QUEUE}{separator}{separator}{OVERFLOW_QUEUE}"
    entries = {
        "a number": b"5",
        "no JSON": b"\xff",
        "short": b"[1,2]",
        "deep": b"[" * 900 + b"]" * 900,
        "another queue": b'[{"body": "x"}, "", "elsewhere"]',
        "no age": b"MUELLER^HANS",
    }
    redis.hset("unacked", mapping=entries)  # type: ignore[arg-type]  # the stubs forget bytes
    redis.zadd("unacked_index", {name: 1 for name in ["nothing", *entries] if name != "no age"})
    redis.sadd("_kombu.binding.overflow", good, "junk", f"a{separator}{separator}elsewhere")
    redis.sadd("_kombu.binding.celery.pidbox", "a worker of long ago")
    redis.set("_kombu.binding.priority", "a string")
    with make_taker(visibility_timeout=-1) as taker:
        for _ in range(2):
            taker.channel.qos.restore_visible()
    assert redis.keys() == [b"_kombu.binding.overflow"]
    assert redis.smembers("_kombu.binding.overflow") == {good.encode()}
    assert "MUELLER" not in caplog.text


def test_keys_of_another_type_are_replaced(redis: Redis, make_taker: Callable[..., Any]) -> None:
    for key in ("unacked", "unacked_index", "overflow:3", PRIORITY_QUEUE):
        redis.set(key, "a string")
    job_id = push(redis)
    with make_taker() as taker:
        assert taker.take_all() == [job_id]
        assert redis.hlen("unacked") == 1


def test_a_full_redis_still_gives_messages(redis: Redis, make_taker: Callable[..., Any]) -> None:
    job_ids = [push(redis), push(redis, f"{OVERFLOW_QUEUE}\x06\x163")]
    redis.config_set("maxmemory", 1)
    try:
        with make_taker(visibility_timeout=-1) as taker:
            assert taker.take_all() == job_ids
            taker.channel.qos.restore_visible()
            assert redis.llen(OVERFLOW_QUEUE) == 2
    finally:
        redis.config_set("maxmemory", 0)


@pytest.mark.parametrize("how", ["at the end", "rejected", "when visible again"])
def test_an_unacknowledged_message_goes_back_to_its_queue(
    redis: Redis, make_taker: Callable[..., Any], how: str
) -> None:
    job_id = push(redis, properties={"delivery_info": {"exchange": "no such exchange"}, "body_encoding": "base64"})
    (item,) = redis.lrange(OVERFLOW_QUEUE, 0, -1)
    with make_taker(visibility_timeout=-1) as taker:
        assert taker.take() == job_id
        if how == "when visible again":
            taker.channel.qos.restore_visible()
        elif how == "rejected":
            taker.taken[0].requeue()
        expected = (0, 1) if how == "at the end" else (1, 0)
        assert (redis.llen(OVERFLOW_QUEUE), redis.hlen("unacked")) == expected
    assert (redis.llen(OVERFLOW_QUEUE), redis.hlen("unacked")) == (1, 0)
    assert redis.lrange(OVERFLOW_QUEUE, 0, -1) == [item]


def test_all_keys_of_a_deployment_start_with_its_prefix(redis: Redis, make_taker: Callable[..., Any]) -> None:
    push(redis)
    routine, urgent = (push(redis, f"ward:{queue}") for queue in (OVERFLOW_QUEUE, PRIORITY_QUEUE))
    with make_taker(prefix="ward:") as taker:
        assert taker.take_all() == [urgent, routine]
        assert (redis.hlen("ward:unacked"), redis.zcard("ward:unacked_index")) == (2, 2)
        taker.taken[0].ack()
        taker.taken[1].requeue()
        assert redis.llen(f"ward:{OVERFLOW_QUEUE}") == 1
        assert set(redis.keys("*")) == {b"overflow", b"ward:overflow"}


def test_a_rejected_message_goes_behind_the_others(redis: Redis, make_taker: Callable[..., Any]) -> None:
    first, second = push(redis), push(redis)
    with make_taker() as taker:
        assert taker.take() == first
        taker.taken[0].requeue()
        assert taker.take_all() == [second, first]


def test_a_message_that_a_worker_of_an_earlier_version_took_goes_back(
    redis: Redis, make_taker: Callable[..., Any]
) -> None:
    """Kombu's own transport writes spaces."""
    job_id = str(uuid4())
    item = python_item(job_id, [[], {"job_id": job_id, "request": REQUEST}, {}])
    redis.hset("unacked", "tag", json.dumps([json.loads(item), "", OVERFLOW_QUEUE]))
    redis.zadd("unacked_index", {"tag": 1})
    with make_taker() as taker:
        taker.channel.qos.restore_visible()
        assert UUID(taker.take()) == UUID(job_id)


@pytest.mark.parametrize("seed", redis_keys.seeds())
def test_the_scripts_survive_the_seeds_of_the_fuzzer(redis: Redis, seed: bytes) -> None:
    redis_keys.run(redis, seed)
