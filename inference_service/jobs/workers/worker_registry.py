"""The workers that are alive, as they report themselves in Postgres."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timedelta
from enum import StrEnum
from types import MappingProxyType
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, delete, exists, func, select
from sqlalchemy.dialects.postgresql import insert as upsert

from inference_service.contract.model_summary import ModelSummary
from inference_service.jobs.database import Database
from inference_service.jobs.queues.lists import OVERFLOW_QUEUE, PRIORITY_QUEUE
from inference_service.jobs.schema import JobRow, JobState, WorkerRow
from inference_service.jobs.workers import model_summaries

_FORGOTTEN_AFTER = timedelta(days=1)
_NO_SUMMARIES: Mapping[str, ModelSummary] = MappingProxyType({})


class Role(StrEnum):
    """The kind of a worker; it decides which queues the worker takes from."""

    GPU = "gpu"
    CPU = "cpu"


ROLE_QUEUES = {Role.GPU: (PRIORITY_QUEUE, OVERFLOW_QUEUE), Role.CPU: (OVERFLOW_QUEUE,)}
"""The queues that a worker of each role always consumes, in order."""


@dataclass(frozen=True)
class InstalledModel:
    """A model that a worker has."""

    name: str
    version: str
    manifest_sha256: str


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
        models: The models that the worker has.
        paused: Why the worker takes no jobs; None while it does.
    """

    queues: list[str]
    models: list[InstalledModel]
    paused: str | None
    started_at: datetime
    silent_s: float
    jobs: list[UUID]


def record_heartbeat(
    database: Database,
    identity: WorkerIdentity,
    *,
    queues: Sequence[str],
    models: Sequence[InstalledModel] = (),
    summaries: Mapping[str, ModelSummary] = _NO_SUMMARIES,
    paused: str | None = None,
) -> None:
    """Records that a worker is alive. Deletes workers without a heartbeat for a day, and summaries of unknown models.

    Args:
        database: The jobs' database.
        identity: The worker.
        queues: The queues that it consumes.
        models: The models that it has.
        summaries: Their summaries, by the SHA-256 of their manifests. Only those are written that are not recorded.
        paused: Why it takes no jobs; None while it does.
    """
    values = {
        "role": identity.role,
        "concurrency": identity.concurrency,
        "providers": identity.providers,
        "queues": list(queues),
        "models": [asdict(model) for model in models],
        "paused": paused,
    }
    statement = upsert(WorkerRow).values(name=identity.name, **values)
    statement = statement.on_conflict_do_update(index_elements=[WorkerRow.name], set_={**values, "seen_at": func.now()})
    with database.begin() as connection:
        connection.execute(statement)
        connection.execute(delete(WorkerRow).where(WorkerRow.seen_at < func.now() - _FORGOTTEN_AFTER))
        model_summaries.record_missing(connection, summaries)
        model_summaries.remove_unused(connection)


def deregister(database: Database, name: str) -> None:
    """Deletes a worker that stops."""
    with database.begin() as connection:
        connection.execute(delete(WorkerRow).where(WorkerRow.name == name))


def has_live_worker(database: Database, role: Role, *, within_s: float) -> bool:
    """Returns True if a worker of the role had a recent heartbeat while it consumed the role's first queue."""
    found = exists().where(WorkerRow.role == role, WorkerRow.queues.contains([ROLE_QUEUES[role][0]]), _seen(within_s))
    with database.connection() as connection:
        return bool(connection.execute(select(found)).scalar_one())


def has_consumer(connection: Connection, queue: str, *, besides: Collection[str], within_s: float) -> bool:
    """Returns True if a worker other than some had a recent heartbeat while it consumed a queue."""
    others = WorkerRow.name.not_in(besides)
    found = exists().where(WorkerRow.queues.contains([queue]), others, _seen(within_s))
    return bool(connection.execute(select(found)).scalar_one())


def has_live_consumer(database: Database, queue: str, *, besides: Collection[str], within_s: float) -> bool:
    """As `has_consumer`, on a connection of its own."""
    with database.connection() as connection:
        return has_consumer(connection, queue, besides=besides, within_s=within_s)


def has_model(database: Database, name: str, version: str | None, *, besides: Collection[str], within_s: float) -> bool:
    """Returns True if a worker other than some, paused or not, had a recent heartbeat and has a model.

    Args:
        database: The jobs' database.
        name: The model.
        version: Its version; None: any.
        besides: Names of the workers that do not count.
        within_s: Age of a recent heartbeat.
    """
    wanted = {"name": name} if version is None else {"name": name, "version": version}
    found = exists().where(WorkerRow.models.contains([wanted]), WorkerRow.name.not_in(besides), _seen(within_s))
    with database.connection() as connection:
        return bool(connection.execute(select(found)).scalar_one())


def _seen(within_s: float) -> ColumnElement[bool]:
    return WorkerRow.seen_at > func.now() - timedelta(seconds=within_s)


def list_workers(database: Database) -> list[Worker]:
    """All workers with a heartbeat within a day, and the jobs that they run."""
    silent_s = func.extract("epoch", func.now() - WorkerRow.seen_at).label("silent_s")
    columns = [getattr(WorkerRow, each.name) for each in fields(Worker) if each.name not in ("silent_s", "jobs")]
    workers = select(*columns, silent_s).order_by(WorkerRow.role, WorkerRow.name)
    running = select(JobRow.id, JobRow.lease_owner).where(JobRow.state == JobState.RUNNING)
    with database.connection() as connection:
        jobs = list(connection.execute(running))
        return [
            Worker(
                **{
                    **row,
                    "role": Role(row["role"]),
                    "silent_s": float(row["silent_s"]),
                    # A worker of the version before migration 0007 records none.
                    "models": [InstalledModel(**model) for model in row["models"] or []],
                },
                jobs=[job.id for job in jobs if job.lease_owner == row["name"]],
            )
            for row in connection.execute(workers).mappings()
        ]
