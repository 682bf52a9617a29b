"""Runs the gateway as a process."""

import asyncio
import logging
import resource
import socket
from contextlib import closing

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from inference_service.core.errors import ConfigurationError
from inference_service.core.log_config import configure_logging
from inference_service.core.settings import Settings
from inference_service.gateway.app import make_app
from inference_service.jobs.database import connect, limit_response_time
from inference_service.jobs.gateway import tokens

logger = logging.getLogger(__name__)

LOCAL_HOST = "127.0.0.1"
_MAX_HEADER_BYTES = 32 * 1024
_HEADERS_LIMIT_S = 20.0
# Some clients read the refusal of a body only when they have sent all of it.
_REFUSED_BODY_LIMIT_S = 300.0
_READ_LIMIT_S = 60.0
_MAX_CONNECTIONS = 1000
# A download takes two: its own connection, and one to the storage.
_FILES = 2 * _MAX_CONNECTIONS + 1000
STOP_LIMIT_S = 10
_MIN_SECRET_LENGTH = 16


class _BoundedProtocol(H11Protocol):
    """Closes connections that are held for their own sake.

    Three waits are limited: for the end of a request's headers, for the rest of a body that was refused, and for the
    client to read more of its answer.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begins to wait for the first request."""
        super().connection_made(transport)
        self._writable_due: asyncio.TimerHandle | None = None
        self._wait_for_request(_HEADERS_LIMIT_S)

    def on_response_complete(self) -> None:
        """Begins to wait for the next request."""
        refused_body = self.conn.their_state is h11.SEND_BODY
        self._request_due.cancel()
        self._wait_for_request(_REFUSED_BODY_LIMIT_S if refused_body else _HEADERS_LIMIT_S)
        super().on_response_complete()

    def pause_writing(self) -> None:
        """Begins to wait for the client to read."""
        super().pause_writing()
        self._writable_due = self.loop.call_later(_READ_LIMIT_S, self.transport.abort)

    def resume_writing(self) -> None:
        """Stops waiting: the client reads."""
        super().resume_writing()
        if self._writable_due is not None:
            self._writable_due.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops waiting."""
        self._request_due.cancel()
        if self._writable_due is not None:
            self._writable_due.cancel()
        super().connection_lost(exc)

    def _wait_for_request(self, limit_s: float) -> None:
        self._request_due = self.loop.call_later(limit_s, self._close_unless_asked, self.cycle)

    def _close_unless_asked(self, answered: RequestResponseCycle | None) -> None:
        if self.cycle is answered and not self.transport.is_closing():
            self.transport.close()


class GatewayServer(uvicorn.Server):
    """Ends the streams of events when it stops, which would otherwise hold it up to the limit."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stops: ends the streams, and lets other requests come to their end."""
        app: FastAPI = self.config.app  # type: ignore[assignment]
        app.state.gateway.events.close()
        await super().shutdown(sockets)


def run_gateway(settings: Settings) -> None:
    """Runs the gateway until it is told to stop.

    Raises:
        ConfigurationError: Only one of certificate and key is set, or the secret of webhooks is too short.
        DatabaseUnavailable: Postgres does not answer.
    """
    configure_logging(settings.log_level, settings.log_format)
    limit_response_time()
    _allow_files(_FILES)
    with closing(connect(settings)) as database:
        local = not tokens.list_tokens(database)
    host = LOCAL_HOST if local else settings.gateway_host
    if local:
        logger.warning(
            "there are no tokens: the gateway listens to this machine alone, and everyone on it may do everything; "
            "`inference-service tokens add NAME --role submit` makes a token, then start the gateway again"
        )
    if (settings.gateway_tls_cert is None) != (settings.gateway_tls_key is None):
        raise ConfigurationError("GATEWAY_TLS_CERT and GATEWAY_TLS_KEY are set together, or not at all")
    secret = settings.webhook_secret
    if secret is not None and len(secret.get_secret_value()) < _MIN_SECRET_LENGTH:
        raise ConfigurationError(f"WEBHOOK_SECRET: expected at least {_MIN_SECRET_LENGTH} characters")
    app = make_app(settings, local=local)
    if settings.metrics_port is not None:
        app.state.observation.serve(settings.metrics_host, settings.metrics_port)
    GatewayServer(server_config(app, settings, host=host)).run()


def _allow_files(count: int) -> None:
    """Raises the number of files that this process may open, if it may do so."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY:
        count = min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


def server_config(app: FastAPI, settings: Settings, *, host: str) -> uvicorn.Config:
    """Returns how the application is served: on which address, with TLS or without, and within which limits."""
    return uvicorn.Config(
        app,
        host=host,
        port=settings.gateway_port,
        http=_BoundedProtocol,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        forwarded_allow_ips=settings.gateway_proxies or None,
        proxy_headers=bool(settings.gateway_proxies),
        ssl_certfile=settings.gateway_tls_cert,
        ssl_keyfile=settings.gateway_tls_key,
        h11_max_incomplete_event_size=_MAX_HEADER_BYTES,
        limit_concurrency=_MAX_CONNECTIONS,
        timeout_graceful_shutdown=STOP_LIMIT_S,
    )
