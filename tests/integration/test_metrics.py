"""A worker's Prometheus metrics, from a real Postgres."""

import urllib.request
from datetime import timedelta
from uuid import uuid4

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import delete, func, update

from inference_service.contract.task_message import InputReference, SegmentRequest
from inference_service.core.errors import InputCorrupt, WorkerLost
from inference_service.embedded.process import free_port
from inference_service.jobs import attempts, job_store
from inference_service.jobs.database import Database
from inference_service.jobs.queues.redis_state import RedisState
from inference_service.jobs.recovery import FinishedJob
from inference_service.jobs.resubmission import queue_again
from inference_service.jobs.schema import JobRow, JobState
from inference_service.worker.metrics import Metrics

REQUEST = SegmentRequest(input=InputReference(key="ct/1.nii.gz"), model="ct-tissue")
LEASE_S = 30.0


def claimed(database: Database, *, worker: str) -> attempts.Claim:
    job_id = uuid4()
    job_store.create(database, job_id, REQUEST)
    claim = attempts.claim(database, job_id, worker=worker, lease_s=LEASE_S, max_attempts=3)
    assert claim is not None
    return claim


def age_finished_jobs(database: Database) -> None:
    """Moves the ends of all jobs back by the two seconds after which they are counted."""
    age = timedelta(seconds=2)
    with database.begin() as connection:
        connection.execute(
            update(JobRow)
            .where(JobRow.finished_at.is_not(None))
            .values(started_at=JobRow.started_at - age, finished_at=JobRow.finished_at - age)
        )


@pytest.fixture
def worker() -> str:
    return f"w-{uuid4()}"


def test_each_job_that_a_worker_ended_is_counted_once(database: Database, worker: str) -> None:
    metrics = Metrics(worker, database)
    value = metrics.registry.get_sample_value
    metrics.refresh(lease_s=LEASE_S)
    attempts.fail(database, claimed(database, worker=worker), InputCorrupt("x"), timings_s={"fetch": 0.5})
    attempts.fail(database, claimed(database, worker="another"), InputCorrupt("x"))
    age_finished_jobs(database)
    for _ in range(2):
        metrics.refresh(lease_s=LEASE_S)
        failed = {"state": "failed", "code": "input_corrupt"}
        assert value("inference_jobs_finished_total", failed) == 1
        assert value("inference_attempts_total") == 1
        assert value("inference_stage_duration_seconds_sum", {"stage": "fetch"}) == 0.5
        assert value("inference_job_duration_seconds_count") == 1
    metrics.count_ended([FinishedJob(uuid4(), name, 3, 20.0, WorkerLost("x")) for name in ("dead", worker)])
    assert value("inference_jobs_finished_total", {"state": "failed", "code": "worker_lost"}) == 1
    assert (value("inference_attempts_total"), value("inference_job_duration_seconds_count")) == (4, 2)


def test_a_job_that_is_retried_on_request_and_cancelled_before_it_starts_is_left_out(
    database: Database, worker: str
) -> None:
    metrics = Metrics(worker, database)
    metrics.refresh(lease_s=LEASE_S)
    cancelled, again = (claimed(database, worker=worker) for _ in range(2))
    for claim in (cancelled, again):
        attempts.fail(database, claim, InputCorrupt("x"))
        assert queue_again(database, claim.job_id)
    job_store.cancel(database, cancelled.job_id)
    second = attempts.claim(database, again.job_id, worker=worker, lease_s=LEASE_S, max_attempts=3)
    assert second is not None
    attempts.fail(database, second, InputCorrupt("x"))
    age_finished_jobs(database)
    metrics.refresh(lease_s=LEASE_S)
    value = metrics.registry.get_sample_value
    assert value("inference_jobs_finished_total", {"state": "cancelled", "code": "cancelled"}) == 0
    # The attempt before the retry belongs to the failure before it.
    assert (value("inference_attempts_total"), value("inference_job_duration_seconds_count")) == (1, 1)


def test_an_expired_job_is_counted_by_the_worker_whose_claim_ended_it(database: Database, worker: str) -> None:
    metrics = Metrics(worker, database)
    metrics.refresh(lease_s=LEASE_S)
    job_id = uuid4()
    job_store.create(database, job_id, REQUEST)
    assert attempts.claim(database, job_id, worker="dead", lease_s=-1, max_attempts=1)
    assert attempts.claim(database, job_id, worker=worker, lease_s=LEASE_S, max_attempts=1) is None
    age_finished_jobs(database)
    metrics.refresh(lease_s=LEASE_S)
    lost = {"state": "failed", "code": "worker_lost"}
    assert metrics.registry.get_sample_value("inference_jobs_finished_total", lost) == 1


def test_gauges_show_the_whole_service(database: Database, worker: str) -> None:
    with database.begin() as connection:
        connection.execute(delete(JobRow))
    metrics = Metrics(worker, database)
    value = metrics.registry.get_sample_value
    metrics.refresh(lease_s=LEASE_S)
    assert (value("inference_jobs", {"state": "queued"}), value("inference_lease_age_seconds")) == (0, 0)
    for _ in range(2):
        job_store.create(database, uuid4(), REQUEST)
    claimed(database, worker=worker)
    with database.begin() as connection:
        connection.execute(update(JobRow).values(created_at=func.now() - timedelta(seconds=100)))
        renewed_at = func.now() - timedelta(seconds=20)
        is_running = JobRow.state == JobState.RUNNING
        connection.execute(
            update(JobRow).where(is_running).values(lease_expires_at=renewed_at + timedelta(seconds=LEASE_S))
        )
    metrics.refresh(lease_s=LEASE_S)
    metrics.set_queue_depths(RedisState("run", {"priority": 3, "overflow": 4}))
    assert value("inference_jobs", {"state": "queued"}) == 2
    assert value("inference_jobs", {"state": "running"}) == 1
    assert value("inference_queue_depth", {"queue": "priority"}) == 3
    assert value("inference_oldest_queued_job_age_seconds") == pytest.approx(100, abs=10)
    assert value("inference_lease_age_seconds") == pytest.approx(20, abs=10)


def test_metrics_are_served_over_http(database: Database, worker: str) -> None:
    metrics = Metrics(worker, database)
    port = free_port()
    metrics.refresh(lease_s=LEASE_S)
    metrics.serve("127.0.0.1", port)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
        families = {family.name for family in text_string_to_metric_families(response.read().decode())}
    assert {"inference_jobs", "inference_queue_depth", "inference_jobs_finished"} <= families
    with pytest.raises(OSError, match="in use"):
        Metrics(worker, database).serve("127.0.0.1", port)
