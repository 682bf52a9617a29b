"""Holds the lease of a running job: a thread renews it, records progress, and stops the work when it must end.

The work stops by an exception at its next report of progress. If none comes, as in the middle of a large window or a
transfer, the process is killed: that frees its memory, and the worker starts another process.
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

# Interval of renewals, and so of progress and of checks for a cancellation. A short lease is renewed every third of it.
_RENEWAL_INTERVAL_S = 1.0
# The exit status by which shells report SIGKILL.
_KILLED = 128 + signal.SIGKILL
# Time that the work has to stop by itself before its process is killed.
_STOP_GRACE_S = 1.5


class LeaseLost(Exception):
    """Another attempt owns the job, so this one writes nothing any more."""


def kill_process() -> None:
    """Ends this process at once. The first process of a container ignores its own SIGKILL."""
    os._exit(_KILLED)


class Lease:
    """Holds the lease of a claim while a block runs.

    Args:
        database: The jobs' database.
        claim: The attempt.
        lease_s: Seconds that the lease is valid after each renewal.
        time_limit_s: Seconds that the block may run.
        before_kill: Called with the reason before the process is killed, to record it.
        kill: Kills the process.
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
        self._database = database
        self._claim = claim
        self._lease_s = lease_s
        self._time_limit_s = time_limit_s
        self._deadline = time.monotonic() + time_limit_s
        self._before_kill = before_kill
        self._kill = kill
        self._stage: Stage = "fetch"
        self._progress = 0.0
        self._stop_reason: Exception | None = None
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._keep_renewing, name=f"lease-{claim.job_id}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._released.set()
        self._thread.join()
        # A raised exception keeps its frames alive, and with them their arrays.
        self._stop_reason = None

    def release(self) -> None:
        """Ends the renewals once the outcome is recorded, so that cleaning up has no time limit."""
        self._released.set()

    def limit_time(self, time_limit_s: float) -> None:
        """Sets a lower time limit, counted from now."""
        deadline = time.monotonic() + time_limit_s
        if deadline < self._deadline:
            self._time_limit_s = time_limit_s
            self._deadline = deadline

    def progress(self, stage: Stage, share: float) -> None:
        """Reports progress, which the next renewal records.

        Raises:
            LeaseLost: The attempt no longer holds the lease.
            JobCancelled: The job's owner cancelled it.
            TimeLimit: The block has run for too long.
        """
        if self._stop_reason is not None:
            raise self._stop_reason
        self._stage = stage
        self._progress = overall_progress(stage, share)

    def _keep_renewing(self) -> None:
        interval_s = min(_RENEWAL_INTERVAL_S, self._lease_s / 3)
        with logging_job(self._claim.job_id, self._claim.trace_id):
            while not self._released.wait(min(interval_s, max(0.0, self._deadline - time.monotonic()))):
                try:
                    self._renew()
                except DatabaseUnavailable:
                    logger.warning("the lease could not be renewed: Postgres does not answer")
                except Exception as error:
                    # The boundary of this thread: without renewals the work must stop.
                    logger.exception("the lease can no longer be renewed")
                    self._stop_reason = error
                if self._stop_reason is None and time.monotonic() >= self._deadline:
                    self._stop_reason = TimeLimit(f"the job ran longer than {self._time_limit_s:g} s")
                if self._stop_reason is not None:
                    break
            if self._stop_reason is not None and not self._released.wait(_STOP_GRACE_S):
                self._kill_process(self._stop_reason)

    def _renew(self) -> None:
        renewal = attempts.renew(
            self._database, self._claim, lease_s=self._lease_s, stage=self._stage, progress=self._progress
        )
        if not renewal.held:
            self._stop_reason = LeaseLost("another attempt holds the lease")
        elif renewal.cancel_requested:
            self._stop_reason = JobCancelled("the job was cancelled while it ran")

    def _kill_process(self, reason: Exception) -> None:
        logger.warning("the work did not stop, so its process is killed: %s", reason)
        try:
            self._before_kill(reason)
        except Exception:
            logger.exception("the reason could not be recorded")
        finally:
            self._kill()
