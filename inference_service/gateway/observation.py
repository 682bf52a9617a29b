"""Metrics and log lines of requests. Both name a call by its path's pattern: paths have ids, and queries any text."""

import logging
import time
from http import HTTPMethod, HTTPStatus

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from inference_service.gateway.events import EventHub

logger = logging.getLogger(__name__)

_BUCKETS_S = (0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 120, 600)
_UNKNOWN = "unknown"
# Of other methods, which a caller makes up, there may be any number.
_METHODS = frozenset(HTTPMethod)


class Observation:
    """The metrics of one process, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = ["method", "route"]
        self._requests = Counter(
            "inference_gateway_requests", "Requests answered.", [*labels, "status"], registry=self.registry
        )
        # Without labels, so that it is there before the first error, and Prometheus sees that one, too.
        self._server_errors = Counter(
            "inference_gateway_server_errors", "Requests answered with a status of 500 or more.", registry=self.registry
        )
        self._duration = Histogram(
            "inference_gateway_request_duration_seconds",
            "Seconds from a request's headers to the end of its answer.",
            labels,
            buckets=_BUCKETS_S,
            registry=self.registry,
        )
        self._received = Counter("inference_gateway_received_bytes", "Bytes of bodies.", registry=self.registry)
        self._listeners = Gauge("inference_gateway_listeners", "Open streams of events.", registry=self.registry)

    def follow_listeners(self, hub: EventHub) -> None:
        """Reports the number of listeners whenever the metrics are read."""
        self._listeners.set_function(lambda: hub.listeners)

    def serve(self, host: str, port: int) -> None:
        """Serves the metrics over HTTP from a thread.

        Raises:
            OSError: The port is taken.
        """
        start_http_server(port, host, self.registry)

    def middleware(self, app: ASGIApp) -> ASGIApp:
        """Wraps an application so that its requests are counted and logged."""

        async def observed(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            began = time.perf_counter()
            status = 0

            async def counting_receive() -> Message:
                message = await receive()
                self._received.inc(len(message.get("body", b"")))
                return message

            async def noting_send(message: Message) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = message["status"]
                await send(message)

            try:
                await app(scope, counting_receive, noting_send)
            finally:
                self._record(scope, status, time.perf_counter() - began)

        return observed

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", _UNKNOWN)
        method = scope["method"] if scope["method"] in _METHODS else _UNKNOWN
        self._requests.labels(method, route, status).inc()
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            self._server_errors.inc()
        self._duration.labels(method, route).observe(seconds)
        name = scope.get("state", {}).get("caller", "-")
        logger.info("%s %s by %s: %s in %.0f ms", method, route, name, status or "no answer", seconds * 1000)
