"""Submits jobs for callers: from JSON, or from a form whose files are stored while they arrive."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from uuid import UUID, uuid4, uuid5

from anyio import CancelScope
from anyio.to_thread import run_sync
from fastapi import Request
from sqlalchemy import Connection

from inference_service.contract.task_message import MAX_MESSAGE_BYTES, SegmentRequest, parse_request
from inference_service.core.errors import BadRequest, InternalError
from inference_service.gateway.access import Caller
from inference_service.gateway.gateway import Gateway
from inference_service.gateway.problems import HttpCode, Refusal
from inference_service.gateway.submission.form import FormPart, read_body, read_form
from inference_service.gateway.submission.request_json import FormRequest, json_object
from inference_service.gateway.submission.uploading import CHANNEL_FIELD, FILE_FIELD, Uploader
from inference_service.gateway.webhooks.calls import check_url
from inference_service.jobs.gateway import uploads, webhooks
from inference_service.jobs.gateway.limits import count_one_at_a_time, queued_jobs
from inference_service.jobs.gateway.uploads import Upload
from inference_service.jobs.job_store import Job
from inference_service.jobs.request_scope import confine

# Boundaries and headers of the parts, beside the files.
_OVERHEAD_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Submitted:
    """A job that was submitted.

    Attributes:
        job: Its row.
        is_new: False if the same job was submitted before.
    """

    job: Job
    is_new: bool


@dataclass(frozen=True)
class _Sender:
    """The sender of one request, and what its headers say about the job."""

    caller: Caller
    idempotency_key: str | None
    trace_headers: Mapping[str, str]
    deployment_id: UUID

    @classmethod
    def of(cls, gateway: Gateway, caller: Caller, request: Request) -> "_Sender":
        return cls(caller, request.headers.get("Idempotency-Key"), request.headers, gateway.deployment_id)

    def job_id(self, stated: object) -> tuple[UUID, bool]:
        """Returns the id of the job, which is the stated one if there is one, and whether it may exist already.

        Raises:
            BadRequest: The stated id is no UUID.
        """
        if stated is not None:
            try:
                return UUID(str(stated)), True
            except ValueError:
                raise BadRequest("job_id: expected a UUID") from None
        if self.idempotency_key is not None:
            # No caller knows the deployment's id, and so none the ids that the keys of another lead to.
            return uuid5(self.deployment_id, f"{self.caller.name}\n{self.idempotency_key}"), True
        return uuid4(), False


async def submit_json(gateway: Gateway, caller: Caller, request: Request) -> Submitted:
    """Submits the job that the body of a request describes.

    Raises:
        BadRequest: The body does not follow the contract.
        Refusal: It is too long, its id belongs to another job, or too many jobs wait.
    """
    body = b"".join([chunk async for chunk in read_body(request, max_bytes=MAX_MESSAGE_BYTES)])
    submission = json_object(body, "the body")
    if not {"request"} <= submission.keys() <= {"request", "job_id", "webhook"}:
        raise BadRequest("the body: expected the field request, and no others than job_id and webhook beside it")
    parsed = parse_request(submission["request"])
    confine(parsed, gateway.settings)
    sender = _Sender.of(gateway, caller, request)
    webhook = _webhook(gateway, submission.get("webhook"))
    job_id, may_exist = sender.job_id(submission.get("job_id"))

    def submit() -> Submitted:
        found = gateway.client.status(job_id) if may_exist else None
        if found is not None:
            _require_same(caller, found, parsed)
            return Submitted(found, is_new=False)
        return _submit(gateway, sender, job_id, parsed, webhook)

    return await run_sync(submit, limiter=gateway.submits)


async def submit_form(gateway: Gateway, caller: Caller, request: Request) -> Submitted:
    """Submits a job whose files the form of a request contains, once they are stored.

    Raises:
        BadRequest: The form does not follow the contract.
        InputTooLarge: The files are too many or too large.
        Refusal: The form's id belongs to another job, or too much waits or was uploaded.
        StorageUnavailable: The object storage does not answer or refuses.
    """
    form = _Form(gateway, _Sender.of(gateway, caller, request))
    try:
        max_bytes = gateway.settings.max_input_bytes + _OVERHEAD_BYTES
        async for part in read_form(request, max_bytes=max_bytes):
            await form.take(part)
        return await run_sync(form.submit, limiter=gateway.submits)
    except BaseException:
        with CancelScope(shield=True):
            await run_sync(form.abandon)
        raise


class _Form:
    """A form as it arrives: fields, then files, which are stored, or read past if the job exists already."""

    def __init__(self, gateway: Gateway, sender: _Sender) -> None:
        self._gateway = gateway
        self._sender = sender
        self._request: FormRequest | None = None
        self._stated_id: str | None = None
        self._webhook: str | None = None
        self._job_id: UUID | None = None
        self._existing: Job | None = None
        self._uploader: Uploader | None = None

    async def take(self, part: FormPart) -> None:
        """Reads a part of the form to its end."""
        if part.name == FILE_FIELD or part.name.startswith(CHANNEL_FIELD):
            if self._job_id is None:
                await run_sync(self._begin_files)
            if self._uploader is not None:
                await self._uploader.take(part)
            else:
                async for _ in part.pieces():
                    pass
            return
        content = await part.content(max_bytes=MAX_MESSAGE_BYTES)
        if self._job_id is not None:
            raise BadRequest("the parts request, job_id and webhook must precede the files")
        if part.name == "request":
            self._request = FormRequest(content)
            confine(self._request.unplaced, self._gateway.settings)
        elif part.name == "job_id":
            self._stated_id = content.decode(errors="replace")
        elif part.name == "webhook":
            self._webhook = _webhook(self._gateway, content.decode(errors="replace"))
        else:
            raise BadRequest(
                "the form has an unknown part; expected request, job_id, webhook, file, or channel. and a name"
            )

    def _begin_files(self) -> None:
        if self._request is None:
            raise BadRequest("the part request must precede the files")
        job_id, may_exist = self._sender.job_id(self._stated_id)
        self._existing = self._gateway.client.status(job_id) if may_exist else None
        if self._existing is None:
            self._uploader = self._new_uploader(job_id)
        self._job_id = job_id

    def _new_uploader(self, job_id: UUID) -> Uploader:
        gateway = self._gateway
        caller = self._sender.caller
        with gateway.database.connection() as connection:
            _require_room(connection, caller, more=1)
        bucket = gateway.settings.minio_input_bucket
        upload = uploads.begin(gateway.database, caller.name, bucket=bucket, job_id=job_id)
        return Uploader(
            gateway.storage,
            upload,
            max_bytes=gateway.settings.max_input_bytes,
            slots=gateway.uploads.of(caller.name),
            record=None if caller.limits.bytes_per_day is None else partial(self._record_size, upload),
        )

    def _record_size(self, upload: Upload, size_bytes: int) -> None:
        of_day = self._sender.caller.limits.bytes_per_day
        name = self._sender.caller.name
        if of_day is not None and not uploads.record_within(
            self._gateway.database, upload, size_bytes, name=name, of_day=of_day
        ):
            raise Refusal(HttpCode.TOO_MANY_REQUESTS, f"this token may upload {of_day} bytes a day")

    def submit(self) -> Submitted:
        """Submits the job."""
        if self._request is None or self._job_id is None:
            raise BadRequest("the form has no file: expected parts named `file`, or `channel.` and a channel's name")
        if self._existing is not None:
            _require_same(self._sender.caller, self._existing, self._request.unplaced, besides="input")
            return Submitted(self._existing, is_new=False)
        uploader = self._uploader
        if uploader is None:
            raise InternalError("a form without files came to its end")
        parsed = self._request.placed(uploader.places)
        uploads.record_size(self._gateway.database, uploader.upload, uploader.size_bytes)
        submitted = _submit(self._gateway, self._sender, self._job_id, parsed, self._webhook, besides="input")
        if not submitted.is_new:
            self.abandon()
        return submitted

    def abandon(self) -> None:
        """Leaves what was stored to the sweep of uploads."""
        if self._uploader is not None:
            uploads.abandon(self._gateway.database, self._uploader.upload, self._uploader.size_bytes)


def _require_same(caller: Caller, job: Job, request: SegmentRequest, *, besides: str = "") -> None:
    """Checks that a job which exists already is the one that is submitted.

    Raises:
        Refusal: It is another one, or the caller may not see it.
    """
    recorded = dict(job.request or {})
    wanted = request.model_dump(mode="json")
    for each in (recorded, wanted):
        each.pop(besides, None)
    if not caller.may_see(job) or recorded != wanted:
        raise Refusal(HttpCode.CONFLICT, "there is another job with this id: submit with a new one")


def _require_room(connection: Connection, caller: Caller, *, more: int) -> None:
    """Checks that the caller may have some more jobs waiting.

    Raises:
        Refusal: It may not.
    """
    limit = caller.limits.queued_jobs
    if limit is not None and queued_jobs(connection, caller.name) + more > limit:
        raise Refusal(
            HttpCode.TOO_MANY_REQUESTS, f"{limit} jobs of this token wait, which is its limit", {"Retry-After": "30"}
        )


def _webhook(gateway: Gateway, url: object) -> str | None:
    """Checks the URL of a webhook.

    Raises:
        BadRequest: It is not permitted.
    """
    if url is not None:
        check_url(str(url), gateway.settings.webhook_prefixes)
        return str(url)
    return None


def _submit(
    gateway: Gateway,
    sender: _Sender,
    job_id: UUID,
    request: SegmentRequest,
    webhook: str | None,
    *,
    besides: str = "",
) -> Submitted:
    is_new = False

    def accept(connection: Connection) -> None:
        """Checks and records what belongs to a new job."""
        nonlocal is_new
        if sender.caller.limits.queued_jobs is not None:
            count_one_at_a_time(connection)
            _require_room(connection, sender.caller, more=0)
        if webhook is not None:
            webhooks.record(connection, job_id, webhook)
        is_new = True

    gateway.client.submit(
        request,
        job_id=job_id,
        submitted_by=sender.caller.name,
        trace_headers=sender.trace_headers,
        also=accept,
    )
    job = gateway.client.status(job_id)
    if job is None:
        raise InternalError("the job's row was removed as soon as it was written")
    # Of two requests with one id at a time, the later one finds the job of the other.
    _require_same(sender.caller, job, request, besides=besides)
    return Submitted(job, is_new=is_new)
