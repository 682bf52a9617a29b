"""Accepts a job for its sender: once for each id, and within the limits of the sender's name."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self
from uuid import UUID, uuid4, uuid5

from fastapi import Request
from sqlalchemy import Connection

from inference_service.contract.task_message import SegmentRequest
from inference_service.core.errors import BadRequest, InternalError
from inference_service.gateway.access import Caller
from inference_service.gateway.gateway import Gateway
from inference_service.gateway.problems import HttpCode, Refusal
from inference_service.jobs.gateway import webhooks
from inference_service.jobs.gateway.limits import count_one_at_a_time, queued_jobs
from inference_service.jobs.job_store import Job


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
class Sender:
    """The sender of one request.

    Attributes:
        caller: Its token.
        idempotency_key: The text by which a repeated request is the same job.
        trace_headers: Headers that may have a trace context.
        deployment_id: The deployment whose job it is.
    """

    caller: Caller
    idempotency_key: str | None
    trace_headers: Mapping[str, str]
    deployment_id: UUID

    @classmethod
    def of(cls, gateway: Gateway, caller: Caller, request: Request) -> Self:
        """The sender of a request."""
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


def require_same(caller: Caller, job: Job, request: SegmentRequest, *, besides: str = "") -> None:
    """Checks that a job which exists already is the one that is submitted, but for one field.

    Raises:
        Refusal: It is another one, or the caller may not see it.
    """
    recorded = dict(job.request or {})
    wanted = request.model_dump(mode="json")
    for each in (recorded, wanted):
        each.pop(besides, None)
    if not caller.may_see(job) or recorded != wanted:
        raise Refusal(HttpCode.CONFLICT, "there is another job with this id: submit with a new one")


def require_room(connection: Connection, caller: Caller, *, more: int) -> None:
    """Checks that the caller may have some more jobs waiting.

    Raises:
        Refusal: It may not.
    """
    limit = caller.limits.queued_jobs
    if limit is not None and queued_jobs(connection, caller.name) + more > limit:
        raise Refusal(
            HttpCode.TOO_MANY_REQUESTS, f"{limit} jobs of this token wait, which is its limit", {"Retry-After": "30"}
        )


def accept_job(
    gateway: Gateway,
    sender: Sender,
    job_id: UUID,
    request: SegmentRequest,
    webhook: str | None,
    *,
    besides: str = "",
) -> Submitted:
    """Submits a job, unless it was submitted before.

    Args:
        gateway: The gateway.
        sender: In whose name.
        job_id: Its id.
        request: Its request.
        webhook: URL to which its end is reported.
        besides: Field of the request in which a job with this id may differ.

    Raises:
        Refusal: The id belongs to another job, or too many jobs of the sender wait.
    """
    is_new = False

    def accept(connection: Connection) -> None:
        """Checks and records what belongs to a new job."""
        nonlocal is_new
        if sender.caller.limits.queued_jobs is not None:
            count_one_at_a_time(connection)
            require_room(connection, sender.caller, more=0)
        if webhook is not None:
            webhooks.record(connection, job_id, webhook)
        is_new = True

    gateway.client.submit(
        request,
        job_id=job_id,
        submitted_by=sender.caller.name,
        trace_headers=sender.trace_headers,
        in_transaction=accept,
    )
    job = gateway.client.status(job_id)
    if job is None:
        raise InternalError("the job's row was removed as soon as it was written")
    # Of two requests with one id at a time, the later one finds the job of the other.
    require_same(sender.caller, job, request, besides=besides)
    return Submitted(job, is_new=is_new)
