"""What a worker's parent does besides consuming, against the real servers."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from inference_service.core.settings import Settings
from inference_service.jobs.worker_registry import Identity, Role
from inference_service.worker import supervisor
from inference_service.worker.scratch_space import Workspace
from inference_service.worker.supervisor import Supervisor


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    workspace = Workspace(tmp_path)
    yield workspace
    workspace.close()


def test_a_worker_that_does_not_stop_is_ended(
    settings: Settings, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "_HANG_LIMIT_S", 0.5)
    ended = threading.Event()
    watching = Supervisor(
        settings.model_copy(update={"shutdown_grace_s": 0.0, "sweep_period_s": 0.1}),
        Identity("hanging", Role.CPU, 1, ["CPUExecutionProvider"]),
        workspace, queues=lambda: ["overflow"], taken=lambda: None, end=ended.set,
    )  # fmt: skip
    watching.start()
    assert not ended.wait(1.0)
    watching.stopping()
    assert ended.wait(30)
    watching.stop()
