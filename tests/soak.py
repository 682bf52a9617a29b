"""A soak test for `make soak`: submits small jobs continuously while parts of the service are killed at random.

Before that it measures the overhead of a job on an idle service. The exit status is 0 if the overhead is within its
limit, and if no job was lost, stuck or had a wrong outcome.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from statistics import median, quantiles
from uuid import UUID, uuid4

import psutil
from faults import PERIODS, Service, child_of, freeze, kill, resume, start_service

from inference_service.cli.display import console
from inference_service.contract.task_message import Priority, SegmentRequest
from inference_service.core.errors import TransientError
from inference_service.embedded.phantom import chest_phantom
from inference_service.embedded.servers import start_servers
from inference_service.embedded.stack import WorkerProcess, settings_for
from inference_service.formats.nifti import write_volume
from inference_service.jobs.celery_app import make_app, send
from inference_service.jobs.job_store import Job
from inference_service.jobs.schema import JobState
from inference_service.worker.deployment import prepare

# Faults cost attempts; no job should run out of them by chance.
WORKER = {**PERIODS, "MAX_ATTEMPTS": "20", "OUTAGE_PATIENCE_S": "10"}
ROLES = ("gpu", "cpu")
# Limits of an idle service.
MAX_OVERHEAD_S = 0.060
MIN_ENQUEUED_PER_S = 200
# Range of the time between the end of a fault and the next fault.
PAUSE_S = (1.0, 6.0)
SETTLE_LIMIT_S = 180.0
SCREEN = console()
SLOW_SHARE = 0.3


class Soak:
    """Keeps two workers running, submits random jobs and injects faults."""

    def __init__(self, service: Service, seed: int) -> None:
        self._service = service
        self._random = random.Random(seed)
        # The thread that submits has its own generator, so that a seed gives the same jobs and faults.
        self._submit_random = random.Random(seed + 1)
        self._workers: dict[str, tuple[WorkerProcess, ExitStack]] = {}
        self._app = make_app(settings_for(service.servers.environment))
        self.injected: Counter[str] = Counter()
        self.jobs: list[UUID] = []
        self.cancelled: set[UUID] = set()

    def keep_workers(self) -> None:
        """Starts each worker that does not run."""
        for role in ROLES:
            if role in self._workers and psutil.pid_exists(self._workers[role][0].pid):
                with suppress(psutil.NoSuchProcess):
                    if psutil.Process(self._workers[role][0].pid).status() != psutil.STATUS_ZOMBIE:
                        continue
            self.stop_worker(role)
            stack = ExitStack()
            self._workers[role] = (stack.enter_context(self._service.worker(role, **WORKER)), stack)

    def stop_worker(self, role: str) -> None:
        """Stops a worker if it was started."""
        if role in self._workers:
            self._workers.pop(role)[1].close()

    def submit(self) -> None:
        """Submits one job, and tries again while the database is down."""
        request = SegmentRequest(
            input=self._service.scan,
            model="slow" if self._submit_random.random() < SLOW_SHARE else "quick",
            priority=self._submit_random.choice(list(Priority)),
        )
        job_id = uuid4()
        while True:
            with suppress(TransientError):
                self._service.client.submit(request, job_id=job_id)
                self.jobs.append(job_id)
                return
            time.sleep(0.5)

    def inject(self) -> None:
        """Injects one random fault after a random pause."""
        time.sleep(self._random.uniform(*PAUSE_S))
        faults: list[Callable[[], None]] = [
            self.kill_child,
            self.kill_worker,
            self.stop_and_start,
            self.freeze_worker,
            self.restart_redis,
            self.empty_redis,
            self.restart_postgres,
            self.restart_storage,
            self.deliver_twice,
            self.cancel,
        ]
        fault = self._random.choice(faults)
        # The worker of a fault may have ended, and a server that it needs may be down.
        with suppress(psutil.NoSuchProcess, TransientError, ValueError):
            fault()
            self.injected[fault.__name__] += 1

    def _any(self) -> WorkerProcess:
        return self._workers[self._random.choice(ROLES)][0]

    def kill_child(self) -> None:
        """The process that runs a worker's jobs is killed."""
        os.kill(child_of(self._any()), signal.SIGKILL)

    def kill_worker(self) -> None:
        """All processes of a worker are killed."""
        kill(self._any())

    def stop_and_start(self) -> None:
        """A worker receives SIGTERM."""
        self.stop_worker(self._random.choice(ROLES))

    def freeze_worker(self) -> None:
        """A worker is frozen for longer than its leases."""
        worker = self._any()
        freeze(worker)
        time.sleep(float(PERIODS["LEASE_S"]) + 2)
        resume(worker)

    def restart_redis(self) -> None:
        """Redis is killed and started again."""
        self._service.servers.redis.kill()
        time.sleep(self._random.uniform(0, 3))
        self._service.servers.redis.start()

    def empty_redis(self) -> None:
        """Redis is killed and started without its data."""
        self._service.lose_redis_data()

    def restart_postgres(self) -> None:
        """Postgres is killed and started again."""
        self._service.servers.postgres.kill()
        time.sleep(self._random.uniform(0, 3))
        self._service.servers.postgres.start()

    def restart_storage(self) -> None:
        """The object storage is killed and started again."""
        self._service.servers.s3.kill()
        time.sleep(self._random.uniform(0, 20))
        self._service.servers.s3.start()

    def deliver_twice(self) -> None:
        """Messages of the newest jobs, finished ones among them, are sent again."""
        for job in self._service.client.list(limit=5):
            send(self._app, job.id, job.request or {}, queue="overflow")

    def cancel(self) -> None:
        """An unfinished job is cancelled."""
        for job in self._service.client.list(limit=20):
            if not job.finished:
                self.cancelled.add(job.id)
                self._service.client.cancel(job.id)
                return

    def problems(self) -> list[str]:
        """Checks all jobs once the service is idle; returns the problems."""
        found = []
        deadline = time.monotonic() + SETTLE_LIMIT_S
        for job_id in self.jobs:
            job = self._service.client.status(job_id)
            while job is not None and not job.finished and time.monotonic() < deadline:
                time.sleep(0.5)
                job = self._service.client.status(job_id)
            if job is None or not job.finished:
                found.append(f"{job_id}: {'lost' if job is None else f'stuck as {job.state}'}")
                continue
            try:
                if job_id in self.cancelled and job.state is JobState.CANCELLED:
                    self._service.assert_ended(job_id, JobState.CANCELLED, "cancelled")
                else:
                    self._service.assert_succeeded(job_id)
            except AssertionError as error:
                found.append(f"{job_id}: {job.state} {job.error_code}: {str(error).splitlines()[:1]}")
        return found


