"""Messages that come twice, jobs that end early, and which worker takes which queue."""

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from uuid import uuid4

import pytest
from celery import Celery
from faults import Service, child_of, freeze, install_model, kill, resume, until_log_says, wait_for
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from redis import Redis

from inference_service.contract.task_message import CANCEL_TASK_NAME, TASK_NAME, Priority, SegmentRequest
from inference_service.embedded.stack import settings_for
from inference_service.jobs.queues.celery_app import make_app, send
from inference_service.jobs.queues.lists import CANCELLATIONS, OVERFLOW_QUEUE, PRIORITY_QUEUE
from inference_service.jobs.schema import JobState

pytestmark = pytest.mark.timeout(300)


def test_a_message_that_comes_twice_is_one_job(service: Service) -> None:
    app = make_app(settings_for(service.servers.environment))
    with service.worker(), service.worker():
        job_id = service.submit_held()
        request = service.half_done(job_id).request or {}
        for _ in range(3):
            send(app, job_id, request, queue="overflow")
        service.release(job_id)
        service.assert_succeeded(job_id)
        send(app, job_id, request, queue="overflow")
        service.assert_succeeded(service.submit("quick"), service.submit("quick"))
    assert [state for state, *_ in service.transitions(job_id)] == ["queued", "running", "succeeded"]


def test_a_message_that_comes_to_two_workers_at_once_is_one_job(service: Service) -> None:
    app = make_app(settings_for(service.servers.environment))
    with service.worker() as first, service.worker() as second:
        # Redis announces the messages to both, and each asks for one as soon as it resumes.
        for worker in (first, second):
            freeze(worker)
        job_id = service.submit()
        request = service.until(job_id, lambda job: job.queue is not None).request or {}
        for _ in range(3):
            send(app, job_id, request, queue="overflow")
        for worker in (first, second):
            resume(worker)
        service.assert_succeeded(job_id)
        for worker in (first, second):
            until_log_says(worker, "nothing to do", "succeeded on")
    assert [state for state, *_ in service.transitions(job_id)] == ["queued", "running", "succeeded"]


def test_whoever_publishes_to_redis_does_not_control_the_workers(service: Service) -> None:
    settings = settings_for(service.servers.environment)
    revoked = uuid4()
    with service.worker() as worker, Celery(broker=settings.broker_url) as upstream:
        running = service.submit_held()
        service.half_done(running)
        child = child_of(worker)
        control = upstream.control
        control.revoke([str(revoked), str(running)], terminate=True, signal="SIGKILL")
        control.rate_limit(TASK_NAME, "1/h")
        control.pool_grow(n=20)
        control.add_consumer("elsewhere")
        control.shutdown()
        with Redis.from_url(settings.broker_url) as redis:
            for garbage in (b"5", b"\xff", b'{"properties":' + b"[" * 900 + b"]" * 900 + b"}"):
                redis.publish("/0.celery.pidbox", garbage)
        service.client.submit(SegmentRequest(input=service.scan, model="slow"), job_id=revoked)
        service.release(running)
        service.assert_succeeded(running, revoked)
        assert child_of(worker) == child
        assert [state for state, *_ in service.transitions(running)] == ["queued", "running", "succeeded"]
    assert "Traceback" not in worker.log_path.read_text()


@pytest.mark.slow
def test_a_job_that_outlasts_the_visibility_timeout_runs_once(service: Service) -> None:
    """Redis gives the message of a running job to another worker; kombu looks for such messages after ten seconds."""
    with service.worker(VISIBILITY_TIMEOUT_S="1") as first, service.worker(VISIBILITY_TIMEOUT_S="1") as second:
        job_id = service.submit_held()
        wait_for(lambda: any("nothing to do" in worker.log_path.read_text() for worker in (first, second)))
        assert service.until(job_id, lambda job: job.state is JobState.RUNNING).attempt == 1
        service.release(job_id)
        service.assert_succeeded(job_id)
    assert [state for state, *_ in service.transitions(job_id)] == ["queued", "running", "succeeded"]


def test_a_cpu_worker_stands_in_for_the_gpu_worker(service: Service) -> None:
    # The GPU worker comes first, as the CPU worker would stand in for one that takes long to start.
    with service.worker("gpu") as gpu, service.worker("cpu") as cpu:
        service.until_queues(cpu, ["overflow"])
        service.assert_succeeded(service.submit("quick", priority=Priority.URGENT))
        running = service.submit_held(priority=Priority.URGENT)
        urgent = service.submit("quick", priority=Priority.URGENT)
        assert "gpu-" in str(service.half_done(running).lease_owner)
        kill(gpu)
        service.release(running)
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
    with service.worker("gpu") as gpu, service.worker("cpu") as worker:
        service.until_queues(worker, ["overflow"])
        for each in (worker, gpu):
            freeze(each)
        urgent = [service.submit("quick", priority=Priority.URGENT) for _ in range(25)]
        sent_to = [service.until(job_id, lambda job: job.queue is not None).queue for job_id in urgent]
        assert sent_to == ["priority"] * 20 + ["overflow"] * 5
        for each in (worker, gpu):
            resume(each)
        service.assert_succeeded(*urgent)


