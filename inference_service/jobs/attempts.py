"""One attempt at a job, as its worker sees it: claimed under a lease, renewed, ended.

Every write is fenced: it takes effect only while the row has the attempt's lease token. So of two attempts only one can
end a job.
"""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import ColumnElement, Connection, Row, and_, cast, func, or_, select, update
from sqlalchemy.dialects.postgresql import JSONB

from inference_service.core.errors import JobCancelled, ServiceError, WorkerLost
from inference_service.core.files import Checksum
from inference_service.core.tracing import TraceContext
from inference_service.jobs.database import Database
from inference_service.jobs.queues.lists import OVERFLOW_QUEUE, queue_of
from inference_service.jobs.schema import JobRow, JobState, WorkerRow
from inference_service.jobs.state_machine import StateChange, change_state, fence
from inference_service.jobs.storage import stored_attempts
from inference_service.jobs.workers.worker_registry import has_consumer

EXPIRED = and_(JobRow.state == JobState.RUNNING, JobRow.lease_expires_at < func.now())
"""The condition of a running job whose lease has expired."""
_DUE = and_(JobRow.state == JobState.QUEUED, or_(JobRow.not_before.is_(None), JobRow.not_before <= func.now()))


class LeftToAnother(Exception):
    """This worker lost the job or failed on it, and one that has not is alive: the message goes back to its queue."""


@dataclass(frozen=True)
class Claim:
    """The right to run one attempt of a job.

    Attributes:
        job_id: The job.
        attempt: Number of the attempt, from 1.
        attempts_left: Attempts that may follow this one.
        token: The lease token.
        worker: Name of the worker.
        request: The request in the row; None where the message broke the contract.
        on_cpu: Whether a GPU failed on an earlier attempt, or had too little memory for it.
        avoided_workers: Workers that failed on the job by a fault that may be their own.
        trace: The trace context in which the job was submitted.
    """

    job_id: UUID
    attempt: int
    attempts_left: int
    token: UUID
    worker: str
    request: dict[str, Any] | None
    on_cpu: bool
    avoided_workers: frozenset[str] = frozenset()
    trace: TraceContext | None = None

    @property
    def trace_id(self) -> str | None:
        """The job's trace."""
        return None if self.trace is None else self.trace.trace_id


@dataclass(frozen=True)
class Renewal:
    """The answer to a renewal of a lease.

    Attributes:
        held: Whether the attempt still holds the lease. If not, it must write nothing.
        cancel_requested: Whether the job's owner asked to cancel it.
    """

    held: bool
    cancel_requested: bool


@dataclass(frozen=True)
class Success:
    """The columns that a succeeded attempt writes to its job's row, and the detail of its transition.

    Attributes:
        result: Bucket and keys of the stored objects.
        checksums: SHA-256 and size of each of these objects.
        input_sha256: Hash of the volume as it was stored.
        model_name: The model that ran.
        model_version: Version of the model.
        model_sha256: Hash of the model's network.
        manifest_sha256: Hash of the model's manifest.
        precision: Precision that the network ran in.
        providers: Execution providers that were used.
        warnings: Code and message of each warning of the report; None where an earlier job recorded none.
        timings_s: Seconds of each stage.
        detail: Detail of the transition.
    """

    result: dict[str, str]
    checksums: dict[str, Checksum]
    input_sha256: str
    model_name: str
    model_version: str
    model_sha256: str
    manifest_sha256: str
    precision: str
    providers: list[str]
    warnings: list[dict[str, str]] | None
    timings_s: dict[str, float] = field(default_factory=dict)
    detail: str | None = None


