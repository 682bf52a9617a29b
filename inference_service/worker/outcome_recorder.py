"""Records in the job's row how an attempt ends."""

import json
import logging
import time

from inference_service.contract.task_message import Priority
from inference_service.core.errors import (
    GpuError,
    InternalError,
    ModelError,
    OutOfMemory,
    ServiceError,
    StorageUnavailable,
    TransientError,
)
from inference_service.core.progress import StageClock
from inference_service.jobs import attempts
from inference_service.jobs.queues.lists import OVERFLOW_QUEUE, PRIORITY_QUEUE
from inference_service.jobs.workers.worker_registry import has_live_consumer, has_model
from inference_service.worker.job_context import JobContext
from inference_service.worker.self_test import LONGEST_TEST_S

logger = logging.getLogger(__name__)

_MAX_RETRY_DELAY_S = 300.0
_MAX_DOUBLINGS = 30


class OutcomeRecorder:
    """Records the outcome of one attempt. It retries during an outage of Postgres, for `OUTAGE_PATIENCE_S` at most.

    Args:
        context: The worker's context.
        claim: The attempt.
        clock: The seconds of the attempt's stages.
    """

    def __init__(self, context: JobContext, claim: attempts.Claim, clock: StageClock) -> None:
        self._context = context
        self._claim = claim
        self._clock = clock

    def record_success(self, success: attempts.Success) -> bool:
        """Records the job's success; False if the lease is lost."""
        recorded = self._context.retry_database(attempts.succeed, self._context.database, self._claim, success)
        if recorded:
            self._context.self_test.end_losses()
            logger.info("succeeded on %s; seconds per stage: %s", success.providers, self._timings())
        return recorded

    def record_failure(self, error: ServiceError) -> None:
        """Queues the job for another attempt, or ends it.

        It gets another attempt if one is left and the error is transient, or may be this machine's alone. An attempt
        does not count if this machine is at fault, or if another worker has the model that this one lacks or cannot
        use.
        """
        problem = self._problem_behind(error)
        if problem is not None:
            logger.error("attempt %d does not count: this worker is at fault: %s", self._claim.attempt, problem)
            self._schedule_retry(error, counts=False)
        elif isinstance(error, ModelError) and (delay_s := self._wait_for_model_s()) is not None:
            self._schedule_retry(error, counts=False, elsewhere=True, delay_s=delay_s)
        elif isinstance(error, TransientError) and self._claim.attempts_left > 0:
            self._schedule_retry(error, elsewhere=isinstance(error, StorageUnavailable))
        elif isinstance(error, OutOfMemory | InternalError) and self._claim.attempts_left > 0 and self._has_other():
            self._schedule_retry(error, elsewhere=True)
        else:
            self._end_job(error)

    def record_forced_end(self, reason: Exception) -> None:
        """Records why the lease's thread is about to kill this process."""
        if isinstance(reason, ServiceError):
            self._write_failure(reason)

    def _problem_behind(self, error: ServiceError) -> str | None:
        context = self._context
        if context.self_test.may_explain(error):
            # The test may outlast the lease, which is no longer renewed.
            lease_s = context.settings.lease_s + LONGEST_TEST_S
            context.retry_database(attempts.extend, context.database, self._claim, lease_s=lease_s)
        return context.self_test.problem_behind(error)

    def _has_other(self) -> bool:
        """Returns True if another worker that has not failed on the job consumes the queue of its next attempt."""
        context = self._context
        request = self._claim.request or {}
        urgent = request.get("priority") == Priority.URGENT and not self._claim.on_cpu
        return context.retry_database(
            has_live_consumer,
            context.database,
            PRIORITY_QUEUE if urgent else OVERFLOW_QUEUE,
            besides=self._claim.avoided_workers | {self._claim.worker},
            within_s=context.settings.cpu_standby_s,
        )

    def _wait_for_model_s(self) -> float | None:
        """Returns the delay after which another worker that has the job's model may take it; None if there is none."""
        context = self._context
        alive_s = context.settings.cpu_standby_s
        request = self._claim.request or {}
        if context.retry_database(
            has_model,
            context.database,
            str(request.get("model")),
            request.get("model_version"),
            besides=self._claim.avoided_workers | {self._claim.worker},
            within_s=alive_s,
        ):
            return self._delay_s(counts=False)
        # The others may be starting, too, and have not reported their models yet.
        left_s = context.started_at + alive_s - time.monotonic()
        return left_s if left_s > 0 else None

    def _delay_s(self, *, counts: bool) -> float:
        """Returns the delay of the next attempt."""
        settings = self._context.settings
        # Attempts that do not count have no limit, so all of them lengthen the delay.
        earlier = settings.max_attempts - self._claim.attempts_left if counts else self._claim.attempt
        doublings = min(earlier - 1, _MAX_DOUBLINGS)
        return min(settings.retry_delay_s * 2.0**doublings, _MAX_RETRY_DELAY_S)

    def _schedule_retry(
        self, error: ServiceError, *, counts: bool = True, elsewhere: bool = False, delay_s: float | None = None
    ) -> None:
        if delay_s is None:
            delay_s = self._delay_s(counts=counts)
        logger.warning("attempt %d failed, next attempt in %.0f s: %s", self._claim.attempt, delay_s, error)
        logger.debug("cause of the failure", exc_info=error)
        held = self._context.retry_database(
            attempts.schedule_retry,
            self._context.database,
            self._claim,
            delay_s=delay_s,
            detail=error.code,
            on_cpu=isinstance(error, GpuError),
            counts=counts,
            elsewhere=elsewhere,
        )
        if not held:
            logger.warning("attempt %d: retry not recorded: another attempt holds the job", self._claim.attempt)

    def _end_job(self, error: ServiceError) -> None:
        logger.warning("job ended: %s: %s; seconds per stage: %s", error.code, error.message, self._timings())
        logger.debug("cause of the failure", exc_info=error)
        self._write_failure(error)

    def _write_failure(self, error: ServiceError) -> None:
        held = self._context.retry_database(
            attempts.fail, self._context.database, self._claim, error, timings_s=dict(self._clock.seconds)
        )
        if not held:
            logger.warning("attempt %d: failure not recorded: another attempt holds the job", self._claim.attempt)

    def _timings(self) -> str:
        return json.dumps({stage: round(seconds, 3) for stage, seconds in self._clock.seconds.items()})
