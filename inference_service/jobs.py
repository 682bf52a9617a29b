"""The life of a job in Postgres: created, claimed under a lease, followed, ended.

Every outcome is written on condition that the lease's token still stands, so that of two attempts only one can end a
job, and every change of state leaves a transition in the same transaction. Times are the database's, so that the clocks
of workers do not matter.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import ColumnElement, Connection, func, insert, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.exc import IntegrityError

from inference_service.errors import ErrorCode, JobCancelled, ServiceError, WorkerLost
from inference_service.request import SegmentRequest
from inference_service.tables import FINAL_STATES, Database, JobRow, JobState, TransitionRow, mapped_errors


@dataclass(frozen=True)
class Job:
    """A job as its row stands now."""

    id: UUID
    state: JobState
    request: dict[str, Any] | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    attempt: int
    cancel_requested: bool
    lease_owner: str | None
    stage: str | None
    progress: float
    model_name: str | None
    model_version: str | None
    model_sha256: str | None
    providers: list[str] | None
    timings_s: dict[str, float] | None
    result: dict[str, str] | None
    error_code: str | None
    error_message: str | None

    @property
    def finished(self) -> bool:
        """Whether the state is final."""
        return self.state in FINAL_STATES


@dataclass(frozen=True)
class Transition:
    """One change of a job's state."""

    at: datetime
    from_state: str | None
    to_state: str
    attempt: int
    worker: str | None
    detail: str | None


