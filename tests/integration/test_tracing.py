"""Jobs keep their trace context, and attempts become spans, against the real servers."""

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from uuid import UUID, uuid4

import pytest
from celery.signals import before_task_publish
from jobs_in_process import Request, get
from opentelemetry.propagate import inject
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from redis import Redis

from inference_service.client import Client
from inference_service.contract.task_message import TASK_NAME, parse_request
from inference_service.core.log_config import JobFilter
from inference_service.core.settings import Settings
from inference_service.core.tracing import Tracing
from inference_service.jobs import attempts, resubmission
from inference_service.jobs.database import Database
from inference_service.jobs.queues.celery_app import make_app
from inference_service.jobs.queues.lists import OVERFLOW_QUEUE
from inference_service.jobs.schema import JobState
from inference_service.worker.messages.message_check import task_message
from inference_service.worker.task import TaskHandler

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE_ID}-00f067aa0ba902b7-01"
TRACE = {"traceparent": PARENT, "tracestate": "vendor=a"}


class Spans:
    """A handler whose attempts make spans."""

    def __init__(self, handler: TaskHandler) -> None:
        self._exporter = InMemorySpanExporter()
        self._tracing = Tracing("w", self._exporter)
        self.handler = TaskHandler(replace(handler._context, tracing=self._tracing))

    def finished(self) -> tuple[ReadableSpan, ...]:
        self._tracing.close()
        return self._exporter.get_finished_spans()


@pytest.fixture
def spans(make_handler: Callable[..., TaskHandler]) -> Spans:
    return Spans(make_handler(max_attempts=2))


@pytest.fixture
def traced_lines() -> Iterator[list[tuple[str, str]]]:
    """The trace id and text of each line that the service logs."""
    found: list[tuple[str, str]] = []

    class Recorder(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append((record.trace_id, record.getMessage()))  # type: ignore[attr-defined]

    recorder = Recorder()
    recorder.addFilter(JobFilter())
    logger = logging.getLogger("inference_service")
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(recorder)
    yield found
    logger.removeHandler(recorder)
    logger.setLevel(level)


def test_a_job_becomes_a_span_in_its_senders_trace(
    spans: Spans, database: Database, request_for_scan: Request, traced_lines: list[tuple[str, str]]
) -> None:
    job_id = uuid4()
    spans.handler.handle({"job_id": str(job_id), "request": request_for_scan, **TRACE}, task_id=str(job_id))
    job = get(database, job_id)
    assert (job.state, job.traceparent) == (JobState.SUCCEEDED, PARENT)
    *stages, attempt = spans.finished()
    assert attempt.parent is not None
    assert attempt.parent.span_id == 0x00F067AA0BA902B7
    assert {span.context.trace_id for span in (*stages, attempt) if span.context} == {int(TRACE_ID, 16)}
    assert {stage.name for stage in stages} == set(job.timings_s or {})
    # Neither patient data nor keys of objects.
    names = {name for span in (*stages, attempt) for name in span.attributes or {}}
    assert names == {"inference.job_id", "inference.attempt", "inference.seconds"}
    assert {trace_id for trace_id, _ in traced_lines} == {TRACE_ID}
    assert (TRACE_ID, f"attempt 1 starts in trace {TRACE_ID}") in traced_lines


def test_further_attempts_keep_the_trace(
    spans: Spans, database: Database, request_for_scan: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    job_id = uuid4()
    message: Request = {"job_id": str(job_id), "request": request_for_scan}
    with monkeypatch.context() as patch:
        patch.setattr("inference_service.model_store.model_library.find_model", broken)
        spans.handler.handle({**message, **TRACE}, task_id=str(job_id))
    assert get(database, job_id).error_code == "internal_error"
    assert resubmission.queue_again(database, job_id) is not None
    # As it is sent again: the row alone has the trace.
    spans.handler.handle(message, task_id=str(job_id))
    assert get(database, job_id).state == JobState.SUCCEEDED
    first, second = (span for span in spans.finished() if span.name == "attempt")
    assert first.parent is not None
    assert first.parent == second.parent
    assert (first.attributes or {})["error.type"] == "internal_error"
    assert not first.status.is_ok
    assert (first.status.description, first.events) == (None, ())
    assert (second.attributes or {}) == {"inference.job_id": str(job_id), "inference.attempt": 2}


def test_an_attempt_that_lost_its_lease_says_so(
    spans: Spans, database: Database, request_for_scan: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "succeed", lambda *_, **__: False)
    job_id = uuid4()
    spans.handler.handle({"job_id": str(job_id), "request": request_for_scan}, task_id=str(job_id))
    *_, attempt = spans.finished()
    assert (attempt.attributes or {})["error.type"] == "lease_lost"
    assert attempt.parent is None


def test_a_client_submits_in_the_current_span(client: Client) -> None:
    request = parse_request({"input": {"key": "scan"}, "model": "ct-tissue"})
    with TracerProvider(shutdown_on_exit=False).get_tracer("test").start_as_current_span("upstream") as span:
        inside = client.submit(request)
    given = client.submit(request, trace_headers=TRACE)
    malformed = client.submit(request, trace_headers={"traceparent": "x"})
    outside = client.submit(request)
    found = [job.traceparent for job in map(client.status, (inside, given, malformed, outside)) if job is not None]
    context = span.get_span_context()
    assert found == [f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}", PARENT, None, None]


@pytest.fixture
def client(settings: Settings) -> Iterator[Client]:
    with Redis.from_url(settings.broker_url) as redis, Client(settings) as client:
        yield client
        redis.flushdb()


def test_a_message_keeps_what_opentelemetrys_instrumentation_of_celery_adds(settings: Settings) -> None:
    def instrument(headers: dict[str, str], **_: object) -> None:
        inject(headers)

    job_id = str(uuid4())
    before_task_publish.connect(instrument)
    try:
        tracer = TracerProvider(shutdown_on_exit=False).get_tracer("test")
        with make_app(settings) as app, tracer.start_as_current_span("upstream") as span:
            arguments = {"job_id": job_id, "request": {}}
            app.send_task(TASK_NAME, kwargs=arguments, task_id=job_id, queue=OVERFLOW_QUEUE)
    finally:
        before_task_publish.disconnect(instrument)
    with Redis.from_url(settings.broker_url) as redis:
        item = redis.rpop(OVERFLOW_QUEUE)
    assert isinstance(item, bytes)
    _, kept, _ = json.loads(str(task_message(item)["body"]))
    assert UUID(kept["job_id"]) == UUID(job_id)
    assert kept["traceparent"].split("-")[1] == f"{span.get_span_context().trace_id:032x}"
