"""Jobs as their owners see them: created, sent to a queue, read, cancelled.

An attempt's writes are in `attempts`, the recovery of orphaned jobs is in `recovery`. All times are the database's, so
that the clocks of the machines do not matter.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, Text, column, func, literal, select, text, tuple_, update
from sqlalchemy.dialects.postgresql import JSONB, array

from inference_service.contract.task_message import SegmentRequest
from inference_service.core.errors import DatabaseUnavailable, JobCancelled
from inference_service.core.files import Checksum
from inference_service.core.remedies import remedy
from inference_service.core.tracing import TraceContext
from inference_service.jobs.database import Database, is_lock_conflict
from inference_service.jobs.schema import FINAL_STATES, JobRow, JobState, TransitionRow
from inference_service.jobs.state_machine import StateChange, change_state, create_queued

# Fields of the reference to a scan that say where it lies.
_PLACE = ("bucket", "key")
# Wait of a sweep for one row.
_LOCK_LIMIT_MS = 100


@dataclass(frozen=True)
class Job:
    """A job at the time its row was read."""

    id: UUID
    state: JobState
    request: dict[str, Any] | None
    submitted_by: str | None
    tenant: str | None
    traceparent: str | None
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
    manifest_sha256: str | None
    precision: str | None
    providers: list[str] | None
    timings_s: dict[str, float] | None
    result: dict[str, str] | None
    checksums: dict[str, Checksum] | None
    warnings: list[dict[str, str]] | None
    error_code: str | None
    error_message: str | None

    @property
    def finished(self) -> bool:
        """True if the state is final."""
        return self.state in FINAL_STATES

    @property
    def remedy(self) -> str | None:
        """The remedy for the error, in a sentence for the person who sent the scan; None without an error."""
        return remedy(self.error_code)


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
class JobFilter:
    """Which jobs to list; None is any.

    Attributes:
        states: Their states.
        model: The name of the model that their requests name.
        submitted_by: The name of the upstream.
        created_from: They were created at this time or later.
        created_before: They were created earlier.
    """

    states: Collection[JobState] | None = None
    model: str | None = None
    submitted_by: str | None = None
    created_from: datetime | None = None
    created_before: datetime | None = None

    def conditions(self) -> list[ColumnElement[bool]]:
        """The conditions on rows of jobs."""
        compared: tuple[tuple[object, Callable[[Any], ColumnElement[bool]]], ...] = (
            (self.states, JobRow.state.in_),
            (self.model, JobRow.request["model"].astext.__eq__),
            (self.submitted_by, JobRow.submitted_by.__eq__),
            (self.created_from, JobRow.created_at.__ge__),
            (self.created_before, JobRow.created_at.__lt__),
        )
        return [compare(value) for value, compare in compared if value is not None]


@dataclass(frozen=True)
class PagePosition:
    """The place of a job in the list of jobs."""

    created_at: datetime
    id: UUID


@dataclass(frozen=True)
class UnsentJob:
    """A queued job without a message in Redis.

    Attributes:
        id: The job.
        request: The request in the job's row.
        attempt: Number of the last attempt; 0 before the first.
        on_cpu: Whether a GPU failed on the job, or had too little memory for it.
        tenant: The tenant in whose name it was submitted.
    """

    id: UUID
    request: dict[str, Any]
    attempt: int
    on_cpu: bool = False
    tenant: str | None = None


_JOB_COLUMNS = [getattr(JobRow, column.name) for column in fields(Job)]
_TRANSITION_COLUMNS = [getattr(TransitionRow, column.name) for column in fields(Transition)]


def create(
    database: Database,
    job_id: UUID,
    request: SegmentRequest | None,
    *,
    submitted_by: str | None = None,
    tenant: str | None = None,
    trace: TraceContext | None = None,
    in_transaction: Callable[[Connection], None] | None = None,
) -> bool:
    """Records a queued job, unless its id exists already.

    Args:
        database: The jobs' database.
        job_id: Chosen by the upstream.
        request: None where the message broke the contract: the job's failure still needs a row.
        submitted_by: Name of the upstream.
        tenant: The tenant in whose name the job is submitted.
        trace: The trace context in which the job was submitted.
        in_transaction: Called in the transaction that creates the job. An error of it undoes the job.

    Returns:
        Whether the row is new.
    """
    recorded = None if request is None else request.model_dump(mode="json")
    with database.begin() as connection:
        created = create_queued(connection, job_id, recorded, submitted_by=submitted_by, tenant=tenant, trace=trace)
        if created and in_transaction is not None:
            in_transaction(connection)
    return created


def mark_dispatched(connection: Connection, job: UnsentJob, *, queue: str, redis_run_id: str) -> None:
    """Records that a job's message was sent, unless a worker has claimed the job since.

    Args:
        connection: A transaction.
        job: The job as read before the message was sent.
        queue: The queue of the message.
        redis_run_id: The run of Redis that accepted the message.
    """
    connection.execute(
        update(JobRow)
        .where(JobRow.id == job.id, JobRow.state == JobState.QUEUED, JobRow.attempt == job.attempt)
        .values(queue=queue, dispatched_at=func.now(), redis_run_id=redis_run_id)
    )


def cancel(database: Database, job_id: UUID) -> Job | None:
    """Cancels a queued job, and asks the worker of a running one to stop; a finished job stays as it is.

    Returns:
        The job afterwards; None where it does not exist.
    """
    with database.begin() as connection:
        _cancel(connection, job_id)
    return get(database, job_id)


def cancel_by_message(database: Database, job_id: UUID) -> bool:
    """Cancels a job whose own message may still wait in Redis.

    A job without a row gets one that is cancelled already, so that its message has no effect when it comes.

    Returns:
        False if another session has locked the row, so that nothing is written.
    """
    try:
        with database.begin() as connection:
            connection.execute(text(f"SET LOCAL lock_timeout = {_LOCK_LIMIT_MS}"))
            create_queued(connection, job_id, None)
            _cancel(connection, job_id)
    except DatabaseUnavailable as error:
        if is_lock_conflict(error):
            return False
        raise
    return True


def _cancel(connection: Connection, job_id: UUID) -> None:
    row = connection.execute(
        select(JobRow.state, JobRow.attempt)
        .where(JobRow.id == job_id, JobRow.state.not_in(FINAL_STATES))
        .with_for_update()
    ).one_or_none()
    if row is not None and row.state == JobState.QUEUED:
        error = JobCancelled("the job was cancelled while it was queued")
        change_state(connection, StateChange.ended_by(error, job_id, JobState.QUEUED, attempt=row.attempt))
    elif row is not None:
        connection.execute(update(JobRow).where(JobRow.id == job_id).values(cancel_requested=True))


def get(database: Database, job_id: UUID) -> Job | None:
    """A job; None where it does not exist."""
    with database.connection() as connection:
        row = connection.execute(select(*_JOB_COLUMNS).where(JobRow.id == job_id)).one_or_none()
    return _job(row._asdict()) if row else None


def latest(
    database: Database, where: JobFilter | None = None, *, after: PagePosition | None = None, limit: int = 50
) -> list[Job]:
    """The jobs created last, newest first.

    Args:
        database: The jobs' database.
        where: Which jobs; None: all.
        after: The place of the last job of the page before.
        limit: Largest number of jobs.
    """
    statement = select(*_JOB_COLUMNS).order_by(JobRow.created_at.desc(), JobRow.id.desc()).limit(limit)
    statement = statement.where(*(where or JobFilter()).conditions())
    if after is not None:
        statement = statement.where(tuple_(JobRow.created_at, JobRow.id) < tuple_(after.created_at, after.id))
    with database.connection() as connection:
        return [_job(row._asdict()) for row in connection.execute(statement)]


def succeeded_after(database: Database, last: UUID, *, limit: int) -> list[Job]:
    """Succeeded jobs in the order of their ids, after one id."""
    statement = (
        select(*_JOB_COLUMNS)
        .where(JobRow.state == JobState.SUCCEEDED, JobRow.id > last)
        .order_by(JobRow.id)
        .limit(limit)
    )
    with database.connection() as connection:
        return [_job(row._asdict()) for row in connection.execute(statement)]


def count_unfinished(database: Database) -> dict[JobState, int]:
    """The number of queued and of running jobs."""
    states = (JobState.QUEUED, JobState.RUNNING)
    number = func.count().label("number")
    statement = select(JobRow.state, number).where(JobRow.state.in_(states)).group_by(JobRow.state)
    with database.connection() as connection:
        found: dict[str, int] = {row.state: row.number for row in connection.execute(statement)}
    return {state: found.get(state, 0) for state in states}


def count(database: Database) -> int:
    """The number of jobs in the table."""
    with database.connection() as connection:
        return connection.execute(select(func.count()).select_from(JobRow)).scalar_one()


def transitions(database: Database, job_id: UUID) -> Sequence[Transition]:
    """All changes of a job's state, oldest first."""
    statement = select(*_TRANSITION_COLUMNS).where(TransitionRow.job_id == job_id).order_by(TransitionRow.id)
    with database.connection() as connection:
        return [Transition(**row._asdict()) for row in connection.execute(statement)]


