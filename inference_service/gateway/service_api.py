"""The calls on the service itself: its models, workers and queues, and the session of a browser."""

from dataclasses import replace
from http import HTTPStatus

from fastapi import APIRouter, Request, Response

from inference_service.core.errors import QueueUnavailable
from inference_service.gateway.access import COOKIE
from inference_service.gateway.gateway import InGateway, Reader
from inference_service.gateway.problems import PROBLEMS
from inference_service.gateway.views import Health, ModelView, Queues, Session
from inference_service.jobs import job_store
from inference_service.jobs.queues.lists import QUEUES, depth_of
from inference_service.jobs.schema import JobState
from inference_service.jobs.workers import model_summaries
from inference_service.jobs.workers.worker_registry import Worker

router = APIRouter(tags=["service"])


@router.get("/v1/models", response_model=list[ModelView], responses=PROBLEMS)
def list_models(gateway: InGateway, _caller: Reader) -> list[ModelView]:
    """Lists the models that live workers can run, installed or stored, with the fields by which people choose one."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for worker in gateway.client.workers():
        if worker.silent_s <= gateway.settings.cpu_standby_s:
            for model in worker.models:
                found.setdefault((model.name, model.version, model.manifest_sha256), []).append(worker.name)
    summaries = model_summaries.read(gateway.database, {sha256 for _, _, sha256 in found})
    return [
        ModelView(name=name, version=version, manifest_sha256=sha256, workers=names, summary=summaries.get(sha256))
        for (name, version, sha256), names in sorted(found.items())
    ]


@router.get("/v1/workers", response_model=list[Worker], responses=PROBLEMS)
def list_workers(gateway: InGateway, caller: Reader) -> list[Worker]:
    """Lists the workers seen within a day; the jobs that they run are for the role admin."""
    found = gateway.client.workers()
    return list(found) if caller.is_admin else [replace(worker, jobs=[]) for worker in found]


@router.get("/v1/queues", response_model=Queues, responses=PROBLEMS)
def count_queues(gateway: InGateway, caller: Reader) -> Queues:
    """Counts what waits; the lists of tenants apart are for the role admin."""
    try:
        depths = gateway.client.queue_depths()
        messages = dict(depths) if caller.is_admin else {queue: depth_of(depths, queue) for queue in QUEUES}
    except QueueUnavailable:
        messages = None
    jobs = job_store.count_unfinished(gateway.database)
    return Queues(messages=messages, queued_jobs=jobs[JobState.QUEUED], running_jobs=jobs[JobState.RUNNING])


@router.get("/v1/session", response_model=Session, responses=PROBLEMS)
def show_session(gateway: InGateway, caller: Reader, request: Request) -> Session:
    """Shows the name and the role of the request's token, and facts of the gateway."""
    return Session(
        name=caller.name,
        role=caller.role,
        needs_token=gateway.access.needs_token,
        max_input_bytes=gateway.settings.max_input_bytes,
        version=request.app.version,
    )


@router.post("/v1/session", response_model=Session, responses=PROBLEMS)
def begin_session(gateway: InGateway, caller: Reader, request: Request, response: Response) -> Session:
    """Lets a browser carry the request's token as a cookie, which no script can read, up to the browser's end."""
    if (secret := gateway.access.bearer(request)) is not None:
        secure = request.url.scheme == "https"
        # Without a path, the browser sends it to the calls of this gateway alone, also below a path of a proxy.
        response.set_cookie(COOKIE, secret, path=None, httponly=True, samesite="strict", secure=secure)
    return show_session(gateway, caller, request)


@router.delete("/v1/session", status_code=HTTPStatus.NO_CONTENT, responses=PROBLEMS)
def end_session(_caller: Reader, response: Response) -> None:
    """Makes a browser forget the token."""
    response.set_cookie(COOKIE, max_age=0, path=None, httponly=True, samesite="strict")


@router.get("/healthz", response_model=Health, responses={503: {"model": Health}}, openapi_extra={"security": []})
async def check_health(gateway: InGateway, response: Response) -> Health:
    """Checks the servers that the gateway needs. The answer is 503 if it cannot take jobs."""
    found = await gateway.health.state()
    if not (found.database and found.storage):
        response.status_code = HTTPStatus.SERVICE_UNAVAILABLE
    return found
