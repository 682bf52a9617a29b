"""Jobs that nobody holds: leases that ran out, retries that are due, messages that never were or are no more.

Everything here may run in several workers at once: a lock in Postgres lets one at a time do it.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, RowMapping, and_, func, not_, or_, select, update

from inference_service.core.errors import BadRequest, ServiceError
from inference_service.jobs.attempts import EXPIRED, final_error
from inference_service.jobs.celery_app import RedisState
from inference_service.jobs.database import Database, mapped_errors
from inference_service.jobs.job_store import UnsentJob, end_job, record_transition
from inference_service.jobs.schema import JobRow, JobState

logger = logging.getLogger(__name__)

# Any number that nothing else in the database takes: "sweep" in ASCII.
_LOCK = 0x7377656570
_MOST_AT_ONCE = 1000
_MOST_CLEARED = 20
_NO_REQUEST = "the message broke the contract, and the worker that was to say how was lost"


@dataclass(frozen=True)
class FinishedJob:
    """A job that got no further attempt.

    Attributes:
        job_id: The job.
        worker: Who ran it last.
        attempts: How many it had.
        duration_s: From its first start to its end; None where it never started.
        error: Why.
    """

    job_id: UUID
    worker: str | None
    attempts: int
    duration_s: float | None
    error: ServiceError


def requeue_expired(database: Database, *, max_attempts: int) -> list[FinishedJob]:
    """Queues jobs again whose lease ran out, and ends those that have no attempt left."""
    return _requeue(database, EXPIRED, max_attempts=max_attempts, detail="lease_expired", returned=False)


def requeue_lost(database: Database, job_id: UUID, *, worker: str, pid: int, max_attempts: int) -> list[FinishedJob]:
    """Does so for a job whose process in a worker is known to be dead."""
    held = and_(_held_by(worker), JobRow.id == job_id, JobRow.lease_pid == pid)
    return _requeue(database, held, max_attempts=max_attempts, detail="worker_lost", returned=False)


def return_jobs(database: Database, *, worker: str, max_attempts: int) -> list[FinishedJob]:
    """Queues all jobs again that a worker holds, as it is told to stop; their attempts do not count."""
    return _requeue(
        database, _held_by(worker), max_attempts=max_attempts, detail="worker_stopped", returned=True
    )  # fmt: skip


def fail_lost(database: Database, job_id: UUID, *, worker: str, pid: int, error: ServiceError) -> list[FinishedJob]:
    """Ends a job whose process in a worker is known to be dead."""
    with mapped_errors(), database.begin() as connection:
        held = and_(_held_by(worker), JobRow.id == job_id, JobRow.lease_pid == pid)
        return [_end(connection, row, error) for row in _locked(connection, held)]


def fail_unreadable(database: Database, *, older_than_s: float) -> list[FinishedJob]:
    """Ends queued jobs that have no request, for lack of which they cannot be sent again."""
    old = JobRow.created_at < func.now() - timedelta(seconds=older_than_s)
    unreadable = and_(JobRow.state == JobState.QUEUED, JobRow.request.is_(None), old)
    with mapped_errors(), database.begin() as connection:
        return [_end(connection, row, BadRequest(_NO_REQUEST)) for row in _locked(connection, unreadable)]


def find_uncleared(database: Database) -> list[tuple[UUID, str]]:
    """Jobs that ended without results, with the place where attempts may have left some, as bucket and prefix."""
    ended = JobRow.state.in_([JobState.FAILED, JobState.CANCELLED])
    statement = select(JobRow.id, JobRow.result_location).where(ended, JobRow.result_location.is_not(None))
    with mapped_errors(), database.connect() as connection:
        return [(row.id, row.output_place) for row in connection.execute(statement.limit(_MOST_CLEARED))]


@contextmanager
def sweep_lock(database: Database) -> Iterator[bool]:
    """Whether this is the only sweeper until the block ends."""
    with mapped_errors(), database.begin() as connection:
        yield bool(connection.execute(select(func.pg_try_advisory_xact_lock(_LOCK))).scalar_one())


def find_unsent(database: Database, redis: RedisState, *, grace_s: float) -> list[UnsentJob]:
    """Queued jobs, due and without a message, the oldest first.

    Their message was never sent, or Redis has restarted since, or it is gone: nothing waits in its queue, or a job that
    was sent to it later has already been started.

    Args:
        database: The database.
        redis: As it is now.
        grace_s: What was created or sent less than that ago may still be on its way.
    """
    patience = timedelta(seconds=grace_s)
    empty = [queue for queue, depth in redis.depths.items() if depth == 0]
    with mapped_errors(), database.connect() as connection:
        overtaken = [
            and_(JobRow.queue == queue, JobRow.dispatched_at < newest - patience)
            for queue in redis.depths
            if (newest := _newest_start(connection, queue)) is not None
        ]
        young = and_(JobRow.not_before.is_(None), JobRow.created_at > func.now() - patience)
        due = and_(or_(JobRow.not_before.is_(None), JobRow.not_before <= func.now()), not_(young))
        missing = and_(_older(JobRow.dispatched_at, patience), or_(JobRow.queue.in_(empty), *overtaken))
        lost = and_(JobRow.dispatched_at.is_not(None), or_(JobRow.dispatched_to != redis.run_id, missing))
        statement = (
            select(JobRow.id, JobRow.request, JobRow.attempt, JobRow.on_cpu)
            .where(
                JobRow.state == JobState.QUEUED,
                JobRow.request.is_not(None),
                or_(and_(JobRow.dispatched_at.is_(None), due), lost),
            )
            .order_by(JobRow.created_at)
            .limit(_MOST_AT_ONCE)
        )
        return [UnsentJob(*row) for row in connection.execute(statement)]


def _newest_start(connection: Connection, queue: str) -> datetime | None:
    """When the message was sent that was sent last of those whose job has been started."""
    started = and_(JobRow.state != JobState.QUEUED, JobRow.started_at.is_not(None))
    statement = select(func.max(JobRow.dispatched_at)).where(JobRow.queue == queue, started)
    return connection.execute(statement).scalar_one()


def _held_by(worker: str) -> ColumnElement[bool]:
    return and_(JobRow.state == JobState.RUNNING, JobRow.lease_owner == worker)


def _older(time: Any, age: timedelta) -> ColumnElement[bool]:
    older: ColumnElement[bool] = time < func.now() - age
    return older


def _requeue(
    database: Database, held: ColumnElement[bool], *, max_attempts: int, detail: str, returned: bool
) -> list[FinishedJob]:
    ended = []
    with mapped_errors(), database.begin() as connection:
        for row in _locked(connection, held):
            excused = row["excused"] + int(returned)
            if row["cancel_requested"] or row["attempt"] - excused >= max_attempts:
                ended.append(_end(connection, row, final_error(cancelled=row["cancel_requested"])))
            else:
                connection.execute(
                    update(JobRow)
                    .where(JobRow.id == row["id"])
                    .values(
                        state=JobState.QUEUED, excused=excused, lease_token=None, lease_expires_at=None,
                        not_before=func.now(), dispatched_at=None,
                    )
                )  # fmt: skip
                record_transition(
                    connection, row["id"], row["state"], JobState.QUEUED,
                    attempt=row["attempt"], worker=row["lease_owner"], detail=detail,
                )  # fmt: skip
                logger.warning("job %s is queued again after attempt %d: %s", row["id"], row["attempt"], detail)
    return ended


def _locked(connection: Connection, condition: ColumnElement[bool]) -> list[RowMapping]:
    statement = (
        select(
            JobRow.id, JobRow.state, JobRow.attempt, JobRow.excused, JobRow.lease_owner, JobRow.cancel_requested,
            func.extract("epoch", func.now() - JobRow.started_at).label("seconds"),
        )
        .where(condition)
        .order_by(JobRow.created_at)
        .limit(_MOST_AT_ONCE)
        .with_for_update(skip_locked=True)
    )  # fmt: skip
    return list(connection.execute(statement).mappings())


def _end(connection: Connection, row: RowMapping, error: ServiceError) -> FinishedJob:
    end_job(connection, row["id"], row["state"], row["attempt"], error)
    logger.warning("job %s ended after attempt %d: %s", row["id"], row["attempt"], error.code)
    seconds = None if row["seconds"] is None else float(row["seconds"])
    return FinishedJob(row["id"], row["lease_owner"], row["attempt"], seconds, error)
