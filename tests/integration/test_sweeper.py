"""Messages that a sweep sends, and those that it finds in Redis and does not send again."""

import time
from datetime import timedelta
from itertools import count
from unittest.mock import Mock
from uuid import UUID, uuid4

import pytest
from redis import Redis
from sqlalchemy import func, update

from inference_service.contract.task_message import InputReference, SegmentRequest
from inference_service.jobs import job_store
from inference_service.jobs.database import Database
from inference_service.jobs.job_store import UnsentJob
from inference_service.jobs.queues import waiting_jobs
from inference_service.jobs.queues.celery_app import App, send
from inference_service.jobs.queues.redis_state import RedisState, fetch_redis_state
from inference_service.jobs.queues.waiting_jobs import find_waiting_jobs
from inference_service.jobs.schema import JobRow, JobState
from inference_service.worker.sweeper import _LIMIT_S, Sweeper

REQUEST = SegmentRequest(input=InputReference(key="ct/1.nii.gz"), model="ct-tissue")
JSON = REQUEST.model_dump(mode="json")

pytestmark = pytest.mark.usefixtures("no_jobs")


def sent_long_ago(app: App, database: Database) -> UUID:
    """A job whose message was sent an hour ago by an earlier run of Redis."""
    job_id = uuid4()
    job_store.create(database, job_id, REQUEST)
    send(app, job_id, JSON, queue="overflow")
    with database.begin() as connection:
        job_store.mark_dispatched(connection, UnsentJob(job_id, JSON, 0), queue="overflow", redis_run_id="before")
    write(database, job_id, dispatched_at=func.now() - timedelta(hours=1), created_at=func.now() - timedelta(hours=1))
    return job_id


def write(database: Database, job_id: UUID, **values: object) -> None:
    with database.begin() as connection:
        connection.execute(update(JobRow).where(JobRow.id == job_id).values(values))


def overtake(app: App, database: Database) -> None:
    """Starts and ends a job that was sent to the same queue just now."""
    write(
        database,
        sent_long_ago(app, database),
        dispatched_at=func.now(),
        state=JobState.SUCCEEDED,
        started_at=func.now(),
    )


def test_the_jobs_of_all_messages_are_found(app: App, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting_jobs, "_PAGE_SIZE", 2)
    jobs = [uuid4() for _ in range(7)]
    for number, job_id in enumerate(jobs):
        send(app, job_id, JSON, queue=("overflow", "priority")[number % 2])
    taken = redis.rpop("overflow")
    assert isinstance(taken, bytes)
    redis.hset("unacked", "tag", b"[" + taken + b', "", "overflow"]')
    redis.lpush("overflow", b"not a message")
    assert find_waiting_jobs(app, taken_within_s=60) == set(jobs)
    monkeypatch.setattr(waiting_jobs, "_MAX_MESSAGES_READ", 7)
    assert find_waiting_jobs(app, taken_within_s=60) is None


def test_large_items_stay_in_redis(app: App, redis: Redis) -> None:
    job_id = uuid4()
    send(app, job_id, JSON, queue="overflow")
    for key in ("overflow", "priority"):
        redis.lpush(key, b'{"id": "' + str(uuid4()).encode() + b'"}' + b"x" * 10**6)
    redis.hset("unacked", "tag", b"x" * 10**6)
    before = redis.info("stats")["total_net_output_bytes"]
    assert find_waiting_jobs(app, taken_within_s=60) == {job_id}
    assert redis.info("stats")["total_net_output_bytes"] - before < 50_000


def test_messages_that_redis_has_are_not_sent_again(
    app: App, redis: Redis, database: Database, sweeper: Sweeper
) -> None:
    jobs = [sent_long_ago(app, database) for _ in range(5)]
    overtake(app, database)
    held = redis.rpop("overflow")
    assert isinstance(held, bytes)
    redis.hset("unacked", "tag", b"[" + held + b', "", "overflow"]')
    before = redis.llen("overflow")
    for _ in range(2):
        sweeper.send_missing_messages(fetch_redis_state(app))
    assert redis.llen("overflow") == before
    assert set(jobs) <= (find_waiting_jobs(app, taken_within_s=60) or set())


def test_a_message_that_was_taken_long_ago_is_sent_again_once(
    app: App, redis: Redis, database: Database, sweeper: Sweeper
) -> None:
    """As if the answer with the message was lost on its way to a worker."""
    job_id = sent_long_ago(app, database)
    overtake(app, database)
    held = redis.rpop("overflow")
    assert isinstance(held, bytes)
    redis.hset("unacked", "tag", b"[" + held + b', "", "overflow"]')
    redis.zadd("unacked_index", {"tag": time.time() - 3600})
    before = redis.llen("overflow")
    for _ in range(2):
        sweeper.send_missing_messages(fetch_redis_state(app))
    assert redis.llen("overflow") == before + 1
    assert job_id in (find_waiting_jobs(app, taken_within_s=60) or set())


def test_only_the_messages_that_redis_has_lost_are_sent_again(
    app: App, redis: Redis, database: Database, sweeper: Sweeper
) -> None:
    lost = sent_long_ago(app, database)
    redis.rpop("overflow")
    for _ in range(3):
        sent_long_ago(app, database)
    overtake(app, database)
    before = redis.llen("overflow")
    for _ in range(2):
        sweeper.send_missing_messages(fetch_redis_state(app))
    assert redis.llen("overflow") == before + 1
    assert lost in (find_waiting_jobs(app, taken_within_s=60) or set())


def test_an_emptied_redis_gets_all_messages_again(app: App, redis: Redis, database: Database, sweeper: Sweeper) -> None:
    jobs = {sent_long_ago(app, database) for _ in range(3)}
    redis.flushdb()
    for _ in range(2):
        sweeper.send_missing_messages(fetch_redis_state(app))
    assert (redis.llen("overflow"), find_waiting_jobs(app, taken_within_s=60)) == (3, jobs)


def test_a_sweep_that_sends_many_messages_stops_in_time_and_the_next_one_goes_on(
    app: App, redis: Redis, database: Database, sweeper: Sweeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = {sent_long_ago(app, database) for _ in range(5)}
    redis.flushdb()
    clock = Mock(monotonic=Mock(side_effect=count(step=_LIMIT_S / 2)))
    monkeypatch.setattr("inference_service.jobs.dispatch.time", clock)
    sweeper.send_missing_messages(fetch_redis_state(app))
    assert redis.llen("overflow") == 1
    state = RedisState("run", {"priority": 0, "overflow": 0})
    while redis.llen("overflow") < 5:
        sweeper.send_missing_messages(state)
    assert find_waiting_jobs(app, taken_within_s=60) == jobs


def test_nothing_is_sent_again_while_too_many_messages_wait(
    app: App, redis: Redis, database: Database, sweeper: Sweeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting_jobs, "_MAX_MESSAGES_READ", 1)
    sent_long_ago(app, database)
    redis.rpop("overflow")
    sent_long_ago(app, database)
    overtake(app, database)
    sweeper.send_missing_messages(RedisState("run", {"priority": 0, "overflow": 2}))
    assert redis.llen("overflow") == 2
