"""The target of what strangers can write into kombu's keys in Redis, against a real server.

It runs the scripts with which a worker takes messages, gives them back and tidies up.
"""

import atexit
from contextlib import ExitStack, suppress
from functools import cache
from typing import Any

from redis import Redis
from redis.exceptions import ResponseError

from fuzz.messages import item_of_protocol_2
from fuzz.target import Pieces, Target, scratch_folder
from inference_service.contract.task_message import MAX_MESSAGE_BYTES
from inference_service.embedded.servers import start_servers
from inference_service.embedded.stack import settings_for
from inference_service.jobs.queues.lists import KEYS_PER_LIST, OVERFLOW_QUEUE, PRIORITY_QUEUE, QUEUES, keys_of
from inference_service.worker.messages.message_check import NoJob, task_message
from inference_service.worker.messages.redis_scripts import GIVE_BACK, TAKE, TIDY

_UNACKED = "unacked"
_INDEX = "unacked_index"
_ROUTES = f"_kombu.binding.{OVERFLOW_QUEUE}"
_SEPARATOR = "\x06\x16"
_LISTS = [key for queue in QUEUES for key in keys_of(queue)]
# Keys that may have another type than kombu gave them. The priority queue holds the valid message, and stays a list.
_OTHER_TYPES = [_UNACKED, _INDEX, _ROUTES, *keys_of(OVERFLOW_QUEUE), *keys_of(PRIORITY_QUEUE)[1:]]
# More rounds than an input can fill.
_MAX_TAKEN = 1000


@cache
def _started() -> Redis:
    stack = ExitStack()
    atexit.register(stack.close)
    servers = stack.enter_context(start_servers(scratch_folder() / "servers", durable=False))
    return Redis.from_url(settings_for(servers.environment).broker_url)


def run(redis: "Redis", data: bytes) -> None:
    """Writes what an input says, and checks that the scripts survive it and keep the valid message."""
    redis.flushdb()
    valid = item_of_protocol_2()
    redis.lpush(PRIORITY_QUEUE, valid)
    _write(redis, Pieces(data))
    for _ in range(2):  # the first round gives entries without an age one
        removed = _eval(redis, TIDY, [_UNACKED, _INDEX, *QUEUES], 0, _SEPARATOR)
        assert removed >= 0
    taken = _take_all(redis)
    assert [item for item in taken.values() if item == valid] != []
    for item in taken.values():
        with suppress(NoJob):
            task_message(item)
    assert set(redis.hkeys(_UNACKED)) == {tag.encode() for tag in taken}
    for tag in taken:
        _eval(redis, GIVE_BACK, [_UNACKED, _INDEX, *QUEUES], tag, "RPUSH")
    assert not redis.exists(_UNACKED, _INDEX)
    assert sum(redis.llen(queue) for queue in QUEUES) == len(taken)


def _take_all(redis: "Redis") -> dict[str, bytes]:
    """Takes all messages; returns the items by their tags."""
    taken: dict[str, bytes] = {}
    while len(taken) < _MAX_TAKEN:
        tag = f"tag {len(taken)}"
        answer = _eval(redis, TAKE, [_UNACKED, _INDEX, *_LISTS], tag, MAX_MESSAGE_BYTES, KEYS_PER_LIST)
        if answer is None:
            break
        taken[tag] = answer[1]
    return taken


def _eval(redis: "Redis", script: str, keys: list[str], *arguments: str | int) -> Any:
    return redis.eval(script, len(keys), *keys, *arguments)


def _write(redis: "Redis", pieces: Pieces) -> None:
    while pieces:
        kind = pieces.byte() % 6
        with suppress(ResponseError):  # the key has got another type
            if kind == 0:
                tag = pieces.piece()
                redis.zadd(_INDEX, {tag: 1})
                redis.hset(_UNACKED, tag, pieces.piece())
            elif kind == 1:
                redis.hset(_UNACKED, pieces.piece(), pieces.piece())
            elif kind == 2:
                redis.lpush(_LISTS[pieces.byte() % len(_LISTS)], pieces.piece())
            elif kind == 3:
                redis.sadd(_ROUTES, pieces.piece())
            elif kind == 4:
                redis.set(_OTHER_TYPES[pieces.byte() % len(_OTHER_TYPES)], pieces.piece())
            else:
                redis.zadd(_INDEX, {pieces.piece(): pieces.byte()})


def _piece(content: bytes) -> bytes:
    return bytes([len(content)]) + content


def seeds() -> list[bytes]:
    """One of each kind of entry: as kombu writes them, and of other types."""
    entry = b'["x","","overflow"]'
    route = _SEPARATOR.join(["overflow", "", "overflow"]).encode()
    return [
        b"\0" + _piece(b"tag") + _piece(entry),
        b"\1" + _piece(b"tag") + _piece(entry),
        b"\2\0" + _piece(b'{"body": 1}'),
        b"\2\5" + _piece(b"{}"),
        b"\3" + _piece(route),
        b"\4\0" + _piece(b"x"),
        b"\5" + _piece(b"tag") + b"\1",
    ]


TARGETS = (Target("redis", lambda data: run(_started(), data), seeds, prepare=_started, max_input_bytes=512),)
