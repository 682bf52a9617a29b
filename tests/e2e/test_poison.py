"""Malformed messages: each fails alone or is dropped with one line of log, and the workers go on."""

import bz2
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from uuid import UUID, uuid4

import psutil
import pytest
from faults import wait_for
from queue_items import protocol_1_item, python_headers, python_item
from redis import Redis

from inference_service import Client
from inference_service.contract.task_message import TASK_NAME, SegmentRequest
from inference_service.embedded.stack import Stack
from inference_service.jobs.job_store import Job
from inference_service.jobs.queues.lists import OVERFLOW_QUEUE
from inference_service.jobs.schema import JobState

LIMIT_S = 60.0
# Both workers consume the queue, and one of them runs two jobs at once.
COPIES = 4
PATIENT = "MUELLER^HANS"
REQUEST = {"input": {"key": PATIENT}, "model": "ct-tissue"}


def message(job_id: str, **arguments: object) -> bytes:
    return python_item(job_id, [[], {"job_id": job_id, "request": REQUEST, **arguments}, {}])


# Messages that name their job, which fails as bad_request.
REFUSED: dict[str, Callable[[str], bytes]] = {
    "a field named after a patient": lambda job_id: message(job_id, request={**REQUEST, PATIENT: 1}),
    "an argument named after a patient": lambda job_id: message(job_id, **{PATIENT: 1}),
    "not JSON": lambda job_id: python_item(job_id, PATIENT.encode()),
    "compressed": lambda job_id: python_item(
        job_id,
        # It would expand to 1 GiB.
        bz2.compress(b"\0" * 2**26) * 16,
        headers=python_headers(job_id, compression="application/x-bz2"),
    ),
    "too large": lambda job_id: message(job_id, large="x" * 10**6),
    "protocol 1": lambda job_id: protocol_1_item(job_id, {**REQUEST, PATIENT: 1}),
}

# Items without a job, which are dropped.
DROPPED: dict[str, bytes] = {
    "no JSON": PATIENT.encode(),
    "too large": b"x" * 10**6,
    "nested": b"[" * 100_000,
    "another task": message(str(uuid4())).replace(TASK_NAME.encode(), PATIENT.encode()),
    "no UUID": message(PATIENT),
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
def test_an_item_without_a_job_is_dropped(queue: Redis, stack: Stack, name: str) -> None:
    before = dropped(stack)
    queue.lpush(OVERFLOW_QUEUE, *[DROPPED[name]] * COPIES)
    wait_for(lambda: dropped(stack) == before + COPIES)
    wait_for(lambda: queue.hlen("unacked") == 0)


def dropped(stack: Stack) -> int:
    lines = [line for worker in stack.workers for line in worker.log_path.read_text().splitlines()]
    return sum(" ERROR " in line and "dropped a queue item" in line for line in lines)
