"""Webhooks: URLs to which the ends of jobs are reported, at least once each.

The rows are an outbox that needs no writer at a job's end: an end is to be reported until it is the settled one.
So a job that is retried and ends again is reported again. An attempt takes the row for a while in which no other one
does, and a process that dies in it leaves the next attempt to the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import Connection, and_, case, func, insert, select, update

from inference_service.jobs.database import Database
from inference_service.jobs.schema import JobRow, WebhookRow

TAKEN_FOR = timedelta(seconds=60)
"""How long a taken webhook is left to its taker, which must be done by then."""
_REPORTED_FOR = timedelta(days=1)
_FIRST_DELAY_S = 10.0
_LONGEST_DELAY_S = 3600.0


@dataclass(frozen=True)
class DueWebhook:
    """An end of a job that is to be reported, taken for one attempt.

    Attributes:
        job_id: The job.
        url: Where to report it.
        end: Time of the job's end.
        attempt: Number of the attempt for this end, from 1.
    """

    job_id: UUID
    url: str
    end: datetime
    attempt: int


@dataclass(frozen=True)
class WebhookState:
    """What became of a job's webhook.

    Attributes:
        url: Where the job's end is reported.
        attempts: Attempts to report the last end.
        settled: Whether that end is reported, or given up.
        error: Why the last attempt failed; None where it did not.
    """

    url: str
    attempts: int
    settled: bool
    error: str | None


def record(connection: Connection, job_id: UUID, url: str) -> None:
    """Records the webhook of a new job, in the transaction that creates the job."""
    connection.execute(insert(WebhookRow).values(job_id=job_id, url=url))


def state(database: Database, job_id: UUID) -> WebhookState | None:
    """The state of a job's webhook; None where it has none."""
    settled = and_(WebhookRow.settled_end.is_not(None), WebhookRow.settled_end == JobRow.finished_at)
    statement = (
        select(WebhookRow.url, WebhookRow.attempts, func.coalesce(settled, False), WebhookRow.error)
        .join(JobRow, JobRow.id == WebhookRow.job_id)
        .where(WebhookRow.job_id == job_id)
    )
    with database.connection() as connection:
        row = connection.execute(statement).one_or_none()
    return None if row is None else WebhookState(*row)


def take_due(database: Database, *, limit: int) -> Sequence[DueWebhook]:
    """Takes webhooks whose jobs have ended, each for one attempt; others do not find them for `TAKEN_FOR`."""
    # The index of ends bounds the search: what ended earlier is given up, or will be by its last attempt.
    recent = JobRow.finished_at > func.now() - 2 * _REPORTED_FOR
    unsettled = WebhookRow.settled_end.is_distinct_from(JobRow.finished_at)
    due = (
        select(WebhookRow.job_id)
        .join(JobRow, JobRow.id == WebhookRow.job_id)
        .where(recent, unsettled, WebhookRow.due_at <= func.now())
        .order_by(WebhookRow.due_at)
        .limit(limit)
        .with_for_update(skip_locked=True, of=WebhookRow)
    )
    again = WebhookRow.tried_end.is_not_distinct_from(JobRow.finished_at)
    statement = (
        update(WebhookRow)
        .where(WebhookRow.job_id == JobRow.id, WebhookRow.job_id.in_(due), JobRow.finished_at.is_not(None))
        .values(
            tried_end=JobRow.finished_at,
            attempts=case((again, WebhookRow.attempts + 1), else_=1),
            due_at=func.now() + TAKEN_FOR,
        )
        .returning(
            WebhookRow.job_id,
            WebhookRow.url,
            WebhookRow.tried_end.label("end"),
            WebhookRow.attempts.label("attempt"),
        )
    )
    with database.begin() as connection:
        return [DueWebhook(**row) for row in connection.execute(statement).mappings()]


def settle(database: Database, taken: DueWebhook) -> None:
    """Records that an end is reported."""
    _record(database, taken, settled_end=taken.end, due_at=func.now(), error=None)


def fail(database: Database, taken: DueWebhook, error: str) -> None:
    """Records that an attempt failed: the next one is due after a growing delay, up to a day after the job's end."""
    delay_s = min(_LONGEST_DELAY_S, _FIRST_DELAY_S * 2 ** (taken.attempt - 1))
    given_up = func.now() + timedelta(seconds=delay_s) > taken.end + _REPORTED_FOR
    settled_end = case((given_up, taken.end), else_=WebhookRow.settled_end)
    _record(database, taken, settled_end=settled_end, due_at=func.now() + timedelta(seconds=delay_s), error=error)


def give_up(database: Database, taken: DueWebhook, error: str) -> None:
    """Records that an end will not be reported, as the receiver refuses it for good."""
    _record(database, taken, settled_end=taken.end, due_at=func.now(), error=error)


def _record(database: Database, taken: DueWebhook, **values: object) -> None:
    unchanged = (
        WebhookRow.job_id == taken.job_id,
        WebhookRow.tried_end == taken.end,
        WebhookRow.attempts == taken.attempt,
    )
    with database.begin() as connection:
        connection.execute(update(WebhookRow).where(*unchanged).values(values))
