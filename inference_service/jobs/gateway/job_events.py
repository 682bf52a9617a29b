"""What has happened to some jobs, read at one look for all of them."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from uuid import UUID

from sqlalchemy import and_, select

from inference_service.jobs.database import Database
from inference_service.jobs.job_store import Transition
from inference_service.jobs.schema import JobRow, JobState, TransitionRow


@dataclass(frozen=True)
class JobProgress:
    """How far a job is.

    Attributes:
        state: Its state.
        stage: The stage of its attempt.
        progress: The progress of the whole job, 0…1.
    """

    state: JobState
    stage: str | None
    progress: float


@dataclass(frozen=True)
class JobNews:
    """A job at one time.

    Attributes:
        progress: How far it is.
        transitions: The changes of its state by their ids, which rise.
    """

    progress: JobProgress
    transitions: Mapping[int, Transition]


_PROGRESS = [getattr(JobRow, each.name) for each in fields(JobProgress)]
_TRANSITION_NAMES: Sequence[str] = [each.name for each in fields(Transition)]


def read_news(database: Database, job_ids: Collection[UUID], *, after: int) -> dict[UUID, JobNews]:
    """Reads how far jobs are, and their transitions with ids above one, in one statement and so at one time.

    Args:
        database: The jobs' database.
        job_ids: The jobs. Those that do not exist are left out.
        after: The id of a transition; 0 precedes all.
    """
    later = and_(TransitionRow.job_id == JobRow.id, TransitionRow.id > after)
    columns = [getattr(TransitionRow, name) for name in _TRANSITION_NAMES]
    statement = (
        select(JobRow.id, *_PROGRESS, TransitionRow.id.label("transition_id"), *columns)
        .outerjoin(TransitionRow, later)
        .where(JobRow.id.in_(job_ids))
        .order_by(JobRow.id, TransitionRow.id)
    )
    progress: dict[UUID, JobProgress] = {}
    transitions: dict[UUID, dict[int, Transition]] = {}
    with database.connection() as connection:
        for row in connection.execute(statement):
            progress[row.id] = JobProgress(JobState(row.state), row.stage, row.progress)
            found = transitions.setdefault(row.id, {})
            if row.transition_id is not None:
                found[row.transition_id] = Transition(**{name: getattr(row, name) for name in _TRANSITION_NAMES})
    return {job_id: JobNews(each, transitions[job_id]) for job_id, each in progress.items()}
