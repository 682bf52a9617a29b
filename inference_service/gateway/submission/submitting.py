"""Submits jobs for callers: from JSON, or from a form whose files are stored while they arrive."""

from functools import partial
from uuid import UUID

from anyio import CancelScope
from anyio.to_thread import run_sync
from fastapi import Request

from inference_service.contract.task_message import MAX_MESSAGE_BYTES, parse_request
from inference_service.core.errors import BadRequest, InternalError
from inference_service.gateway.access import Caller
from inference_service.gateway.gateway import Gateway
from inference_service.gateway.problems import HttpCode, Refusal
from inference_service.gateway.submission.acceptance import (
    Sender,
    Submitted,
    accept_job,
    require_room,
    require_same,
)
from inference_service.gateway.submission.form import FormPart, read_body, read_form
from inference_service.gateway.submission.request_json import FormRequest, json_object
from inference_service.gateway.submission.uploading import CHANNEL_FIELD, FILE_FIELD, Uploader
from inference_service.gateway.webhooks.calls import check_url
from inference_service.jobs.gateway import uploads
from inference_service.jobs.gateway.uploads import Upload
from inference_service.jobs.job_store import Job
from inference_service.jobs.request_scope import confine

# Boundaries and headers of the parts, beside the files.
_OVERHEAD_BYTES = 64 * 2**20


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
    sender = Sender.of(gateway, caller, request)
    webhook = _webhook(gateway, submission.get("webhook"))
    job_id, may_exist = sender.job_id(submission.get("job_id"))

    def submit() -> Submitted:
        found = gateway.client.status(job_id) if may_exist else None
        if found is not None:
            require_same(caller, found, parsed)
            return Submitted(found, is_new=False)
        return accept_job(gateway, sender, job_id, parsed, webhook)

    return await run_sync(submit, limiter=gateway.submits)


async def submit_form(gateway: Gateway, caller: Caller, request: Request) -> Submitted:
    """Submits a job whose files the form of a request contains, once they are stored.

    Raises:
        BadRequest: The form does not follow the contract.
        InputTooLarge: The files are too many or too large.
        Refusal: The form's id belongs to another job, or too much waits or was uploaded.
        StorageUnavailable: The object storage does not answer or refuses.
    """
    form = _Form(gateway, Sender.of(gateway, caller, request))
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

    def __init__(self, gateway: Gateway, sender: Sender) -> None:
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
            require_room(connection, caller, more=1)
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
            require_same(self._sender.caller, self._existing, self._request.unplaced, besides="input")
            return Submitted(self._existing, is_new=False)
        uploader = self._uploader
        if uploader is None:
            raise InternalError("a form without files came to its end")
        parsed = self._request.placed(uploader.places)
        uploads.record_size(self._gateway.database, uploader.upload, uploader.size_bytes)
        submitted = accept_job(self._gateway, self._sender, self._job_id, parsed, self._webhook, besides="input")
        if not submitted.is_new:
            self.abandon()
        return submitted

    def abandon(self) -> None:
        """Leaves what was stored to the sweep of uploads."""
        if self._uploader is not None:
            uploads.abandon(self._gateway.database, self._uploader.upload, self._uploader.size_bytes)


def _webhook(gateway: Gateway, url: object) -> str | None:
    """Checks the URL of a webhook.

    Raises:
        BadRequest: It is not permitted.
    """
    if url is not None:
        check_url(str(url), gateway.settings.webhook_prefixes)
        return str(url)
    return None
