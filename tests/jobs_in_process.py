"""Runs jobs in the test's own process: whole ones through the worker's handler of messages, or single attempts."""

from uuid import UUID, uuid4

from inference_service.core.execution import ExecutionOptions
from inference_service.jobs import attempts, job_store
from inference_service.jobs.database import Database
from inference_service.worker.task import TaskHandler

Request = dict[str, object]
EXECUTION = ExecutionOptions(("CPUExecutionProvider",), 1)


def run(handler: TaskHandler, database: Database, request: object) -> job_store.Job:
    job_id = uuid4()
    handler.handle({"job_id": str(job_id), "request": request}, task_id=str(job_id))
    return get(database, job_id)


def get(database: Database, job_id: UUID) -> job_store.Job:
    job = job_store.get(database, job_id)
    assert job is not None
    return job


def claim(database: Database, job_id: UUID) -> attempts.Claim:
    """Begins an attempt of a job, without a handler."""
    claimed = attempts.claim(database, job_id, worker="w", lease_s=30, max_attempts=3)
    assert claimed is not None
    return claimed
