"""Events in a Redis stream for upstreams that do not reach Postgres: one for each end of a job.

The stream itself tells which transition was published last, so whichever worker sweeps goes on from there.
"""

import json
import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row, Select, func, select, true

from inference_service.jobs.database import Database
from inference_service.jobs.queues.celery_app import App, open_channel, redis_key
from inference_service.jobs.schema import FINAL_STATES, JobRow, JobState, TransitionRow

STREAM = "completions"
"""The stream's key, after the deployment's prefix."""

_MAX_EVENTS = 10_000
_EVENTS_AT_ONCE = 1000
_LONGEST_WAIT_S = 1.0
_POLL_S = 0.02
# In an empty stream, of a new deployment or after Redis has lost its data.
_LOOKED_BACK = timedelta(hours=1)


def publish_completions(app: App, database: Database) -> int:
    """Adds an event for each job that has ended since the last event. Call it in one process at a time.

    Returns:
        The number of events.

    Raises:
        QueueUnavailable: Redis does not answer or refuses. The next call does the rest.
        DatabaseUnavailable: Postgres does not answer.
    """
    stream = redis_key(app, STREAM)
    with open_channel(app) as channel:
        client = channel.client
        newest = client.xrevrange(stream, count=1)
        ended = _ended_jobs(database, after=int(newest[0][1][b"transition"]) if newest else None)
        for row in ended:
            client.xadd(stream, _event(row), maxlen=_MAX_EVENTS, approximate=True)
    return len(ended)


def _ended_jobs(database: Database, *, after: int | None) -> Sequence[Row[Any]]:
    """The transitions to final states that follow one, oldest first; none while another may appear before them."""
    with database.begin() as connection:
        # The current transaction's number is above that of all that have written a transition up to the last one.
        last, barrier = connection.execute(select(func.max(TransitionRow.id), func.txid_current())).one()
    if last is None or last == after:
        return []
    if after is None or after > last:
        # The stream is empty, or Postgres was restored from a backup. The table has no index of times.
        after = last - _EVENTS_AT_ONCE
        recent = TransitionRow.at > func.now() - _LOOKED_BACK
    else:
        recent = true()
    statement: Select[Any] = (
        select(*TransitionRow.__table__.columns, JobRow.submitted_by, JobRow.result, JobRow.checksums, JobRow.warnings)
        .join(JobRow, JobRow.id == TransitionRow.job_id)
        .where(TransitionRow.id > after, TransitionRow.id <= last, recent, TransitionRow.to_state.in_(FINAL_STATES))
        .order_by(TransitionRow.id)
        .limit(_EVENTS_AT_ONCE)
    )
    if not _all_ended(database, barrier):
        return []
    with database.connection() as connection:
        return connection.execute(statement).all()


def _all_ended(database: Database, barrier: int) -> bool:
    """Waits until all transactions before a number have ended, as they do not commit in the order of their transitions.

    Returns:
        False if one has not ended after a second.
    """
    oldest = select(func.txid_snapshot_xmin(func.txid_current_snapshot()))
    deadline = time.monotonic() + _LONGEST_WAIT_S
    with database.connection() as connection:
        connection = connection.execution_options(isolation_level="AUTOCOMMIT")
        while connection.execute(oldest).scalar_one() <= barrier:
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_S)
    return True


def _event(row: Row[Any]) -> dict[str, str]:
    """The fields of an event. All are strings, and those without a value are empty."""
    at: datetime = row.at
    succeeded = row.to_state == JobState.SUCCEEDED
    return {
        "job_id": str(row.job_id),
        "state": row.to_state,
        "error_code": "" if succeeded else row.detail or "",
        "attempt": str(row.attempt),
        "submitted_by": row.submitted_by or "",
        "result": json.dumps(row.result) if succeeded else "",
        "checksums": json.dumps(row.checksums) if succeeded else "",
        "warnings": json.dumps(row.warnings) if row.warnings is not None else "",
        "at": at.isoformat(),
        "transition": str(row.id),
    }
