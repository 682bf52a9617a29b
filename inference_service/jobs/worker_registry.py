"""The workers that are alive, as they report themselves in Postgres."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from uuid import UUID

from sqlalchemy import delete, exists, func, select
from sqlalchemy.dialects.postgresql import insert as upsert

from inference_service.jobs.celery_app import OVERFLOW_QUEUE, PRIORITY_QUEUE
from inference_service.jobs.database import Database
from inference_service.jobs.schema import JobRow, JobState, WorkerRow

_FORGOTTEN_AFTER = timedelta(days=1)


class Role(StrEnum):
    """The kind of a worker; it decides which queues the worker takes from."""

    GPU = "gpu"
    CPU = "cpu"


ROLE_QUEUES = {Role.GPU: (PRIORITY_QUEUE, OVERFLOW_QUEUE), Role.CPU: (OVERFLOW_QUEUE,)}
"""The queues that a worker of each role always consumes, in order."""


@dataclass(frozen=True)
class WorkerIdentity:
    """How a worker reports itself.

    Attributes:
        name: Unique among all workers.
        role: The worker's role.
        concurrency: Number of jobs that the worker runs at a time.
        providers: Execution providers in use.
    """

    name: str
    role: Role
    concurrency: int
    providers: list[str]


@dataclass(frozen=True)
class Worker(WorkerIdentity):
    """A worker, read from its row.

    Attributes:
        queues: The queues that the worker consumes, in order.
        started_at: Time when the worker started.
        silent_s: Seconds since the last heartbeat.
        jobs: The jobs that the worker runs.
    """

    queues: list[str]
    started_at: datetime
    silent_s: float
    jobs: list[UUID]


def record_heartbeat(database: Database, identity: WorkerIdentity, *, queues: Sequence[str]) -> None:
    """Records that a worker consumes its queues, and deletes workers without a heartbeat for a day."""
    values = {
        "role": identity.role,
        "concurrency": identity.concurrency,
        "providers": identity.providers,
        "queues": list(queues),
    }
    statement = upsert(WorkerRow).values(name=identity.name, **values)
    statement = statement.on_conflict_do_update(index_elements=[WorkerRow.name], set_={**values, "seen_at": func.now()})
    with database.begin() as connection:
        connection.execute(statement)
        connection.execute(delete(WorkerRow).where(WorkerRow.seen_at < func.now() - _FORGOTTEN_AFTER))


def deregister(database: Database, name: str) -> None:
    """Deletes a worker that stops."""
    with database.begin() as connection:
        connection.execute(delete(WorkerRow).where(WorkerRow.name == name))


def has_live_worker(database: Database, role: Role, *, within_s: float) -> bool:
    """Returns True if a worker of the role had a recent heartbeat while it consumed the role's first queue."""
    consumes = WorkerRow.queues.contains([ROLE_QUEUES[role][0]])
    seen = WorkerRow.seen_at > func.now() - timedelta(seconds=within_s)
    found = exists().where(WorkerRow.role == role, consumes, seen)
    with database.connection() as connection:
        return bool(connection.execute(select(found)).scalar_one())


def list_workers(database: Database) -> list[Worker]:
    """All workers with a heartbeat within a day, and the jobs that they run."""
    silent_s = func.extract("epoch", func.now() - WorkerRow.seen_at).label("silent_s")
    columns = [WorkerRow.name, WorkerRow.role, WorkerRow.concurrency, WorkerRow.providers, WorkerRow.queues]
    workers = select(*columns, WorkerRow.started_at, silent_s).order_by(WorkerRow.role, WorkerRow.name)
    running = select(JobRow.id, JobRow.lease_owner).where(JobRow.state == JobState.RUNNING)
    with database.connection() as connection:
        jobs = list(connection.execute(running))
        return [
            Worker(
                **{**row, "role": Role(row["role"]), "silent_s": float(row["silent_s"])},
                jobs=[job.id for job in jobs if job.lease_owner == row["name"]],
            )
            for row in connection.execute(workers).mappings()
        ]
