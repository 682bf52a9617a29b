"""Keeping a job's lease while it runs: a thread renews it, writes progress, and ends the work where it must end.

Work ends by an exception at its next sign of progress. Where none comes, as in the middle of a large window or of a
transfer, the process is ended: that frees its memory, and the worker starts another one.
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from inference_service.core.errors import DatabaseUnavailable, JobCancelled, TimeLimit
from inference_service.core.log_config import logging_job
from inference_service.core.progress import Stage, overall_progress
from inference_service.jobs import attempts
from inference_service.jobs.database import Database

logger = logging.getLogger(__name__)

# Progress is written, and a cancellation seen, this often; a lease shorter than three of them is renewed more often.
_PERIOD_S = 1.0
# From the reason to end the work until the process is ended.
_PATIENCE_S = 1.5


class LeaseLost(Exception):
    """Another attempt owns the job: this one writes nothing any more."""


def kill_process() -> None:
    """Ends this process at once, in the middle of whatever it does."""
    os.kill(os.getpid(), signal.SIGKILL)


class Lease:
    """Holds a claim while its block runs.

    Args:
        database: The database.
        claim: The attempt.
        lease_s: How long the lease lasts beyond each renewal.
        time_limit_s: How long the block may run.
        before_kill: Records why work ends that does not end itself, just before its process is ended.
        kill: Ends the process.
    """

    def __init__(
        self,
        database: Database,
        claim: attempts.Claim,
        *,
        lease_s: float,
        time_limit_s: float,
        before_kill: Callable[[Exception], object],
        kill: Callable[[], None] = kill_process,
    ) -> None:
        self._database, self._claim, self._lease_s = database, claim, lease_s
        self._before_kill, self._kill = before_kill, kill
        self._time_limit_s, self._deadline = time_limit_s, time.monotonic() + time_limit_s
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
        # An exception that was raised holds every frame that it went through, and their arrays.
        self._ended = None

    def release(self) -> None:
        """Ends the keeping, once the outcome is recorded; clearing up after it may take its time."""
        self._stop.set()

    def progress(self, stage: Stage, share: float) -> None:
        """Notes how far the job is, for the next renewal to write.

        Raises:
            LeaseLost: The lease is no longer this attempt's.
            JobCancelled: The job's owner wants it ended.
            TimeLimit: It has run for too long.
        """
        if self._ended is not None:
            raise self._ended
        self._stage, self._progress = stage, overall_progress(stage, share)

    def renew(self) -> None:
        """Renews the lease now, and sees that it still stands before something is written outside the database.

        Raises:
            LeaseLost: The lease is no longer this attempt's.
            JobCancelled: The job's owner wants it ended.
            TimeLimit: It has run for too long.
            DatabaseUnavailable: Nobody knows.
        """
        self._renew()
        if self._ended is not None:
            raise self._ended

    def _keep(self) -> None:
        period_s = min(_PERIOD_S, self._lease_s / 3)
        with logging_job(self._claim.job_id):
            while not self._stop.wait(min(period_s, max(0.0, self._deadline - time.monotonic()))):
                try:
                    self._renew()
                except DatabaseUnavailable:
                    logger.warning("the lease could not be renewed: Postgres does not answer")
                except Exception as error:
                    # The thread's own boundary: the work must not go on without anybody renewing its lease.
                    logger.exception("the lease can no longer be renewed")
                    self._ended = error
                if self._ended is None and time.monotonic() >= self._deadline:
                    self._ended = TimeLimit(f"the job ran longer than {self._time_limit_s:g} s")
                if self._ended is not None:
                    break
            if self._ended is not None and not self._stop.wait(_PATIENCE_S):
                self._end_by_force(self._ended)

    def _renew(self) -> None:
        renewal = attempts.renew(
            self._database, self._claim, lease_s=self._lease_s, stage=self._stage, progress=self._progress
        )
        if not renewal.held:
            self._ended = LeaseLost("another attempt holds the lease")
        elif renewal.cancel_requested:
            self._ended = JobCancelled("the job was cancelled while it ran")

    def _end_by_force(self, reason: Exception) -> None:
        logger.warning("the work does not end itself, so its process is ended: %s", reason)
        try:
            self._before_kill(reason)
        except Exception:
            logger.exception("its end could not be recorded")
        finally:
            self._kill()
