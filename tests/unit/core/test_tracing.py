import sys
import threading
import time
from collections.abc import Callable, Sequence
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from inference_service.core import tracing
from inference_service.core.progress import StageClock
from inference_service.core.tracing import TraceContext, Tracing, current_context

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN_ID = "00f067aa0ba902b7"
PARENT = f"00-{TRACE_ID}-{SPAN_ID}-01"
ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


def test_the_headers_of_w3c_are_kept() -> None:
    assert len(PARENT) == 55
    headers = {"traceparent": PARENT, "tracestate": "vendor=a,other=b"}
    context = TraceContext.from_headers({**headers, "baggage": "x"})
    assert context is not None
    assert (context.headers, context.trace_id) == (headers, TRACE_ID)
    assert TraceContext.from_headers({"traceparent": PARENT}) == TraceContext(PARENT)


@pytest.mark.parametrize(
    "parent",
    [
        None,
        5,
        [PARENT],
        "",
        PARENT.upper(),
        PARENT + "\n",
        PARENT + "-00",
        PARENT[:-1],
        " " + PARENT,
        "ff" + PARENT[2:],
        f"00-{'0' * 32}-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{'0' * 16}-01",
        PARENT.replace("-", "_"),
    ],
)
def test_a_malformed_traceparent_counts_as_absent(parent: object) -> None:
    assert TraceContext.from_headers({"traceparent": parent, "tracestate": "vendor=a"}) is None


@pytest.mark.parametrize("state", [5, "", "x" * 513, "vendor=a\n", "vendor=é", " vendor=a"])
def test_a_malformed_tracestate_counts_as_absent(state: object) -> None:
    assert TraceContext.from_headers({"traceparent": PARENT, "tracestate": state}) == TraceContext(PARENT)


@given(st.dictionaries(st.sampled_from(["traceparent", "tracestate"]), st.text() | st.integers() | st.none()))
def test_no_header_is_an_error(headers: dict[str, object]) -> None:
    context = TraceContext.from_headers(headers)
    assert context is None or len(context.traceparent) == 55


def test_the_current_span_is_the_context() -> None:
    assert current_context() is None
    with TracerProvider(shutdown_on_exit=False).get_tracer("test").start_as_current_span("upstream") as span:
        context = current_context()
    assert context is not None
    assert context.trace_id == f"{span.get_span_context().trace_id:032x}"


def test_without_opentelemetry_there_is_no_context(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("opentelemetry")]:
        monkeypatch.setitem(sys.modules, name, None)
    assert current_context() is None


def test_an_attempt_is_a_child_of_the_job_s_parent_and_the_parent_of_its_stages() -> None:
    exporter = InMemorySpanExporter()
    spans = Tracing("w", exporter)
    job_id = uuid4()
    span = spans.start_attempt(job_id, 2, TraceContext(PARENT, "vendor=a"))
    clock = StageClock()
    with clock.stage("read"):
        pass
    with clock.stage("windows"):
        for _ in range(3):
            with clock.stage("network"):
                pass
    with pytest.raises(ZeroDivisionError), clock.stage("write"):
        raise ZeroDivisionError
    span.fail("out_of_memory")
    span.end(clock)
    span.end(clock)
    spans.close()
    *stages, attempt = exporter.get_finished_spans()
    assert attempt.parent is not None
    assert attempt.context is not None
    assert (attempt.parent.trace_id, attempt.parent.span_id) == (int(TRACE_ID, 16), int(SPAN_ID, 16))
    assert attempt.context.trace_state.to_header() == "vendor=a"
    assert dict(attempt.attributes or {}) == {
        "inference.job_id": str(job_id),
        "inference.attempt": 2,
        "error.type": "out_of_memory",
    }
    assert attempt.status.status_code is StatusCode.ERROR
    assert [stage.name for stage in stages] == ["read", "windows", "network", "write"]
    for stage in stages:
        assert stage.parent == attempt.context
        assert stage.start_time is not None
        assert stage.end_time is not None
        assert (attempt.start_time or 0) <= stage.start_time <= stage.end_time <= (attempt.end_time or 0)
        assert dict(stage.attributes or {}) == {"inference.seconds": clock.seconds[stage.name]}
    assert attempt.resource.attributes["service.name"] == "inference-service"
    assert attempt.resource.attributes["service.instance.id"] == "w"


