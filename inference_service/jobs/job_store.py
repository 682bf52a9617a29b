"""Jobs as their owners see them: created, sent to their queue, looked at, cancelled.

What an attempt does with a job is in `attempts`, what becomes of jobs that nobody holds in `sweep`. Every change of
state leaves a transition in the same transaction. Times are the database's: the clocks of machines do not matter.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, func, insert, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from inference_service.contract.task_message import SegmentRequest
from inference_service.core.errors import ErrorCode, JobCancelled, ServiceError
from inference_service.jobs.database import Database, mapped_errors
from inference_service.jobs.schema import FINAL_STATES, JobRow, JobState, TransitionRow


@dataclass(frozen=True)
class Job:
    """A job as its row stands now."""

    id: UUID
    state: JobState
    request: dict[str, Any] | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    queue: str | None
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
class UnsentJob:
    """A queued job that has no message.

    Attributes:
        id: The job.
        request: As its row has it.
        attempt: How many there were.
        on_cpu: Whether a GPU failed on it, or had too little memory for it.
    """

    id: UUID
    request: dict[str, Any]
    attempt: int
    on_cpu: bool = False


_CANCELLED_EARLY = "the job was cancelled before it started"

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
            record_transition(connection, job_id, None, JobState.QUEUED, attempt=0)
    return created


def mark_dispatched(connection: Connection, job: UnsentJob, *, queue: str, redis_run_id: str) -> None:
    """Notes that a job's message was sent, unless a worker has taken the job since.

    Args:
        connection: In a transaction.
        job: As it was before.
        queue: Where to.
        redis_run_id: The run of Redis that took it.
    """
    connection.execute(
        update(JobRow)
        .where(JobRow.id == job.id, JobRow.state == JobState.QUEUED, JobRow.attempt == job.attempt)
        .values(queue=queue, dispatched_at=func.now(), dispatched_to=redis_run_id)
    )


def cancel(database: Database, job_id: UUID) -> Job | None:
    """Cancels a queued job, asks the worker of a running one to stop, and leaves a finished one alone.

    Returns:
        The job afterwards; None where there is none.
    """
    with mapped_errors(), database.begin() as connection:
        row = connection.execute(
            select(JobRow.state, JobRow.attempt)
            .where(JobRow.id == job_id, JobRow.state.not_in(FINAL_STATES))
            .with_for_update()
        ).one_or_none()
        if row is not None and row.state == JobState.QUEUED:
            end_job(connection, job_id, row.state, row.attempt, JobCancelled(_CANCELLED_EARLY))
        elif row is not None:
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


def find_same_work(
    database: Database, request: SegmentRequest, *, input_sha256: str, model: tuple[str, str, str]
) -> Job | None:
    """The job that succeeded last with the same input, model, formats and options other than `reuse`.

    Args:
        database: The database.
        request: What is asked for now.
        input_sha256: Of its input.
        model: Its name, version and sha256.

    Returns:
        None where there is none.
    """
    asked = request.model_dump(mode="json")
    asked["options"].pop("reuse")
    statement = (
        select(*_JOB_COLUMNS)
        .where(
            JobRow.state == JobState.SUCCEEDED,
            JobRow.input_sha256 == input_sha256,
            JobRow.model_name == model[0],
            JobRow.model_version == model[1],
            JobRow.model_sha256 == model[2],
            JobRow.request["options"].op("-")("reuse") == asked["options"],
            JobRow.request["input"]["series"].astext.is_not_distinct_from(request.input.series),
            JobRow.request["output"]["formats"] == asked["output"]["formats"],
        )
        .order_by(JobRow.finished_at.desc())
        .limit(1)
    )
    with mapped_errors(), database.connect() as connection:
        row = connection.execute(statement).one_or_none()
    return _job(row._asdict()) if row else None


def end_job(connection: Connection, job_id: UUID, from_state: str, attempt: int, error: ServiceError) -> None:
    """Ends a job that no attempt holds any more; the caller has its row locked."""
    state = final_state(error)
    connection.execute(
        update(JobRow)
        .where(JobRow.id == job_id)
        .values(
            state=state, finished_at=func.now(), error_code=error.code, error_message=error.message,
            lease_token=None, lease_expires_at=None,
        )
    )  # fmt: skip
    record_transition(connection, job_id, from_state, state, attempt=attempt, detail=error.code)


def final_state(error: ServiceError) -> JobState:
    """How a job ends that an error ends."""
    return JobState.CANCELLED if error.code == ErrorCode.CANCELLED else JobState.FAILED


def record_transition(
    connection: Connection,
    job_id: UUID,
    from_state: str | None,
    to_state: JobState,
    *,
    attempt: int,
    worker: str | None = None,
    detail: str | None = None,
) -> None:
    """Notes a change of a job's state, in the transaction that makes it."""
    connection.execute(
        insert(TransitionRow).values(
            job_id=job_id, from_state=from_state, to_state=to_state, attempt=attempt, worker=worker, detail=detail
        )
    )


def _job(values: dict[str, Any]) -> Job:
    return Job(**{**values, "state": JobState(values["state"])})
