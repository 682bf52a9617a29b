"""The supervisor thread of a worker's parent process: reports the worker alive, sweeps, and watches its children.

The parent forks a new child whenever one dies, and a fork must copy neither an open connection nor a held lock.
Therefore a fork waits until a sweep is over, and a sweep leaves no connection to Postgres open.
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from uuid import UUID

from inference_service.core.errors import (
    ConfigurationError,
    DatabaseUnavailable,
    QueueUnavailable,
    ServiceError,
)
from inference_service.core.scratch_space import ScratchSpace
from inference_service.core.settings import Settings
from inference_service.jobs import recovery
from inference_service.jobs.database import connect
from inference_service.jobs.lease import kill_process
from inference_service.jobs.queues.celery_app import make_app
from inference_service.jobs.queues.lists import QUEUES, depth_of
from inference_service.jobs.queues.redis_state import RedisState, fetch_redis_state
from inference_service.jobs.redis_ownership import RedisOwnership
from inference_service.jobs.storage.object_storage import Storage
from inference_service.jobs.workers import worker_registry
from inference_service.worker.machine_watch import MachineWatch
from inference_service.worker.metrics import Metrics
from inference_service.worker.model_summaries import SummaryReader
from inference_service.worker.self_test import SelfTest
from inference_service.worker.sweeper import Sweeper

logger = logging.getLogger(__name__)

# Celery sends a heartbeat every two seconds while the worker is connected and its event loop runs.
_HEARTBEAT_LIMIT_S = 10.0
# Short, because forks wait for a sweep, and a sweep for the servers that it asks.
_SERVER_TIMEOUT_S = 5.0
# A worker that still runs this long after the end of its shutdown grace period hangs.
_HANG_LIMIT_S = 30.0


class Supervisor:
    """The supervisor of one worker.

    Args:
        settings: The worker's settings.
        identity: The worker's name, role, concurrency and providers.
        scratch_space: The worker's temporary files.
        self_test: Tests the worker's machine.
        consumed_queues: Returns the queues that the worker consumes now.
        messages_taken: Returns the number of messages taken so far; None while a message is being handled.
        kill: Kills the worker's process.
    """

    def __init__(
        self,
        settings: Settings,
        identity: worker_registry.WorkerIdentity,
        scratch_space: ScratchSpace,
        self_test: SelfTest,
        *,
        consumed_queues: Callable[[], Sequence[str]],
        messages_taken: Callable[[], int | None],
        kill: Callable[[], None] = kill_process,
    ) -> None:
        self._settings = settings
        self._identity = identity
        self._scratch_space = scratch_space
        self._self_test = self_test
        self._consumed_queues = consumed_queues
        self._messages_taken = messages_taken
        self._kill = kill
        self._app = make_app(settings, socket_timeout_s=_SERVER_TIMEOUT_S)
        self._database = connect(settings, pooled=False)
        storage = Storage(settings, read_timeout_s=_SERVER_TIMEOUT_S)
        self._sweeper = Sweeper(settings, self._app, self._database, storage)
        self._ownership = RedisOwnership(
            self._app, self._database, live_within_s=settings.cpu_standby_s, worker=identity.name
        )
        self._metrics = Metrics(identity.name, self._database)
        self._heartbeat_at = time.monotonic()
        self._lost_children: list[tuple[UUID, int, ServiceError | None]] = []
        self._idle_since = time.monotonic()
        self._idle_messages: int | None = None
        self._stop_at: float | None = None
        self._wake = threading.Event()
        self._stopped = threading.Event()
        self._sweeping = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)
        self.gave_up = False
        """True once the supervisor has stopped the worker."""
        self._standby = False
        self._machine = MachineWatch(
            self_test,
            SummaryReader(settings, scratch_space.path, self._sweeping),
            period_s=settings.sweep_period_s,
            fork_lock=self._sweeping,
        )

    @property
    def wanted_queues(self) -> Sequence[str]:
        """The queues that the worker is to consume now."""
        if self._self_test.paused:
            return ()
        return QUEUES if self._standby else worker_registry.ROLE_QUEUES[self._identity.role]

    @property
    def problem(self) -> str | None:
        """Why the worker is paused; None if it is not, or if that is not known yet."""
        return self._machine.problem

    @property
    def stopping(self) -> bool:
        """True once the worker was asked to stop."""
        return self._stop_at is not None

    def start(self) -> None:
        """Starts the thread. Call it after the children are forked."""
        lock = self._sweeping
        os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release)
        if self._settings.metrics_port is not None:
            try:
                self._metrics.serve(self._settings.metrics_host, self._settings.metrics_port)
            except OSError as error:
                logger.error("METRICS_PORT: metrics are not served: %s", error)
        self._machine.start()
        self._thread.start()

    def record_heartbeat(self) -> None:
        """Records that the worker consumes its queues."""
        self._heartbeat_at = time.monotonic()

    def child_lost(self, job_id: UUID, pid: int, error: ServiceError | None = None) -> None:
        """Reports that a child process died while it ran a job.

        Args:
            job_id: The job.
            pid: The child's process id.
            error: The error with which the job ends; None if the job may have another attempt.
        """
        self._lost_children.append((job_id, pid, error))
        self._wake.set()

    def begin_shutdown(self, *, at_once: bool = False) -> None:
        """Starts the grace period, after which running jobs are returned to their queues.

        Args:
            at_once: Whether the grace period is skipped.
        """
        if self._stop_at is None or at_once:
            self._stop_at = time.monotonic() + (0.0 if at_once else self._settings.shutdown_grace_s)
            self._wake.set()

    def stop(self) -> None:
        """Stops the thread, and queues the jobs again that the worker still holds. Call it when no child is left."""
        self._stopped.set()
        self._machine.stop()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()
        self._stop_at = time.monotonic()
        self._sweep(last=True)

    def _run(self) -> None:
        while not self._stopped.is_set():
            with self._sweeping:
                self._sweep()
            self._kill_if_hanging()
            self._wake.wait(self._pause_s())
            self._wake.clear()

    def _pause_s(self) -> float:
        period_s = self._settings.sweep_period_s
        if self._stop_at is None or self._grace_is_over():
            return period_s
        return min(period_s, max(0.0, self._stop_at - time.monotonic()))

    def _grace_is_over(self) -> bool:
        return self._stop_at is not None and time.monotonic() >= self._stop_at

    def _sweep(self, *, last: bool = False) -> None:
        """Does one sweep. An outage ends it early; the next sweep does the rest."""
        try:
            self._recover_own_jobs()
            if last:
                worker_registry.deregister(self._database, self._identity.name)
            else:
                self._report_alive()
            self._metrics.set_paused(self._self_test.paused)
            self._metrics.count_ended(self._sweeper.recover_jobs())
            self._metrics.refresh(lease_s=self._settings.lease_s)
            redis = fetch_redis_state(self._app)
            self._metrics.set_queue_depths(redis)
            self._ownership.claim(redis)
            self._sweeper.cancel_by_messages()
            self._ownership.adopt(redis)
            self._sweeper.send_missing_messages(redis)
            self._sweeper.publish_completions()
            if not last and self._stop_at is None:
                self._update_standby()
                self._stop_if_stalled(redis)
            self._sweeper.prune()
            self._sweeper.remove_abandoned_objects()
            self._remove_abandoned_files()
            self._metrics.mark_sweep()
        except ConfigurationError as error:
            logger.critical("this worker stops: %s", error)
            if not last:
                self._give_up()
        except (DatabaseUnavailable, QueueUnavailable) as error:
            if isinstance(error, DatabaseUnavailable):
                self._sweeper.record_outage()
            logger.warning("sweep ended early; the next one does the rest: %s", error)
        except Exception:
            logger.exception("sweep failed; the next one tries again")

    def _report_alive(self) -> None:
        if time.monotonic() - self._heartbeat_at < _HEARTBEAT_LIMIT_S:
            worker_registry.record_heartbeat(
                self._database,
                self._identity,
                queues=self._consumed_queues(),
                models=self._machine.models,
                summaries=self._machine.summaries,
                paused=self._machine.problem,
            )

    def _recover_own_jobs(self) -> None:
        """Recovers the jobs of this worker's dead children, and after the grace period all jobs that it holds."""
        name = self._identity.name
        max_attempts = self._settings.max_attempts
        # First: when a worker stops at once, its children die through no fault of their jobs.
        if self._grace_is_over():
            recovery.return_jobs(self._database, worker=name, max_attempts=max_attempts)
        while self._lost_children:
            job_id, pid, error = self._lost_children[0]
            self._scratch_space.remove(job_id, pid)
            if error is None:
                lost = recovery.requeue_lost(self._database, job_id, worker=name, pid=pid, max_attempts=max_attempts)
                if lost:
                    self._self_test.count_loss(job_id)
            else:
                recovery.fail_lost(self._database, job_id, worker=name, pid=pid, error=error)
            del self._lost_children[0]

    def _remove_abandoned_files(self) -> None:
        removed = self._scratch_space.remove_abandoned()
        if removed:
            logger.warning("removed the temporary files of %d dead process(es)", removed)

    def _update_standby(self) -> None:
        """Lets a CPU worker consume the priority queue while no GPU worker is alive, and only then."""
        if self._identity.role is not worker_registry.Role.CPU:
            return
        standby = not worker_registry.has_live_worker(
            self._database, worker_registry.Role.GPU, within_s=self._settings.cpu_standby_s
        )
        if standby and not self._standby:
            logger.info("this CPU worker now also takes the priority queue: no GPU worker is alive")
        elif self._standby and not standby:
            logger.info("this CPU worker no longer takes the priority queue: a GPU worker is alive")
        self._standby = standby

    def _stop_if_stalled(self, redis: RedisState) -> None:
        """Stops a worker that takes no message while some wait, which can happen after a lost connection."""
        now = time.monotonic()
        taken = self._messages_taken()
        waiting = any(depth_of(redis.depths, queue) for queue in worker_registry.ROLE_QUEUES[self._identity.role])
        if self._self_test.paused or taken is None or not waiting or taken != self._idle_messages:
            self._idle_messages = taken
            self._idle_since = now
        elif now - self._idle_since > 2 * self._settings.lease_s:
            logger.critical("worker stalled: messages are waiting, but it takes none; it stops to be restarted")
            self._give_up()

    def _give_up(self) -> None:
        """Stops the worker, which ends with status 1."""
        self.gave_up = True
        os.kill(os.getpid(), signal.SIGTERM)

    def _kill_if_hanging(self) -> None:
        """Kills a worker that does not stop, for example because its consumer hangs."""
        if self._stop_at is not None and time.monotonic() > self._stop_at + _HANG_LIMIT_S:
            logger.critical("worker does not stop and is killed; a sweep queues its jobs again")
            self._kill()
