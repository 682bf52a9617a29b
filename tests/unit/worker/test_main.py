"""What a worker's parent process learns of its children's ends."""

from typing import Any
from uuid import UUID, uuid4

import pytest
from billiard.einfo import ExceptionInfo
from billiard.exceptions import WorkerLostError
from celery.worker.request import Request

from inference_service.core.errors import ServiceError, TimeLimit
from inference_service.worker.main import _watched_by

JOB_ID, PID = uuid4(), 4711


class Recorder:
    """Stands for the supervisor."""

    def __init__(self) -> None:
        self.said: list[tuple[UUID, int, ServiceError | None]] = []

    def lost(self, job_id: UUID, pid: int, error: ServiceError | None = None) -> None:
        self.said.append((job_id, pid, error))


@pytest.fixture
def supervisor() -> Recorder:
    return Recorder()


@pytest.fixture
def request_of_a_child(supervisor: Any, monkeypatch: pytest.MonkeyPatch) -> Request:
    """Celery's view of the job that a child runs, without what Celery does itself."""
    for name in ("on_failure", "on_timeout"):
        monkeypatch.setattr(Request, name, lambda *_: None)
    watched = _watched_by(supervisor)
    request = watched.__new__(watched)
    request.id, request.worker_pid = str(JOB_ID), str(PID)
    return request


def failure(error: BaseException) -> ExceptionInfo:
    try:
        raise error
    except BaseException:
        return ExceptionInfo()


def test_a_child_that_was_killed_is_told_of(request_of_a_child: Request, supervisor: Recorder) -> None:
    request_of_a_child.on_failure(failure(WorkerLostError("signal 9")))
    assert supervisor.said == [(JOB_ID, PID, None)]


def test_a_task_that_failed_is_not(request_of_a_child: Request, supervisor: Recorder) -> None:
    request_of_a_child.on_failure(failure(ValueError("x")))
    assert supervisor.said == []


def test_a_child_that_celery_ends_for_its_time_has_reached_its_limit(
    request_of_a_child: Request, supervisor: Recorder
) -> None:
    request_of_a_child.on_timeout(False, 3660)
    ((job_id, pid, error),) = supervisor.said
    assert (job_id, pid) == (JOB_ID, PID)
    assert isinstance(error, TimeLimit)
    assert "3660 s" in error.message
