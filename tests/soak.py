"""A soak test for `make soak`: submits small jobs continuously while parts of the service are killed at random.

Every job has a scan of its own, and workers of the version before the newest migration run beside workers of this one.
At the end every object is compared with the row that names it, and every mask with the scan of its job.

Before that it measures the overhead of a job on an idle service. The exit status is 0 if the overhead is within its
limit, and if no job was lost, stuck or had a wrong outcome.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from itertools import cycle
from pathlib import Path
from statistics import median, quantiles
from uuid import UUID, uuid4

import numpy as np
import psutil
from faults import PERIODS, Service, child_of, freeze, kill, resume, start_service
from numpy.typing import NDArray

from inference_service.cli.display import console
from inference_service.contract.task_message import InputReference, Priority, RequestOptions, SegmentRequest
from inference_service.core.errors import ServiceError, TransientError
from inference_service.embedded.phantom import chest_phantom
from inference_service.embedded.servers import start_servers
from inference_service.embedded.service_process import WorkerProcess
from inference_service.embedded.stack import settings_for
from inference_service.formats.nifti import write_volume
from inference_service.imaging.geometry import Volume
from inference_service.jobs.database import connect
from inference_service.jobs.job_store import Job
from inference_service.jobs.queues.celery_app import make_app, send
from inference_service.jobs.schema import JobState
from inference_service.jobs.storage.audit import Audit, Problem
from inference_service.jobs.storage.object_storage import Storage
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
# Of the jobs whose scan an earlier job had: the result may be reused.
REPEATED_SHARE = 0.1
REPOSITORY = Path(__file__).parent.parent
MIGRATIONS = "inference_service/jobs/migrations/versions"
SHAPE = (40, 36, 28)


def scan_of(seed: int) -> Volume:
    """A scan of random values; the models label those that are not negative."""
    voxels = np.random.default_rng(seed).integers(-1000, 1000, SHAPE).astype(np.int16)
    return Volume(np.asfortranarray(voxels), np.diag([2.0, 2.0, 2.0, 1.0]))


def mask_of(seed: int) -> NDArray[np.bool_]:
    """The expected mask of that scan."""
    labels: NDArray[np.bool_] = np.greater_equal(scan_of(seed).voxels, 0)
    return labels


def extract_earlier_version(folder: Path) -> Path:
    """Extracts the source code before the newest migration into a new folder, and returns the folder."""
    newest = ["git", "log", "-1", "--diff-filter=A", "--format=%H^", "--", MIGRATIONS]
    revision = subprocess.run(newest, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout.strip()
    archive = folder / "earlier.tar"
    subprocess.run(["git", "archive", "--output", archive, revision], cwd=REPOSITORY, check=True)
    with tarfile.open(archive) as packed:
        packed.extractall(folder / "earlier", filter="data")
    return folder / "earlier"


class Soak:
    """Keeps two workers running, submits random jobs and injects faults.

    Args:
        service: The service without workers.
        seed: The same seed gives the same jobs and faults.
        earlier: The source code of an earlier version, which each second worker runs; None: all run this one.
    """

    def __init__(self, service: Service, seed: int, earlier: Path | None) -> None:
        self._service = service
        self._seed = seed
        # The package in PYTHONPATH comes before the installed one.
        self._versions = cycle([{}, {"PYTHONPATH": str(earlier)}] if earlier else [{}])
        self._random = random.Random(seed)
        # The thread that submits has its own generator, so that a seed gives the same jobs and faults.
        self._submit_random = random.Random(seed + 1)
        self._workers: dict[str, tuple[WorkerProcess, ExitStack]] = {}
        self._app = make_app(settings_for(service.servers.environment))
        self.injected: Counter[str] = Counter()
        self.jobs: list[UUID] = []
        self._scans: list[tuple[int, InputReference]] = []
        self._seeds: dict[UUID, int] = {}
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
            environment = {**WORKER, **next(self._versions)}
            self._workers[role] = (stack.enter_context(self._service.worker(role, **environment)), stack)

    def stop_worker(self, role: str) -> None:
        """Stops a worker if it was started."""
        if role in self._workers:
            self._workers.pop(role)[1].close()

    def submit(self) -> None:
        """Submits one job, and tries again while a server is down."""
        generator = self._submit_random
        repeated = bool(self._scans) and generator.random() < REPEATED_SHARE
        model = "slow" if generator.random() < SLOW_SHARE else "quick"
        priority = generator.choice(list(Priority))
        job_id = uuid4()
        while True:
            with suppress(TransientError):
                seed, scan = generator.choice(self._scans) if repeated else self._upload()
                request = SegmentRequest(
                    input=scan,
                    model=model,
                    priority=priority,
                    options=RequestOptions(reuse=repeated, modality_check=False),
                )
                self._service.client.submit(request, job_id=job_id)
                self.jobs.append(job_id)
                self._seeds[job_id] = seed
                return
            time.sleep(0.5)

    def _upload(self) -> tuple[int, InputReference]:
        """Uploads a scan that no job had before."""
        seed = 1000 * self._seed + len(self._scans)
        path = self._service.folder / "upload.nii.gz"
        write_volume(path, scan_of(seed))
        self._scans.append((seed, self._service.client.upload(path)))
        return self._scans[-1]

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
                    self._service.assert_succeeded(job_id, labels=mask_of(self._seeds[job_id]))
            except (AssertionError, ServiceError) as error:
                found.append(f"{job_id}: {job.state} {job.error_code}: {str(error).splitlines()[:1]}")
        return [*found, *self._differences()]

    def _differences(self) -> list[str]:
        """Compares every object with the row that names it, and counts the objects that no row names."""
        settings = settings_for(self._service.servers.environment)
        with closing(connect(settings)) as database:
            audit = Audit(database, Storage(settings), bucket=settings.minio_output_bucket)
            findings = list(audit.findings())
        SCREEN.print(
            f"audit: {audit.objects} objects of {audit.jobs} jobs, {audit.without_checksum} without a checksum: "
            f"{dict(Counter(str(finding.problem) for finding in findings))}"
        )
        return [
            f"{finding.job_id}: {finding.problem}: {finding.key}"
            for finding in findings
            if finding.problem is not Problem.UNCLAIMED
        ]


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


def run(service: Service, soak: Soak, *, jobs: int, minutes: float) -> int:
    """Submits the jobs evenly over the time and injects faults; returns how many are lost or have a wrong outcome."""
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
    parser.add_argument("--one-version", action="store_true", help="run no worker of an earlier version")
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
        # Otherwise the package in the working directory would come before that in PYTHONPATH.
        os.chdir(folder)
        soak = Soak(service, options.seed, None if options.one_version else extract_earlier_version(folder))
        problems = run(service, soak, jobs=options.jobs, minutes=options.minutes)
        sys.exit(problems > 0 or not fast)


if __name__ == "__main__":
    main()
