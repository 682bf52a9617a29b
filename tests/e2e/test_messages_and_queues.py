"""Messages that come twice, jobs that end early, and which worker takes which queue."""

import time
from pathlib import Path

import pytest
from faults import LIMIT_S, Service, before_each_window, child_of, freeze, install_model, kill, until_log_says

from inference_service.contract.task_message import Priority
from inference_service.embedded.stack import settings_for
from inference_service.jobs.celery_app import PRIORITY_QUEUE, make_app, send
from inference_service.jobs.schema import JobState

pytestmark = pytest.mark.timeout(300)


def test_a_message_that_comes_twice_is_one_job(service: Service) -> None:
    app = make_app(settings_for(service.servers.environment))
    with service.worker(), service.worker():
        job_id = service.submit()
        request = (service.half_done(job_id)).request or {}
        for _ in range(3):
            send(app, job_id, request, queue="overflow")
        service.assert_succeeded(job_id)
        send(app, job_id, request, queue="overflow")
        service.assert_succeeded(service.submit("quick"), service.submit("quick"))
    assert [state for state, *_ in service.story(job_id)] == ["queued", "running", "succeeded"]


def test_a_message_that_comes_to_two_workers_at_once_is_one_job(service: Service) -> None:
    app = make_app(settings_for(service.servers.environment))
    with service.worker() as first, service.worker() as second:
        # Each of them has asked Redis for a message, and gets one while it cannot look at it.
        for worker in (first, second):
            freeze(worker)
        job_id = service.submit()
        request = service.until(job_id, lambda job: job.queue is not None).request or {}
        for _ in range(3):
            send(app, job_id, request, queue="overflow")
        for worker in (first, second):
            freeze(worker, thaw=True)
        service.assert_succeeded(job_id)
        for worker in (first, second):
            until_log_says(worker, "nothing to do", "succeeded on")
    assert [state for state, *_ in service.story(job_id)] == ["queued", "running", "succeeded"]


@pytest.mark.slow
def test_a_visibility_timeout_shorter_than_the_job(service: Service, tmp_path: Path) -> None:
    """Redis gives the message of a running job to another worker; kombu looks for such messages after ten seconds."""
    held = tmp_path / "held"
    environment = before_each_window(tmp_path, f"while Path({str(held)!r}).exists():\n    time.sleep(0.05)")
    environment["VISIBILITY_TIMEOUT_S"] = "1"
    with service.worker(**environment) as first, service.worker(**environment) as second:
        # Not before they are ready: they try their models first.
        held.touch()
        job_id = service.submit()
        deadline = time.monotonic() + LIMIT_S
        while not any("nothing to do" in worker.log_path.read_text() for worker in (first, second)):
            assert time.monotonic() < deadline, "the message did not come again"
            time.sleep(0.1)
        assert service.until(job_id, lambda job: job.state is JobState.RUNNING).attempt == 1
        held.unlink()
        service.assert_succeeded(job_id)
    assert [state for state, *_ in service.story(job_id)] == ["queued", "running", "succeeded"]


def test_a_cpu_worker_stands_in_for_the_gpu_worker(service: Service) -> None:
    with service.worker("cpu") as cpu:
        with service.worker("gpu") as gpu:
            service.until_queues(cpu, ["overflow"])
            # What the CPU worker asked Redis for before it dropped the queue may still take one message, and return it.
            service.assert_succeeded(service.submit("quick", priority=Priority.URGENT))
            running = service.submit(priority=Priority.URGENT)
            urgent = service.submit("quick", priority=Priority.URGENT)
            assert "gpu-" in str(service.half_done(running).lease_owner)
            kill(gpu)
        service.assert_succeeded(running, urgent)
        for job_id in (running, urgent):
            assert "cpu-" in str(service.finished(job_id).lease_owner), service.client.transitions(job_id)
        service.until_queues(cpu, [PRIORITY_QUEUE, "overflow"])
        with service.worker("gpu"):
            service.until_queues(cpu, ["overflow"])
            done = service.submit("quick", priority=Priority.URGENT)
            service.assert_succeeded(done)
            assert "gpu-" in str(service.finished(done).lease_owner)


def test_urgent_jobs_spill_where_the_gpus_queue_is_deep(service: Service) -> None:
    service.lose_redis_data()
    with service.worker("cpu") as worker, service.worker("gpu") as gpu:
        service.until_queues(worker, ["overflow"])
        for each in (worker, gpu):
            freeze(each)
        urgent = [service.submit("quick", priority=Priority.URGENT) for _ in range(25)]
        sent_to = [service.until(job_id, lambda job: job.queue is not None).queue for job_id in urgent]
        # Up to two went to what the frozen workers had asked Redis for just before.
        assert sent_to[:20] == ["priority"] * 20
        assert sent_to.count("overflow") in (3, 4, 5)
        assert sent_to[-3:] == ["overflow"] * 3
        for each in (worker, gpu):
            freeze(each, thaw=True)
        service.assert_succeeded(*urgent)


def test_the_same_work_is_not_done_twice(service: Service) -> None:
    with service.worker():
        first = service.submit()
        service.assert_succeeded(first)
        again, repeated, other = service.submit(reuse=True), service.submit(), service.submit("quick", reuse=True)
        service.assert_succeeded(again, repeated, other)
    assert service.story(again)[-1] == ("succeeded", 1, f"reused {first}")
    assert service.objects(again) == service.objects(first)
    assert service.finished(again).model_sha256 == service.finished(first).model_sha256
    for job_id, computed in ((first, True), (again, False), (repeated, True)):
        assert ("network" in (service.finished(job_id).timings_s or {})) is computed


def test_cancelling(service: Service) -> None:
    with service.worker() as worker:
        running, queued = service.submit(), service.submit("quick")
        service.half_done(running)
        service.client.cancel(queued)
        cancelled_at = time.monotonic()
        service.client.cancel(running)
        service.assert_ended(running, JobState.CANCELLED, "cancelled")
        # Read within a second, and done within two of that.
        assert time.monotonic() - cancelled_at < 5
        service.assert_ended(queued, JobState.CANCELLED, "cancelled")
        finished = service.submit("quick")
        service.assert_succeeded(finished)
        service.client.cancel(finished)
        service.assert_succeeded(finished)
        assert list(Path(service.folder).glob("inference-service-worker-*/*")) == []
    assert [state for state, *_ in service.story(queued)] == ["queued", "cancelled"]
    assert "Traceback" not in worker.log_path.read_text()


def test_work_that_does_not_stop_is_killed(service: Service) -> None:
    """A window of several seconds cannot be interrupted, but its process can."""
    models = Path(service.environment["MODELS_PATH"])
    install_model(models, "very-slow", layers=120)
    with service.worker() as worker:
        job_id = service.submit("very-slow")
        service.until(job_id, lambda job: job.stage == "windows")
        child = child_of(worker)
        service.client.cancel(job_id)
        service.assert_ended(job_id, JobState.CANCELLED, "cancelled")
        service.assert_succeeded(service.submit("quick"))
        assert "its process is killed" in worker.log_path.read_text()
        assert child_of(worker) != child
        deadline = time.monotonic() + LIMIT_S
        while list(Path(service.folder).glob("inference-service-worker-*/*")) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert list(Path(service.folder).glob("inference-service-worker-*/*")) == []


def test_a_models_time_limit(service: Service) -> None:
    models = Path(service.environment["MODELS_PATH"])
    install_model(models, "limited", layers=10, time_limit_s=1)
    with service.worker():
        job_id = service.submit("limited")
        service.assert_ended(job_id, JobState.FAILED, "time_limit")
        service.assert_succeeded(service.submit("quick"))