def outside_s(job: Job, claimed_at: float, finished_at: float) -> float:
    """Returns the time from an attempt's claim to its end, without the stages of its work."""
    return finished_at - claimed_at - sum((job.timings_s or {}).values())


def measure_idle(service: Service, count: int) -> bool:
    """Measures the overhead of a job, and how fast one client enqueues jobs, on an idle service.

    Returns:
        Whether both are within their limits.
    """
    request = SegmentRequest(input=service.scan, model="quick")
    before = []
    inside = []
    with service.worker("cpu"):
        for _ in range(count):
            started = time.time()
            job = service.finished(service.client.submit(request))
            claimed, finished = (at.timestamp() for at in (job.started_at, job.finished_at) if at is not None)
            before.append(claimed - started)
            inside.append(outside_s(job, claimed, finished))
    total = [a + b for a, b in zip(before, inside, strict=True)]
    SCREEN.print(
        f"idle, {count} jobs: submit to claim {1e3 * median(before):.0f} ms, claim to end without the stages "
        f"{1e3 * median(inside):.0f} ms, together {1e3 * median(total):.0f} ms "
        f"(p99 {1e3 * quantiles(total, n=100)[98]:.0f} ms)"
    )
    started = time.time()
    waiting = [service.client.submit(request) for _ in range(10 * count)]
    enqueued_per_s = len(waiting) / (time.time() - started)
    SCREEN.print(f"one client enqueues {enqueued_per_s:.0f} jobs/s")
    for job_id in waiting:
        service.client.cancel(job_id)
    return median(total) <= MAX_OVERHEAD_S and enqueued_per_s >= MIN_ENQUEUED_PER_S


def report(service: Service, soak: Soak, seconds: float) -> None:
    """Prints the durations and attempts of the jobs, and the number of each fault."""
    attempts = Counter[int]()
    outside = []
    waited = []
    for job_id in soak.jobs:
        job = service.finished(job_id)
        if job.state is not JobState.SUCCEEDED:
            continue
        attempts[job.attempt] += 1
        changes = service.client.transitions(job_id)
        claimed = next(change.at for change in reversed(changes) if change.to_state == JobState.RUNNING)
        outside.append(outside_s(job, claimed.timestamp(), changes[-1].at.timestamp()))
        waited.append((changes[-1].at - job.created_at).total_seconds())
    SCREEN.print(f"{len(soak.jobs)} jobs in {seconds:.0f} s: {60 * len(soak.jobs) / seconds:.0f} a minute")
    SCREEN.print(
        f"outside the stages, of the attempt that succeeded: median {1e3 * median(outside):.0f} ms, "
        f"p99 {1e3 * quantiles(outside, n=100)[98]:.0f} ms"
    )
    SCREEN.print(f"created to finished: median {median(waited):.1f} s, longest {max(waited):.1f} s")
    SCREEN.print(
        f"attempts: {dict(sorted(attempts.items()))}; cancelled before their end: {len(soak.jobs) - len(outside)}"
    )
    SCREEN.print(f"faults: {sum(soak.injected.values())}: {dict(soak.injected.most_common())}")


def run(service: Service, *, jobs: int, minutes: float, seed: int) -> int:
    """Submits the jobs evenly over the time and injects faults; returns how many are lost or have a wrong outcome."""
    soak = Soak(service, seed)
    soak.keep_workers()
    started = time.monotonic()

    def submit_all() -> None:
        for number in range(jobs):
            time.sleep(max(0.0, started + number * 60 * minutes / jobs - time.monotonic()))
            soak.submit()

    upstream = threading.Thread(target=submit_all)
    upstream.start()
    while upstream.is_alive() or time.monotonic() - started < 60 * minutes:
        soak.inject()
        soak.keep_workers()
    found = soak.problems()
    report(service, soak, time.monotonic() - started)
    for role in ROLES:
        soak.stop_worker(role)
    for problem in found:
        SCREEN.print(problem)
    SCREEN.print(f"jobs lost, stuck or with a wrong outcome: {len(found)}")
    return len(found)


def main() -> None:
    """Runs the soak test with the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--idle", type=int, default=100, help="jobs of the measurement on an idle service")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as name, ExitStack() as stack:
        folder = Path(name)
        scan = folder / "scan.nii.gz"
        write_volume(scan, chest_phantom((64, 60, 48), (2.0, 2.0, 3.0)))
        servers = stack.enter_context(start_servers(folder / "servers", durable=False))
        prepare(settings_for(servers.environment))
        service = stack.enter_context(start_service(servers, folder, scan))
        fast = measure_idle(service, options.idle)
        if not fast:
            SCREEN.print("the idle service is slower than its limits")
        problems = run(service, jobs=options.jobs, minutes=options.minutes, seed=options.seed)
        sys.exit(problems > 0 or not fast)


if __name__ == "__main__":
    main()