def test_a_stage_that_still_runs_ends_with_its_attempt() -> None:
    exporter = InMemorySpanExporter()
    spans = Tracing("w", exporter)
    span = spans.start_attempt(uuid4(), 1, None)
    clock = StageClock()
    with clock.stage("network"):
        span.end(clock)
        spans.close()
    stage, attempt = exporter.get_finished_spans()
    assert (stage.name, attempt.parent) == ("network", None)
    assert (stage.end_time or 0) <= (attempt.end_time or 0)


def test_a_cancellation_is_no_error_of_the_span() -> None:
    exporter = InMemorySpanExporter()
    spans = Tracing("w", exporter)
    span = spans.start_attempt(uuid4(), 1, None)
    span.fail("cancelled")
    span.end(StageClock())
    spans.close()
    (attempt,) = exporter.get_finished_spans()
    assert (attempt.attributes or {})["error.type"] == "cancelled"
    assert attempt.status.status_code is StatusCode.UNSET


def test_a_trace_that_is_not_sampled_gets_no_spans() -> None:
    exporter = InMemorySpanExporter()
    spans = Tracing("w", exporter)
    spans.start_attempt(uuid4(), 1, TraceContext(PARENT[:-2] + "00")).end(StageClock())
    spans.close()
    assert exporter.get_finished_spans() == ()


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, False),
        ({ENDPOINT: ""}, False),
        ({ENDPOINT: "http://127.0.0.1:1"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:1/v1/traces"}, True),
        ({ENDPOINT: "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "True"}, False),
        ({ENDPOINT: "http://127.0.0.1:1", "OTEL_TRACES_EXPORTER": "none"}, False),
    ],
)
def test_opentelemetrys_variables_turn_spans_on(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], wanted: bool
) -> None:
    made: list[str] = []
    monkeypatch.setattr(tracing, "_make_provider", lambda worker, exporter: made.append(worker))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    spans = Tracing("w")
    for attempt in (1, 2):
        spans.start_attempt(uuid4(), attempt, None).end(StageClock())
    spans.close()
    assert made == (["w"] if wanted else [])


def test_opentelemetrys_variables_name_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "radiology")
    exporter = InMemorySpanExporter()
    spans = Tracing("w", exporter)
    spans.start_attempt(uuid4(), 1, None).end(StageClock())
    spans.close()
    assert exporter.get_finished_spans()[0].resource.attributes["service.name"] == "radiology"


def missing(patch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("opentelemetry")]:
        patch.setitem(sys.modules, name, None)


def misconfigured(patch: pytest.MonkeyPatch) -> None:
    patch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "1000000")


@pytest.mark.parametrize(("prepare", "said"), [(missing, "is not installed"), (misconfigured, "no spans are exported")])
def test_tracing_that_cannot_start_is_off(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    prepare: Callable[[pytest.MonkeyPatch], None],
    said: str,
) -> None:
    monkeypatch.setenv(ENDPOINT, "http://127.0.0.1:1")
    prepare(monkeypatch)
    spans = Tracing("w")
    for attempt in (1, 2):
        span = spans.start_attempt(uuid4(), attempt, TraceContext(PARENT))
        span.fail("input_corrupt")
        span.end(StageClock())
    spans.close()
    assert caplog.text.count(said) == 1


def test_a_collector_that_hangs_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    answered = threading.Event()

    class Hanging(SpanExporter):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            answered.wait()
            return SpanExportResult.FAILURE

    monkeypatch.setattr(tracing, "_FLUSH_LIMIT_S", 0.05)
    spans = Tracing("w", Hanging())
    spans.start_attempt(uuid4(), 1, None).end(StageClock())
    started = time.monotonic()
    spans.close()
    assert time.monotonic() - started < 10
    answered.set()
