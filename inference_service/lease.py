"""Keeping a job's lease while it runs: a thread renews it, writes progress and listens for a cancellation."""

import logging
import threading
from types import TracebackType
from typing import Self

from inference_service import jobs
from inference_service.errors import DatabaseUnavailable, JobCancelled
from inference_service.logs import logging_job
from inference_service.stages import Stage, overall_progress
from inference_service.tables import Database

logger = logging.getLogger(__name__)

# Progress is written, and a cancellation seen, this often; a lease shorter than three of them is renewed more often.
_PERIOD_S = 1.0


class LeaseLost(Exception):
    """Another attempt owns the job: this one writes nothing any more."""


class Lease:
    """Holds a claim while its block runs.

    Args:
        database: The database.
        claim: The attempt.
        lease_s: How long the lease lasts beyond each renewal.
    """

    def __init__(self, database: Database, claim: jobs.Claim, *, lease_s: float) -> None:
        self._database, self._claim, self._lease_s = database, claim, lease_s
        self._stage: Stage = "fetch"
        self._progress = 0.0
        self._ended: Exception | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=f"lease-{claim.job_id}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def progress(self, stage: Stage, share: float) -> None:
        """Notes how far the job is, for the next renewal to write.

        Raises:
            LeaseLost: The lease is no longer this attempt's.
            JobCancelled: The job's owner wants it ended.
        """
        if self._ended is not None:
            raise self._ended
        self._stage, self._progress = stage, overall_progress(stage, share)

    def _keep(self) -> None:
        with logging_job(self._claim.job_id):
            while not self._stop.wait(min(_PERIOD_S, self._lease_s / 3)) and self._ended is None:
                try:
                    self._renew()
                except DatabaseUnavailable:
                    logger.warning("the lease could not be renewed: Postgres does not answer")
                except Exception as error:
                    # The thread's own boundary: the work must not go on without anybody renewing its lease.
                    logger.exception("the lease can no longer be renewed")
                    self._ended = error

    def renew(self) -> None:
        """Renews the lease now, and sees that it still stands before something is written outside the database.

        Raises:
            LeaseLost: The lease is no longer this attempt's.
            JobCancelled: The job's owner wants it ended.
            DatabaseUnavailable: Nobody knows.
        """
        self._renew()
        if self._ended is not None:
            raise self._ended

    def _renew(self) -> None:
        renewal = jobs.renew(
            self._database, self._claim, lease_s=self._lease_s, stage=self._stage, progress=self._progress
        )
        if not renewal.held:
            self._ended = LeaseLost("another attempt holds the lease")
        elif renewal.cancel_requested:
            self._ended = JobCancelled("the job was cancelled while it ran")