@dataclass(frozen=True)
class Claim:
    """The right to run one attempt of a job.

    Attributes:
        job_id: The job.
        attempt: 1 for the first.
        token: The lease's; an outcome is written only while it is the row's.
        worker: Who runs it.
        request: As the row has it.
        output_place: What an earlier attempt reserved for the results.
    """

    job_id: UUID
    attempt: int
    token: UUID
    worker: str
    request: dict[str, Any] | None
    output_place: str | None


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
        model_name: The model that ran.
        model_version: Its version.
        model_sha256: Of its network.
        providers: Execution providers really used.
        timings_s: Seconds of each stage.
    """

    result: dict[str, str]
    model_name: str
    model_version: str
    model_sha256: str
    providers: list[str]
    timings_s: dict[str, float] = field(default_factory=dict)


_ATTEMPTS_USED_UP = "the worker was lost on every attempt"
_CANCELLED_EARLY = "the job was cancelled before it started"

_EXPIRED = JobRow.lease_expires_at < func.now()
_JOB_COLUMNS = [getattr(JobRow, column.name) for column in fields(Job)]
_TRANSITION_COLUMNS = [getattr(TransitionRow, column.name) for column in fields(Transition)]


def create(database: Database, job_id: UUID, request: SegmentRequest | None) -> bool:
    """Writes a queued job, unless there is one of that id already.

    Args:
        database: The database.
        job_id: Chosen by the upstream.
        request: None where the message broke the contract, so that the refusal has a row to stand in.

    Returns:
        Whether the row is new.
    """
    values = {"id": job_id, "state": JobState.QUEUED, "request": request and request.model_dump(mode="json")}
    with mapped_errors(), database.begin() as connection:
        statement = upsert(JobRow).values(values).on_conflict_do_nothing().returning(JobRow.id)
        created = connection.execute(statement).first() is not None
        if created:
            _record(connection, job_id, None, JobState.QUEUED, attempt=0)
    return created


def claim(database: Database, job_id: UUID, *, worker: str, lease_s: float, max_attempts: int) -> Claim | None:
    """Takes a job to run it: a queued one, or a running one whose lease has expired.

    A job whose lease expired on its last attempt is ended as worker_lost.

    Returns:
        None where the job is finished or alive elsewhere: there is nothing to do.
    """
    with mapped_errors(), database.begin() as connection:
        row = connection.execute(
            select(
                JobRow.state,
                JobRow.attempt,
                JobRow.request,
                JobRow.output_place,
                _EXPIRED.label("expired"),
            )
            .where(JobRow.id == job_id)
            .with_for_update()
        ).one_or_none()
        if row is None or not (row.state == JobState.QUEUED or (row.state == JobState.RUNNING and row.expired)):
            return None
        if row.attempt >= max_attempts:
            _end(connection, job_id, row.state, row.attempt, JobState.FAILED, WorkerLost(_ATTEMPTS_USED_UP))
            return None
        token, attempt = uuid4(), row.attempt + 1
        connection.execute(
            update(JobRow)
            .where(JobRow.id == job_id)
            .values(
                state=JobState.RUNNING, attempt=attempt, lease_owner=worker, lease_token=token,
                lease_expires_at=func.now() + timedelta(seconds=lease_s), not_before=None, stage=None, progress=0.0,
                started_at=func.coalesce(JobRow.started_at, func.now()),
            )
        )  # fmt: skip
        _record(connection, job_id, row.state, JobState.RUNNING, attempt=attempt, worker=worker)
    return Claim(job_id, attempt, token, worker, row.request, row.output_place)


def reserve_output(database: Database, claim: Claim, place: str) -> bool:
    """Reserves where an attempt's results go; the reservation ends when the job fails or is cancelled.

    Returns:
        False where another job has it, or the lease no longer stands.
    """
    statement = update(JobRow).where(*_held(claim)).values(output_place=place).returning(JobRow.id)
    try:
        with mapped_errors(), database.begin() as connection:
            return connection.execute(statement).first() is not None
    except IntegrityError:
        return False


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
    values = {column.name: getattr(success, column.name) for column in fields(Success)}
    with mapped_errors(), database.begin() as connection:
        return _leave(connection, claim, JobState.SUCCEEDED, values={**values, "progress": 1.0, "stage": None})


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
    state = JobState.CANCELLED if error.code == ErrorCode.CANCELLED else JobState.FAILED
    values = {"error_code": error.code, "error_message": error.message, "timings_s": timings_s}
    with mapped_errors(), database.begin() as connection:
        return _leave(connection, claim, state, values=values, detail=error.code)


def give_back(database: Database, claim: Claim, *, delay_s: float, detail: str) -> bool:
    """Queues a job again for another attempt. Returns whether the lease still stood."""
    values = {"not_before": func.now() + timedelta(seconds=delay_s)}
    with mapped_errors(), database.begin() as connection:
        return _leave(connection, claim, JobState.QUEUED, values=values, detail=detail)


def cancel(database: Database, job_id: UUID) -> Job | None:
    """Cancels a queued job, asks the worker of a running one to stop, and leaves a finished one alone.

    Returns:
        The job afterwards; None where there is none.
    """
    with mapped_errors(), database.begin() as connection:
        row = connection.execute(
            select(JobRow.state, JobRow.attempt).where(JobRow.id == job_id).with_for_update()
        ).one_or_none()
        if row is not None and row.state == JobState.QUEUED:
            _end(connection, job_id, row.state, row.attempt, JobState.CANCELLED, JobCancelled(_CANCELLED_EARLY))
        elif row is not None and row.state == JobState.RUNNING:
            connection.execute(update(JobRow).where(JobRow.id == job_id).values(cancel_requested=True))
    return get(database, job_id)


def get(database: Database, job_id: UUID) -> Job | None:
    """The job as its row stands now; None where there is none."""
    with mapped_errors(), database.connect() as connection:
        row = connection.execute(select(*_JOB_COLUMNS).where(JobRow.id == job_id)).one_or_none()
    return _job(row._asdict()) if row else None


def latest(database: Database, *, state: JobState | None = None, limit: int = 50) -> list[Job]:
    """The jobs created last, newest first."""
    statement = select(*_JOB_COLUMNS).order_by(JobRow.created_at.desc(), JobRow.id).limit(limit)
    if state is not None:
        statement = statement.where(JobRow.state == state)
    with mapped_errors(), database.connect() as connection:
        return [_job(row._asdict()) for row in connection.execute(statement)]


def count(database: Database) -> int:
    """How many jobs there are."""
    with mapped_errors(), database.connect() as connection:
        return connection.execute(select(func.count()).select_from(JobRow)).scalar_one()


def transitions(database: Database, job_id: UUID) -> Sequence[Transition]:
    """All changes of a job's state, oldest first."""
    statement = select(*_TRANSITION_COLUMNS).where(TransitionRow.job_id == job_id).order_by(TransitionRow.id)
    with mapped_errors(), database.connect() as connection:
        return [Transition(**row._asdict()) for row in connection.execute(statement)]


def _job(values: dict[str, Any]) -> Job:
    return Job(**{**values, "state": JobState(values["state"])})


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
        _record(
            connection, claim.job_id, JobState.RUNNING, state,
            attempt=claim.attempt, worker=claim.worker, detail=detail,
        )  # fmt: skip
    return left


def _end(
    connection: Connection, job_id: UUID, from_state: str, attempt: int, state: JobState, error: ServiceError
) -> None:
    """Ends a job that no attempt holds; the caller has its row locked."""
    connection.execute(
        update(JobRow)
        .where(JobRow.id == job_id)
        .values(
            state=state, finished_at=func.now(), error_code=error.code, error_message=error.message,
            lease_token=None, lease_expires_at=None,
        )
    )  # fmt: skip
    _record(connection, job_id, from_state, state, attempt=attempt, detail=error.code)


def _record(
    connection: Connection,
    job_id: UUID,
    from_state: str | None,
    to_state: JobState,
    *,
    attempt: int,
    worker: str | None = None,
    detail: str | None = None,
) -> None:
    connection.execute(
        insert(TransitionRow).values(
            job_id=job_id, from_state=from_state, to_state=to_state, attempt=attempt, worker=worker, detail=detail
        )
    )
