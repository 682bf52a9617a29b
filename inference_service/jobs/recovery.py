"""Recovers orphaned jobs: expired leases, due retries, messages that were never sent or got lost.

Any number of workers may sweep: a lock in Postgres lets one sweep at a time. Jobs of this worker's own dead processes
need no lock.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, RowMapping, and_, func, not_, or_, select

from inference_service.core.errors import BadRequest, ServiceError
from inference_service.jobs.attempts import EXPIRED, avoiding, final_error
from inference_service.jobs.database import Database
from inference_service.jobs.job_store import UnsentJob
from inference_service.jobs.queues.redis_state import RedisState
from inference_service.jobs.schema import JobRow, JobState
from inference_service.jobs.state_machine import StateChange, change_state

logger = logging.getLogger(__name__)

# The key of the advisory lock, "sweep" in ASCII; nothing else in the database uses it.
_LOCK_KEY = 0x7377656570
_JOBS_AT_ONCE = 1000
_MAX_SUSPECTS = 100_000


@dataclass(frozen=True)
class FinishedJob:
    """A job that was ended here because it gets no further attempt.

    Attributes:
        job_id: The job.
        worker: The last worker that ran the job.
        attempts: Number of attempts that count.
        duration_s: Seconds from the first start of the job to its end; None where it never started.
        error: The error that the job ended with.
    """

    job_id: UUID
    worker: str | None
    attempts: int
    duration_s: float | None
    error: ServiceError


@contextmanager
def sweep_lock(database: Database) -> Iterator[bool]:
    """Takes the lock of the sweep for the block; yields whether it was free."""
    with database.begin() as connection:
        yield bool(connection.execute(select(func.pg_try_advisory_xact_lock(_LOCK_KEY))).scalar_one())


def requeue_expired(database: Database, *, max_attempts: int) -> list[FinishedJob]:
    """Queues jobs with an expired lease again, and ends those that have no attempt left."""
    return _requeue(database, EXPIRED, max_attempts=max_attempts, detail="lease_expired")[1]


def requeue_lost(database: Database, job_id: UUID, *, worker: str, pid: int, max_attempts: int) -> bool:
    """Queues the job of a dead process of a worker again, or ends it if it has no attempt left.

    Returns:
        Whether the process still ran the job. It did not if it had recorded an outcome before it died.
    """
    found, _ = _requeue(database, _run_by(worker, job_id, pid), max_attempts=max_attempts, detail="worker_lost")
    return bool(found)


def return_jobs(database: Database, *, worker: str, max_attempts: int) -> list[FinishedJob]:
    """Queues again all jobs of a worker that stops; their current attempts do not count."""
    return _requeue(database, _held_by(worker), max_attempts=max_attempts, detail="worker_stopped", returned=True)[1]


def fail_lost(database: Database, job_id: UUID, *, worker: str, pid: int, error: ServiceError) -> list[FinishedJob]:
    """Ends the job of a dead process of a worker with an error."""
    with database.begin() as connection:
        return [_end(connection, row, error) for row in _locked(connection, _run_by(worker, job_id, pid))]


def fail_unreadable(database: Database, *, older_than_s: float) -> list[FinishedJob]:
    """Ends queued jobs without a request: no message can be made for them."""
    old = JobRow.created_at < func.now() - timedelta(seconds=older_than_s)
    unreadable = and_(JobRow.state == JobState.QUEUED, JobRow.request.is_(None), old)
    error = BadRequest("the message broke the contract, and the worker was lost before it recorded the reason")
    with database.begin() as connection:
        return [_end(connection, row, error) for row in _locked(connection, unreadable)]


def find_suspects(database: Database, redis: RedisState, *, grace_s: float) -> list[UUID]:
    """Queued jobs whose messages may be lost, oldest first.

    Their queue is empty or unknown, or a later job of it has started. Most are not lost: a message that went
    back to its queue is overtaken, too. So look whether Redis has the message before you send it again.

    Args:
        database: The jobs' database.
        redis: The current state of Redis.
        grace_s: Jobs that were sent within this many seconds are left out: their messages may be on the way.
    """
    grace = timedelta(seconds=grace_s)
    with database.connection() as connection:
        # No worker takes from the list of a tenant that is not in TENANTS, which has no depth.
        empty = [queue for queue in _queues_of_sent(connection) if not redis.depths.get(queue)]
        overtaken = [
            and_(JobRow.queue == queue, JobRow.dispatched_at < newest - grace)
            for queue in redis.depths
            if (newest := _newest_started(connection, queue)) is not None
        ]
        missing = and_(JobRow.dispatched_at < func.now() - grace, or_(JobRow.queue.in_(empty), *overtaken))
        statement = (
            select(JobRow.id)
            .where(JobRow.state == JobState.QUEUED, JobRow.request.is_not(None), missing)
            .order_by(JobRow.created_at)
            .limit(_MAX_SUSPECTS)
        )
        return list(connection.execute(statement).scalars())


def find_unsent(database: Database, *, grace_s: float, lost: Sequence[UUID] = ()) -> list[UnsentJob]:
    """Queued jobs that are due and have no message in Redis, oldest first, a bounded number at a time.

    Args:
        database: The jobs' database.
        grace_s: Jobs that were created within this many seconds are left out: their messages may be on the way.
        lost: Jobs whose messages are lost.
    """
    new = and_(JobRow.not_before.is_(None), JobRow.created_at > func.now() - timedelta(seconds=grace_s))
    due = and_(or_(JobRow.not_before.is_(None), JobRow.not_before <= func.now()), not_(new))
    never_sent = and_(JobRow.dispatched_at.is_(None), due)
    statement = (
        select(JobRow.id, JobRow.request, JobRow.attempt, JobRow.on_cpu, JobRow.tenant)
        .where(
            JobRow.state == JobState.QUEUED,
            JobRow.request.is_not(None),
            or_(never_sent, JobRow.id.in_(lost[:_JOBS_AT_ONCE])),
        )
        .order_by(JobRow.created_at)
        .limit(_JOBS_AT_ONCE)
    )
    with database.connection() as connection:
        return [UnsentJob(*row) for row in connection.execute(statement)]


def _queues_of_sent(connection: Connection) -> list[str]:
    """The queues of the last messages of queued jobs, each found by one look into the index."""
    sent = and_(JobRow.state == JobState.QUEUED, JobRow.dispatched_at.is_not(None))
    first = select(func.min(JobRow.queue).label("queue")).where(sent).cte(recursive=True)
    following = select(func.min(JobRow.queue)).where(sent, JobRow.queue > first.c.queue).scalar_subquery()
    queues = first.union_all(select(following).where(first.c.queue.is_not(None)))
    return list(connection.execute(select(queues.c.queue).where(queues.c.queue.is_not(None))).scalars())


def _newest_started(connection: Connection, queue: str) -> datetime | None:
    """The latest time at which a message was sent to a queue whose job has started since."""
    started = and_(JobRow.state != JobState.QUEUED, JobRow.started_at.is_not(None))
    statement = select(func.max(JobRow.dispatched_at)).where(JobRow.queue == queue, started)
    return connection.execute(statement).scalar_one()


def _held_by(worker: str) -> ColumnElement[bool]:
    return and_(JobRow.state == JobState.RUNNING, JobRow.lease_owner == worker)


def _run_by(worker: str, job_id: UUID, pid: int) -> ColumnElement[bool]:
    return and_(_held_by(worker), JobRow.id == job_id, JobRow.lease_pid == pid)


def _requeue(
    database: Database, condition: ColumnElement[bool], *, max_attempts: int, detail: str, returned: bool = False
) -> tuple[int, list[FinishedJob]]:
    """Queues jobs again, or ends them; returns their number, and those that it ended."""
    finished = []
    with database.begin() as connection:
        rows = _locked(connection, condition)
        for row in rows:
            returned_attempts = row["returned_attempts"] + int(returned)
            if row["cancel_requested"] or row["attempt"] - returned_attempts >= max_attempts:
                finished.append(_end(connection, row, final_error(cancelled=row["cancel_requested"])))
                continue
            change = StateChange(
                row["id"], JobState(row["state"]), JobState.QUEUED, row["attempt"], row["lease_owner"], detail
            )
            values = {"returned_attempts": returned_attempts, "not_before": func.now(), "dispatched_at": None}
            if not returned:
                values["avoided_workers"] = avoiding(row["lease_owner"])
            change_state(connection, change, values=values)
            logger.warning("job %s is queued again after attempt %d: %s", row["id"], row["attempt"], detail)
    return len(rows), finished


def _locked(connection: Connection, condition: ColumnElement[bool]) -> list[RowMapping]:
    """Rows of jobs, locked for this transaction; rows that are locked already are left out."""
    statement = (
        select(
            JobRow.id,
            JobRow.state,
            JobRow.attempt,
            JobRow.returned_attempts,
            JobRow.lease_owner,
            JobRow.cancel_requested,
            func.extract("epoch", func.now() - JobRow.started_at).label("duration_s"),
        )
        .where(condition)
        .order_by(JobRow.created_at)
        .limit(_JOBS_AT_ONCE)
        .with_for_update(skip_locked=True)
    )
    return list(connection.execute(statement).mappings())


def _end(connection: Connection, row: RowMapping, error: ServiceError) -> FinishedJob:
    change_state(connection, StateChange.ended_by(error, row["id"], JobState(row["state"]), attempt=row["attempt"]))
    logger.warning("job %s ended after attempt %d: %s", row["id"], row["attempt"], error.code)
    duration_s = None if row["duration_s"] is None else float(row["duration_s"])
    return FinishedJob(row["id"], row["lease_owner"], row["attempt"] - row["returned_attempts"], duration_s, error)
