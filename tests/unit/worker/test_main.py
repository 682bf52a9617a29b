"""Reports of the parent process on children that died."""

from typing import Any
from uuid import UUID, uuid4

import pytest
from billiard.einfo import ExceptionInfo
from billiard.exceptions import Terminated, WorkerLostError
from celery.worker.request import Request

from inference_service.core.errors import ServiceError, TimeLimit
from inference_service.worker.main import _supervised_request

JOB_ID = uuid4()
PID = 4711


class Recorder:
    """Stands in for the supervisor."""

    def __init__(self) -> None:
        self.reported: list[tuple[UUID, int, ServiceError | None]] = []

    def child_lost(self, job_id: UUID, pid: int, error: ServiceError | None = None) -> None:
        self.reported.append((job_id, pid, error))


@pytest.fixture
def supervisor() -> Recorder:
    return Recorder()


@pytest.fixture
def request_of_a_child(supervisor: Any, monkeypatch: pytest.MonkeyPatch) -> Request:
    """Celery's request for a job in a child, without the handlers of Celery."""
    for name in ("on_failure", "on_timeout"):
        monkeypatch.setattr(Request, name, lambda *_: None)
    request_class = _supervised_request(supervisor)
    request = request_class.__new__(request_class)
    request.id = str(JOB_ID)
    request.worker_pid = str(PID)
    return request


def failure(error: BaseException) -> ExceptionInfo:
    try:
        raise error
    except BaseException:
        return ExceptionInfo()


def test_a_killed_child_is_reported(request_of_a_child: Request, supervisor: Recorder) -> None:
    request_of_a_child.on_failure(failure(WorkerLostError("signal 9")))
    assert supervisor.reported == [(JOB_ID, PID, None)]


@pytest.mark.parametrize(
    ("error", "quiet"),
    [
        (WorkerLostError("signal 9"), True),
        (Terminated(9), True),
        (SystemExit(1), True),
        (KeyboardInterrupt(), True),
        (ValueError("x"), False),
    ],
)
def test_celery_logs_a_traceback_of_a_failed_task_and_none_of_a_lost_child(
    request_of_a_child: Request, monkeypatch: pytest.MonkeyPatch, error: BaseException, quiet: bool
) -> None:
    passed: list[bool] = []
    monkeypatch.setattr(Request, "on_failure", lambda _self, _info, _event, return_ok: passed.append(return_ok))
    request_of_a_child.on_failure(failure(error))
    assert passed == [quiet]


def test_a_failed_task_is_not_reported(request_of_a_child: Request, supervisor: Recorder) -> None:
    request_of_a_child.on_failure(failure(ValueError("x")))
    assert supervisor.reported == []


def test_a_child_that_celery_kills_for_its_run_time_ends_with_time_limit(
    request_of_a_child: Request, supervisor: Recorder
) -> None:
    request_of_a_child.on_timeout(False, 3660)
    ((job_id, pid, error),) = supervisor.reported
    assert (job_id, pid) == (JOB_ID, PID)
    assert isinstance(error, TimeLimit)
    assert "3660 s" in error.message
