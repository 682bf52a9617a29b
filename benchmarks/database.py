"""`python -m benchmarks.database`: the queries of claim, sweep, list, metrics and prune on large tables of jobs."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import UUID, uuid4

import click
from rich.console import Console
from rich.table import Table
from sqlalchemy import Connection, Engine, event, select, text

from inference_service.contract.task_message import InputReference, SegmentRequest
from inference_service.core.settings import Settings
from inference_service.embedded.servers import start_servers
from inference_service.embedded.stack import settings_for
from inference_service.jobs import attempts, job_store, recovery, resubmission, retention
from inference_service.jobs.database import Database, connect, migrate
from inference_service.jobs.queues.lists import OVERFLOW_QUEUE, PRIORITY_QUEUE
from inference_service.jobs.queues.redis_state import RedisState
from inference_service.jobs.schema import JobRow, JobState
from inference_service.jobs.storage import stored_attempts
from inference_service.jobs.workers.worker_registry import list_workers
from inference_service.worker.metrics import Metrics

REDIS = RedisState("run", {PRIORITY_QUEUE: 2000, OVERFLOW_QUEUE: 18000})
LEASE_S = 30.0
_WORKER = "cpu-1@benchmark"
_WIDTH = 150

# A year of jobs that have ended, and those of the last hours that wait.
_FINISHED = """
    INSERT INTO jobs (id, state, request, created_at, started_at, finished_at, queue, dispatched_at, redis_run_id,
        dispatched_to, attempt, lease_owner, progress, model_name, model_version, model_sha256, manifest_sha256,
        precision, providers, timings_s, result, checksums, input_sha256, error_code, error_message)
    SELECT id, CASE WHEN failed THEN 'failed' ELSE 'succeeded' END, CAST(:request AS jsonb), created,
        created + interval '10 s', created + interval '60 s', 'overflow', created, 'run', 'run', 1, :worker, 1,
        'ct-chest', '1', repeat('a', 64), repeat('b', 64), 'fp32', '["CPUExecutionProvider"]',
        '{"fetch": 0.1, "read": 0.4, "network": 40.2, "write": 0.2, "store": 0.1}',
        CASE WHEN NOT failed THEN jsonb_build_object('bucket', 'masks', 'mask', id || '/1-x/mask.nii.gz',
            'report', id || '/1-x/report.json', 'preview', id || '/1-x/preview.png') END,
        CASE WHEN NOT failed THEN jsonb_build_object(
            'mask', jsonb_build_object('sha256', repeat('c', 64), 'size_bytes', 1000000),
            'report', jsonb_build_object('sha256', repeat('d', 64), 'size_bytes', 5000),
            'preview', jsonb_build_object('sha256', repeat('e', 64), 'size_bytes', 200000)) END,
        md5(id::text) || md5(id::text), CASE WHEN failed THEN 'input_corrupt' END,
        CASE WHEN failed THEN 'the file is truncated' END
    FROM (
        SELECT gen_random_uuid() AS id, now() - interval '4 h' - n * (interval '365 d' / :jobs) AS created,
            n % 20 = 0 AS failed
        FROM generate_series(:jobs, 1, -1) AS n
    ) AS jobs
"""
_QUEUED = """
    INSERT INTO jobs (id, state, request, created_at, queue, dispatched_at, redis_run_id, dispatched_to)
    SELECT gen_random_uuid(), 'queued', CAST(:request AS jsonb), created,
        CASE WHEN n % 10 = 0 THEN 'priority' ELSE 'overflow' END, created, 'run', 'run'
    FROM (
        SELECT n, now() - n * (interval '3 h' / :jobs) - interval '1 min' AS created
        FROM generate_series(:jobs, 1, -1) AS n
    ) AS jobs
"""
_TRANSITIONS = """
    INSERT INTO transitions (job_id, at, from_state, to_state, attempt, worker)
    SELECT jobs.id, created_at + place * interval '30 s', (ARRAY[NULL, 'queued', 'running'])[place],
        (ARRAY['queued', 'running', jobs.state])[place], 1, lease_owner
    FROM jobs, generate_series(1, CASE WHEN state = 'queued' THEN 1 ELSE 3 END) AS place ORDER BY created_at, place