def test_an_earlier_result_is_reused_where_the_request_allows_it(service: Service) -> None:
    with service.worker():
        first = service.submit()
        service.assert_succeeded(first)
        reused = service.submit(reuse=True)
        recomputed = service.submit()
        other_model = service.submit("quick", reuse=True)
        service.assert_succeeded(reused, recomputed, other_model)
    assert service.transitions(reused)[-1] == ("succeeded", 1, f"reused {first}")
    assert service.transitions(other_model)[-1][2] != f"reused {first}"
    assert service.results(reused) == service.results(first)
    assert service.finished(reused).model_sha256 == service.finished(first).model_sha256
    for job_id, computed in ((first, True), (reused, False), (recomputed, True)):
        assert ("network" in (service.finished(job_id).timings_s or {})) is computed


def test_a_running_and_a_queued_job_are_cancelled(service: Service) -> None:
    with service.worker() as worker:
        running = service.submit(window_s=0.3)
        queued = service.submit("quick")
        service.half_done(running)
        service.client.cancel(queued)
        cancelled_at = datetime.now(UTC)
        service.client.cancel(running)
        service.assert_ended(running, JobState.CANCELLED, "cancelled")
        # The worker notices within a second, and stops its work within 1.5 s; a busy machine takes longer.
        assert service.client.transitions(running)[-1].at - cancelled_at < timedelta(seconds=5)
        service.assert_ended(queued, JobState.CANCELLED, "cancelled")
        finished = service.submit("quick")
        service.assert_succeeded(finished)
        service.client.cancel(finished)
        service.assert_succeeded(finished)
        wait_for(lambda: not service.has_temporary_files())
    assert [state for state, *_ in service.transitions(queued)] == ["queued", "cancelled"]
    assert "Traceback" not in worker.log_path.read_text()


def test_a_message_cancels_jobs_while_the_worker_is_busy(service: Service) -> None:
    broker = settings_for(service.servers.environment).broker_url
    with service.worker() as worker, Celery(broker=broker, set_as_current=False) as app:
        running = service.submit_held()
        service.half_done(running)
        queued = service.submit("quick")
        unknown = uuid4()
        for job_id in (unknown, queued, running):
            app.send_task(CANCEL_TASK_NAME, kwargs={"job_id": str(job_id)}, queue=CANCELLATIONS)
        for job_id in (queued, running):
            service.assert_ended(job_id, JobState.CANCELLED, "cancelled")
        # Its own message comes too late.
        request = service.request("quick").model_dump(mode="json")
        app.send_task(TASK_NAME, kwargs={"job_id": str(unknown), "request": request}, queue=OVERFLOW_QUEUE)
        service.assert_succeeded(service.submit("quick"))
        service.assert_ended(unknown, JobState.CANCELLED, "cancelled")
    assert service.transitions(unknown) == [("queued", 0, None), ("cancelled", 0, "cancelled")]
    assert f"job {running}: cancellation requested by a message" in worker.log_path.read_text()


def test_work_that_does_not_stop_is_killed(service: Service) -> None:
    """A window of a minute cannot be interrupted, but its process can be killed."""
    with service.worker() as worker:
        job_id = service.submit("quick", window_s=60)
        service.until(job_id, lambda job: job.stage == "windows")
        child = child_of(worker)
        service.client.cancel(job_id)
        service.assert_ended(job_id, JobState.CANCELLED, "cancelled")
        service.assert_succeeded(service.submit("quick"))
        assert "its process is killed" in worker.log_path.read_text()
        assert child_of(worker) != child
        wait_for(lambda: not service.has_temporary_files())


def test_a_job_ends_at_its_models_time_limit(service: Service, tmp_path: Path) -> None:
    install_model(tmp_path, "limited", layers=0, time_limit_s=1)
    install_model(tmp_path, "quick", layers=0)
    with service.worker(MODELS_PATH=str(tmp_path)):
        job_id = service.submit("limited", window_s=0.3)
        service.assert_ended(job_id, JobState.FAILED, "time_limit")
        service.assert_succeeded(service.submit("quick"))


@pytest.fixture
def collector() -> Iterator[tuple[str, list[Span]]]:
    """The address of a collector of OpenTelemetry, and the spans that it has got."""
    spans: list[Span] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            for resource in ExportTraceServiceRequest.FromString(content).resource_spans:
                for scope in resource.scope_spans:
                    spans.extend(scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Keeps the output of the tests clean."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", spans
        server.shutdown()
        thread.join()


def test_spans_of_finished_and_killed_attempts_reach_a_collector(
    service: Service, collector: tuple[str, list[Span]]
) -> None:
    endpoint, spans = collector
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    context = {"traceparent": f"00-{trace_id}-00f067aa0ba902b7-01"}
    # Only the end of a process exports.
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_BSP_SCHEDULE_DELAY": "3600000"}
    with service.worker(**environment) as worker:
        killed = service.submit("quick", window_s=60, trace_headers=context)
        service.until(killed, lambda job: job.stage == "windows")
        service.client.cancel(killed)
        service.assert_ended(killed, JobState.CANCELLED, "cancelled")
        wait_for(lambda: any(span.name == "attempt" for span in spans))
        finished = service.submit("quick", trace_headers=context)
        service.assert_succeeded(finished)
        assert f"attempt 1 starts in trace {trace_id}" in worker.log_path.read_text()
    attempts = {
        attribute.value.string_value: span
        for span in spans
        for attribute in span.attributes
        if attribute.key == "inference.job_id"
    }
    assert set(attempts) == {str(killed), str(finished)}
    assert all(span.trace_id.hex() == trace_id for span in spans)
    stages = {span.name for span in spans if span.parent_span_id == attempts[str(killed)].span_id}
    assert {"fetch", "windows"} <= stages
    assert "store" not in stages
    assert "store" in {span.name for span in spans if span.parent_span_id == attempts[str(finished)].span_id}
