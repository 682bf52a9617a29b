"""The part of a sweep that any worker may do for the whole service: one worker at a time, by a lock in Postgres."""

import logging
import math
import time
from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

from inference_service.core.errors import QueueUnavailable, StorageUnavailable
from inference_service.core.settings import Settings
from inference_service.jobs import recovery, retention
from inference_service.jobs.completion_events import publish_completions
from inference_service.jobs.database import Database
from inference_service.jobs.dispatch import dispatch
from inference_service.jobs.queues.celery_app import App
from inference_service.jobs.queues.redis_state import RedisState
from inference_service.jobs.queues.waiting_jobs import find_waiting_jobs
from inference_service.jobs.storage.object_storage import Storage
from inference_service.worker.messages.cancellations import cancel_by_messages

logger = logging.getLogger(__name__)

_PRUNED_AT_ONCE = 100
# Forks of child processes wait for a sweep, and Postgres ends the transaction with its lock after 15 idle seconds.
_LIMIT_S = 3.0


class Sweeper:
    """Recovers orphaned jobs, resends missing messages and removes objects that lost attempts have left.

    Args:
        settings: The worker's settings.
        app: For sending messages.
        database: The jobs.
        storage: The objects.
    """

    def __init__(self, settings: Settings, app: App, database: Database, storage: Storage) -> None:
        self._settings = settings
        self._app = app
        self._database = database
        self._storage = storage
        self._postgres_up_since: float | None = -math.inf

    def record_outage(self) -> None:
        """Records that Postgres did not answer."""
        self._postgres_up_since = None

    def recover_jobs(self) -> list[recovery.FinishedJob]:
        """Queues jobs with expired leases again, and ends those that cannot be queued.

        Returns:
            The jobs that it ended.
        """
        settings = self._settings
        with recovery.sweep_lock(self._database) as locked:
            if not locked:
                return []
            now = time.monotonic()
            if self._postgres_up_since is None:
                self._postgres_up_since = now
            finished = []
            # After an outage of Postgres all leases have expired, and living workers are about to renew theirs.
            if now - self._postgres_up_since >= settings.lease_s:
                finished += recovery.requeue_expired(self._database, max_attempts=settings.max_attempts)
            finished += recovery.fail_unreadable(self._database, older_than_s=settings.lease_s)
            return finished

    def send_missing_messages(self, redis: RedisState) -> None:
        """Sends queued jobs whose message was never sent or got lost, or whose retry is due.

        It stops after a few seconds, and the next sweep goes on.
        """
        grace_s = self._settings.lease_s
        with recovery.sweep_lock(self._database) as locked:
            if not locked:
                return
            suspects = recovery.find_suspects(self._database, redis, grace_s=grace_s)
            lost = [] if not suspects else self._without_message(suspects)
            unsent = recovery.find_unsent(self._database, grace_s=grace_s, lost=lost)
            sent = dispatch(self._app, self._database, unsent, redis, settings=self._settings, limit_s=_LIMIT_S)
        if sent:
            logger.info("sent %d job(s) that had no message", sent)

    def _without_message(self, suspects: Sequence[UUID]) -> list[UUID]:
        waiting = find_waiting_jobs(self._app, taken_within_s=math.ceil(self._settings.lease_s))
        return [] if waiting is None else [job_id for job_id in suspects if job_id not in waiting]

    def cancel_by_messages(self) -> None:
        """Cancels the jobs whose cancellations wait in Redis."""
        with recovery.sweep_lock(self._database) as locked:
            if not locked:
                return
            try:
                cancel_by_messages(self._app, self._database)
            except QueueUnavailable as error:
                # The user of Redis may have the rights of an earlier version; the rest of the sweep needs no more.
                logger.warning("messages that cancel jobs are not read: %s", error)

    def remove_abandoned_objects(self) -> None:
        """Removes objects of attempts that ended without a result, or whose worker was lost, and of pruned jobs."""
        try:
            retention.remove_objects(self._database, self._storage, limit_s=_LIMIT_S)
        except StorageUnavailable as error:
            logger.warning("objects that no row names are not removed: %s", error)

    def publish_completions(self) -> None:
        """Adds the events of jobs that have ended to the stream, if the settings say so."""
        if not self._settings.completion_events:
            return
        with recovery.sweep_lock(self._database) as locked:
            if locked:
                publish_completions(self._app, self._database)

    def prune(self) -> None:
        """Deletes the rows of jobs that finished long ago, if the settings say so."""
        days = self._settings.retention_days
        if days is None:
            return
        pruned = retention.prune(
            self._database,
            older_than=timedelta(days=days),
            results=self._settings.retention_results,
            limit=_PRUNED_AT_ONCE,
        )
        if pruned:
            logger.info("pruned %d job(s) that finished more than %g days ago", pruned, days)