def claim(
    database: Database, job_id: UUID, *, worker: str, lease_s: float, max_attempts: int, alive_s: float = 30.0
) -> Claim | None:
    """Takes a job: a queued one that is due, or a running one whose lease has expired.

    A job without an attempt left ends as worker_lost, and one with a requested cancellation as cancelled.

    Args:
        database: The jobs' database.
        job_id: The job.
        worker: Name of this worker.
        lease_s: Seconds that the lease is valid.
        max_attempts: The limit of attempts that count.
        alive_s: Seconds without a heartbeat after which a worker counts as dead.

    Returns:
        None where there is nothing to do: the job is finished, not due, or runs elsewhere.

    Raises:
        LeftToAnother: The job avoids this worker.
    """
    with database.begin() as connection:
        row = _locked(connection, job_id)
        if row is None:
            return None
        orphaned = row.state == JobState.RUNNING
        avoided = frozenset([*(row.avoided_workers or ()), *([row.lease_owner] if orphaned else ())])
        # Until the service itself has sent the job, its queue is unknown; nearly all workers consume this one.
        queue = queue_of(row.queue or OVERFLOW_QUEUE)
        if worker in avoided and has_consumer(connection, queue, besides=avoided, within_s=alive_s):
            raise LeftToAnother
        attempts_left = max_attempts - (row.attempt - row.returned_attempts)
        started_at = func.coalesce(JobRow.started_at, func.now())
        if row.cancel_requested or attempts_left <= 0:
            error = final_error(cancelled=row.cancel_requested)
            change = StateChange.ended_by(error, job_id, JobState(row.state), attempt=row.attempt)
            # The metrics of the worker that owns the row count the job.
            change_state(connection, change, values={"lease_owner": worker, "started_at": started_at})
            return None
        if orphaned:
            expired = StateChange(job_id, JobState.RUNNING, JobState.QUEUED, row.attempt, detail="lease_expired")
            change_state(connection, expired, values={"avoided_workers": avoiding(row.lease_owner)})
        token = uuid4()
        values = {
            "attempt": row.attempt + 1,
            "lease_owner": worker,
            "lease_pid": os.getpid(),
            "lease_token": token,
            "lease_expires_at": func.now() + timedelta(seconds=lease_s),
            "not_before": None,
            "stage": None,
            "progress": 0.0,
            "started_at": started_at,
        }
        claimed = StateChange(job_id, JobState.QUEUED, JobState.RUNNING, row.attempt + 1, worker)
        change_state(connection, claimed, values=values)
    trace = TraceContext.from_headers(row._asdict())
    return Claim(job_id, row.attempt + 1, attempts_left - 1, token, worker, row.request, row.on_cpu, avoided, trace)


def _locked(connection: Connection, job_id: UUID) -> Row[Any] | None:
    """Locks the row of a job that may be claimed; None if there is none."""
    return connection.execute(
        select(
            JobRow.state,
            JobRow.attempt,
            JobRow.returned_attempts,
            JobRow.request,
            JobRow.on_cpu,
            JobRow.cancel_requested,
            JobRow.queue,
            JobRow.lease_owner,
            JobRow.avoided_workers,
            JobRow.traceparent,
            JobRow.tracestate,
        )
        .where(JobRow.id == job_id, or_(_DUE, EXPIRED))
        .with_for_update()
    ).one_or_none()


def renew(database: Database, claim: Claim, *, lease_s: float, stage: str | None, progress: float) -> Renewal:
    """Extends a lease, and records the job's stage and progress."""
    statement = (
        update(JobRow)
        .where(fence(claim.job_id, claim.token))
        .values(lease_expires_at=func.now() + timedelta(seconds=lease_s), stage=stage, progress=progress)
        .returning(JobRow.cancel_requested)
    )
    with database.begin() as connection:
        row = connection.execute(statement).one_or_none()
    return Renewal(held=row is not None, cancel_requested=row is not None and row.cancel_requested)


def extend(database: Database, claim: Claim, *, lease_s: float) -> None:
    """Makes a lease last for so many seconds from now, if it is still held."""
    with database.begin() as connection:
        connection.execute(
            update(JobRow)
            .where(fence(claim.job_id, claim.token))
            .values(lease_expires_at=func.now() + timedelta(seconds=lease_s))
        )


