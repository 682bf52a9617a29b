"""No job lost, none with two outcomes: each part is killed, and every job still has one end and one set of objects.

Real servers and real workers; the periods of the protocol are shortened (`faults.PERIODS`), nothing else.
"""

import os
import signal
import time
from collections.abc import Iterator
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
    install_model,
    kill,
    start_service,
)
from redis import Redis

from inference_service.contract.task_message import Priority
from inference_service.embedded.servers import start_servers
from inference_service.embedded.stack import WorkerProcess, settings_for
from inference_service.jobs.celery_app import PRIORITY_QUEUE, make_app, send
from inference_service.jobs.schema import JobState
from inference_service.worker.deployment import prepare

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, scan: Path) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("faults")
    with start_servers(folder / "servers", durable=False) as servers:
        prepare(settings_for(servers.environment))
        with start_service(servers, folder, scan) as running:
            yield running


@pytest.fixture(autouse=True)
def _no_job_is_left(service: Service) -> Iterator[None]:
    """What a test that failed had submitted would keep the next one's workers busy."""
    yield
    for job in service.client.list():
        if not job.finished:
            service.client.cancel(job.id)


def test_a_killed_child_costs_an_attempt(service: Service) -> None:
    with service.worker(LEASE_S="60") as worker:
        job_id = service.submit()
        service.half_done(job_id)
        os.kill(child_of(worker), signal.SIGKILL)
        service.assert_succeeded(job_id)
    assert service.story(job_id) == [
        ("queued", 0, None), ("running", 1, None), ("queued", 1, "worker_lost"), ("running", 2, None),
        ("succeeded", 2, None),
    ]  # fmt: skip


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
        ("queued", 0, None), ("running", 1, None), ("queued", 1, "worker_lost"), ("running", 2, None),
        ("succeeded", 2, None),
    ]  # fmt: skip
    log = worker.log_path.read_text()
    assert "this process ends, a new one takes its place: the GPU failed on a window of this model" in log


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
        # Long enough for the job to come to its end and to find nobody to tell.
        time.sleep(12)
        service.servers.postgres.start()
        service.assert_succeeded(job_id)
    assert [state for state, *_ in service.story(job.id)] == ["queued", "running", "succeeded"]


@pytest.mark.parametrize("when", ["fetch", "store"])
def test_the_storage_is_away_for_20_s(service: Service, when: str) -> None:
    with service.worker():
        if when == "fetch":
            service.servers.s3.kill()
        job_id = service.submit()
        if when == "store":
            service.half_done(job_id)
            service.servers.s3.kill()
        time.sleep(20)
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
            wait_for_log(worker, "nothing to do", "succeeded on")
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
            wait_for_log(frozen, "another attempt holds the lease", "another one holds the job")
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
            wait_for_log(frozen, "another attempt holds the lease", "another one holds the job")
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


def test_work_that_does_not_end_itself_is_ended(service: Service) -> None:
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
        assert "its process is ended" in worker.log_path.read_text()
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
            until_queues(service, cpu, ["overflow"])
            # What the CPU worker asked Redis for before it dropped the queue may still take one message, and return it.
            service.assert_succeeded(service.submit("quick", priority=Priority.URGENT))
            running = service.submit(priority=Priority.URGENT)
            urgent = service.submit("quick", priority=Priority.URGENT)
            assert "gpu-" in str(service.half_done(running).lease_owner)
            kill(gpu)
        service.assert_succeeded(running, urgent)
        for job_id in (running, urgent):
            assert "cpu-" in str(service.finished(job_id).lease_owner), service.client.transitions(job_id)
        until_queues(service, cpu, [PRIORITY_QUEUE, "overflow"])
        with service.worker("gpu"):
            until_queues(service, cpu, ["overflow"])
            done = service.submit("quick", priority=Priority.URGENT)
            service.assert_succeeded(done)
            assert "gpu-" in str(service.finished(done).lease_owner)


def test_a_worker_that_takes_nothing_ends(service: Service) -> None:
    """As after a lost connection: the worker lives, its heart beats, and it consumes no more."""
    app = make_app(settings_for(service.servers.environment))
    with service.worker("gpu") as worker:
        until_queues(service, worker, ["priority", "overflow"])
        name = next(known.name for known in service.client.workers() if f"-{worker.pid}-" in known.name)
        for queue in ("priority", "overflow"):
            app.control.cancel_consumer(queue, destination=[name])
        until_queues(service, worker, [])
        job_id = service.submit("quick")
        worker.wait_until_ended(LIMIT_S)
        assert "messages wait and this worker takes none" in worker.log_path.read_text()
        assert name not in {known.name for known in service.client.workers()}
    with service.worker():
        service.assert_succeeded(job_id)


def test_urgent_jobs_spill_where_the_gpus_queue_is_deep(service: Service) -> None:
    service.lose_redis_data()
    with service.worker("cpu") as worker, service.worker("gpu") as gpu:
        until_queues(service, worker, ["overflow"])
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
        again, anew, other = service.submit(reuse=True), service.submit(), service.submit("quick", reuse=True)
        service.assert_succeeded(again, anew, other)
    assert service.story(again)[-1] == ("succeeded", 1, f"reused {first}")
    assert service.objects(again) == service.objects(first)
    assert service.finished(again).model_sha256 == service.finished(first).model_sha256
    for job_id, computed in ((first, True), (again, False), (anew, True)):
        assert ("network" in (service.finished(job_id).timings_s or {})) is computed


def until_queues(service: Service, worker: WorkerProcess, queues: list[str]) -> None:
    """Waits until a worker consumes these queues."""
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        for known in service.client.workers():
            if f"-{worker.pid}-" in known.name and known.queues == queues:
                return
        time.sleep(0.1)
    raise AssertionError(service.client.workers())


def wait_for_log(worker: WorkerProcess, *said: str) -> None:
    """Waits until a worker's log says one of these."""
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        if any(text in worker.log_path.read_text() for text in said):
            return
        time.sleep(0.1)
    raise AssertionError(worker.log_path.read_text())
