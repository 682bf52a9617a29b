"""Messages that cancel jobs, read by a sweep from a real Redis."""

from collections.abc import Callable, Iterator
from contextlib import closing
from uuid import UUID, uuid4

import pytest
from celery import Celery
from jobs_in_process import Request, claim, get
from pydantic import SecretStr
from redis import Redis
from sqlalchemy import Connection, select

from inference_service.contract.task_message import CANCEL_TASK_NAME, InputReference, SegmentRequest
from inference_service.core.errors import BadRequest, DatabaseUnavailable, InputCorrupt
from inference_service.core.settings import Settings
from inference_service.jobs import attempts, job_store, resubmission, state_machine
from inference_service.jobs.database import Database
from inference_service.jobs.queues.celery_app import make_app
from inference_service.jobs.schema import JobRow, JobState
from inference_service.jobs.storage.object_storage import Storage
from inference_service.worker.messages import cancellations
from inference_service.worker.sweeper import Sweeper
from inference_service.worker.task import TaskHandler

REQUEST = SegmentRequest(input=InputReference(key="ct/1.nii.gz"), model="ct-tissue")
LIST = "cancellations"

pytestmark = pytest.mark.usefixtures("no_jobs")


@pytest.fixture
def make_sweeper(settings: Settings, database: Database, storage: Storage, redis: Redis) -> Callable[..., Sweeper]:
    def make(**changes: object) -> Sweeper:
        own = settings.model_copy(update=changes)
        return Sweeper(own, make_app(own), database, storage)

    return make


@pytest.fixture
def sweeper(make_sweeper: Callable[..., Sweeper]) -> Sweeper:
    return make_sweeper()


@pytest.fixture
def cancel(settings: Settings) -> Iterator[Callable[..., None]]:
    """Sends a cancellation as an upstream that knows the contract alone."""
    with closing(Celery(broker=settings.broker_url, set_as_current=False)) as app:

        def send(job_id: object, *, queue: str = LIST, priority: int = 0) -> None:
            app.send_task(CANCEL_TASK_NAME, kwargs={"job_id": str(job_id)}, queue=queue, priority=priority)

        yield send


def test_jobs_are_cancelled_as_by_a_client(
    sweeper: Sweeper, database: Database, redis: Redis, cancel: Callable[..., None]
) -> None:
    queued, running, failed = (uuid4() for _ in range(3))
    for job_id in (queued, running, failed):
        job_store.create(database, job_id, REQUEST)
    for job_id in (running, failed):
        claimed = claim(database, job_id)
    attempts.fail(database, claimed, InputCorrupt("x"))
    for job_id in (queued, running, failed, queued, running):
        cancel(job_id)
    cancel(queued, priority=9)
    sweeper.cancel_by_messages()
    job = get(database, queued)
    assert (job.state, job.error_code, job.attempt) == (JobState.CANCELLED, "cancelled", 0)
    assert [change.to_state for change in job_store.transitions(database, queued)] == ["queued", "cancelled"]
    assert (get(database, running).state, get(database, running).cancel_requested) == (JobState.RUNNING, True)
    assert (get(database, failed).state, get(database, failed).error_code) == (JobState.FAILED, "input_corrupt")
    assert redis.keys(f"{LIST}*") == []


def test_a_cancellation_that_overtakes_its_job_holds(
    sweeper: Sweeper,
    handler: TaskHandler,
    database: Database,
    request_for_scan: Request,
    cancel: Callable[..., None],
) -> None:
    job_id = uuid4()
    cancel(job_id)
    sweeper.cancel_by_messages()
    handler.handle({"job_id": str(job_id), "request": request_for_scan}, task_id=str(job_id))
    job = get(database, job_id)
    assert (job.state, job.attempt, job.request) == (JobState.CANCELLED, 0, None)
    assert not job_store.create(database, job_id, REQUEST)
    with pytest.raises(BadRequest, match="came after its cancellation"):
        resubmission.queue_again(database, job_id)