def succeed(database: Database, claim: Claim, success: Success) -> bool:
    """Ends a job as succeeded, so that its row names the attempt's objects. It is the last write of an attempt.

    Returns:
        Whether the attempt still held its lease; nothing is written otherwise.
    """
    values = {column.name: getattr(success, column.name) for column in fields(Success) if column.name != "detail"}
    values["checksums"] = {name: asdict(checksum) for name, checksum in success.checksums.items()}
    change = StateChange(
        claim.job_id, JobState.RUNNING, JobState.SUCCEEDED, claim.attempt, claim.worker, detail=success.detail
    )
    values |= {"progress": 1.0, "stage": None}
    with database.begin() as connection:
        succeeded = change_state(connection, change, values=values, lease_token=claim.token)
        if succeeded:
            stored_attempts.forget(connection, claim.token)
        return succeeded


def fail(
    database: Database, claim: Claim, error: ServiceError, *, timings_s: Mapping[str, float] | None = None
) -> bool:
    """Ends a job with an error: as cancelled where the error is JobCancelled, as failed otherwise.

    Args:
        database: The jobs' database.
        claim: The attempt that failed.
        error: The error whose code and message go to the row.
        timings_s: Seconds of each stage that the attempt reached.

    Returns:
        Whether the attempt still held its lease; nothing is written otherwise.
    """
    change = StateChange.ended_by(error, claim.job_id, JobState.RUNNING, attempt=claim.attempt, worker=claim.worker)
    with database.begin() as connection:
        return change_state(connection, change, values={"timings_s": timings_s}, lease_token=claim.token)


def schedule_retry(
    database: Database,
    claim: Claim,
    *,
    delay_s: float,
    detail: str,
    on_cpu: bool = False,
    counts: bool = True,
    elsewhere: bool = False,
) -> bool:
    """Queues a job for another attempt, which a sweep sends when it is due.

    If a cancellation was requested, the job ends as cancelled instead.

    Args:
        database: The jobs' database.
        claim: The attempt that failed.
        delay_s: Seconds until the next attempt is due.
        detail: The reason, for the transition.
        on_cpu: Whether further attempts must not use a GPU.
        counts: Whether the failed attempt counts.
        elsewhere: Whether the job avoids this worker from now on, as far as there are others.

    Returns:
        Whether the attempt still held its lease; nothing is written otherwise.
    """
    values: dict[str, object] = {
        "not_before": func.now() + timedelta(seconds=delay_s),
        "dispatched_at": None,
        "on_cpu": claim.on_cpu or on_cpu,
    }
    if not counts:
        values["returned_attempts"] = JobRow.returned_attempts + 1
    if elsewhere:
        values["avoided_workers"] = avoiding(claim.worker)
    change = StateChange(claim.job_id, JobState.RUNNING, JobState.QUEUED, claim.attempt, claim.worker, detail=detail)
    with database.begin() as connection:
        queued = change_state(connection, change, values=values, lease_token=claim.token)
        cancel_requested = select(JobRow.id).where(JobRow.id == claim.job_id, JobRow.cancel_requested)
        if queued and connection.execute(cancel_requested).first() is not None:
            error = final_error(cancelled=True)
            change_state(connection, StateChange.ended_by(error, claim.job_id, JobState.QUEUED, attempt=claim.attempt))
        return queued


def avoiding(worker: str) -> ColumnElement[Any]:
    """The workers that a job avoids, with one more, and without those that have stopped or were not seen for a day."""
    known = JobRow.avoided_workers.has_key(WorkerRow.name)
    others = select(func.coalesce(func.jsonb_agg(WorkerRow.name), cast([], JSONB))).where(
        known, WorkerRow.name != worker
    )
    return others.correlate(JobRow).scalar_subquery().op("||")(cast([worker], JSONB))


def final_error(*, cancelled: bool) -> ServiceError:
    """The error recorded when the last attempt ended without reporting an outcome."""
    if cancelled:
        return JobCancelled("the job was cancelled while it ran")
    return WorkerLost("the worker was lost on every attempt")
