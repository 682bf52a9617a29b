"""Malformed messages: each fails alone or is dropped with one line of log, and the workers go on."""

import json
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from uuid import UUID, uuid4

import psutil
import pytest
from kombu import Connection, Consumer, Exchange, Queue
from redis import Redis

from inference_service import Client
from inference_service.contract.task_message import TASK_NAME, SegmentRequest
from inference_service.embedded.stack import Stack
from inference_service.jobs.celery_app import OVERFLOW_QUEUE
from inference_service.jobs.job_store import Job
from inference_service.jobs.schema import JobState
from inference_service.worker.redis_transport import Channel

LIMIT_S = 60.0
# Both workers consume the queue, and one of them runs two jobs at once.
COPIES = 4
PATIENT = "MUELLER^HANS"
REQUEST = {"input": {"key": PATIENT}, "model": "ct-tissue"}

Poison = Callable[[str], bytes]


def envelope(content: object, headers: object, **changes: object) -> bytes:
    """Returns a message as kombu stores it in Redis."""
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    properties = {
        "correlation_id": PATIENT,
        "delivery_tag": str(uuid4()),
        "body_encoding": "base64",
        "delivery_info": {"exchange": "", "routing_key": OVERFLOW_QUEUE},
    }
    whole = {
        "body": b64encode(raw).decode(),
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": headers,
        "properties": properties,
    }
    return json.dumps({**whole, **changes}).encode()


def headers(job_id: str, **changes: object) -> dict[str, object]:
    return {"lang": "py", "task": TASK_NAME, "id": job_id, "kwargsrepr": PATIENT, **changes}


def arguments(job_id: str, *args: object, **changes: object) -> list[object]:
    return [args, {"job_id": job_id, "request": {**REQUEST, "patient": PATIENT}, **changes}, {}]


def nested(job_id: str, levels: int) -> bytes:
    text = f'[[], {{"job_id": "{job_id}", "request": {"[" * levels}"{PATIENT}"{"]" * levels}}}, {{}}]'
    return text.encode()


def without(job_id: str, name: str) -> dict[str, object]:
    return {key: value for key, value in headers(job_id).items() if key != name}


# Messages that name their job, which fails as bad_request.
REFUSED: dict[str, Poison] = {
    "no header id": lambda job_id: envelope(arguments(job_id), without(job_id, "id")),
    "nested 900 deep": lambda job_id: envelope(nested(job_id, 900), headers(job_id)),
    "nested 100,000 deep": lambda job_id: envelope(nested(job_id, 100_000), headers(job_id)),
    "body 5": lambda job_id: envelope(5, headers(job_id)),
    "body an object": lambda job_id: envelope({PATIENT: 1}, headers(job_id)),
    "body no JSON": lambda job_id: envelope(PATIENT.encode(), headers(job_id)),
    "body null": lambda job_id: envelope(None, headers(job_id), body=None),
    "timelimit a string": lambda job_id: envelope(arguments(job_id), headers(job_id, timelimit="a")),
    "eta unreadable": lambda job_id: envelope(arguments(job_id), headers(job_id, eta=PATIENT)),
    "argument self": lambda job_id: envelope(arguments(job_id, self=PATIENT), headers(job_id)),
    "argument refused": lambda job_id: envelope(arguments(job_id, refused=PATIENT), headers(job_id)),
    "a field named after a patient": lambda job_id: envelope(
        arguments(job_id, request={**REQUEST, PATIENT: 1}), headers(job_id)
    ),
    "positional argument": lambda job_id: envelope(arguments(job_id, PATIENT), headers(job_id)),
    "kwargs a list": lambda job_id: envelope([[], [PATIENT], {}], headers(job_id)),
    "too large": lambda job_id: envelope(arguments(job_id, large="x" * 300_000), headers(job_id)),
    "kombu's typed value": lambda job_id: envelope(
        arguments(job_id, request={"__type__": "decimal", "__value__": PATIENT}), headers(job_id)
    ),
    "pickle": lambda job_id: envelope(
        arguments(job_id), headers(job_id), **{"content-type": "application/x-python-serialize"}
    ),
}

# Messages without a job, which are dropped.
DROPPED: dict[str, Poison] = {
    "no JSON": lambda job_id: PATIENT.encode(),
    "no text": lambda job_id: b"\xff\xfe" + PATIENT.encode(),
    "JSON no object": lambda job_id: b"5",
    "JSON of another object": lambda job_id: json.dumps({PATIENT: 1}).encode(),
    "nested envelope": lambda job_id: b'{"headers": ' + b"[" * 900 + b"]" * 900 + b"}",
    "nested header": lambda job_id: envelope(arguments(job_id), headers(job_id)).replace(
        b'"lang": "py"', b'"lang": ' + b"[" * 900 + b"]" * 900
    ),
    "properties empty": lambda job_id: envelope(arguments(job_id), headers(job_id), properties={}),
    "delivery tag a list": lambda job_id: envelope(
        arguments(job_id), headers(job_id), properties={"delivery_tag": [PATIENT], "delivery_info": {}}
    ),
    "delivery tag null": lambda job_id: envelope(
        arguments(job_id), headers(job_id), properties={"delivery_tag": None, "delivery_info": {}}
    ),
    "body no base64": lambda job_id: envelope(arguments(job_id), headers(job_id), body=PATIENT),
    "headers a list": lambda job_id: envelope(arguments(job_id), [PATIENT]),
    "headers null": lambda job_id: envelope(arguments(job_id), None),
    "unknown compression": lambda job_id: envelope(arguments(job_id), headers(job_id, compression=PATIENT)),
    "unknown task": lambda job_id: envelope(arguments(job_id), headers(job_id, task="some.other")),
    "task's name with a patient": lambda job_id: envelope(arguments(job_id), headers(job_id, task=PATIENT)),
    "task's name a list": lambda job_id: envelope(arguments(job_id), headers(job_id, task=[PATIENT])),
    "a task of Celery": lambda job_id: envelope(arguments(job_id), headers(job_id, task="celery.map")),
    "protocol 1": lambda job_id: envelope({"task": TASK_NAME, "id": job_id, "args": [PATIENT], "kwargs": {}}, {}),
    "no UUID": lambda job_id: envelope(arguments(PATIENT), headers(PATIENT)),
}


