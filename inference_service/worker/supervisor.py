"""What a worker's parent process does besides consuming: it looks after jobs that nobody holds, and reports itself.

A thread does so every few seconds. The process forks children whenever one dies, and a fork must not copy a connection
or a held lock: so it waits while the thread looks, and the thread leaves no connection to Postgres behind.
"""

import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from uuid import UUID

from inference_service.core.errors import DatabaseUnavailable, QueueUnavailable, ServiceError, StorageUnavailable
from inference_service.core.settings import Settings
from inference_service.jobs import recovery, reservations, worker_registry
from inference_service.jobs.celery_app import PRIORITY_QUEUE, RedisState, fetch_redis_state, make_app, set_consuming
from inference_service.jobs.database import connect
from inference_service.jobs.dispatch import dispatch
from inference_service.jobs.lease import kill_process
from inference_service.jobs.object_storage import Storage, is_outage
from inference_service.jobs.result_store import ResultStore
from inference_service.worker.metrics import Metrics
from inference_service.worker.scratch_space import ScratchSpace

logger = logging.getLogger(__name__)

# Celery's heart beats every two seconds while the worker is connected and its event loop turns.
_ALIVE_WITHIN_S = 10.0
# Forks wait while the thread does, so it waits for nobody for long.
_SILENCE_LIMIT_S = 5.0
# A worker that has not ended so long after its time of grace hangs.
_HANG_LIMIT_S = 30.0


