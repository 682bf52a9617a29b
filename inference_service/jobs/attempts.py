"""One attempt at a job: claimed under a lease, kept alive, ended.

Every outcome is written on condition that the lease's token still stands: of two attempts only one can end a job.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import ColumnElement, Connection, and_, func, or_, select, text, update
from sqlalchemy.exc import IntegrityError

from inference_service.core.errors import JobCancelled, ServiceError, WorkerLost
from inference_service.jobs.database import Database, mapped_errors
from inference_service.jobs.job_store import end_job, final_state, record_transition
from inference_service.jobs.schema import FINAL_STATES, JobRow, JobState

EXPIRED = and_(JobRow.state == JobState.RUNNING, JobRow.lease_expires_at < func.now())
_DUE = and_(JobRow.state == JobState.QUEUED, or_(JobRow.not_before.is_(None), JobRow.not_before <= func.now()))
_ENDED_WITHOUT_RESULTS = JobRow.state.in_([JobState.FAILED, JobState.CANCELLED])
# One removal of an object may take the storage's silence limit; nobody but who clears the place waits for the row.
_CLEARING_LIMIT_S = 120
_ATTEMPTS_USED_UP = "the worker was lost on every attempt"
_CANCELLED_LATE = "the job was cancelled while it ran"


@dataclass(frozen=True)
class Claim:
    """The right to run one attempt of a job.

    Attributes:
        job_id: The job.
        attempt: 1 for the first.
        attempts_left: Attempts that may follow this one.
        token: The lease's; an outcome is written only while it is the row's.
        worker: Who runs it.
        request: As the row has it.
        result_location: What an earlier attempt reserved for the results.
        on_cpu: Whether a GPU failed on an earlier attempt, or had too little memory for it.
    """

    job_id: UUID
    attempt: int
    attempts_left: int
    token: UUID
    worker: str
    request: dict[str, Any] | None
    result_location: str | None
    on_cpu: bool


@dataclass(frozen=True)
class Renewal:
    """What a renewal of a lease found.

    Attributes:
        held: Whether the lease is still this attempt's; if not, nothing may be written any more.
        cancel_requested: Whether the owner wants the job ended.
    """

    held: bool
    cancel_requested: bool


@dataclass(frozen=True)
class Success:
    """What a finished job leaves in its row.

    Attributes:
        result: Bucket and keys of what is stored.
        input_sha256: Of the volume as it was stored.
        model_name: The model that ran.
        model_version: Its version.
        model_sha256: Of its network.
        providers: Execution providers really used.
        timings_s: Seconds of each stage.
        detail: For the transition: what else there is to say.
    """

    result: dict[str, str]
    input_sha256: str
    model_name: str
    model_version: str
    model_sha256: str
    providers: list[str]
    timings_s: dict[str, float] = field(default_factory=dict)
    detail: str | None = None


def claim(database: Database, job_id: UUID, *, worker: str, lease_s: float, max_attempts: int) -> Claim | None:
    """Takes a job to run it: a queued one that is due, or a running one whose lease has expired.

    A job whose lease expired on its last attempt is ended as worker_lost, one that was to be cancelled as cancelled.

    Returns:
        None where the job is finished, not due or alive elsewhere: there is nothing to do.
    """
    with mapped_errors(), database.begin() as connection:
        row = connection.execute(
            select(
                JobRow.state, JobRow.attempt, JobRow.excused, JobRow.request, JobRow.result_location,
                JobRow.on_cpu, JobRow.cancel_requested,
            )
            .where(JobRow.id == job_id, or_(_DUE, EXPIRED))
            .with_for_update()
        ).one_or_none()  # fmt: skip
        if row is None:
            return None
        left = max_attempts - (row.attempt - row.excused)
        if row.cancel_requested or left <= 0:
            # Whoever ends a job counts it.
            connection.execute(
                update(JobRow)
                .where(JobRow.id == job_id)
                .values(lease_owner=worker, started_at=func.coalesce(JobRow.started_at, func.now()))
            )
            end_job(connection, job_id, row.state, row.attempt, final_error(cancelled=row.cancel_requested))
            return None
        token, attempt = uuid4(), row.attempt + 1
        connection.execute(
            update(JobRow)
            .where(JobRow.id == job_id)
            .values(
                state=JobState.RUNNING, attempt=attempt, lease_owner=worker, lease_pid=os.getpid(), lease_token=token,
                lease_expires_at=func.now() + timedelta(seconds=lease_s), not_before=None, stage=None, progress=0.0,
                started_at=func.coalesce(JobRow.started_at, func.now()),
            )
        )  # fmt: skip
        if row.state == JobState.RUNNING:
            record_transition(
                connection, job_id, row.state, JobState.QUEUED, attempt=row.attempt, detail="lease_expired"
            )  # fmt: skip
        record_transition(connection, job_id, JobState.QUEUED, JobState.RUNNING, attempt=attempt, worker=worker)
    return Claim(job_id, attempt, left - 1, token, worker, row.request, row.output_place, row.on_cpu)


def reserve_location(database: Database, claim: Claim, location: str) -> bool:
    """Reserves where an attempt's results go; of a job that fails or is cancelled, `releasing_location` ends it.

    Returns:
        False where another job has it, or the lease no longer stands.
    """
    statement = update(JobRow).where(*_held(claim)).values(result_location=location).returning(JobRow.id)
    try:
        with mapped_errors(), database.begin() as connection:
            return connection.execute(statement).first() is not None
    except IntegrityError:
        return False


def reserve_for_cleanup(database: Database, job_id: UUID, location: str) -> None:
    """Reserves a place anew for a job that ended without results, where an attempt that lost it stored something late.

    Where another job has the place by now, nothing is done: its own results lie there, or are about to.
    """
    statement = update(JobRow).where(JobRow.id == job_id, _ENDED_WITHOUT_RESULTS).values(result_location=location)
    with suppress(IntegrityError), mapped_errors(), database.begin() as connection:
        connection.execute(statement)


def find_uncleared_holder(database: Database, location: str) -> UUID | None:
    """The job that ended without results and has a place reserved until it is cleared."""
    statement = select(JobRow.id).where(_ENDED_WITHOUT_RESULTS, JobRow.result_location == location)
    with mapped_errors(), database.connect() as connection:
        return connection.execute(statement).scalar_one_or_none()


@contextmanager
def releasing_location(
    database: Database, job_id: UUID, location: str, *, wait: bool = False
) -> Iterator[Callable[[], bool]]:
    """Ends a reservation when the block ends; nobody else does, or gets the place, until then.

    Args:
        database: Where.
        job_id: A job that ended without results.
        location: What it may have reserved.
        wait: Whether to wait for another one that is clearing it.

    Yields:
        Tells whether the place is still reserved for that job, so that something may be removed from it now.
    """
    reserved = select(JobRow.id).where(JobRow.id == job_id, _ENDED_WITHOUT_RESULTS, JobRow.result_location == location)
    reserved = reserved.with_for_update(skip_locked=not wait)
    with mapped_errors(), database.begin() as connection:
        connection.execute(text(f"SET LOCAL idle_in_transaction_session_timeout = '{_CLEARING_LIMIT_S}s'"))

        def ours() -> bool:
            return connection.execute(reserved).first() is not None

        yield ours
        if ours():
            connection.execute(update(JobRow).where(JobRow.id == job_id).values(result_location=None))


def renew(database: Database, claim: Claim, *, lease_s: float, stage: str | None, progress: float) -> Renewal:
    """Extends a lease and writes how far the job is."""
    statement = (
        update(JobRow)
        .where(*_held(claim))
        .values(lease_expires_at=func.now() + timedelta(seconds=lease_s), stage=stage, progress=progress)
        .returning(JobRow.cancel_requested)
    )
    with mapped_errors(), database.begin() as connection:
        row = connection.execute(statement).one_or_none()
    return Renewal(held=row is not None, cancel_requested=row is not None and row.cancel_requested)


def succeed(database: Database, claim: Claim, success: Success) -> bool:
    """Ends a job well; the last write of an attempt. Returns whether the lease still stood."""
    values = {column.name: getattr(success, column.name) for column in fields(Success) if column.name != "detail"}
    with mapped_errors(), database.begin() as connection:
        return _leave(
            connection, claim, JobState.SUCCEEDED,
            values={**values, "progress": 1.0, "stage": None}, detail=success.detail,
        )  # fmt: skip


def fail(
    database: Database, claim: Claim, error: ServiceError, *, timings_s: Mapping[str, float] | None = None
) -> bool:
    """Ends a job with an error's code and message, cancelled ones as such.

    Args:
        database: Where.
        claim: The attempt that failed.
        error: Why.
        timings_s: Seconds of each stage that it came to.

    Returns:
        Whether the lease still stood.
    """
    values = {"error_code": error.code, "error_message": error.message, "timings_s": timings_s}
    with mapped_errors(), database.begin() as connection:
        return _leave(connection, claim, final_state(error), values=values, detail=error.code)


def schedule_retry(database: Database, claim: Claim, *, delay_s: float, detail: str, on_cpu: bool = False) -> bool:
    """Queues a job again for another attempt, which the sweeper sends when it is due; ends one that is to be cancelled.

    Args:
        database: Where.
        claim: The attempt that is given up.
        delay_s: Until the next one.
        detail: Why, for the transition.
        on_cpu: Whether the next ones are to leave GPUs alone.

    Returns:
        Whether the lease still stood.
    """
    values = {
        "not_before": func.now() + timedelta(seconds=delay_s),
        "dispatched_at": None,
        "on_cpu": claim.on_cpu or on_cpu,
    }
    with mapped_errors(), database.begin() as connection:
        left = _leave(connection, claim, JobState.QUEUED, values=values, detail=detail)
        unwanted = select(JobRow.id).where(JobRow.id == claim.job_id, JobRow.cancel_requested)
        if left and connection.execute(unwanted).first() is not None:
            end_job(connection, claim.job_id, JobState.QUEUED, claim.attempt, final_error(cancelled=True))
        return left


def final_error(*, cancelled: bool) -> ServiceError:
    """What ends a job whose attempt ended without a word, and that gets no further one."""
    return JobCancelled(_CANCELLED_LATE) if cancelled else WorkerLost(_ATTEMPTS_USED_UP)


def _held(claim: Claim) -> tuple[ColumnElement[bool], ...]:
    """The fence: the row is still this attempt's."""
    return (JobRow.id == claim.job_id, JobRow.state == JobState.RUNNING, JobRow.lease_token == claim.token)


def _leave(
    connection: Connection, claim: Claim, state: JobState, *, values: dict[str, Any], detail: str | None = None
) -> bool:
    """Ends an attempt, if its lease still stands."""
    if state in FINAL_STATES:
        values = {**values, "finished_at": func.now()}
    statement = (
        update(JobRow)
        .where(*_held(claim))
        .values(state=state, lease_token=None, lease_expires_at=None, **values)
        .returning(JobRow.id)
    )
    left = connection.execute(statement).first() is not None
    if left:
        record_transition(
            connection, claim.job_id, JobState.RUNNING, state,
            attempt=claim.attempt, worker=claim.worker, detail=detail,
        )  # fmt: skip
    return left
