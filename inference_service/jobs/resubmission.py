"""Queues failed and cancelled jobs again, on request and under the same id. Succeeded jobs never change."""

from collections.abc import Iterator
from datetime import timedelta
from uuid import UUID

from sqlalchemy import func, select, tuple_

from inference_service.core.errors import BadRequest, ErrorCode
from inference_service.jobs.database import Database
from inference_service.jobs.job_store import UnsentJob
from inference_service.jobs.schema import JobRow, JobState
from inference_service.jobs.state_machine import StateChange, change_state

_JOBS_AT_ONCE = 1000


def queue_again(database: Database, job_id: UUID) -> UnsentJob | None:
    """Queues a failed or cancelled job again. Its attempts are numbered on, and those before do not count.

    Returns:
        The job, whose message is to be sent; None where there is no such job.

    Raises:
        BadRequest: The job has neither failed nor was it cancelled, or its row has no request.
    """
    with database.begin() as connection:
        columns = (JobRow.state, JobRow.attempt, JobRow.request, JobRow.tenant)
        row = connection.execute(select(*columns).where(JobRow.id == job_id).with_for_update()).one_or_none()
        if row is None:
            return None
        if row.state not in (JobState.FAILED, JobState.CANCELLED):
            raise BadRequest(f"job {job_id} is {row.state}: only failed and cancelled jobs can be retried")
        if row.request is None:
            raise BadRequest(
                f"job {job_id} has no request, because its message broke the contract or came after its cancellation: "
                "submit a new job"
            )
        values = {
            "returned_attempts": row.attempt,
            "not_before": func.now(),
            "dispatched_at": None,
            "cancel_requested": False,
            "on_cpu": False,
            "avoided_workers": None,
            "started_at": None,
            "finished_at": None,
            "stage": None,
            "progress": 0.0,
            "timings_s": None,
            "error_code": None,
            "error_message": None,
        }
        change = StateChange(job_id, JobState(row.state), JobState.QUEUED, row.attempt, detail="retried")
        change_state(connection, change, values=values)
    return UnsentJob(job_id, row.request, row.attempt, tenant=row.tenant)


def failed_jobs(database: Database, *, since: timedelta, code: ErrorCode | None = None) -> Iterator[UUID]:
    """The jobs that have failed within a period before this call and can be queued again, oldest failure first.

    Args:
        database: The jobs' database.
        since: The period.
        code: Only jobs that failed with this code; None: any code.
    """
    statement = select(JobRow.finished_at, JobRow.id).where(
        JobRow.state == JobState.FAILED, JobRow.request.is_not(None)
    )
    if code is not None:
        statement = statement.where(JobRow.error_code == code)
    with database.connection() as connection:
        start, end = connection.execute(select(func.now() - since, func.now())).one()
    # A job that fails again meanwhile has not failed within this period.
    statement = statement.where(JobRow.finished_at <= end).order_by(JobRow.finished_at, JobRow.id).limit(_JOBS_AT_ONCE)
    place = tuple_(JobRow.finished_at, JobRow.id)
    last_end, last_id = start, UUID(int=0)
    while True:
        with database.connection() as connection:
            page = connection.execute(statement.where(place > (last_end, last_id))).all()
        if not page:
            return
        yield from (row.id for row in page)
        last_end, last_id = page[-1].finished_at, page[-1].id
