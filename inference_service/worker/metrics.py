"""Prometheus metrics of a worker: the jobs that it ended, and the state of the whole service."""

import os
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from sqlalchemy import func, select

from inference_service.core.errors import COMMAND_LINE_CODES, ErrorCode, error_from_row
from inference_service.core.progress import STAGES
from inference_service.jobs.database import Database
from inference_service.jobs.queues.redis_state import RedisState
from inference_service.jobs.recovery import FinishedJob
from inference_service.jobs.schema import JobRow, JobState
from inference_service.jobs.state_machine import final_state

_BUCKETS_S = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 60, 120, 300, 600, 1800, 3600)
# A row carries the time at which its transaction began, so rows of the last moment may not be committed yet.
_SETTLED_AFTER = timedelta(seconds=2)


class Metrics:
    """The metrics of one worker, in a registry of their own.

    Counters and histograms cover the jobs that this worker ended. Gauges of jobs and queues describe the whole service,
    so that every worker reports the same values.

    Args:
        worker: The worker's name.
        database: Source of all figures except the queue depths.
    """

    def __init__(self, worker: str, database: Database) -> None:
        self.registry = CollectorRegistry()
        self._worker = worker
        self._database = database
        self._counted_to: datetime | None = None
        self._finished = Counter(
            "inference_jobs_finished", "Jobs ended by this worker.", ["state", "code"], registry=self.registry
        )
        self._attempts = Counter(
            "inference_attempts", "Attempts that count of the jobs ended by this worker.", registry=self.registry
        )
        self._job_duration = Histogram(
            "inference_job_duration_seconds",
            "Seconds from a job's first start to its end.",
            buckets=_BUCKETS_S,
            registry=self.registry,
        )
        self._stage_duration = Histogram(
            "inference_stage_duration_seconds",
            "Seconds of one stage of a job.",
            ["stage"],
            buckets=_BUCKETS_S,
            registry=self.registry,
        )
        self._jobs = Gauge("inference_jobs", "Jobs that are queued or running.", ["state"], registry=self.registry)
        self._queue_depth = Gauge(
            "inference_queue_depth", "Messages waiting in a queue.", ["queue"], registry=self.registry
        )
        self._oldest_queued_age = Gauge(
            "inference_oldest_queued_job_age_seconds",
            "Seconds since the oldest queued job was created.",
            registry=self.registry,
        )
        self._last_sweep = Gauge(
            "inference_last_sweep_timestamp_seconds",
            "Unix time of this worker's last complete sweep, and so of the gauges' values.",
            registry=self.registry,
        )
        self._lease_age = Gauge(
            "inference_lease_age_seconds",
            "Seconds since the stalest running lease was renewed.",
            registry=self.registry,
        )
        self._paused = Gauge(
            "inference_worker_paused",
            "1 while this worker takes no jobs because its self-test fails, else 0.",
            registry=self.registry,
        )
        self._create_series()

    def serve(self, host: str, port: int) -> None:
        """Serves the metrics over HTTP from a thread.

        Raises:
            OSError: The port is taken.
        """
        server, _ = start_http_server(port, host, self.registry)
        # Otherwise a child that outlives this process would keep the port.
        os.register_at_fork(after_in_child=server.socket.close)

    def count_ended(self, ended: Iterable[FinishedJob]) -> None:
        """Counts jobs that this worker's sweep ended for workers that are gone."""
        for job in ended:
            if job.worker != self._worker:
                self._count(final_state(job.error), job.error.code, job.attempts, job.duration_s, {})

    def refresh(self, *, lease_s: float) -> None:
        """Counts this worker's jobs that ended since the last call, and sets the gauges of jobs from the table of jobs.

        Args:
            lease_s: Length of a lease. A lease was last renewed this many seconds before it expires.

        Raises:
            DatabaseUnavailable: Postgres does not answer.
        """
        with self._database.connection() as connection:
            settled = connection.execute(select(func.now() - _SETTLED_AFTER)).scalar_one()
            rows = connection.execute(
                select(
                    JobRow.state,
                    JobRow.error_code,
                    (JobRow.attempt - JobRow.returned_attempts).label("attempts"),
                    JobRow.timings_s,
                    JobRow.started_at,
                    JobRow.finished_at,
                ).where(
                    JobRow.lease_owner == self._worker,
                    # A job that was retried on request, and cancelled before it started again, belongs to no worker.
                    JobRow.started_at.is_not(None),
                    JobRow.finished_at > (self._counted_to or settled),
                    JobRow.finished_at <= settled,
                )
            ).all()
            # Two queries, so that the one of the many jobs reads nothing but an index.
            queued, waiting_s = connection.execute(
                select(func.count(), func.extract("epoch", func.now() - func.min(JobRow.created_at))).where(
                    JobRow.state == JobState.QUEUED
                )
            ).one()
            running, expired_s = connection.execute(
                select(func.count(), func.extract("epoch", func.now() - func.min(JobRow.lease_expires_at))).where(
                    JobRow.state == JobState.RUNNING
                )
            ).one()
        self._counted_to = settled
        for row in rows:
            seconds = (row.finished_at - row.started_at).total_seconds()
            self._count(row.state, row.error_code, row.attempts, seconds, row.timings_s or {})
        self._jobs.labels("queued").set(queued)
        self._jobs.labels("running").set(running)
        self._oldest_queued_age.set(0 if waiting_s is None else waiting_s)
        self._lease_age.set(0 if expired_s is None else float(expired_s) + lease_s)

    def set_queue_depths(self, redis: RedisState) -> None:
        """Sets the number of waiting messages of each queue."""
        for queue, depth in redis.depths.items():
            self._queue_depth.labels(queue).set(depth)

    def set_paused(self, paused: bool) -> None:
        """Sets whether the worker is paused."""
        self._paused.set(paused)

    def mark_sweep(self) -> None:
        """Records that a sweep is complete."""
        self._last_sweep.set_to_current_time()

    def _create_series(self) -> None:
        """Creates every counter series at zero: Prometheus sees no increase when a series first appears with 1."""
        self._finished.labels(JobState.SUCCEEDED, "")
        for code in sorted(set(ErrorCode) - COMMAND_LINE_CODES):
            self._finished.labels(final_state(error_from_row(code, "")), code)
        for stage in STAGES:
            self._stage_duration.labels(stage)

    def _count(
        self, state: str, code: str | None, attempts: int, seconds: float | None, timings_s: Mapping[str, float]
    ) -> None:
        self._finished.labels(state, code or "").inc()
        self._attempts.inc(attempts)
        if seconds is not None:
            self._job_duration.observe(seconds)
        for stage, stage_s in timings_s.items():
            self._stage_duration.labels(stage).observe(stage_s)
