"""Trace context of W3C, and the spans of attempts. The only module that imports OpenTelemetry, which is optional."""

import logging
import os
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

from inference_service.core.errors import ErrorCode
from inference_service.core.progress import StageClock

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span

logger = logging.getLogger(__name__)

_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
# W3C Trace Context asks to keep at least 512 characters.
_TRACESTATE = re.compile(r"[!-~][ -~]{0,511}")
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
# Time that a process which ends waits for the collector.
_FLUSH_LIMIT_S = 2.0


@dataclass(frozen=True)
class TraceContext:
    """The place of a job in a trace, as the headers of W3C Trace Context state it.

    Attributes:
        traceparent: Trace and span that submitted the job: 55 characters.
        tracestate: Data of tracing systems, at most 512 characters.
    """

    traceparent: str
    tracestate: str | None = None

    @classmethod
    def from_headers(cls, headers: Mapping[str, object]) -> "TraceContext | None":
        """Reads the headers `traceparent` and `tracestate`; a malformed one counts as absent."""
        parent = headers.get("traceparent")
        if not isinstance(parent, str) or not _TRACEPARENT.fullmatch(parent):
            return None
        state = headers.get("tracestate")
        return cls(parent, state if isinstance(state, str) and _TRACESTATE.fullmatch(state) else None)

    @property
    def headers(self) -> dict[str, str]:
        """The headers, without an absent one."""
        state = {} if self.tracestate is None else {"tracestate": self.tracestate}
        return {"traceparent": self.traceparent, **state}

    @property
    def trace_id(self) -> str:
        """The trace, in 32 hexadecimal digits."""
        return self.traceparent.split("-")[1]


def current_context() -> TraceContext | None:
    """The current span of OpenTelemetry; None if there is none, or OpenTelemetry is not installed."""
    try:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
    except ImportError:
        return None
    headers: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(headers)
    return TraceContext.from_headers(headers)


class AttemptSpan:
    """The span of one attempt, whose stages become its children. Without tracing it does nothing.

    Args:
        provider: Makes the spans.
        span: The span that has begun.
    """

    def __init__(self, provider: "TracerProvider | None" = None, span: "Span | None" = None) -> None:
        self._provider = provider
        self._span = span

    def fail(self, code: str) -> None:
        """Records the code of the error that ends the attempt."""
        if self._span is None:
            return
        from opentelemetry.trace import StatusCode

        self._span.set_attribute("error.type", code)
        if code != ErrorCode.CANCELLED:
            self._span.set_status(StatusCode.ERROR)

    def end(self, clock: StageClock) -> None:
        """Ends the span, with a child for each stage that the attempt has reached. A further call does nothing."""
        span, self._span = self._span, None
        if span is None or self._provider is None:
            return
        from opentelemetry.trace import set_span_in_context

        tracer = self._provider.get_tracer(__name__)
        context = set_span_in_context(span)
        for stage, (start_ns, end_ns) in list(clock.periods.items()):
            seconds = {"inference.seconds": clock.seconds.get(stage, 0.0)}
            tracer.start_span(stage, context, attributes=seconds, start_time=start_ns).end(end_ns)
        span.end()


class Tracing:
    """Makes the spans of a worker's attempts, if OpenTelemetry is installed and its environment variables say so.

    It is created before the child processes are forked; each of them starts an exporter of its own, with its thread, on
    first use.

    Args:
        worker: The worker's name.
        exporter: Where spans go; None: to the collector that the environment variables name.
    """

    def __init__(self, worker: str = "", exporter: "SpanExporter | None" = None) -> None:
        self._worker = worker
        self._exporter = exporter
        self._started = False
        self._provider: TracerProvider | None = None

    def start_attempt(self, job_id: UUID, attempt: int, parent: TraceContext | None) -> AttemptSpan:
        """Begins the span of an attempt.

        Args:
            job_id: The job.
            attempt: Number of the attempt.
            parent: The job's trace context; without one, each attempt begins a trace.
        """
        if not self._started:
            self._started = True
            self._provider = self._start()
        if self._provider is None:
            return AttemptSpan()
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        span = self._provider.get_tracer(__name__).start_span(
            "attempt",
            TraceContextTextMapPropagator().extract({} if parent is None else parent.headers),
            SpanKind.CONSUMER,
            {"inference.job_id": str(job_id), "inference.attempt": attempt},
        )
        return AttemptSpan(self._provider, span)

    def close(self) -> None:
        """Exports the remaining spans, before this process ends. Waits for the collector for 2 s at most."""
        if self._provider is None:
            return
        # Its own limit is 30 s.
        closing = threading.Thread(target=self._provider.shutdown, name="close-tracing", daemon=True)
        closing.start()
        closing.join(_FLUSH_LIMIT_S)

    def _start(self) -> "TracerProvider | None":
        if self._exporter is None and not _is_configured():
            return None
        try:
            return _make_provider(self._worker, self._exporter)
        except ImportError:
            logger.warning("no spans are exported: OpenTelemetry is not installed (the extra `tracing`)")
        except Exception:
            # A wrong environment variable of OpenTelemetry must not fail jobs.
            logger.exception("no spans are exported")
        return None


def _is_configured() -> bool:
    disabled = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    unwanted = os.environ.get("OTEL_TRACES_EXPORTER", "").strip() == "none"
    return not disabled and not unwanted and any(os.environ.get(name) for name in _ENDPOINTS)


def _make_provider(worker: str, exporter: "SpanExporter | None") -> "TracerProvider":
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create({"service.name": "inference-service", "service.instance.id": worker})
    # The environment variables come before the names above.
    provider = TracerProvider(resource=resource.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter or OTLPSpanExporter()))
    return provider