@pytest.mark.parametrize("died", [DatabaseUnavailable("x"), KeyboardInterrupt()], ids=["outage", "death"])
def test_a_cancellation_stays_until_the_row_is_written(
    sweeper: Sweeper,
    database: Database,
    redis: Redis,
    cancel: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    died: BaseException,
) -> None:
    jobs = [uuid4() for _ in range(3)]
    for job_id in jobs:
        job_store.create(database, job_id, REQUEST)
        cancel(job_id)

    def die(connection: Connection, job_id: UUID, request: None) -> bool:
        if job_id == jobs[1]:
            raise died
        return state_machine.create_queued(connection, job_id, request)

    with monkeypatch.context() as patch:
        patch.setattr("inference_service.jobs.job_store.create_queued", die)
        with pytest.raises(type(died)):
            sweeper.cancel_by_messages()
    assert redis.llen(LIST) == 2
    states = [get(database, job_id).state for job_id in jobs]
    assert states == [JobState.CANCELLED, JobState.QUEUED, JobState.QUEUED]
    sweeper.cancel_by_messages()
    assert redis.llen(LIST) == 0
    assert {get(database, job_id).state for job_id in jobs} == {JobState.CANCELLED}


def test_a_locked_row_does_not_hold_up_the_others(
    sweeper: Sweeper, database: Database, redis: Redis, cancel: Callable[..., None]
) -> None:
    locked, inserted, free = (uuid4() for _ in range(3))
    for job_id in (locked, free):
        job_store.create(database, job_id, REQUEST)
    for job_id in (locked, inserted, free):
        cancel(job_id)
    with database.begin() as connection:
        connection.execute(select(JobRow.id).where(JobRow.id == locked).with_for_update())
        state_machine.create_queued(connection, inserted, None)
        sweeper.cancel_by_messages()
        assert get(database, free).state == JobState.CANCELLED
        assert redis.llen(LIST) == 2
    sweeper.cancel_by_messages()
    assert {get(database, job_id).state for job_id in (locked, inserted)} == {JobState.CANCELLED}
    assert redis.llen(LIST) == 0


def test_what_is_no_cancellation_is_dropped_without_a_quotation(
    sweeper: Sweeper,
    database: Database,
    redis: Redis,
    cancel: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    redis.lpush(LIST, b"MUELLER^HANS", b"[" * 10_000, b"x" * 20_000, b"y" * 10**6, b"x" * 20_000)
    job_id = uuid4()
    cancel("MUELLER^HANS")
    cancel(job_id)
    sweeper.cancel_by_messages()
    assert get(database, job_id).state == JobState.CANCELLED
    assert job_store.count(database) == 1
    assert redis.llen(LIST) == 0
    assert "dropped 3 cancellation(s) of more than 16384 bytes" in caplog.text
    assert caplog.text.count("dropped a cancellation of ") == 3
    assert "MUELLER" not in caplog.text


def test_a_key_of_another_type_is_removed(
    sweeper: Sweeper, database: Database, redis: Redis, cancel: Callable[..., None]
) -> None:
    redis.sadd(LIST, "x")
    sweeper.cancel_by_messages()
    job_id = uuid4()
    cancel(job_id)
    sweeper.cancel_by_messages()
    assert get(database, job_id).state == JobState.CANCELLED


def test_a_sweep_reads_a_bounded_number_oldest_first(
    sweeper: Sweeper,
    database: Database,
    redis: Redis,
    cancel: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cancellations, "_MAX_AT_ONCE", 2)
    jobs = [uuid4() for _ in range(5)]
    for job_id in jobs:
        cancel(job_id)
    for done in (2, 4, 5):
        sweeper.cancel_by_messages()
        assert [job_store.get(database, job_id) is not None for job_id in jobs] == [n < done for n in range(5)]
    redis.lpush(LIST, *(b"x" * 20_000 for _ in range(3)))
    sweeper.cancel_by_messages()
    assert redis.llen(LIST) == 1


def test_the_list_begins_with_the_deployments_prefix(
    make_sweeper: Callable[..., Sweeper], database: Database, redis: Redis, cancel: Callable[..., None]
) -> None:
    others, own = uuid4(), uuid4()
    cancel(others)
    cancel(own, queue=f"ward:{LIST}")
    make_sweeper(redis_prefix="ward:").cancel_by_messages()
    assert get(database, own).state == JobState.CANCELLED
    assert job_store.get(database, others) is None
    assert redis.llen(LIST) == 1


def test_a_refusal_does_not_end_the_sweep(
    make_sweeper: Callable[..., Sweeper], redis: Redis, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """As with the rights of an earlier version."""
    redis.acl_setuser("worker", enabled=True, nopass=True, commands=["+eval"], keys=["overflow"])
    try:
        address = settings.broker_url.rpartition("@")[2]
        make_sweeper(redis_url=SecretStr(f"redis://worker:x@{address}")).cancel_by_messages()
    finally:
        redis.acl_deluser("worker")
    assert "messages that cancel jobs are not read" in caplog.text
