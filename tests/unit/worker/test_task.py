from collections.abc import Mapping
from contextlib import closing
from uuid import uuid4

import pytest
from celery.exceptions import Reject
from celery.worker.request import Request

from inference_service.contract.task_message import TASK_NAME
from inference_service.core.errors import DatabaseUnavailable
from inference_service.core.settings import Settings
from inference_service.jobs.queues.celery_app import make_app
from inference_service.worker import task
from inference_service.worker.task import TaskHandler, register


class Broken(TaskHandler):
    """A handler that fails before the job has a row."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def handle(self, message: Mapping[str, object], *, task_id: str) -> None:
        raise self._error


@pytest.mark.parametrize(
    "error", [DatabaseUnavailable("no answer"), MemoryError(), RuntimeError("unexpected")], ids=repr
)
def test_a_message_goes_back_to_its_queue_whatever_error_comes(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(task, "_REQUEUE_PAUSE_S", 0.0)
    with closing(make_app(Settings())) as app:
        register(app, Broken(error), Request)
        with pytest.raises(Reject) as rejected:
            app.tasks[TASK_NAME](job_id=str(uuid4()), request={})
    assert vars(rejected.value)["requeue"]
