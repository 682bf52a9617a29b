"""The supervisor of a worker, against the real servers."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from inference_service.core.scratch_space import ScratchSpace
from inference_service.core.settings import Settings
from inference_service.jobs.worker_registry import Role, WorkerIdentity
from inference_service.worker import supervisor
from inference_service.worker.supervisor import Supervisor


@pytest.fixture
def scratch_space(tmp_path: Path) -> Iterator[ScratchSpace]:
    scratch_space = ScratchSpace(tmp_path)
    yield scratch_space
    scratch_space.close()


def test_a_worker_that_does_not_stop_is_killed(
    settings: Settings, scratch_space: ScratchSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "_HANG_LIMIT_S", 0.5)
    killed = threading.Event()
    watching = Supervisor(
        settings.model_copy(update={"shutdown_grace_s": 0.0, "sweep_period_s": 0.1}),
        WorkerIdentity("hanging", Role.CPU, 1, ["CPUExecutionProvider"]),
        scratch_space,
        consumed_queues=lambda: ["overflow"],
        messages_taken=lambda: None,
        kill=killed.set,
    )
    watching.start()
    assert not killed.wait(1.0)
    watching.begin_shutdown()
    assert killed.wait(30)
    watching.stop()