"""


@dataclass
class Tables:
    """The filled tables, and the state of the measured operations.

    Attributes:
        database: The jobs' database.
        waiting: Queued jobs that are to be claimed.
        metrics: A worker's metrics.
        claim: The last claim.
    """

    database: Database
    waiting: list[UUID]
    metrics: Metrics
    claim: attempts.Claim | None = field(default=None)

    def claim_next(self) -> None:
        """Claims a queued job."""
        self.claim = attempts.claim(self.database, self.waiting.pop(), worker=_WORKER, lease_s=LEASE_S, max_attempts=3)

    def renew(self) -> None:
        """Renews the lease of the claim."""
        assert self.claim is not None
        attempts.renew(self.database, self.claim, lease_s=LEASE_S, stage="network", progress=0.5)

    def retry(self) -> None:
        """Queues the claimed job again."""
        assert self.claim is not None
        attempts.schedule_retry(self.database, self.claim, delay_s=3600, detail="storage_unavailable")


OPERATIONS: Mapping[str, Callable[[Tables], object]] = {
    "create": lambda tables: job_store.create(tables.database, uuid4(), _request()),
    "claim": Tables.claim_next,
    "renew": Tables.renew,
    "schedule_retry": Tables.retry,
    "sweep: requeue_expired": lambda tables: recovery.requeue_expired(tables.database, max_attempts=3),
    "sweep: fail_unreadable": lambda tables: recovery.fail_unreadable(tables.database, older_than_s=LEASE_S),
    "sweep: find_suspects": lambda tables: recovery.find_suspects(tables.database, REDIS, grace_s=LEASE_S),
    "sweep: find_unsent": lambda tables: recovery.find_unsent(tables.database, grace_s=LEASE_S),
    "sweep: take_abandoned": lambda tables: stored_attempts.take_abandoned(tables.database),
    "sweep: metrics": lambda tables: tables.metrics.refresh(lease_s=LEASE_S),
    "sweep: prune, nothing due": lambda tables: _prune(tables, timedelta(days=3650)),
    "sweep: prune, 100 jobs": lambda tables: _prune(tables, timedelta(days=300)),
    "jobs": lambda tables: job_store.latest(tables.database),
    "jobs --state queued": lambda tables: _latest(tables, JobState.QUEUED),
    "jobs --state running": lambda tables: _latest(tables, JobState.RUNNING),
    "jobs --state succeeded": lambda tables: _latest(tables, JobState.SUCCEEDED),
    "jobs --state failed": lambda tables: _latest(tables, JobState.FAILED),
    "jobs --state cancelled, none": lambda tables: _latest(tables, JobState.CANCELLED),
    "workers": lambda tables: list_workers(tables.database),
    "retry --failed-since 1d": lambda tables: list(resubmission.failed_jobs(tables.database, since=timedelta(days=1))),
    "reuse": lambda tables: job_store.find_same_work(
        tables.database,
        _request(),
        input_sha256="0" * 64,
        model=job_store.ModelIdentity("ct-chest", "1", "a" * 64, "b" * 64, "fp32"),
    ),
}
"""What is measured, by name."""


def _request() -> SegmentRequest:
    return SegmentRequest(input=InputReference(bucket="volumes", key="uploads/series/"), model="ct-chest")


def _latest(tables: Tables, state: JobState) -> None:
    job_store.latest(tables.database, job_store.JobFilter([state]))


def _prune(tables: Tables, older_than: timedelta) -> None:
    retention.prune(tables.database, older_than=older_than, results=True, limit=100)


@contextmanager
def filled_tables(settings: Settings, *, finished: int, queued: int) -> Iterator[Tables]:
    """Fills the tables of an empty database.

    Args:
        settings: Settings of the database.
        finished: Number of jobs that have ended.
        queued: Number of jobs that wait.
    """
    migrate(settings)
    request = {"request": _request().model_dump_json(), "worker": _WORKER}
    with closing(connect(settings)) as database:
        with database.begin() as connection:
            connection.execute(text("SET statement_timeout = 0"))
            connection.execute(text(_FINISHED), {**request, "jobs": finished})
            connection.execute(text(_QUEUED), {**request, "jobs": queued})
            connection.execute(text(_TRANSITIONS))
            connection.execute(text("ANALYZE"))
        with database.connection() as connection:
            oldest = select(JobRow.id).where(JobRow.state == JobState.QUEUED).order_by(JobRow.created_at.desc())
            waiting = list(connection.execute(oldest).scalars())
        yield Tables(database, waiting, Metrics(_WORKER, database))


def measure(tables: Tables, *, rounds: int) -> dict[str, list[float]]:
    """Runs every operation in turn, several times. Returns the milliseconds of each run by operation."""
    runs_ms: dict[str, list[float]] = {name: [] for name in OPERATIONS}
    for _ in range(rounds):
        for name, operation in OPERATIONS.items():
            started = time.perf_counter()
            operation(tables)
            runs_ms[name].append((time.perf_counter() - started) * 1000)
    return runs_ms


def plans(tables: Tables) -> dict[str, set[str]]:
    """Runs every operation, and returns how Postgres reads the tables in each, such as `Index Scan using pk_jobs`."""
    return {name: _scans(tables, operation) for name, operation in OPERATIONS.items()}


def _scans(tables: Tables, operation: Callable[[Tables], object]) -> set[str]:
    statements: list[tuple[str, object]] = []

    def record(_connection: object, _cursor: object, statement: str, parameters: object, *_: object) -> None:
        statements.append((statement, parameters))

    event.listen(Engine, "before_cursor_execute", record)
    try:
        operation(tables)
    finally:
        event.remove(Engine, "before_cursor_execute", record)
    with tables.database.connection() as connection:
        return {scan for statement in statements for scan in _scans_of(connection, *statement)}


def _scans_of(connection: Connection, statement: str, parameters: object) -> Iterator[str]:
    explained = connection.exec_driver_sql(f"EXPLAIN {statement}", parameters)  # type: ignore[arg-type]
    for (line,) in explained:
        # For example "->  Index Scan using ix_jobs_created_at on jobs  (cost=…".
        node = line.partition("->")[2].strip() or line.strip()
        name, _, _ = node.partition("  (")
        if " Scan" in name:
            yield name


def bytes_per_job(tables: Tables) -> float:
    """The size of both tables with their indexes, per job."""
    sizes = "SELECT (pg_total_relation_size('jobs') + pg_total_relation_size('transitions')) / count(*) FROM jobs"
    with tables.database.connection() as connection:
        return float(connection.execute(text(sizes)).scalar_one())


@click.command()
@click.option("--finished", default=1_000_000, show_default=True, help="Jobs that have ended.")
@click.option("--queued", default=20_000, show_default=True, help="Jobs that wait.")
@click.option("--rounds", default=50, show_default=True, help="Runs of each operation.")
def main(finished: int, queued: int, rounds: int) -> None:
    """Measures the queries of the service on large tables in an embedded Postgres."""
    console = Console(width=None if Console().is_terminal else _WIDTH)
    with (
        TemporaryDirectory(prefix="benchmark-database-", dir="/var/tmp") as folder,
        start_servers(Path(folder) / "servers", durable=False) as servers,
        filled_tables(settings_for(servers.environment), finished=finished, queued=queued) as tables,
    ):
        runs_ms = measure(tables, rounds=rounds)
        scans = plans(tables)
        size_bytes = bytes_per_job(tables)
    table = Table("operation", "median, ms", "longest, ms", "reads")
    for name, runs in runs_ms.items():
        table.add_row(name, f"{statistics.median(runs):.1f}", f"{max(runs):.1f}", "; ".join(sorted(scans[name])))
    console.print(table)
    console.print(f"{size_bytes / 1000:.1f} kB for each job")


if __name__ == "__main__":
    main()