class Supervisor:
    """The thread.

    Args:
        settings: The worker's.
        identity: What the worker is.
        scratch_space: Its folder for temporary files.
        queues: Tells what it consumes now.
        taken: Tells how many messages it has taken so far; None while it runs any.
        end: Ends the process at once.
    """

    def __init__(
        self,
        settings: Settings,
        identity: worker_registry.WorkerIdentity,
        scratch_space: ScratchSpace,
        *,
        queues: Callable[[], Sequence[str]],
        taken: Callable[[], int | None],
        end: Callable[[], None] = kill_process,
    ) -> None:
        self._settings, self._identity, self._scratch_space = settings, identity, scratch_space
        self._app = make_app(settings, socket_timeout_s=_SILENCE_LIMIT_S)
        self._queues, self._taken, self._end = queues, taken, end
        self._idle_at: tuple[int | None, float] = (None, 0.0)
        self._database = connect(settings, pooled=False)
        self._storage = Storage(settings, read_timeout_s=_SILENCE_LIMIT_S)
        self._metrics = Metrics(identity.name, self._database)
        self._beat = time.monotonic()
        self._answers_since: float | None = -math.inf
        self._lost: list[tuple[UUID, int, ServiceError | None]] = []
        self.gave_up = False
        """Whether it has ended a worker that took no messages."""
        self._stop_at: float | None = None
        self._wake, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)
        self._looking = threading.Lock()

    def start(self) -> None:
        """Starts the thread, once the children are there."""
        lock = self._looking
        os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release)
        if self._settings.metrics_port is not None:
            try:
                self._metrics.serve(self._settings.metrics_host, self._settings.metrics_port)
            except OSError as error:
                logger.error("METRICS_PORT: no metrics are served: %s", error)
        self._thread.start()

    def beat(self) -> None:
        """Notes that the worker consumes."""
        self._beat = time.monotonic()

    def lost(self, job_id: UUID, pid: int, error: ServiceError | None = None) -> None:
        """Notes that the process that ran a job is dead.

        Args:
            job_id: The job.
            pid: The process.
            error: What ends the job; None where it may have another attempt.
        """
        self._lost.append((job_id, pid, error))
        self._wake.set()

    def stopping(self, *, at_once: bool = False) -> None:
        """Notes that the worker was told to stop: jobs that run when the time of grace is over go to others.

        Args:
            at_once: Whether there is no such time.
        """
        if self._stop_at is None or at_once:
            self._stop_at = time.monotonic() + (0.0 if at_once else self._settings.shutdown_grace_s)
            self._wake.set()

    def stop(self) -> None:
        """Ends the thread, when no child is left: what they held goes to others."""
        self._ended.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()
        self._stop_at = time.monotonic()
        self._look(last=True)

    def _run(self) -> None:
        while not self._ended.is_set():
            with self._looking:
                self._look()
            self._end_if_hanging()
            self._wake.wait(self._pause_s())
            self._wake.clear()

    def _pause_s(self) -> float:
        period_s = self._settings.sweep_period_s
        if self._stop_at is None or self._grace_is_over():
            return period_s
        return min(period_s, max(0.0, self._stop_at - time.monotonic()))

    def _grace_is_over(self) -> bool:
        return self._stop_at is not None and time.monotonic() >= self._stop_at

    def _look(self, *, last: bool = False) -> None:
        """Does all there is to do. An outage ends it: the next look finds what this one left."""
        try:
            self._take_back()
            if last:
                worker_registry.deregister(self._database, self._identity.name)
            elif time.monotonic() - self._beat < _ALIVE_WITHIN_S:
                worker_registry.record_heartbeat(self._database, self._identity, queues=self._queues())
            self._sweep()
            self._metrics.refresh(lease_s=self._settings.lease_s)
            redis = fetch_redis_state(self._app)
            self._metrics.set_queue_depths(redis)
            self._send_unsent(redis)
            if not last and self._stop_at is None:
                self._stand_by()
                self._see_that_it_consumes(redis)
            self._clear()
            self._metrics.mark_sweep()
        except (DatabaseUnavailable, QueueUnavailable) as error:
            if isinstance(error, DatabaseUnavailable):
                self._answers_since = None
            logger.warning("jobs that nobody holds are not looked after: %s", error)
        except Exception:
            logger.exception("jobs that nobody holds are not looked after")

    def _end_if_hanging(self) -> None:
        """Ends a worker that was told to stop and does not, as its consumer may have lost its way."""
        if self._stop_at is not None and time.monotonic() > self._stop_at + _HANG_LIMIT_S:
            logger.critical("the worker does not stop, so its process is ended; its jobs are given back")
            self._end()

    def _take_back(self) -> None:
        """Takes back what this worker's own children no longer do."""
        name, limit = self._identity.name, self._settings.max_attempts
        # First, as the children of a worker that stops at once were not lost by a fault of their jobs.
        if self._grace_is_over():
            recovery.return_jobs(self._database, worker=name, max_attempts=limit)
        while self._lost:
            job_id, pid, error = self._lost[0]
            self._scratch_space.remove(job_id, pid)
            if error is None:
                recovery.requeue_lost(self._database, job_id, worker=name, pid=pid, max_attempts=limit)
            else:
                recovery.fail_lost(self._database, job_id, worker=name, pid=pid, error=error)
            del self._lost[0]

    def _sweep(self) -> None:
        """Does what one worker at a time does for all."""
        settings = self._settings
        with recovery.sweep_lock(self._database) as mine:
            if not mine:
                return
            now = time.monotonic()
            self._answers_since = now if self._answers_since is None else self._answers_since
            ended = []
            # After an outage of Postgres all leases have run out, and those who live are about to renew them.
            if now - self._answers_since >= settings.lease_s:
                ended += recovery.requeue_expired(self._database, max_attempts=settings.max_attempts)
            ended += recovery.fail_unreadable(self._database, older_than_s=settings.lease_s)
            self._metrics.count_ended(ended)

    def _clear(self) -> None:
        """Removes what jobs without results may have stored, and what dead workers have left here."""
        for job_id, place in reservations.find_uncleared(self._database):
            try:
                ResultStore(self._storage, place).discard(self._database, job_id)
            except StorageUnavailable as error:
                logger.warning("what job %s may have stored is not removed: %s", job_id, error)
                if is_outage(error):
                    break
        abandoned = self._scratch_space.remove_abandoned()
        if abandoned:
            logger.warning("removed what %d dead worker(s) had left of their jobs", abandoned)

    def _send_unsent(self, redis: RedisState) -> None:
        with recovery.sweep_lock(self._database) as mine:
            unsent = recovery.find_unsent(self._database, redis, grace_s=self._settings.lease_s) if mine else []
            dispatch(self._app, self._database, unsent, redis, settings=self._settings)
        if unsent:
            logger.info("%d job(s) without a message were sent", len(unsent))

    def _see_that_it_consumes(self, redis: RedisState) -> None:
        """Ends a worker that takes no message though some wait, as has happened to consumers that lost a connection."""
        taken, now = self._taken(), time.monotonic()
        waits = any(redis.depths[queue] for queue in worker_registry.ROLE_QUEUES[self._identity.role])
        if taken is None or not waits or taken != self._idle_at[0]:
            self._idle_at = (taken, now)
        elif now - self._idle_at[1] > 2 * self._settings.lease_s:
            logger.critical("messages wait and this worker takes none: it ends, for whoever runs it to start another")
            self.gave_up = True
            os.kill(os.getpid(), signal.SIGTERM)

    def _stand_by(self) -> None:
        """Takes up the priority queue while no worker of role gpu is alive, and drops it when one is back."""
        if self._identity.role is not worker_registry.Role.CPU:
            return
        wanted = not worker_registry.has_live_worker(
            self._database, worker_registry.Role.GPU, within_s=self._settings.cpu_standby_s
        )
        if wanted == (PRIORITY_QUEUE in self._queues()):
            return
        logger.info("the priority queue is %s", "taken up: no GPU worker is alive" if wanted else "left to the GPU")
        set_consuming(self._app, PRIORITY_QUEUE, worker=self._identity.name, consuming=wanted)
