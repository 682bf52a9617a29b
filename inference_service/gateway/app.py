"""The ASGI application of the gateway."""

import logging
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, closing
from functools import partial
from http import HTTPStatus
from importlib.metadata import version
from itertools import chain

import anyio
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from inference_service.client import Client
from inference_service.core.errors import ErrorCode, ServiceError
from inference_service.core.settings import Settings
from inference_service.gateway import jobs_api, results_api, service_api
from inference_service.gateway.access import COOKIE, Access
from inference_service.gateway.background import run_in_background
from inference_service.gateway.events import EventHub
from inference_service.gateway.gateway import Gateway
from inference_service.gateway.health import HealthCheck
from inference_service.gateway.observation import Observation
from inference_service.gateway.page import routes as page_routes
from inference_service.gateway.problems import HttpCode, Problem, Refusal, problem, problem_of_error
from inference_service.gateway.results_api import MAX_TABLES
from inference_service.gateway.submission.uploading import UploadSlots
from inference_service.gateway.views import Submission
from inference_service.jobs.database import connect
from inference_service.jobs.gateway import tokens
from inference_service.jobs.storage.object_storage import Storage

logger = logging.getLogger(__name__)

_STORAGE_RETRY_S = 5.0
# Fewer than all 40 threads: neither a storage nor a Redis that hangs must stop the other calls.
_DOWNLOAD_THREADS = 16
_SUBMIT_THREADS = 12
_ROUTERS = (jobs_api.router, results_api.router, service_api.router, page_routes.router)
_CODES_OF_STATUS = {
    HTTPStatus.NOT_FOUND: HttpCode.NOT_FOUND,
    HTTPStatus.METHOD_NOT_ALLOWED: HttpCode.METHOD_NOT_ALLOWED,
}
_SECURITY_SCHEMES = {
    "token": {"type": "http", "scheme": "bearer", "description": "A token of `inference-service tokens add`."},
    "session": {"type": "apiKey", "in": "cookie", "name": COOKIE, "description": "A browser's session."},
}
_SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def make_app(settings: Settings, *, local: bool) -> FastAPI:
    """Makes the application, which connects to the servers when it starts.

    Args:
        settings: Addresses and credentials, as of any upstream.
        local: Whether requests need no token, as there is none and only this machine can ask.
    """
    observation = Observation()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with ExitStack() as stack:
            app.state.gateway = gateway = _open_gateway(settings, stack, local=local)
            observation.follow_listeners(gateway.events)
            async with anyio.create_task_group() as group:
                group.start_soon(run_in_background, gateway)
                yield
                group.cancel_scope.cancel()

    app = FastAPI(
        title="Inference service",
        summary="Segmentation of medical images.",
        version=version("inference-service"),
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        # A redirect would lead to the address that the request states, maybe without TLS.
        redirect_slashes=False,
        openapi_url="/v1/openapi.json",
        # Relative to that address: a proxy may serve the gateway below a path.
        servers=[{"url": ".."}],
        generate_unique_id_function=lambda route: route.name,
    )
    for router in _ROUTERS:
        app.include_router(router)
    app.state.observation = observation
    _handle_errors(app)
    app.add_middleware(_answering_errors)
    app.add_middleware(_unambiguous)
    app.add_middleware(_secured)
    app.add_middleware(observation.middleware)
    _describe(app)
    return app


def _open_gateway(settings: Settings, stack: ExitStack, *, local: bool) -> Gateway:
    client = stack.enter_context(Client(settings))
    database = stack.enter_context(closing(connect(settings)))
    storage = stack.enter_context(closing(Storage(settings, retry_for_s=_STORAGE_RETRY_S)))
    return Gateway(
        settings=settings,
        deployment_id=client.deployment_id,
        client=client,
        database=database,
        storage=storage,
        access=Access(partial(tokens.find, database), local=local),
        events=EventHub(database),
        health=HealthCheck(client, database, storage, settings.minio_input_bucket),
        uploads=UploadSlots(),
        downloads=anyio.CapacityLimiter(_DOWNLOAD_THREADS),
        submits=anyio.CapacityLimiter(_SUBMIT_THREADS),
        tables=anyio.CapacityLimiter(MAX_TABLES),
    )


