"""Records in the job's row how an attempt ends."""

import json
import logging

from inference_service.core.errors import GpuError, ServiceError, TransientError
from inference_service.core.progress import StageClock
from inference_service.jobs import attempts
from inference_service.worker.job_context import JobContext

logger = logging.getLogger(__name__)

_MAX_RETRY_DELAY_S = 300.0


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
            logger.info("succeeded on %s; seconds per stage: %s", success.providers, self._timings())
        return recorded

    def record_failure(self, error: ServiceError) -> None:
        """Queues the job for another attempt if the error is transient and one is left, and ends the job otherwise."""
        if isinstance(error, TransientError) and self._claim.attempts_left > 0:
            self._schedule_retry(error)
        else:
            self._end_job(error)

    def record_forced_end(self, reason: Exception) -> None:
        """Records why the lease's thread is about to kill this process."""
        if isinstance(reason, ServiceError):
            self._write_failure(reason)

    def _schedule_retry(self, error: TransientError) -> None:
        settings = self._context.settings
        counted = settings.max_attempts - self._claim.attempts_left
        delay_s = min(settings.retry_delay_s * 2 ** (counted - 1), _MAX_RETRY_DELAY_S)
        logger.warning("attempt %d failed, next attempt in %.0f s: %s", self._claim.attempt, delay_s, error)
        logger.debug("cause of the failure", exc_info=error)
        held = self._context.retry_database(
            attempts.schedule_retry,
            self._context.database,
            self._claim,
            delay_s=delay_s,
            detail=error.code,
            on_cpu=isinstance(error, GpuError),
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
