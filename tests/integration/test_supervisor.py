"""The supervisor of a worker, against the real servers."""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from inference_service.core.errors import JobCancelled
from inference_service.core.scratch_space import ScratchSpace
from inference_service.core.settings import Settings
from inference_service.jobs import attempts, job_store
from inference_service.jobs.database import Database
from inference_service.jobs.workers.worker_registry import InstalledModel, Role, Worker, WorkerIdentity, list_workers
from inference_service.worker import machine_watch, supervisor
from inference_service.worker import self_test as self_test_module
from inference_service.worker.self_test import SelfTest
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
        SelfTest(settings, scratch_space.path, worker="hanging"),
        consumed_queues=lambda: ["overflow"],
        messages_taken=lambda: None,
        kill=killed.set,
    )
    watching.start()
    assert not killed.wait(1.0)
    watching.begin_shutdown()
    assert killed.wait(30)
    watching.stop()


def test_a_worker_whose_processes_die_in_several_jobs_takes_no_more(
    settings: Settings, scratch_space: ScratchSpace, database: Database
) -> None:
    watching = Supervisor(
        settings,
        WorkerIdentity("sick", Role.CPU, 1, ["CPUExecutionProvider"]),
        scratch_space,
        SelfTest(settings, scratch_space.path, worker="sick"),
        consumed_queues=lambda: watching.wanted_queues,
        messages_taken=lambda: None,
    )

    def lose(*, recorded: bool = False) -> None:
        job_id = uuid4()
        job_store.create(database, job_id, None)
        claim = attempts.claim(database, job_id, worker="sick", lease_s=30, max_attempts=3)
        assert claim is not None
        if recorded:
            attempts.fail(database, claim, JobCancelled("x"))
        watching.child_lost(job_id, os.getpid())
        watching._sweep()

    for _ in range(5):
        lose(recorded=True)
    for _ in range(2):
        lose()
    assert watching.wanted_queues
    lose()
    assert not watching.wanted_queues
    watching.stop()


def test_a_paused_worker_says_why_and_takes_jobs_again_once_its_self_test_passes(
    settings: Settings,
    scratch_space: ScratchSpace,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    self_test = SelfTest(settings, scratch_space.path, worker="sick")
    self_test.paused = True
    watching = Supervisor(
        settings.model_copy(update={"sweep_period_s": 0.1}),
        WorkerIdentity("sick", Role.CPU, 1, ["CPUExecutionProvider"]),
        scratch_space,
        self_test,
        consumed_queues=lambda: watching.wanted_queues,
        messages_taken=lambda: None,
    )

    def row(*, paused: bool) -> Worker:
        """Waits until the worker's row says that it is paused, or not."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            for worker in list_workers(database):
                if worker.name == "sick" and (worker.paused is not None) == paused:
                    return worker
            time.sleep(0.05)
        raise TimeoutError

    with monkeypatch.context() as patch:
        patch.setattr(self_test_module, "_MIN_FREE_DISK_BYTES", 2**63)
        watching.start()
        paused = row(paused=True)
        assert "is full" in str(paused.paused)
        assert paused.queues == []
        assert "ct-tissue" in {model.name for model in paused.models}
        assert "this worker takes no jobs, next test in" in caplog.text
    well = row(paused=False)
    assert well.queues[-1:] == ["overflow"]
    assert "this worker takes jobs again" in caplog.text
    watching.stop()


def test_a_worker_is_alive_while_its_models_cannot_be_read_because_their_share_hangs(
    settings: Settings, scratch_space: ScratchSpace, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine_watch, "_MODELS_PERIOD_S", 0.0)
    self_test = SelfTest(settings, scratch_space.path, worker="stuck")
    models = self_test.usable_models()
    hangs, answers = threading.Event(), threading.Event()

    def usable_models(*_: object) -> tuple[list[InstalledModel], bool]:
        if threading.current_thread() is not threading.main_thread():
            hangs.set()
            answers.wait()
        return models

    monkeypatch.setattr(self_test, "usable_models", usable_models)
    watching = Supervisor(
        settings.model_copy(update={"sweep_period_s": 0.1}),
        WorkerIdentity("stuck", Role.CPU, 1, ["CPUExecutionProvider"]),
        scratch_space,
        self_test,
        consumed_queues=lambda: ["overflow"],
        messages_taken=lambda: None,
    )
    watching.start()
    try:
        assert hangs.wait(30)
        hung_at = time.monotonic()
        deadline = hung_at + 30
        while time.monotonic() < deadline:
            alive = [worker for worker in list_workers(database) if worker.name == "stuck"]
            if alive and alive[0].silent_s < time.monotonic() - hung_at:
                break
            time.sleep(0.05)
        assert alive[0].models == models[0]
        assert time.monotonic() < deadline
    finally:
        answers.set()
        watching.stop()
