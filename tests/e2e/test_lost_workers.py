"""Workers that are killed, stopped, frozen or stuck: each of their jobs still ends once, with one set of objects."""

import os
import signal
import time
from pathlib import Path

import psutil
import pytest
from faults import (
    LIMIT_S,
    PERIODS,
    Service,
    before_each_window,
    child_of,
    freeze,
    has_waiting_request,
    kill,
    resume,
    until_log_says,
    wait_for,
)

from inference_service.jobs.schema import JobState

pytestmark = pytest.mark.timeout(300)

ONE_ATTEMPT_LOST = [
    ("queued", 0, None),
    ("running", 1, None),
    ("queued", 1, "worker_lost"),
    ("running", 2, None),
    ("succeeded", 2, None),
]
# Time that a busy machine may add to a period.
SLACK_S = 5.0


def test_a_killed_child_costs_an_attempt(service: Service) -> None:
    with service.worker(LEASE_S="60") as worker:
        job_id = service.submit_held()
        service.half_done(job_id)
        os.kill(child_of(worker), signal.SIGKILL)
        service.release(job_id)
        service.assert_succeeded(job_id)
    assert service.transitions(job_id) == ONE_ATTEMPT_LOST


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
    assert service.transitions(job_id) == ONE_ATTEMPT_LOST
    log = worker.log_path.read_text()
    assert "process exits and is replaced: the GPU failed on a window of this model" in log


def test_another_worker_runs_the_job_of_a_killed_worker(service: Service) -> None:
    with service.worker() as first:
        job_id = service.submit_held()
        service.half_done(job_id)
        with service.worker():
            kill(first)
            killed_at = time.time()
            service.release(job_id)
            service.assert_succeeded(job_id)
    assert ("queued", 1, "lease_expired") in service.transitions(job_id)
    requeued_at = next(change.at for change in service.client.transitions(job_id) if change.detail == "lease_expired")
    period_s = float(PERIODS["LEASE_S"]) + float(PERIODS["SWEEP_PERIOD_S"])
    assert requeued_at.timestamp() - killed_at < period_s + SLACK_S


def test_a_stopped_worker_returns_its_job_to_the_queue(service: Service) -> None:
    with service.worker() as first:
        job_id = service.submit_held()
        service.half_done(job_id)
        first.ask_to_stop()
        service.until(job_id, lambda job: job.state is JobState.QUEUED)
        service.release(job_id)
        with service.worker(MAX_ATTEMPTS="1"):
            service.assert_succeeded(job_id)
    assert ("queued", 1, "worker_stopped") in service.transitions(job_id)
    assert "Traceback" not in first.log_path.read_text()


def test_a_worker_that_stops_at_once_returns_its_job_to_the_queue(service: Service) -> None:
    with service.worker(SHUTDOWN_GRACE_S="60") as first:
        job_id = service.submit_held()
        service.half_done(job_id)
        os.kill(first.pid, signal.SIGQUIT)
        service.until(job_id, lambda job: job.state is JobState.QUEUED)
        service.release(job_id)
        with service.worker(MAX_ATTEMPTS="1"):
            service.assert_succeeded(job_id)
    assert [detail for *_, detail in service.transitions(job_id) if detail] == ["worker_stopped"]


def test_a_stopped_worker_finishes_its_job_within_the_grace_period(service: Service) -> None:
    with service.worker(SHUTDOWN_GRACE_S="60") as first:
        job_id = service.submit_held()
        service.half_done(job_id)
        os.kill(first.pid, signal.SIGTERM)
        service.release(job_id)
        service.assert_succeeded(job_id)
        first.wait_until_ended(LIMIT_S)
    assert [state for state, *_ in service.transitions(job_id)] == ["queued", "running", "succeeded"]


def test_a_worker_frozen_during_an_upload_does_not_change_the_result(service: Service) -> None:
    storage = psutil.Process(service.servers.s3.pid)
    with service.worker() as frozen:
        job_id = service.submit_held()
        service.half_done(job_id)
        child = child_of(frozen)
        storage.suspend()
        try:
            service.release(job_id)
            wait_for(lambda: has_waiting_request(child, service.servers.s3.port))
            freeze(frozen)
        finally:
            storage.resume()
        with service.worker() as other:
            service.assert_succeeded(job_id)
            written = service.finished(job_id)
            resume(frozen)
            until_log_says(frozen, "another attempt holds the lease", "another attempt holds the job")
            service.assert_succeeded(job_id)
            assert service.finished(job_id) == written
            assert str(other.pid) in str(written.lease_owner)


def test_a_resumed_worker_writes_nothing(service: Service) -> None:
    with service.worker() as frozen:
        job_id = service.submit_held()
        service.half_done(job_id)
        freeze(frozen)
        service.release(job_id)
        with service.worker() as other:
            service.assert_succeeded(job_id)
            before = service.results(job_id)
            written = service.finished(job_id)
            resume(frozen)
            until_log_says(frozen, "another attempt holds the lease", "another attempt holds the job")
            assert service.results(job_id) == before
            assert service.finished(job_id) == written
            assert str(other.pid) in str(written.lease_owner)
            # The resumed worker runs further jobs.
            other.ask_to_stop()
            other.wait_until_ended(LIMIT_S)
            service.assert_succeeded(service.submit("quick"))


def test_a_job_that_kills_each_of_its_processes_fails_alone(service: Service) -> None:
    with service.worker() as worker:
        poison = service.submit_held()
        others = [service.submit("quick") for _ in range(2)]
        for attempt in (1, 2, 3):
            service.half_done(poison, attempt=attempt)
            os.kill(child_of(worker), signal.SIGKILL)
        service.assert_ended(poison, JobState.FAILED, "worker_lost")
        service.assert_succeeded(*others)
    assert [state for state, *_ in service.transitions(poison)].count("running") == 3


def test_a_worker_whose_processes_die_fails_no_job(service: Service, tmp_path: Path) -> None:
    """As of a worker whose memory limit is too low, beside a slower worker that is well."""
    dying = before_each_window(tmp_path, "import os\nif _job_id.get() != '-':\n    os.kill(os.getpid(), 9)")
    with service.worker(**dying) as sick, service.worker():
        jobs = [service.submit("quick", window_s=0.3) for _ in range(4)]
        service.assert_succeeded(*jobs)
    details = [[detail for *_, detail in service.transitions(job_id)].count("worker_lost") for job_id in jobs]
    assert max(details) <= 1
    assert sum(details) <= 2 or "this worker takes no jobs" in sick.log_path.read_text()


# A worker whose transport never asks Redis for messages.
DEAF = """
from inference_service.worker.messages.redis_transport import Channel

Channel._ask = lambda self, **_: None
"""


def test_a_stalled_worker_exits(service: Service, tmp_path: Path) -> None:
    """As after a lost connection: the worker lives and reports that it consumes, but takes no messages."""
    (tmp_path / "sitecustomize.py").write_text(DEAF)
    # A worker may leave waiting messages for twice its lease.
    with service.worker("gpu", LEASE_S="1", PYTHONPATH=str(tmp_path)) as worker:
        service.until_queues(worker, ["priority", "overflow"])
        name = next(known.name for known in service.client.workers() if f"-{worker.pid}-" in known.name)
        job_id = service.submit("quick")
        worker.wait_until_ended(LIMIT_S)
        assert "worker stalled: messages are waiting" in worker.log_path.read_text()
        assert name not in {known.name for known in service.client.workers()}
    with service.worker():
        service.assert_succeeded(job_id)
