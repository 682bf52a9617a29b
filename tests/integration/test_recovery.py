"""Recovery of orphaned jobs, against a real Postgres."""

import os
from datetime import timedelta
from uuid import UUID, uuid4

import pytest
from sqlalchemy import func, update

from inference_service.contract.task_message import InputReference, SegmentRequest
from inference_service.core.errors import TimeLimit
from inference_service.jobs import attempts, job_store, recovery
from inference_service.jobs.database import Database
from inference_service.jobs.queues.redis_state import RedisState
from inference_service.jobs.schema import JobRow, JobState
from inference_service.jobs.workers.worker_registry import Role, WorkerIdentity, record_heartbeat

REQUEST = SegmentRequest(input=InputReference(key="ct/1.nii.gz"), model="ct-tissue")
GRACE_S = 30.0
REDIS = RedisState("this run", {"priority": 1, "overflow": 1})

pytestmark = pytest.mark.usefixtures("no_jobs")


def create(database: Database, **values: object) -> UUID:
    """Creates a job with further column values; a number means a time so many seconds ago."""
    job_id = uuid4()
    job_store.create(database, job_id, REQUEST)
    times = {
        name: func.now() - timedelta(seconds=value) for name, value in values.items() if isinstance(value, int | float)
    }
    if values:
        with database.begin() as connection:
            connection.execute(update(JobRow).where(JobRow.id == job_id).values({**values, **times}))
    return job_id


def running(database: Database, *, worker: str = "w", expired: bool = False) -> UUID:
    job_id = create(database)
    assert attempts.claim(database, job_id, worker=worker, lease_s=-1 if expired else 30, max_attempts=3)
    return job_id


def state(database: Database, job_id: UUID) -> tuple[str, str | None]:
    job = job_store.get(database, job_id)
    assert job is not None
    return str(job.state), job.error_code


def unsent(database: Database) -> set[UUID]:
    return {job.id for job in recovery.find_unsent(database, grace_s=GRACE_S)}


def suspects(database: Database, redis: RedisState = REDIS) -> set[UUID]:
    return set(recovery.find_suspects(database, redis, grace_s=GRACE_S))


def test_an_expired_lease_gives_the_job_another_attempt(database: Database) -> None:
    expired = running(database, expired=True)
    alive = running(database)
    assert recovery.requeue_expired(database, max_attempts=3) == []
    assert state(database, expired) == ("queued", None)
    assert state(database, alive) == ("running", None)
    last = job_store.transitions(database, expired)[-1]
    assert (last.from_state, last.to_state, last.attempt, last.worker, last.detail) == (
        "running",
        "queued",
        1,
        "w",
        "lease_expired",
    )
    assert unsent(database) == {expired}


def test_the_last_attempt_ends_the_job(database: Database) -> None:
    expired = running(database, expired=True)
    (ended,) = recovery.requeue_expired(database, max_attempts=1)
    assert (ended.job_id, ended.worker, ended.error.code) == (expired, "w", "worker_lost")
    assert state(database, expired) == ("failed", "worker_lost")
    assert recovery.requeue_expired(database, max_attempts=1) == []


def test_an_expired_job_with_a_requested_cancellation_is_cancelled(database: Database) -> None:
    expired = running(database, expired=True)
    job_store.cancel(database, expired)
    recovery.requeue_expired(database, max_attempts=3)
    assert state(database, expired) == ("cancelled", "cancelled")


def test_only_the_job_of_the_dead_process_is_recovered(database: Database) -> None:
    mine = running(database)
    another = running(database, worker="another")
    for job_id in (mine, another):
        recovery.requeue_lost(database, job_id, worker="w", pid=os.getpid(), max_attempts=3)
    assert state(database, mine) == ("queued", None)
    assert state(database, another) == ("running", None)
    recovery.fail_lost(database, another, worker="another", pid=1, error=TimeLimit("too long"))
    assert state(database, another) == ("running", None)
    recovery.fail_lost(database, another, worker="another", pid=os.getpid(), error=TimeLimit("too long"))
    assert state(database, another) == ("failed", "time_limit")


@pytest.mark.parametrize("way", ["lost", "expired", "claimed"])
def test_a_job_is_kept_from_the_worker_that_lost_it_while_another_consumes_its_queue(
    database: Database, way: str
) -> None:
    job_id = running(database, worker="sick", expired=way != "lost")
    with database.begin() as connection:
        connection.execute(update(JobRow).where(JobRow.id == job_id).values(queue="overflow"))
    for name in ("sick", "well"):
        record_heartbeat(database, WorkerIdentity(name, Role.CPU, 1, []), queues=["overflow"])
    if way == "lost":
        assert recovery.requeue_lost(database, job_id, worker="sick", pid=os.getpid(), max_attempts=3)
        assert not recovery.requeue_lost(database, job_id, worker="sick", pid=os.getpid(), max_attempts=3)
    elif way == "expired":
        recovery.requeue_expired(database, max_attempts=3)

    def claimed(worker: str, *, lease_s: float = -1) -> bool:
        return attempts.claim(database, job_id, worker=worker, lease_s=lease_s, max_attempts=3) is not None

    with pytest.raises(attempts.LeftToAnother):
        claimed("sick")
    assert claimed("well")
    # Both have lost it: whoever comes takes it, until it has no attempt left.
    assert claimed("sick")
    assert not claimed("well")
    assert state(database, job_id) == ("failed", "worker_lost")


