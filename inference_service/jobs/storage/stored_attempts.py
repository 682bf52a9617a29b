"""Attempts that may have stored objects which no job's row names as its result.

An attempt is recorded here before it stores its first object, and leaves the table when its job's row names the
objects. All others are removed some time after the attempt has lost or ended its lease. The attempt of a pruned job
returns to the table, and its objects are removed after the same time: a failover of Postgres that brings the row back
finds them. Each attempt stores under keys of its own, so a removal never touches the objects of another attempt or job.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from uuid import UUID

from sqlalchemy import Connection, and_, delete, exists, func, insert, literal, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from inference_service.jobs.database import Database
from inference_service.jobs.schema import JobRow, JobState, StoredAttemptRow
from inference_service.jobs.state_machine import REMOVAL_DELAY, fence

# Longer than a removal takes, unless the storage does not answer.
_RETRY_DELAY = timedelta(seconds=30)


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
        func.now() + REMOVAL_DELAY,
    ).where(fence(attempt.job_id, attempt.lease_token))
    columns = ["lease_token", "job_id", "location", "remove_after"]
    recorded = upsert(StoredAttemptRow).from_select(columns, held)
    again = recorded.on_conflict_do_update(
        index_elements=[StoredAttemptRow.lease_token], set_={"remove_after": recorded.excluded.remove_after}
    )
    statement = again.returning(StoredAttemptRow.lease_token)
    with database.begin() as connection:
        return connection.execute(statement).first() is not None


def record_pruned(connection: Connection, attempts: Sequence[StoredAttempt]) -> None:
    """Records attempts whose objects no row names any more. The transaction is the one that deletes the rows."""
    if attempts:
        statement = insert(StoredAttemptRow).values(remove_after=func.now() + REMOVAL_DELAY)
        connection.execute(statement, [asdict(attempt) for attempt in attempts])


def record_unclaimed(database: Database, attempt: StoredAttempt) -> None:
    """Records an attempt whose objects were found although no row names them, so that a sweep removes them."""
    statement = upsert(StoredAttemptRow).values(**asdict(attempt), remove_after=func.now() + REMOVAL_DELAY)
    with database.begin() as connection:
        connection.execute(statement.on_conflict_do_nothing())


def take_abandoned(database: Database) -> StoredAttempt | None:
    """Takes the attempt whose objects were to be removed first; None if none is due.

    Others do not find it for half a minute, within which the caller removes the objects, or dies.
    """
    runs = exists().where(
        and_(
            JobRow.id == StoredAttemptRow.job_id,
            JobRow.state == JobState.RUNNING,
            JobRow.lease_token == StoredAttemptRow.lease_token,
        )
    )
    due = (
        select(StoredAttemptRow.lease_token)
        .where(StoredAttemptRow.remove_after <= func.now(), ~runs)
        .order_by(StoredAttemptRow.remove_after)
        .limit(1)
        .with_for_update(skip_locked=True)
        .scalar_subquery()
    )
    statement = (
        update(StoredAttemptRow)
        .where(StoredAttemptRow.lease_token == due)
        .values(remove_after=func.now() + _RETRY_DELAY)
        .returning(StoredAttemptRow.lease_token, StoredAttemptRow.job_id, StoredAttemptRow.location)
    )
    with database.begin() as connection:
        row = connection.execute(statement).one_or_none()
    return None if row is None else StoredAttempt(*row)


def forget(connection: Connection, lease_token: UUID) -> None:
    """Removes an attempt from the table, as a row names its objects or they are removed."""
    connection.execute(delete(StoredAttemptRow).where(StoredAttemptRow.lease_token == lease_token))


def postpone(connection: Connection, lease_token: UUID) -> None:
    """Puts off the removal of an attempt's objects, which the storage has refused."""
    connection.execute(
        update(StoredAttemptRow)
        .where(StoredAttemptRow.lease_token == lease_token)
        .values(remove_after=func.now() + REMOVAL_DELAY)
    )
