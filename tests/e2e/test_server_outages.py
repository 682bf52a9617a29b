"""Redis, Postgres and the object storage are killed: no job is lost, and no attempt is charged for a short outage."""

import time

import pytest
from faults import PERIODS, Service, freeze, resume, until_log_says
from redis import Redis

from inference_service.jobs.schema import JobState

pytestmark = pytest.mark.timeout(300)


def test_redis_restarts_while_nothing_runs(service: Service) -> None:
    with service.worker():
        service.servers.redis.kill()
        waiting = service.submit()
        service.servers.redis.start()
        service.assert_succeeded(service.submit("quick"), waiting)


def test_redis_restarts_in_the_middle_of_a_job(service: Service) -> None:
    with service.worker():
        running = service.submit_held()
        queued = service.submit("quick")
        service.half_done(running)
        service.servers.redis.kill()
        service.release(running)
        time.sleep(1)
        service.servers.redis.start()
        service.assert_succeeded(running, queued, service.submit("quick"))
    assert [state for state, *_ in service.transitions(running)] == ["queued", "running", "succeeded"]


def test_redis_comes_back_empty(service: Service) -> None:
    with service.worker():
        running = service.submit_held()
        queued = [service.submit("quick") for _ in range(2)]
        service.half_done(running)
        service.lose_redis_data()
        service.release(running)
        service.assert_succeeded(running, *queued)


def test_an_emptied_queue_is_filled_again(service: Service) -> None:
    with service.worker() as worker:
        freeze(worker)
        job_id = service.submit("quick")
        with Redis.from_url(service.environment["REDIS_URL"]) as redis:
            redis.flushdb()
        resume(worker)
        service.assert_succeeded(job_id)


def test_postgres_restarts_in_the_middle_of_a_job(service: Service) -> None:
    with service.worker() as worker:
        job_id = service.submit_held()
        service.half_done(job_id)
        service.servers.postgres.kill()
        until_log_says(worker, "the lease could not be renewed")
        service.servers.postgres.start()
        service.release(job_id)
        service.assert_succeeded(job_id)


def test_postgres_is_away_when_a_job_ends(service: Service) -> None:
    # The outage is longer than the lease, but neither worker requeues the job for that.
    with service.worker(SWEEP_PERIOD_S="0.1"), service.worker(SWEEP_PERIOD_S="0.1"):
        job_id = service.submit_held()
        service.half_done(job_id)
        service.servers.postgres.kill()
        service.release(job_id)
        service.until_results_written(job_id)
        time.sleep(float(PERIODS["LEASE_S"]))
        service.servers.postgres.start()
        service.assert_succeeded(job_id)
    assert [state for state, *_ in service.transitions(job_id)] == ["queued", "running", "succeeded"]


@pytest.mark.parametrize("away_s", [2, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize("when", ["fetch", "store"])
def test_the_storage_is_away_for_a_while(service: Service, when: str, away_s: float) -> None:
    with service.worker():
        if when == "fetch":
            service.servers.s3.kill()
            job_id = service.submit()
            service.until(job_id, lambda job: job.state is JobState.RUNNING)
        else:
            job_id = service.submit_held()
            service.half_done(job_id)
            service.servers.s3.kill()
            service.release(job_id)
            service.until_results_written(job_id)
        time.sleep(away_s)
        service.servers.s3.start()
        service.assert_succeeded(job_id)
    assert [state for state, *_ in service.transitions(job_id)] == ["queued", "running", "succeeded"]


def test_a_longer_outage_pauses_the_worker_and_costs_no_attempt(service: Service) -> None:
    with service.worker(OUTAGE_PATIENCE_S="0.5", MAX_ATTEMPTS="1") as worker:
        service.servers.s3.kill()
        jobs = [service.submit("quick") for _ in range(3)]
        until_log_says(worker, "this worker takes no jobs, next test in")
        service.until_queues(worker, [])
        service.servers.s3.start()
        service.assert_succeeded(*jobs)
        until_log_says(worker, "this worker takes jobs again")
    (paused,) = [job_id for job_id in jobs if len(service.transitions(job_id)) > 3]
    assert ("queued", 1, "storage_unavailable") in service.transitions(paused)
