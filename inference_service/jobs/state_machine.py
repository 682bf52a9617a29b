"""The state machine of a job: the changes that exist, and the one function that makes them.

Every change writes a row of `transitions` in the same database transaction.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Self
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, and_, func, insert, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from inference_service.core.errors import ErrorCode, ServiceError
from inference_service.core.tracing import TraceContext
from inference_service.jobs.schema import FINAL_STATES, JobRow, JobState, StoredAttemptRow, TransitionRow

NEXT_STATES: Mapping[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.FAILED, JobState.CANCELLED}),
    JobState.RUNNING: frozenset({JobState.QUEUED, *FINAL_STATES}),
    JobState.SUCCEEDED: frozenset(),
    # Only on request: nothing in the service itself changes a finished job.
    JobState.FAILED: frozenset({JobState.QUEUED}),
    JobState.CANCELLED: frozenset({JobState.QUEUED}),
}
"""The states that may follow each state."""
REMOVAL_DELAY = timedelta(hours=1)
"""Time between the loss of a lease and the removal of the attempt's objects.

Requests that the attempt sent before may still reach the storage within it, and a standby of Postgres catches up.
"""


@dataclass(frozen=True)
class StateChange:
    """One change of a job's state.

    Attributes:
        job_id: The job.
        from_state: The state that the row must still have.
        to_state: The new state.
        attempt: Number of the attempt that the change belongs to; 0 before the first one.
        worker: The worker that runs the attempt, where the change comes from an attempt.
        detail: The reason, as the transition shows it.
        error: The error that ends the job.
    """

    job_id: UUID
    from_state: JobState
    to_state: JobState
    attempt: int
    worker: str | None = None
    detail: str | None = None
    error: ServiceError | None = None

    def __post_init__(self) -> None:
        """Refuses a change that the state machine does not have."""
        if self.to_state not in NEXT_STATES[self.from_state]:
            raise ValueError(f"a {self.from_state} job cannot become {self.to_state}")

    @classmethod
    def ended_by(
        cls, error: ServiceError, job_id: UUID, from_state: JobState, *, attempt: int, worker: str | None = None
    ) -> Self:
        """The change that ends a job with an error."""
        return cls(job_id, from_state, final_state(error), attempt, worker, detail=error.code, error=error)


def final_state(error: ServiceError) -> JobState:
    """The state of a job that ended with an error."""
    return JobState.CANCELLED if error.code == ErrorCode.CANCELLED else JobState.FAILED


def fence(job_id: UUID, lease_token: UUID) -> ColumnElement[bool]:
    """The condition of every write of an attempt: the job runs, and the attempt still holds its lease."""
    return and_(JobRow.id == job_id, JobRow.state == JobState.RUNNING, JobRow.lease_token == lease_token)


def create_queued(
    connection: Connection,
    job_id: UUID,
    request: dict[str, Any] | None,
    *,
    submitted_by: str | None = None,
    tenant: str | None = None,
    trace: TraceContext | None = None,
) -> bool:
    """Inserts a queued job, unless its id exists already.

    Returns:
        Whether the row is new.
    """
    values = {
        "id": job_id,
        "state": JobState.QUEUED,
        "request": request,
        "submitted_by": submitted_by,
        "tenant": tenant,
        **(trace.headers if trace else {}),
    }
    statement = upsert(JobRow).values(values).on_conflict_do_nothing().returning(JobRow.id)
    created = connection.execute(statement).first() is not None
    if created:
        connection.execute(insert(TransitionRow).values(job_id=job_id, to_state=JobState.QUEUED, attempt=0))
    return created


def change_state(
    connection: Connection,
    change: StateChange,
    *,
    values: Mapping[str, object] | None = None,
    lease_token: UUID | None = None,
) -> bool:
    """Changes a job's state and records the transition, if the row still has the state that the change starts from.

    Args:
        connection: A transaction.
        change: The change.
        values: Further columns of the row to write.
        lease_token: The fence: the row must still have this lease token. None for a row that the caller has locked.

    Returns:
        Whether the state was changed.
    """
    columns: dict[str, object] = {**(values or {}), "state": change.to_state}
    # Only the row of a running job has a lease, and upstreams have no right to its columns.
    if change.from_state is JobState.RUNNING:
        columns |= {"lease_token": None, "lease_expires_at": None}
    if change.to_state in FINAL_STATES:
        columns["finished_at"] = func.now()
    if change.error is not None:
        columns |= {"error_code": change.error.code, "error_message": change.error.message}
    if change.from_state is JobState.RUNNING and change.to_state is not JobState.SUCCEEDED:
        _postpone_removal(connection, change.job_id)
    unchanged = and_(JobRow.id == change.job_id, JobRow.state == change.from_state)
    statement = update(JobRow).where(unchanged if lease_token is None else fence(change.job_id, lease_token))
    changed = connection.execute(statement.values(columns).returning(JobRow.id)).first() is not None
    if changed:
        connection.execute(
            insert(TransitionRow).values(
                job_id=change.job_id,
                from_state=change.from_state,
                to_state=change.to_state,
                attempt=change.attempt,
                worker=change.worker,
                detail=change.detail,
            )
        )
    return changed


def _postpone_removal(connection: Connection, job_id: UUID) -> None:
    """Counts the delay of the removal from now on, as the job's attempt ends: until now it may have sent requests."""
    token = select(JobRow.lease_token).where(JobRow.id == job_id).scalar_subquery()
    connection.execute(
        update(StoredAttemptRow)
        .where(StoredAttemptRow.lease_token == token)
        .values(remove_after=func.now() + REMOVAL_DELAY)
    )
