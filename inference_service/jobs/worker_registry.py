"""Which workers are alive, as their rows in Postgres say."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from uuid import UUID

from sqlalchemy import delete, exists, func, select
from sqlalchemy.dialects.postgresql import insert as upsert

from inference_service.jobs.celery_app import OVERFLOW_QUEUE, PRIORITY_QUEUE
from inference_service.jobs.database import Database, mapped_errors
from inference_service.jobs.schema import JobRow, JobState, WorkerRow

_FORGOTTEN_AFTER = timedelta(days=1)


class Role(StrEnum):
    """What a worker is there for."""

    GPU = "gpu"
    CPU = "cpu"


ROLE_QUEUES = {Role.GPU: (PRIORITY_QUEUE, OVERFLOW_QUEUE), Role.CPU: (OVERFLOW_QUEUE,)}
"""What a worker of each role always consumes."""


@dataclass(frozen=True)
class WorkerIdentity:
    """What a worker says of itself.

    Attributes:
        name: Unique among all workers.
        role: Its role.
        concurrency: Jobs that it runs at a time.
        providers: Execution providers in use.
    """

    name: str
    role: Role
    concurrency: int
    providers: list[str]


@dataclass(frozen=True)
class Worker(WorkerIdentity):
    """A worker as its row says.

    Attributes:
        queues: What it consumes, in order.
        started_at: When it came up.
        silent_s: Since when nothing was seen of it.
        jobs: What it runs.
    """

    queues: list[str]
    started_at: datetime
    silent_s: float
    jobs: list[UUID]


def record_heartbeat(database: Database, identity: WorkerIdentity, *, queues: Sequence[str]) -> None:
    """Notes that a worker consumes, and forgets those that have not done so for a day."""
    values = {
        "role": identity.role,
        "concurrency": identity.concurrency,
        "providers": identity.providers,
        "queues": list(queues),
    }
    statement = upsert(WorkerRow).values(name=identity.name, **values)
    statement = statement.on_conflict_do_update(index_elements=[WorkerRow.name], set_={**values, "seen_at": func.now()})
    with mapped_errors(), database.begin() as connection:
        connection.execute(statement)
        connection.execute(delete(WorkerRow).where(WorkerRow.seen_at < func.now() - _FORGOTTEN_AFTER))


def deregister(database: Database, name: str) -> None:
    """Forgets a worker that ends."""
    with mapped_errors(), database.begin() as connection:
        connection.execute(delete(WorkerRow).where(WorkerRow.name == name))


def has_live_worker(database: Database, role: Role, *, within_s: float) -> bool:
    """Whether a worker of a role was seen lately, consuming the queue that it is there for."""
    consuming = WorkerRow.queues.contains([ROLE_QUEUES[role][0]])
    lately = WorkerRow.seen_at > func.now() - timedelta(seconds=within_s)
    seen = exists().where(WorkerRow.role == role, consuming, lately)
    with mapped_errors(), database.connect() as connection:
        return bool(connection.execute(select(seen)).scalar_one())


def list_workers(database: Database) -> list[Worker]:
    """All workers that were seen within a day, with what they run now."""
    silent = func.extract("epoch", func.now() - WorkerRow.seen_at).label("silent_s")
    columns = [WorkerRow.name, WorkerRow.role, WorkerRow.concurrency, WorkerRow.providers, WorkerRow.queues]
    workers = select(*columns, WorkerRow.started_at, silent).order_by(WorkerRow.role, WorkerRow.name)
    running = select(JobRow.id, JobRow.lease_owner).where(JobRow.state == JobState.RUNNING)
    with mapped_errors(), database.connect() as connection:
        jobs = list(connection.execute(running))
        return [
            Worker(
                **{**row, "role": Role(row["role"]), "silent_s": float(row["silent_s"])},
                jobs=[job.id for job in jobs if job.lease_owner == row["name"]],
            )
            for row in connection.execute(workers).mappings()
        ]
