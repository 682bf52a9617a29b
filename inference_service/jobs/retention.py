"""Removes what is no longer needed: rows of jobs that finished long ago, their results, objects of lost attempts."""

import logging
import re
import time
from collections.abc import Mapping
from datetime import timedelta
from uuid import UUID, uuid4

from sqlalchemy import delete, func, select

from inference_service.core.errors import StorageUnavailable
from inference_service.jobs.database import Database
from inference_service.jobs.schema import FINAL_STATES, JobRow
from inference_service.jobs.storage import stored_attempts
from inference_service.jobs.storage.object_storage import Storage, is_outage
from inference_service.jobs.storage.result_store import ResultStore
from inference_service.jobs.storage.stored_attempts import StoredAttempt

logger = logging.getLogger(__name__)

SHORTEST_RETENTION = timedelta(hours=1)
"""Without its row, the id of a job is unknown. A message that is delivered again or waits for longer runs it again."""
_TOKEN = re.compile(r"[0-9a-f]{32}")


def prune(database: Database, *, older_than: timedelta, results: bool, limit: int) -> int:
    """Deletes rows of finished jobs and their transitions, those of the earliest ends first.

    The objects are left to `remove_objects`: the transaction that deletes a row records them in `stored_attempts`, so
    that no row names an object which is gone, and `remove_objects` finds them an hour later.

    Args:
        database: The jobs' database.
        older_than: Time since the end of the jobs.
        results: Whether the objects that the rows name are removed, too.
        limit: Largest number of jobs.

    Returns:
        The number of deleted jobs.
    """
    ended = select(JobRow.id, JobRow.result).where(
        JobRow.finished_at < func.now() - older_than, JobRow.state.in_(FINAL_STATES)
    )
    with database.begin() as connection:
        jobs = connection.execute(
            ended.order_by(JobRow.finished_at).limit(limit).with_for_update(skip_locked=True)
        ).all()
        stored = [_stored_attempt(job.id, job.result) for job in jobs if results and job.result]
        stored_attempts.record_pruned(connection, stored)
        connection.execute(delete(JobRow).where(JobRow.id.in_([job.id for job in jobs])))
    return len(jobs)


def _stored_attempt(job_id: UUID, result: Mapping[str, str]) -> StoredAttempt:
    """Returns the attempt that stored a result. Jobs of older versions have no lease's token in their keys."""
    folder = result["mask"].rpartition("/")[0]
    token = folder.rpartition("-")[2]
    lease_token = UUID(token) if _TOKEN.fullmatch(token) else uuid4()
    return StoredAttempt(lease_token, job_id, f"{result['bucket']}/{folder}")


def remove_objects(database: Database, storage: Storage, *, limit_s: float) -> None:
    """Removes objects that no row has named for an hour: of lost attempts, and results of pruned jobs.

    Any number of workers may do this at a time. If the storage refuses a removal, it is repeated after an hour.

    Args:
        database: The jobs' database.
        storage: The object storage.
        limit_s: After this time the remaining objects are left to the next call.

    Raises:
        StorageUnavailable: The object storage does not answer.
    """
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline and (attempt := stored_attempts.take_abandoned(database)) is not None:
        try:
            ResultStore(storage, attempt.location).remove()
        except StorageUnavailable as error:
            if is_outage(error):
                raise
            logger.warning("objects of an attempt of job %s not removed: %s", attempt.job_id, error)
            with database.begin() as connection:
                stored_attempts.postpone(connection, attempt.lease_token)
        else:
            with database.begin() as connection:
                stored_attempts.forget(connection, attempt.lease_token)
