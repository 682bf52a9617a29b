"""Renewals of a lease, against a real Postgres."""

import gc
import time
import weakref
from collections.abc import Callable
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import select

from inference_service.core.errors import JobCancelled, ServiceError, TimeLimit
from inference_service.jobs import attempts, job_store
from inference_service.jobs.database import Database
from inference_service.jobs.lease import Lease, LeaseLost
from inference_service.jobs.schema import JobRow

LIMIT_S = 30.0
LEASE_S = 30.0


@pytest.fixture(autouse=True)
def frequent_renewals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inference_service.jobs.lease._RENEWAL_INTERVAL_S", 0.1)


@pytest.fixture
def claim(database: Database) -> attempts.Claim:
    job_id = uuid4()
    job_store.create(database, job_id, None)
    held = attempts.claim(database, job_id, worker="w", lease_s=LEASE_S, max_attempts=3)
    assert held is not None
    return held


def held(database: Database, claim: attempts.Claim, **changes: Any) -> Lease:
    """Returns a lease that must not kill its process."""

    def unexpected(*_: object) -> None:
        raise AssertionError("the process must not be killed")

    options: dict[str, Any] = {"lease_s": LEASE_S, "time_limit_s": 60.0, "before_kill": unexpected, "kill": unexpected}
    return Lease(database, claim, **options | changes)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, "the condition was not met in time"
        time.sleep(0.02)


def raises(kind: type[Exception], lease: Lease) -> bool:
    try:
        lease.progress("windows", 0.5)
    except kind:
        return True
    return False


def test_a_lease_is_renewed_until_it_is_released(
    database: Database, claim: attempts.Claim, expire_lease: Callable[[UUID], None]
) -> None:
    def expires_at() -> datetime:
        with database.connection() as connection:
            found = connection.execute(select(JobRow.lease_expires_at).where(JobRow.id == claim.job_id)).scalar_one()
        assert found is not None
        return found

    def claim_again() -> attempts.Claim | None:
        return attempts.claim(database, claim.job_id, worker="other", lease_s=LEASE_S, max_attempts=3)

    first = expires_at()
    with held(database, claim):
        wait_for(lambda: expires_at() > first)
        assert claim_again() is None
    expire_lease(claim.job_id)
    assert claim_again() is not None


def test_progress_reaches_the_row(database: Database, claim: attempts.Claim) -> None:
    def stage() -> str | None:
        job = job_store.get(database, claim.job_id)
        assert job is not None
        return job.stage

    with held(database, claim) as lease:
        lease.progress("preprocess", 0.0)
        wait_for(lambda: stage() == "preprocess")


def test_a_cancellation_stops_the_work(database: Database, claim: attempts.Claim) -> None:
    with held(database, claim) as lease:
        lease.progress("windows", 0.1)
        job_store.cancel(database, claim.job_id)
        wait_for(lambda: raises(JobCancelled, lease))


def test_a_lost_lease_stops_the_work(database: Database, claim: attempts.Claim) -> None:
    with held(database, claim) as lease:
        attempts.fail(database, claim, JobCancelled("by another hand"))
        wait_for(lambda: raises(LeaseLost, lease))


def test_stopped_work_frees_its_memory_at_once(database: Database, claim: attempts.Claim) -> None:
    class Array:
        """Stands for an array in a frame of the pipeline."""

    def work() -> None:
        array = Array()
        held_by_work.append(weakref.ref(array))
        with held(database, claim) as lease:
            while True:
                lease.progress("windows", 0.1)
                time.sleep(0.02)

    held_by_work: list[weakref.ref[Array]] = []
    gc.disable()
    try:
        job_store.cancel(database, claim.job_id)
        with pytest.raises(JobCancelled) as caught:
            work()
        del caught
        assert held_by_work[0]() is None
    finally:
        gc.enable()


def test_a_time_limit_stops_the_work(database: Database, claim: attempts.Claim) -> None:
    with held(database, claim, time_limit_s=0.3) as lease:
        lease.progress("windows", 0.1)
        wait_for(lambda: raises(TimeLimit, lease))


def test_a_lower_time_limit_counts_from_when_it_is_set(database: Database, claim: attempts.Claim) -> None:
    with held(database, claim, time_limit_s=60.0) as lease:
        lease.limit_time(120.0)
        lease.limit_time(0.3)
        lease.progress("windows", 0.1)
        wait_for(lambda: raises(TimeLimit, lease))
        with pytest.raises(TimeLimit, match=r"the job ran longer than 0\.3 s"):
            lease.progress("windows", 0.5)


@pytest.mark.parametrize("reason", ["cancelled", "time_limit", "lost"])
def test_work_that_does_not_stop_is_killed(database: Database, claim: attempts.Claim, reason: str) -> None:
    ended: list[str] = []

    def before_kill(reason: Exception) -> None:
        ended.append(str(reason.code) if isinstance(reason, ServiceError) else type(reason).__name__)

    time_limit_s = 0.3 if reason == "time_limit" else 60.0
    with held(database, claim, time_limit_s=time_limit_s, before_kill=before_kill, kill=lambda: ended.append("end")):
        if reason == "cancelled":
            job_store.cancel(database, claim.job_id)
        if reason == "lost":
            attempts.fail(database, claim, JobCancelled("by another hand"))
        wait_for(lambda: "end" in ended)
    assert ended == ["LeaseLost" if reason == "lost" else reason, "end"]