@pytest.fixture
def queue(stack: Stack) -> Iterator[Redis]:
    with Redis.from_url(stack.settings.broker_url) as connection:
        yield connection


@pytest.fixture
def unharmed(stack: Stack, client: Client, scan: Path) -> Iterator[None]:
    """Checks after the test that a good job succeeds in the same processes, and that no log names the patient."""
    before = processes()
    assert len(before) >= len(stack.workers)
    yield
    job_id = client.submit(SegmentRequest(input=client.upload(scan), model="ct-tissue"))
    assert client.wait(job_id, timeout_s=LIMIT_S).state is JobState.SUCCEEDED
    assert processes() == before
    for path in (worker.log_path for worker in stack.workers):
        log = path.read_text()
        assert PATIENT not in log
        assert b64encode(PATIENT.encode()).decode() not in log
        assert "Traceback" not in log


def processes() -> set[tuple[int, float]]:
    """Returns the ids and start times of the workers' processes; a later process may have the same id."""
    workers = set()
    for one in psutil.Process().children(recursive=True):
        # A server's process may end meanwhile.
        with suppress(psutil.Error):
            if {"worker", "--role"} <= set(one.cmdline()):
                workers.add((one.pid, one.create_time()))
    return workers


def row(client: Client, job_id: UUID) -> Job:
    deadline = time.monotonic() + LIMIT_S
    while client.status(job_id) is None and time.monotonic() < deadline:
        time.sleep(0.05)
    return client.wait(job_id, timeout_s=LIMIT_S)


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_message_of_a_job_fails_that_job(queue: Redis, client: Client, name: str) -> None:
    job_ids = [uuid4() for _ in range(COPIES)]
    queue.lpush(OVERFLOW_QUEUE, *[REFUSED[name](str(job_id)) for job_id in job_ids])
    for job_id in job_ids:
        job = row(client, job_id)
        assert (job.state, job.error_code, job.attempt) == (JobState.FAILED, "bad_request", 1)
        assert PATIENT not in str(job.error_message)


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize("name", DROPPED)
def test_a_message_without_a_job_is_dropped(queue: Redis, client: Client, stack: Stack, name: str) -> None:
    job_id = uuid4()
    before = dropped(stack)
    queue.lpush(OVERFLOW_QUEUE, *[DROPPED[name](str(job_id)) for _ in range(COPIES)])
    deadline = time.monotonic() + LIMIT_S
    while dropped(stack) < before + COPIES and time.monotonic() < deadline:
        time.sleep(0.05)
    assert dropped(stack) == before + COPIES
    assert client.status(job_id) is None
    assert queue.hlen("unacked") == 0


@pytest.mark.parametrize("restore", ["at the end", "when visible again"])
def test_an_unacknowledged_message_goes_back_to_its_queue(stack: Stack, queue: Redis, restore: str) -> None:
    name = f"restored-{uuid4()}"
    keys = {key: f"{name}-{key}" for key in ("unacked_key", "unacked_index_key", "unacked_mutex_key")}
    properties = {"delivery_tag": "1", "delivery_info": {"exchange": "no such exchange", "routing_key": "x"}}
    queue.lpush(name, envelope("content", {}, properties=properties))
    with Connection(
        stack.settings.broker_url,
        transport="inference_service.worker.redis_transport:Transport",
        transport_options={**keys, "visibility_timeout": -1},
    ) as connection:
        channel = connection.channel()
        assert isinstance(channel, Channel)
        consumer = Consumer(channel, [Queue(name, Exchange(""), name)], on_message=lambda message: None)
        with consumer:
            connection.drain_events(timeout=LIMIT_S)
        assert (queue.llen(name), queue.hlen(keys["unacked_key"])) == (0, 1)
        if restore == "when visible again":
            channel.qos.restore_visible(interval=1)
            assert (queue.llen(name), queue.hlen(keys["unacked_key"])) == (1, 0)
    assert (queue.llen(name), queue.hlen(keys["unacked_key"])) == (1, 0)
    (item,) = queue.lrange(name, 0, -1)
    assert json.loads(item)["properties"]["delivery_info"]["redelivered"]


def dropped(stack: Stack) -> int:
    lines = [line for worker in stack.workers for line in worker.log_path.read_text().splitlines()]
    return sum(" ERROR " in line and ("dropped a queue item" in line or "rejected a message" in line) for line in lines)
