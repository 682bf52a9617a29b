"""Reservations: each job reserves the location of its results, so that no job overwrites or removes another's.

A location is a bucket and a prefix. The reservation of a job that failed or was cancelled stands until its location is
cleared.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from uuid import UUID

from sqlalchemy import select, text, update
from sqlalchemy.exc import IntegrityError

from inference_service.jobs.attempts import Claim
from inference_service.jobs.database import Database
from inference_service.jobs.schema import JobRow, JobState
from inference_service.jobs.state_machine import fence

_WITHOUT_RESULTS = JobRow.state.in_([JobState.FAILED, JobState.CANCELLED])
# Removing one object may take as long as the storage's read timeout. Only those who clear this location wait meanwhile.
_CLEARING_LIMIT_S = 120
_CLEARED_AT_ONCE = 20


def reserve(database: Database, claim: Claim, location: str) -> bool:
    """Reserves the location of an attempt's results.

    Returns:
        False where another job has reserved it, or the attempt no longer holds its lease.
    """
    statement = (
        update(JobRow).where(fence(claim.job_id, claim.token)).values(result_location=location).returning(JobRow.id)
    )
    try:
        with database.begin() as connection:
            return connection.execute(statement).first() is not None
    except IntegrityError:
        return False


def reserve_for_clearing(database: Database, job_id: UUID, location: str) -> None:
    """Reserves a location again, where an attempt that had lost its lease stored objects of a job that then failed.

    Does nothing where another job has reserved the location meanwhile, as its results are or will be there.
    """
    statement = update(JobRow).where(JobRow.id == job_id, _WITHOUT_RESULTS).values(result_location=location)
    with suppress(IntegrityError), database.begin() as connection:
        connection.execute(statement)


def find_uncleared(database: Database) -> list[tuple[UUID, str]]:
    """Failed and cancelled jobs with a reservation, each with the location to clear."""
    statement = select(JobRow.id, JobRow.result_location).where(_WITHOUT_RESULTS, JobRow.result_location.is_not(None))
    with database.connection() as connection:
        return [(job_id, str(location)) for job_id, location in connection.execute(statement.limit(_CLEARED_AT_ONCE))]


def find_holder_without_results(database: Database, location: str) -> UUID | None:
    """The failed or cancelled job that still reserves a location."""
    statement = select(JobRow.id).where(_WITHOUT_RESULTS, JobRow.result_location == location)
    with database.connection() as connection:
        return connection.execute(statement).scalar_one_or_none()


@contextmanager
def clearing(database: Database, job_id: UUID, location: str, *, wait: bool = False) -> Iterator[Callable[[], bool]]:
    """Locks the reservation of a failed or cancelled job while its location is cleared, then removes the reservation.

    Args:
        database: The jobs' database.
        job_id: The job.
        location: The location that the job may have reserved.
        wait: Whether to wait where another process is clearing the location.

    Yields:
        A function that returns True while the reservation stands. Call it before each removal of an object.
    """
    reserved = select(JobRow.id).where(JobRow.id == job_id, _WITHOUT_RESULTS, JobRow.result_location == location)
    reserved = reserved.with_for_update(skip_locked=not wait)
    with database.begin() as connection:
        connection.execute(text(f"SET LOCAL idle_in_transaction_session_timeout = '{_CLEARING_LIMIT_S}s'"))

        def is_reserved() -> bool:
            return connection.execute(reserved).first() is not None

        yield is_reserved
        if is_reserved():
            connection.execute(update(JobRow).where(JobRow.id == job_id).values(result_location=None))
