"""The outcome of an attempt that fails: retried, ended, or left in the queue."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
from jobs_in_process import EXECUTION, Request, get, run

from inference_service.core.errors import (
    DatabaseUnavailable,
    GpuFailed,
    GpuOutOfMemory,
    ServiceError,
)
from inference_service.core.execution import CPU, ExecutionOptions
from inference_service.engine.model_registry import Model
from inference_service.engine.session_cache import LoadedModel, SessionCache, load_model
from inference_service.jobs import job_store, recovery
from inference_service.jobs.database import Database
from inference_service.jobs.schema import JobState
from inference_service.worker.task import TaskHandler


def test_an_outage_of_the_database_leaves_the_message_in_the_queue(make_handler: Callable[..., TaskHandler]) -> None:
    handler = make_handler(postgres_port=1)
    with pytest.raises(DatabaseUnavailable):
        handler.handle({"job_id": str(uuid4()), "request": {}}, task_id=str(uuid4()))


def test_an_unexpected_error_is_recorded_and_logged(
    handler: TaskHandler,
    database: Database,
    request_for_scan: Request,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a secret detail")

    monkeypatch.setattr("inference_service.worker.attempt_runner.segment_file", broken)
    job = run(handler, database, request_for_scan)
    assert (job.state, job.error_code) == (JobState.FAILED, "internal_error")
    assert "a secret detail" in caplog.text
    assert set(job.timings_s or {}) >= {"fetch"}
    assert "secret" not in (job.error_message or "")


def test_a_failed_allocation_is_not_retried_without_another_worker(
    handler: TaskHandler, database: Database, request_for_scan: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    def greedy(*_: object, **__: object) -> None:
        np.empty(2**62, np.uint8)

    monkeypatch.setattr("inference_service.worker.attempt_runner.segment_file", greedy)
    job = run(handler, database, request_for_scan)
    assert (job.state, job.error_code, job.attempt) == (JobState.FAILED, "out_of_memory", 1)


def test_a_job_leaves_no_temporary_file(
    handler: TaskHandler, database: Database, request_for_scan: Request, tmp_path: Path
) -> None:
    assert run(handler, database, request_for_scan).state is JobState.SUCCEEDED
    assert run(handler, database, {**request_for_scan, "model": "none"}).error_code == "model_not_found"
    assert [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"] == []


@pytest.mark.parametrize(
    "failure",
    [
        GpuOutOfMemory("a window of this model does not fit into the GPU's memory"),
        GpuFailed("the GPU failed on a window of this model"),
    ],
    ids=lambda failure: type(failure).__name__,
)
def test_a_job_that_fails_on_a_gpu_runs_on_a_cpu(
    make_handler: Callable[..., TaskHandler],
    database: Database,
    request_for_scan: Request,
    monkeypatch: pytest.MonkeyPatch,
    failure: ServiceError,
) -> None:
    used: list[tuple[str, ...]] = []

    def fail(windows: np.ndarray) -> np.ndarray:
        raise failure

    def load(self: SessionCache, model: Model, execution: ExecutionOptions) -> LoadedModel:
        used.append(execution.providers)
        loaded = load_model(model, execution.on_cpu())
        if execution.providers != (CPU,):
            for session in loaded.sessions.values():
                monkeypatch.setattr(session, "run", fail)
        return loaded

    monkeypatch.setattr(SessionCache, "load", load)
    handler = make_handler(replace(EXECUTION, providers=("CUDAExecutionProvider", CPU), strict=True))
    job_id = uuid4()
    # The caller must learn that its process can run no further job.
    outcome: AbstractContextManager[object] = nullcontext()
    if isinstance(failure, GpuFailed):
        outcome = pytest.raises(GpuFailed)
    with outcome:
        handler.handle(
            {"job_id": str(job_id), "request": {**request_for_scan, "priority": "urgent"}}, task_id=str(job_id)
        )
    job = get(database, job_id)
    assert (job.state, job.attempt) == (JobState.QUEUED, 1)
    assert job_store.transitions(database, job.id)[-1].detail == failure.code
    (unsent,) = [each for each in recovery.find_unsent(database, grace_s=0) if each.id == job.id]
    assert unsent.on_cpu
    message = {"job_id": str(job.id), "request": unsent.request}
    handler.handle(message, task_id=str(job.id))
    job = get(database, job.id)
    assert (job.state, job.providers) == (JobState.SUCCEEDED, [CPU])
    assert used == [("CUDAExecutionProvider", CPU), (CPU,)]


def test_a_process_whose_gpu_failed_exits_even_if_the_failure_cannot_be_recorded(
    handler: TaskHandler, request_for_scan: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object) -> None:
        raise GpuFailed("the GPU failed on the model")

    def away(*_: object, **__: object) -> None:
        raise DatabaseUnavailable("Postgres does not answer")

    monkeypatch.setattr(SessionCache, "load", load)
    monkeypatch.setattr("inference_service.jobs.attempts.schedule_retry", away)
    job_id = str(uuid4())
    with pytest.raises(GpuFailed):
        handler.handle({"job_id": job_id, "request": request_for_scan}, task_id=job_id)
