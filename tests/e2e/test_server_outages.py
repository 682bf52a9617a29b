"""Redis, Postgres and the object storage are killed: no job is lost, and no attempt is charged for a short outage."""

import time

import pytest
from faults import (
    Service,
    freeze,
)
from redis import Redis

pytestmark = pytest.mark.timeout(300)


def test_redis_restarts_while_nothing_runs(service: Service) -> None:
    with service.worker():
        service.servers.redis.kill()
        waiting = service.submit()
        service.servers.redis.start()
        service.assert_succeeded(service.submit("quick"), waiting)


def test_redis_restarts_in_the_middle_of_a_job(service: Service) -> None:
    with service.worker():
        running, queued = service.submit(), service.submit("quick")
        service.half_done(running)
        service.servers.redis.kill()
        time.sleep(1)
        service.servers.redis.start()
        service.assert_succeeded(running, queued, service.submit("quick"))
    assert [state for state, *_ in service.story(running)] == ["queued", "running", "succeeded"]


def test_redis_comes_back_empty(service: Service) -> None:
    with service.worker():
        running, *queued = service.submit(), service.submit("quick"), service.submit("quick")
        service.half_done(running)
        service.lose_redis_data()
        service.assert_succeeded(running, *queued)


def test_an_emptied_queue_is_filled_again(service: Service) -> None:
    with service.worker() as worker:
        freeze(worker)
        job_id = service.submit("quick")
        with Redis.from_url(service.environment["REDIS_URL"]) as redis:
            redis.flushdb()
        freeze(worker, thaw=True)
        service.assert_succeeded(job_id)


def test_postgres_restarts_in_the_middle_of_a_job(service: Service) -> None:
    with service.worker() as worker:
        job_id = service.submit()
        service.half_done(job_id)
        service.servers.postgres.kill()
        time.sleep(1)
        service.servers.postgres.start()
        service.assert_succeeded(job_id)
    assert "the lease could not be renewed" in worker.log_path.read_text()


def test_postgres_is_away_when_a_job_ends(service: Service) -> None:
    # Longer than their leases, which nobody takes for that, however many look.
    with service.worker(SWEEP_PERIOD_S="0.1"), service.worker(SWEEP_PERIOD_S="0.1"):
        job_id = service.submit()
        job = service.half_done(job_id)
        service.servers.postgres.kill()
        # Longer than the lease, and long enough for the job to reach its end, which it then cannot record.
        time.sleep(7)
        service.servers.postgres.start()
        service.assert_succeeded(job_id)
    assert [state for state, *_ in service.story(job.id)] == ["queued", "running", "succeeded"]


@pytest.mark.parametrize("away_s", [4, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize("when", ["fetch", "store"])
def test_the_storage_is_away_for_a_while(service: Service, when: str, away_s: float) -> None:
    with service.worker():
        if when == "fetch":
            service.servers.s3.kill()
        job_id = service.submit()
        if when == "store":
            service.half_done(job_id)
            service.servers.s3.kill()
        time.sleep(away_s)
        service.servers.s3.start()
        service.assert_succeeded(job_id)
    assert [state for state, *_ in service.story(job_id)] == ["queued", "running", "succeeded"]


def test_a_longer_outage_costs_attempts(service: Service) -> None:
    with service.worker(OUTAGE_PATIENCE_S="1", MAX_ATTEMPTS="10"):
        service.servers.s3.kill()
        job_id = service.submit()
        service.until(job_id, lambda job: job.attempt == 3)
        service.servers.s3.start()
        service.assert_succeeded(job_id)
    assert ("queued", 1, "storage_unavailable") in service.story(job_id)
