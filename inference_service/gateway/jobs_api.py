"""The calls on jobs."""

import base64
import binascii
import json
from collections.abc import AsyncIterator
from datetime import datetime
from functools import partial
from typing import Annotated, Any
from uuid import UUID

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent

from inference_service.contract.result_files import ALL_RESULT_FILES
from inference_service.contract.task_message import parse_request
from inference_service.core.errors import BadRequest, InputNotFound
from inference_service.gateway.downloads import Download, answer, answer_zip
from inference_service.gateway.gateway import Gateway, InGateway, Reader, Submitter
from inference_service.gateway.job_query import VisibleJobs, in_utc
from inference_service.gateway.problems import PROBLEMS, HttpCode, Refusal
from inference_service.gateway.submission import submitting
from inference_service.gateway.views import JobDetail, JobPage, JobView
from inference_service.jobs.gateway import webhooks
from inference_service.jobs.job_store import Job, PagePosition
from inference_service.jobs.request_scope import confine
from inference_service.jobs.workers import model_summaries

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

_MAX_PAGE = 200


_FORM_SCHEMA = {
    "type": "object",
    "required": ["request"],
    "properties": {
        "request": {
            "type": "string",
            "contentMediaType": "application/json",
            "description": "The request of the task contract as JSON, without bucket and key. It precedes the files.",
        },
        "job_id": {"type": "string", "format": "uuid", "description": "Id of the job; it precedes the files."},
        "webhook": {"type": "string", "description": "As in JSON; it precedes the files."},
        "file": {
            "type": "array",
            # Generators of clients know the older `format` alone.
            "items": {"type": "string", "format": "binary", "contentMediaType": "application/octet-stream"},
            "description": "The scan: one file or archive, or the files of a series. For a model of several channels, "
            "parts named `channel.` and the channel's name, such as `channel.PET`, take its place.",
        },
    },
}
_FILE: dict[str, Any] = {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
_DOWNLOADS: dict[int | str, dict[str, Any]] = {
    200: {"description": "The object, with the type that belongs to it.", **_FILE},
    206: {"description": "The range of it that was asked for.", **_FILE},
    304: {"description": "The caller has it already."},
    **PROBLEMS,
}
_BODY = {
    "required": True,
    "content": {
        "application/json": {"schema": {"$ref": "#/components/schemas/Submission"}},
        "multipart/form-data": {"schema": _FORM_SCHEMA},
    },
}


def _visible(gateway: InGateway, caller: Reader, job_id: UUID) -> Job:
    """Returns a job that the caller may see.

    Raises:
        Refusal: There is none.
    """
    found = gateway.client.status(job_id)
    if found is None or not caller.may_see(found):
        raise Refusal.no_job()
    return found


VisibleJob = Annotated[Job, Depends(_visible)]
"""The job of the path, as a parameter of a call."""


@router.post(
    "",
    status_code=201,
    response_model=JobView,
    responses={200: {"model": JobView, "description": "The same job was submitted before."}, **PROBLEMS},
    openapi_extra={"requestBody": _BODY},
)
async def submit_job(
    request: Request,
    response: Response,
    gateway: InGateway,
    caller: Submitter,
    idempotency_key: Annotated[
        str | None,
        Header(
            description="A text of the caller's choice: the same one, from the same name, is one job.",
            min_length=1,
            max_length=255,
        ),
    ] = None,
) -> Job:
    """Submits a job: as JSON if the scan is in the object storage, or as a form with the files of the scan."""
    media_type = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if media_type == "application/json":
        submitted = await submitting.submit_json(gateway, caller, request)
    elif media_type == "multipart/form-data":
        submitted = await submitting.submit_form(gateway, caller, request)
    else:
        raise Refusal(HttpCode.UNSUPPORTED_MEDIA_TYPE, "expected application/json or multipart/form-data")
    response.status_code = 201 if submitted.is_new else 200
    response.headers["Location"] = f"/v1/jobs/{submitted.job.id}"
    return submitted.job


@router.get("", response_model=JobPage, responses=PROBLEMS)
def list_jobs(
    gateway: InGateway,
    where: VisibleJobs,
    limit: Annotated[int, Query(ge=1, le=_MAX_PAGE)] = 50,
    after: Annotated[str | None, Query(description="`next` of the page before.", max_length=200)] = None,
) -> JobPage:
    """Lists the jobs that the caller may see, the newest first."""
    position = None if after is None else _position(after)
    found = gateway.client.list(where=where, after=position, limit=limit)
    following = _cursor(found[-1]) if len(found) == limit else None
    return JobPage(jobs=[JobView.model_validate(job) for job in found], next=following)


@router.get("/{job_id}", response_model=JobDetail, responses=PROBLEMS)
def show_job(gateway: InGateway, job: VisibleJob) -> JobDetail:
    """Shows a job and the changes of its state."""
    return JobDetail(
        **JobView.model_validate(job).model_dump(),
        transitions=list(gateway.client.transitions(job.id)),
        webhook=webhooks.state(gateway.database, job.id),
        model_modality=_modality(gateway, job),
    )


def _modality(gateway: Gateway, job: Job) -> str | None:
    summaries = model_summaries.read(gateway.database, [job.manifest_sha256] if job.manifest_sha256 else [])
    return next((summary.modality for summary in summaries.values()), None)


@router.delete("/{job_id}", status_code=202, response_model=JobView, responses=PROBLEMS)
def cancel_job(gateway: InGateway, _caller: Submitter, job: VisibleJob) -> Job:
    """Cancels a queued job, or asks the worker of a running one to stop; a finished job stays as it is."""
    cancelled = gateway.client.cancel(job.id)
    if cancelled is None:
        raise Refusal.no_job()
    return cancelled


@router.get("/{job_id}/events", response_class=EventSourceResponse, responses=PROBLEMS)
async def follow_job(
    gateway: InGateway,
    job: VisibleJob,
    request: Request,
    last_event_id: Annotated[str | None, Header(description="The id of the last event that was received.")] = None,
) -> AsyncIterator[ServerSentEvent]:
    """Tells each change of a job's state and its progress as they happen, up to the job's end.

    An event `transition` has an id, by which the stream goes on after a broken connection. An event `progress` has
    none: the next one replaces it.
    """
    after = int(last_event_id) if last_event_id and last_event_id.isdecimal() and len(last_event_id) < 19 else 0
    permitted = partial(run_sync, gateway.access.is_valid, request)
    async for event in gateway.events.events(job.id, after=after, permitted=permitted):
        if event.transition is not None:
            yield ServerSentEvent(event="transition", id=str(event.transition_id), data=event.transition)
        else:
            yield ServerSentEvent(event="progress", data=event.progress)


@router.head("/{job_id}/results/{name}", include_in_schema=False)
@router.get("/{job_id}/results/{name}", response_class=Response, responses=_DOWNLOADS)
async def download_result(gateway: InGateway, job: VisibleJob, request: Request, name: str) -> Response:
    """Downloads an object of a succeeded job: `mask`, `report`, `preview`, `scan`, or a further format by its name."""
    if job.result is None or name not in ALL_RESULT_FILES or name not in job.result:
        raise Refusal(HttpCode.NOT_FOUND, f"the job is {job.state} and has no such result")
    bucket, key = job.result["bucket"], job.result[name]
    checksum = (job.checksums or {}).get(name)

    def found() -> Response:
        size = gateway.storage.size(bucket, key) if checksum is None else checksum.size_bytes
        sha256 = None if checksum is None else checksum.sha256
        download = Download(bucket, key, size, sha256, ALL_RESULT_FILES[name])
        return answer(gateway.storage, download, request, gateway.downloads)

    return await run_sync(found, limiter=gateway.downloads)


@router.head("/{job_id}/input", include_in_schema=False)
@router.get("/{job_id}/input", response_class=Response, responses=_DOWNLOADS)
async def download_input(
    gateway: InGateway,
    job: VisibleJob,
    request: Request,
    channel: Annotated[str | None, Query(max_length=64, description="Name of a channel, for a job of several.")] = None,
) -> Response:
    """Downloads the scan of a job: its object, or a zip of the objects under its prefix."""
    # A worker refuses a job whose input lies elsewhere, and so its input is not sent either.
    reference = confine(parse_request(job.request), gateway.settings).input if job.request else None
    if reference is None or (bool(reference.channels) and channel is None):
        raise Refusal(HttpCode.NOT_FOUND, "the job has no request, or a scan for each channel: name one by `channel`")
    if channel is not None and channel not in reference.channels:
        raise Refusal(HttpCode.NOT_FOUND, "the job has no such channel")
    scan = reference.scans[0] if channel is None else reference.channels[channel]
    bucket = scan.bucket or gateway.settings.minio_input_bucket
    return await run_sync(_input, gateway, bucket, scan.key, request, limiter=gateway.downloads)


def _input(gateway: Gateway, bucket: str, key: str, request: Request) -> Response:
    if not key.endswith("/"):
        size = gateway.storage.size(bucket, key)
        return answer(gateway.storage, Download(bucket, key, size, None, "scan"), request, gateway.downloads)
    keys = [each.key for each in gateway.storage.list_objects(bucket, key)]
    if not keys:
        raise InputNotFound("there is no object under the prefix of the request")
    return answer_zip(gateway.storage, bucket, keys, request, gateway.downloads)


def _cursor(job: Job) -> str:
    return base64.urlsafe_b64encode(json.dumps([job.created_at.isoformat(), str(job.id)]).encode()).decode()


def _position(cursor: str) -> PagePosition:
    try:
        created_at, job_id = json.loads(base64.urlsafe_b64decode(cursor))
        return PagePosition(in_utc(datetime.fromisoformat(created_at)), UUID(job_id))
    except (binascii.Error, ValueError, TypeError, AttributeError):
        raise BadRequest("after: expected `next` of the page before") from None
