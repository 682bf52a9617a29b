"""Workers that are killed, stopped, frozen or stuck: their jobs still have one end and one set of objects."""

import os
import signal
import time
from pathlib import Path

import psutil
import pytest
from faults import LIMIT_S, PERIODS, Service, before_each_window, child_of, freeze, kill, until_log_says

from inference_service.embedded.stack import settings_for
from inference_service.jobs.celery_app import make_app
from inference_service.jobs.schema import JobState

pytestmark = pytest.mark.timeout(300)


def test_a_killed_child_costs_an_attempt(service: Service) -> None:
    with service.worker(LEASE_S="60") as worker:
        job_id = service.submit()
        service.half_done(job_id)
        os.kill(child_of(worker), signal.SIGKILL)
        service.assert_succeeded(job_id)
    assert service.story(job_id) == [
        ("queued", 0, None),
        ("running", 1, None),
        ("queued", 1, "worker_lost"),
        ("running", 2, None),
        ("succeeded", 2, None),
    ]


def test_a_failed_gpu_costs_an_attempt_and_the_process_that_used_it(service: Service, tmp_path: Path) -> None:
    fails = tmp_path / "fails"
    failing = before_each_window(
        tmp_path,
        f"""
if Path({str(fails)!r}).exists():
    raise GpuFailed("the GPU failed on a window of this model")
""",
    )
    with service.worker(**failing, LEASE_S="60", RETRY_DELAY_S="1") as worker:
        child = child_of(worker)
        fails.touch()
        job_id = service.submit("quick")
        service.until(job_id, lambda job: job.attempt == 1 and job.state is JobState.QUEUED)
        fails.unlink()
        service.assert_succeeded(job_id)
        assert child_of(worker) != child
    assert service.story(job_id) == [
        ("queued", 0, None),
        ("running", 1, None),
        ("queued", 1, "worker_lost"),
        ("running", 2, None),
        ("succeeded", 2, None),
    ]
    log = worker.log_path.read_text()
    assert "process exits and is replaced: the GPU failed on a window of this model" in log


def test_a_killed_workers_job_goes_to_another(service: Service) -> None:
    with service.worker() as first:
        job_id = service.submit()
        service.half_done(job_id)
        kill(first)
        killed_at = time.monotonic()
        with service.worker():
            service.half_done(job_id, attempt=2)
            # The lease and a period of the sweeper; besides them the start of a worker, and the work's up to there.
            found = float(PERIODS["LEASE_S"]) + float(PERIODS["SWEEP_PERIOD_S"])
            assert time.monotonic() - killed_at < found + 15
            service.assert_succeeded(job_id)
    assert ("queued", 1, "lease_expired") in service.story(job_id)


def test_a_stopped_worker_gives_its_job_back(service: Service) -> None:
    with service.worker() as first:
        job_id = service.submit()
        service.half_done(job_id)
        first.ask_to_stop()
        service.until(job_id, lambda job: job.state is JobState.QUEUED)
        with service.worker(MAX_ATTEMPTS="1"):
            service.assert_succeeded(job_id)
    assert ("queued", 1, "worker_stopped") in service.story(job_id)
    assert "Traceback" not in first.log_path.read_text()


def test_a_worker_that_stops_at_once_gives_its_job_back(service: Service) -> None:
    with service.worker(SHUTDOWN_GRACE_S="60") as first:
        job_id = service.submit()
        service.half_done(job_id)
        os.kill(first.pid, signal.SIGQUIT)
        service.until(job_id, lambda job: job.state is JobState.QUEUED)
        with service.worker(MAX_ATTEMPTS="1"):
            service.assert_succeeded(job_id)
    assert [detail for *_, detail in service.story(job_id) if detail] == ["worker_stopped"]


def test_a_stopped_worker_finishes_what_it_can(service: Service) -> None:
    with service.worker(SHUTDOWN_GRACE_S="60") as first:
        job_id = service.submit()
        service.half_done(job_id)
        os.kill(first.pid, signal.SIGTERM)
        service.assert_succeeded(job_id)
        first.wait_until_ended(LIMIT_S)
    assert [state for state, *_ in service.story(job_id)] == ["queued", "running", "succeeded"]


def test_a_worker_that_freezes_while_it_stores(service: Service) -> None:
    storage = psutil.Process(service.servers.s3.pid)
    with service.worker() as frozen:
        job_id = service.submit()
        service.half_done(job_id)
        storage.suspend()
        try:
            service.until(job_id, lambda job: job.stage == "store")
            time.sleep(0.5)
            freeze(frozen)
        finally:
            storage.resume()
        with service.worker() as other:
            service.assert_succeeded(job_id)
            written = service.finished(job_id)
            freeze(frozen, thaw=True)
            until_log_says(frozen, "another attempt holds the lease", "another attempt holds the job")
            service.assert_succeeded(job_id)
            assert service.finished(job_id) == written
            assert str(other.pid) in str(written.lease_owner)


def test_a_frozen_worker_writes_nothing_when_it_goes_on(service: Service) -> None:
    with service.worker() as frozen:
        job_id = service.submit()
        service.half_done(job_id)
        freeze(frozen)
        with service.worker() as other:
            service.assert_succeeded(job_id)
            before, written = service.objects(job_id), service.finished(job_id)
            freeze(frozen, thaw=True)
            until_log_says(frozen, "another attempt holds the lease", "another attempt holds the job")
            assert service.objects(job_id) == before
            assert service.finished(job_id) == written
            assert str(other.pid) in str(written.lease_owner)
            # And it works again.
            other.ask_to_stop()
            other.wait_until_ended(LIMIT_S)
            service.assert_succeeded(service.submit("quick"))


def test_a_poison_job_ends_and_the_others_go_on(service: Service) -> None:
    with service.worker() as worker:
        poison, *others = service.submit(), service.submit("quick"), service.submit("quick")
        for attempt in (1, 2, 3):
            service.half_done(poison, attempt=attempt)
            os.kill(child_of(worker), signal.SIGKILL)
        service.assert_ended(poison, JobState.FAILED, "worker_lost")
        service.assert_succeeded(*others)
    assert [state for state, *_ in service.story(poison)].count("running") == 3


def test_a_worker_that_takes_nothing_ends(service: Service) -> None:
    """As after a lost connection: the worker lives, its heart beats, and it consumes no more."""
    app = make_app(settings_for(service.servers.environment))
    # It is given twice its lease to take a message.
    with service.worker("gpu", LEASE_S="1") as worker:
        service.until_queues(worker, ["priority", "overflow"])
        name = next(known.name for known in service.client.workers() if f"-{worker.pid}-" in known.name)
        for queue in ("priority", "overflow"):
            app.control.cancel_consumer(queue, destination=[name])
        service.until_queues(worker, [])
        job_id = service.submit("quick")
        worker.wait_until_ended(LIMIT_S)
        assert "worker stalled: messages are waiting" in worker.log_path.read_text()
        assert name not in {known.name for known in service.client.workers()}
    with service.worker():
        service.assert_succeeded(job_id)
