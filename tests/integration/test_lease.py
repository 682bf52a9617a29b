"""Keeping a lease, against a real Postgres."""

import time
from collections.abc import Callable
from uuid import uuid4

import pytest
from sqlalchemy import Engine

from inference_service import jobs
from inference_service.errors import JobCancelled
from inference_service.lease import Lease, LeaseLost

LIMIT_S = 10.0


@pytest.fixture
def claim(database: Engine) -> jobs.Claim:
    job_id = uuid4()
    jobs.create(database, job_id, None)
    held = jobs.claim(database, job_id, worker="w", lease_s=0.6, max_attempts=3)
    assert held is not None
    return held


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


def test_a_kept_lease_outlives_its_length(database: Engine, claim: jobs.Claim) -> None:
    with Lease(database, claim, lease_s=0.6):
        time.sleep(1.2)
        assert jobs.claim(database, claim.job_id, worker="other", lease_s=1, max_attempts=3) is None
    time.sleep(0.7)
    assert jobs.claim(database, claim.job_id, worker="other", lease_s=1, max_attempts=3) is not None


def test_progress_reaches_the_row(database: Engine, claim: jobs.Claim) -> None:
    def stage() -> str | None:
        job = jobs.get(database, claim.job_id)
        assert job is not None
        return job.stage

    with Lease(database, claim, lease_s=0.6) as lease:
        lease.progress("preprocess", 0.0)
        wait_for(lambda: stage() == "preprocess")


def test_a_cancellation_ends_the_work(database: Engine, claim: jobs.Claim) -> None:
    with Lease(database, claim, lease_s=0.6) as lease:
        lease.progress("windows", 0.1)
        jobs.cancel(database, claim.job_id)
        wait_for(lambda: raises(JobCancelled, lease))


def test_a_lost_lease_ends_the_work(database: Engine, claim: jobs.Claim) -> None:
    with Lease(database, claim, lease_s=0.6) as lease:
        jobs.fail(database, claim, JobCancelled("by another hand"))
        wait_for(lambda: raises(LeaseLost, lease))
