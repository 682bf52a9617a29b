"""What a worker tells Prometheus: the jobs that it ended, and how the whole service stands."""

import os
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from sqlalchemy import func, select

from inference_service.core.errors import ErrorCode, error_from_row
from inference_service.core.progress import STAGES
from inference_service.jobs.celery_app import RedisState
from inference_service.jobs.database import Database, mapped_errors
from inference_service.jobs.job_store import state_for
from inference_service.jobs.recovery import Ended
from inference_service.jobs.schema import JobRow, JobState

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 60, 120, 300, 600, 1800, 3600)
# A row's time is when its transaction began: those of the last moment may not all be visible yet.
_SETTLED_AFTER = timedelta(seconds=2)


class Metrics:
    """The metrics of one worker, in a registry of their own.

    Args:
        worker: The worker's name: it counts the jobs that it ended.
        database: Tells them; also the gauges, which are the whole service's whoever is asked.
    """

    def __init__(self, worker: str, database: Database) -> None:
        self.registry = CollectorRegistry()
        self._worker, self._database = worker, database
        self._counted_to: datetime | None = None
        self._finished = Counter(
            "inference_jobs_finished", "Jobs ended by this worker.", ["state", "code"], registry=self.registry
        )
        self._attempts = Counter("inference_attempts", "Attempts that those jobs took.", registry=self.registry)
        self._job_seconds = Histogram(
            "inference_job_seconds",
            "From the first start of a job to its end.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._stage_seconds = Histogram(
            "inference_stage_seconds", "A stage of a job.", ["stage"], buckets=_SECONDS, registry=self.registry
        )
        self._jobs = Gauge("inference_jobs", "Jobs that are not finished.", ["state"], registry=self.registry)
        self._depth = Gauge("inference_queue_depth", "Messages that wait.", ["queue"], registry=self.registry)
        self._oldest = Gauge(
            "inference_oldest_queued_seconds", "Since when the oldest queued job waits.", registry=self.registry
        )
        self._looked = Gauge(
            "inference_looked_timestamp_seconds",
            "When this worker last looked after the service: what the gauges say is as old.",
            registry=self.registry,
        )
        self._lease_age = Gauge(
            "inference_lease_age_seconds",
            "Since when the lease was not renewed that was not for the longest time.",
            registry=self.registry,
        )

        self._start_from_zero()

    def serve(self, host: str, port: int) -> None:
        """Serves them over HTTP in a thread.

        Raises:
            OSError: The port is taken.
        """
        server, _ = start_http_server(port, host, self.registry)
        # A child that outlives this process must not keep the port.
        os.register_at_fork(after_in_child=server.socket.close)

    def count_ended(self, ended: Iterable[Ended]) -> None:
        """Counts jobs that this worker ended in the place of others, which are gone."""
        for job in ended:
            if job.worker != self._worker:
                self._count(state_for(job.error), job.error.code, job.attempts, job.seconds, {})

    def look(self, *, lease_s: float) -> None:
        """Counts the jobs ended since the last look, and measures the service.

        Raises:
            DatabaseUnavailable: Postgres does not answer.
        """
        with mapped_errors(), self._database.connect() as connection:
            settled = connection.execute(select(func.now() - _SETTLED_AFTER)).scalar_one()
            rows = connection.execute(
                select(
                    JobRow.state, JobRow.error_code, JobRow.attempt, JobRow.timings_s,
                    JobRow.started_at, JobRow.finished_at,
                ).where(
                    JobRow.lease_owner == self._worker,
                    JobRow.finished_at > (self._counted_to or settled),
                    JobRow.finished_at <= settled,
                )
            ).all()  # fmt: skip
            unfinished = connection.execute(
                select(
                    JobRow.state,
                    func.count(),
                    func.extract("epoch", func.now() - func.min(JobRow.created_at)),
                    func.extract("epoch", func.now() - func.min(JobRow.lease_expires_at)),
                )
                .where(JobRow.state.in_([JobState.QUEUED, JobState.RUNNING]))
                .group_by(JobRow.state)
            ).all()
        self._counted_to = settled
        for row in rows:
            seconds = (row.finished_at - row.started_at).total_seconds()
            self._count(row.state, row.error_code, row.attempt, seconds, row.timings_s or {})
        by_state = {state: measured for state, *measured in unfinished}
        queued, waiting_s, _ = by_state.get(JobState.QUEUED, (0, 0, 0))
        running, _, expired_s = by_state.get(JobState.RUNNING, (0, 0, -lease_s))
        self._jobs.labels("queued").set(queued)
        self._jobs.labels("running").set(running)
        self._oldest.set(waiting_s)
        self._lease_age.set(float(expired_s) + lease_s)

    def looked(self) -> None:
        """Notes that all that there was to look at was looked at."""
        self._looked.set_to_current_time()

    def measure_queues(self, redis: RedisState) -> None:
        """Notes how many messages wait."""
        for queue, depth in redis.depths.items():
            self._depth.labels(queue).set(depth)

    def _start_from_zero(self) -> None:
        """Makes the series that jobs will count on: Prometheus sees no increase from nothing to one."""
        self._finished.labels(JobState.SUCCEEDED, "")
        for code in ErrorCode:
            self._finished.labels(state_for(error_from_row(code, "")), code)
        for stage in STAGES:
            self._stage_seconds.labels(stage)

    def _count(
        self, state: str, code: str | None, attempts: int, seconds: float | None, timings_s: Mapping[str, float]
    ) -> None:
        self._finished.labels(state, code or "").inc()
        self._attempts.inc(attempts)
        if seconds is not None:
            self._job_seconds.observe(seconds)
        for stage, seconds in timings_s.items():
            self._stage_seconds.labels(stage).observe(seconds)
