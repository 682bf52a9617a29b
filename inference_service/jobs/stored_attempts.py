"""Attempts that may have stored objects which no job's row names as its result.

An attempt is recorded here before it stores its first object, and leaves the table when its job's row names the
objects. All others are removed some time after the attempt has lost or ended its lease. Each attempt stores under keys
of its own, so a removal never touches the objects of another attempt or job.
"""

from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from sqlalchemy import Connection, and_, delete, exists, func, literal, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from inference_service.jobs.database import Database
from inference_service.jobs.schema import JobRow, JobState, StoredAttemptRow
from inference_service.jobs.state_machine import fence

# Requests that an attempt sent before it lost its lease may still reach the storage within this time.
_REMOVAL_DELAY = timedelta(hours=1)
_REMOVED_AT_ONCE = 20


@dataclass(frozen=True)
class StoredAttempt:
    """An attempt that may have stored objects.

    Attributes:
        lease_token: The token of the attempt's lease.
        job_id: The job.
        location: Bucket and folder of the attempt's objects.
    """

    lease_token: UUID
    job_id: UUID
    location: str


def record(database: Database, attempt: StoredAttempt) -> bool:
    """Records that an attempt is about to store objects. It may be called again if the answer of Postgres was lost.

    Returns:
        False if the attempt no longer holds its lease; it must store nothing then.
    """
    held = select(
        literal(attempt.lease_token),
        JobRow.id,
        literal(attempt.location),
        func.now() + _REMOVAL_DELAY,
    ).where(fence(attempt.job_id, attempt.lease_token))
    columns = ["lease_token", "job_id", "location", "remove_after"]
    recorded = upsert(StoredAttemptRow).from_select(columns, held)
    again = recorded.on_conflict_do_update(
        index_elements=[StoredAttemptRow.lease_token], set_={"remove_after": recorded.excluded.remove_after}
    )
    statement = again.returning(StoredAttemptRow.lease_token)
    with database.begin() as connection:
        return connection.execute(statement).first() is not None


def find_abandoned(database: Database) -> list[StoredAttempt]:
    """The attempts whose objects are to be removed now: those that have waited longest, a few at a time."""
    runs = exists().where(
        and_(
            JobRow.id == StoredAttemptRow.job_id,
            JobRow.state == JobState.RUNNING,
            JobRow.lease_token == StoredAttemptRow.lease_token,
        )
    )
    statement = (
        select(StoredAttemptRow.lease_token, StoredAttemptRow.job_id, StoredAttemptRow.location)
        .where(StoredAttemptRow.remove_after <= func.now(), ~runs)
        .order_by(StoredAttemptRow.remove_after)
        .limit(_REMOVED_AT_ONCE)
    )
    with database.connection() as connection:
        return [StoredAttempt(*row) for row in connection.execute(statement)]


def forget(connection: Connection, lease_token: UUID) -> None:
    """Removes an attempt from the table, as a row names its objects or they are removed."""
    connection.execute(delete(StoredAttemptRow).where(StoredAttemptRow.lease_token == lease_token))


def postpone(connection: Connection, lease_token: UUID) -> None:
    """Puts off the removal of an attempt's objects, which the storage has refused."""
    connection.execute(
        update(StoredAttemptRow)
        .where(StoredAttemptRow.lease_token == lease_token)
        .values(remove_after=func.now() + _REMOVAL_DELAY)
    )