def test_a_lost_job_stays_with_its_worker_if_no_other_consumes_its_queue(database: Database) -> None:
    job_id = running(database, worker="only")
    with database.begin() as connection:
        connection.execute(update(JobRow).where(JobRow.id == job_id).values(queue="overflow"))
    for name, queues in (("only", ["overflow"]), ("paused", [])):
        record_heartbeat(database, WorkerIdentity(name, Role.CPU, 1, []), queues=queues)
    recovery.requeue_lost(database, job_id, worker="only", pid=os.getpid(), max_attempts=3)
    assert attempts.claim(database, job_id, worker="only", lease_s=30, max_attempts=3) is not None


def test_a_stopped_workers_attempts_do_not_count(database: Database) -> None:
    job_id = create(database)
    for attempt in range(1, 4):
        claim = attempts.claim(database, job_id, worker="w", lease_s=30, max_attempts=1)
        assert claim is not None
        assert (claim.attempt, claim.attempts_left) == (attempt, 0)
        assert recovery.return_jobs(database, worker="w", max_attempts=1) == []
    assert job_store.transitions(database, job_id)[-1].detail == "worker_stopped"


def test_a_queued_job_without_a_request_fails(database: Database) -> None:
    job_id = create(database, request=None)
    assert recovery.fail_unreadable(database, older_than_s=30) == []
    assert [ended.job_id for ended in recovery.fail_unreadable(database, older_than_s=-1)] == [job_id]
    assert state(database, job_id) == ("failed", "bad_request")


def test_a_job_that_was_never_sent_is_sent_after_a_grace_period(database: Database) -> None:
    create(database)
    old = create(database, created_at=GRACE_S + 1)
    assert unsent(database) == {old}


def test_a_retry_is_sent_when_it_is_due(database: Database) -> None:
    due = create(database, not_before=1)
    later = create(database, not_before=-60)
    assert unsent(database) == {due}
    assert state(database, later) == ("queued", None)


def test_a_restart_of_redis_alone_makes_no_message_suspect(database: Database) -> None:
    create(database, dispatched_at=GRACE_S + 1, queue="overflow", redis_run_id="a run before")
    assert suspects(database) == set()


def test_a_message_may_be_lost_if_its_queue_is_empty(database: Database) -> None:
    lost = create(database, queue="overflow", dispatched_at=GRACE_S + 1)
    create(database, queue="overflow", dispatched_at=1)
    create(database, queue="priority", dispatched_at=GRACE_S + 1)
    assert suspects(database) == set()
    assert suspects(database, RedisState("this run", {"priority": 1, "overflow": 0})) == {lost}
    assert unsent(database) == set()


def test_a_message_may_be_lost_if_it_was_overtaken(database: Database) -> None:
    lost = create(database, queue="overflow", dispatched_at=100)
    create(database, queue="priority", dispatched_at=100)
    create(database, queue="overflow", dispatched_at=60)
    assert suspects(database) == set()
    create(database, queue="overflow", dispatched_at=65, started_at=50, state=JobState.SUCCEEDED)
    assert suspects(database) == {lost}


def test_a_lost_message_is_sent_again_unless_its_job_has_started(database: Database) -> None:
    lost = create(database, queue="overflow", dispatched_at=100)
    started = running(database)
    (found,) = recovery.find_unsent(database, grace_s=GRACE_S, lost=[lost, started])
    assert (found.id, found.request) == (lost, REQUEST.model_dump(mode="json"))


def test_a_job_claimed_meanwhile_is_not_marked_as_dispatched(database: Database) -> None:
    job_id = create(database)
    before = job_store.UnsentJob(job_id, REQUEST.model_dump(mode="json"), attempt=0)
    held = attempts.claim(database, job_id, worker="w", lease_s=30, max_attempts=3)
    assert held is not None
    attempts.schedule_retry(database, held, delay_s=0, detail="storage_unavailable")
    with database.begin() as connection:
        job_store.mark_dispatched(connection, before, queue="overflow", redis_run_id="this run")
    assert unsent(database) == {job_id}


def test_one_sweep_runs_at_a_time(database: Database) -> None:
    with recovery.sweep_lock(database) as first, recovery.sweep_lock(database) as second:
        assert (first, second) == (True, False)
    with recovery.sweep_lock(database) as third:
        assert third