def _secured(app: ASGIApp) -> ASGIApp:
    """Wraps an application so that its answers have the headers by which browsers protect people."""

    async def secured(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await app(scope, receive, send_secured)

    return secured


def _unambiguous(app: ASGIApp) -> ASGIApp:
    """Wraps an application so that it refuses bodies with two lengths, of which a proxy may believe the other one.

    Source: RFC 9112, section 6.1.
    """

    async def unambiguous(scope: Scope, receive: Receive, send: Send) -> None:
        names = {name for name, _ in scope.get("headers", ())}
        if {b"content-length", b"transfer-encoding"} <= names:
            sentence = "expected one of the headers Content-Length and Transfer-Encoding"
            refused = problem(HTTPStatus.BAD_REQUEST, ErrorCode.BAD_REQUEST, sentence, {"Connection": "close"})
            await refused(scope, receive, send)
        else:
            await app(scope, receive, send)

    return unambiguous


def _answering_errors(app: ASGIApp) -> ASGIApp:
    """Wraps an application so that an unexpected error has an answer, too, which is observed like all others."""

    async def answering(scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def noting_send(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await app(scope, receive, noting_send)
        except Exception:
            if begun or scope["type"] != "http":
                raise  # the server logs it, and closes the connection
            logger.exception("an unexpected error")
            sentence = "an unexpected error, whose traceback is in the gateway's log"
            answer = problem(HTTPStatus.INTERNAL_SERVER_ERROR, ErrorCode.INTERNAL_ERROR, sentence)
            await answer(scope, receive, send)

    return answering


def _handle_errors(app: FastAPI) -> None:
    @app.exception_handler(Refusal)
    def _refusal(_request: Request, error: Refusal) -> Response:
        return problem(error.status, error.code, error.message, error.headers)

    @app.exception_handler(ServiceError)
    def _service_error(_request: Request, error: ServiceError) -> Response:
        return problem_of_error(error)

    @app.exception_handler(RequestValidationError)
    def _invalid(_request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(each) for each in first["loc"])
        return problem(HTTPStatus.BAD_REQUEST, ErrorCode.BAD_REQUEST, f"{where}: {first['msg']}")

    @app.exception_handler(HTTPException)
    def _http_error(request: Request, error: HTTPException) -> Response:
        status = HTTPStatus(error.status_code)
        code = _CODES_OF_STATUS.get(status, ErrorCode.BAD_REQUEST)
        headers = {"Allow": _methods_of_path(request)} if code is HttpCode.METHOD_NOT_ALLOWED else None
        return problem(status, code, status.description or status.phrase, headers)

    @app.exception_handler(ClientDisconnect)
    def _gone(_request: Request, _error: ClientDisconnect) -> Response:
        return Response(status_code=HTTPStatus.BAD_REQUEST)


def _methods_of_path(request: Request) -> str:
    """The methods of all calls with the path of a request."""
    # FastAPI keeps the routes of its routers out of the application's.
    routes = chain(request.app.routes, *(router.routes for router in _ROUTERS))
    calls = [each for each in routes if isinstance(each, Route) and each.matches(request.scope)[0] != Match.NONE]
    return ", ".join(sorted({method for each in calls for method in each.methods or ()}))


def _describe(app: FastAPI) -> None:
    """Adds to the description of the API how callers prove who they are, and the schemas of bodies and errors."""
    original = app.openapi

    def openapi() -> dict[str, object]:
        if app.openapi_schema is None:
            schema = original()
            schemas = schema["components"]["schemas"]
            for model in (Problem, Submission):
                found = model.model_json_schema(ref_template="#/components/schemas/{model}")
                schemas |= found.pop("$defs", {})
                schemas[model.__name__] = found
            schema["components"]["securitySchemes"] = _SECURITY_SCHEMES
            schema["security"] = [{name: []} for name in _SECURITY_SCHEMES]
        return app.openapi_schema or {}

    app.openapi = openapi  # type: ignore[method-assign]