@dataclass(frozen=True)
class ModelIdentity:
    """The columns of a job's row that say which model ran, and in which precision."""

    model_name: str
    model_version: str
    model_sha256: str
    manifest_sha256: str
    precision: str


def find_same_work(
    database: Database, request: SegmentRequest, *, input_sha256: str, model: ModelIdentity
) -> Job | None:
    """The last succeeded job with the same input, model, files and options (`reuse` aside), and with checksums.

    Args:
        database: The jobs' database.
        request: The new request.
        input_sha256: Hash of the job's input.
        model: The model that the new job would run.

    Returns:
        None where there is no such job.
    """
    requested = request.model_dump(mode="json")
    requested["options"].pop("reuse")
    channel_options = {
        name: {field: value for field, value in channel.items() if field not in _PLACE}
        for name, channel in requested["input"].get("channels", {}).items()
    }
    statement = (
        select(*_JOB_COLUMNS)
        .where(
            JobRow.state == JobState.SUCCEEDED,
            JobRow.input_sha256 == input_sha256,
            *(getattr(JobRow, column) == value for column, value in asdict(model).items()),
            JobRow.checksums.is_not(None),
            JobRow.request["options"].op("-")("reuse") == requested["options"],
            JobRow.request["input"]["series"].astext.is_not_distinct_from(request.input.series),
            func.coalesce(JobRow.request["input"]["select"], literal({}, JSONB))
            == literal(request.input.select, JSONB),
            _channel_options() == literal(channel_options, JSONB),
            JobRow.request["output"]["formats"] == requested["output"]["formats"],
            func.coalesce(JobRow.request["output"]["scan"].as_boolean(), literal(False)) == request.output.scan,
        )
        .order_by(JobRow.finished_at.desc())
        .limit(1)
    )
    with database.connection() as connection:
        row = connection.execute(statement).one_or_none()
    return _job(row._asdict()) if row else None


def _channel_options() -> ColumnElement[Any]:
    """The channels of a row's request without the places of their objects."""
    channels = func.coalesce(JobRow.request["input"]["channels"], literal({}, JSONB))
    each = func.jsonb_each(channels).table_valued(column("key", Text), column("value", JSONB))
    options = func.jsonb_object_agg(each.c.key, each.c.value.op("-")(array(_PLACE)))
    return select(func.coalesce(options, literal({}, JSONB))).select_from(each).scalar_subquery()


def _job(values: dict[str, Any]) -> Job:
    checksums = values["checksums"]
    if checksums is not None:
        checksums = {name: Checksum(**checksum) for name, checksum in checksums.items()}
    return Job(**{**values, "state": JobState(values["state"]), "checksums": checksums})
