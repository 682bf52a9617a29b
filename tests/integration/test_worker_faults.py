"""Faults of a worker's machine: they end no job, and pause the worker until its machine is in order."""

import errno
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from jobs_in_process import Request, get, run
from pydantic import SecretStr
from sqlalchemy import func, select, update

from inference_service.core.errors import ModelInvalid, OutOfMemory, StorageRefused
from inference_service.core.settings import Settings
from inference_service.embedded.servers import Servers
from inference_service.engine.providers import PROBE_LIMIT_S, ProbeResult
from inference_service.jobs import attempts, job_store
from inference_service.jobs.database import Database
from inference_service.jobs.schema import JobRow, JobState
from inference_service.jobs.storage.object_storage import Storage
from inference_service.jobs.workers import worker_registry
from inference_service.jobs.workers.worker_registry import InstalledModel, Role, WorkerIdentity
from inference_service.worker import self_test
from inference_service.worker.task import TaskHandler, WorkerPaused

MODEL = InstalledModel("ct-tissue", "1", "0" * 64)
MakeHandler = Callable[..., TaskHandler]


@contextmanager
def other_worker(
    database: Database, *, queues: list[str] | None = None, models: list[InstalledModel]
) -> Iterator[None]:
    """A live worker, which by default consumes the overflow queue."""
    identity = WorkerIdentity(f"other-{uuid4()}", Role.CPU, 1, [])
    worker_registry.record_heartbeat(
        database, identity, queues=["overflow"] if queues is None else queues, models=models
    )
    yield
    worker_registry.deregister(database, identity.name)


def mark_sent(database: Database, job_id: UUID) -> None:
    with database.begin() as connection:
        job = job_store.UnsentJob(job_id, {}, get(database, job_id).attempt)
        job_store.mark_dispatched(connection, job, queue="overflow", redis_run_id="x")


def deliver(handler: TaskHandler, database: Database, job: job_store.Job) -> job_store.Job:
    """Delivers a job's message to a worker."""
    handler.handle({"job_id": str(job.id), "request": job.request}, task_id=str(job.id))
    return get(database, job.id)


def claim(database: Database, job: job_store.Job) -> attempts.Claim:
    found = attempts.claim(database, job.id, worker="x", lease_s=30, max_attempts=3)
    assert found is not None
    return found


def assert_does_not_count(handler: TaskHandler, database: Database, job: job_store.Job, detail: str) -> None:
    """The job waits for an attempt as if there had been none, and the worker takes no further one."""
    assert (job.state, job.attempt, job.error_code) == (JobState.QUEUED, 1, None)
    assert job_store.transitions(database, job.id)[-1].detail == detail
    with pytest.raises(WorkerPaused):
        deliver(handler, database, job)
    assert (get(database, job.id).state, get(database, job.id).attempt) == (JobState.QUEUED, 1)
    assert claim(database, job).attempts_left == 2


def test_a_stale_key_is_no_fault_of_the_job(
    make_handler: MakeHandler, database: Database, request_for_scan: Request
) -> None:
    handler = make_handler(minio_secret_key=SecretStr("0" * 40), max_attempts=1)
    assert_does_not_count(handler, database, run(handler, database, request_for_scan), "storage_unavailable")


def test_an_outage_of_the_storage_is_no_fault_of_the_job(
    make_handler: MakeHandler, database: Database, servers: Servers, request_for_scan: Request
) -> None:
    handler = make_handler(max_attempts=1)
    servers.s3.stop()
    try:
        job = run(handler, database, request_for_scan)
    finally:
        servers.s3.start()
    assert_does_not_count(handler, database, job, "storage_unavailable")


def test_a_full_disk_is_no_fault_of_the_job(
    make_handler: MakeHandler, database: Database, request_for_scan: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Storage, "fetch", full)
    monkeypatch.setattr(self_test, "_MIN_FREE_DISK_BYTES", 2**63)
    handler = make_handler(max_attempts=1)
    assert_does_not_count(handler, database, run(handler, database, request_for_scan), "storage_unavailable")


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_disk_that_fails_is_named_and_the_job_is_tried_again(
    make_handler: MakeHandler,
    database: Database,
    request_for_scan: Request,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    number: int,
) -> None:
    def failing(self: Path, *arguments: Any, **options: Any) -> Any:
        if self.name == ".input.part":
            raise OSError(number, os.strerror(number), str(self))
        return original(self, *arguments, **options)

    original = Path.open
    monkeypatch.setattr(Path, "open", failing)
    job = run(make_handler(max_attempts=2), database, request_for_scan)
    assert (job.state, job.attempt) == (JobState.QUEUED, 1)
    assert f"the disk of the worker fails: {os.strerror(number)}" in caplog.text


def test_a_broken_engine_is_no_fault_of_the_job(
    make_handler: MakeHandler, database: Database, request_for_scan: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise OSError("libonnxruntime.so: cannot open shared object file")

    monkeypatch.setattr("inference_service.worker.attempt_runner.segment_file", broken)
    monkeypatch.setattr(self_test, "run_probe", lambda: (ProbeResult("CPUExecutionProvider", "it is gone"),))
    handler = make_handler(max_attempts=1)
    assert_does_not_count(handler, database, run(handler, database, request_for_scan), "internal_error")


def test_a_job_is_not_taken_for_lost_during_the_self_test_of_its_worker(
    make_handler: MakeHandler, database: Database, request_for_scan: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow_probe() -> tuple[ProbeResult, ...]:
        left_s = func.extract("epoch", JobRow.lease_expires_at - func.now())
        with database.connection() as connection:
            newest = select(left_s).order_by(JobRow.created_at.desc()).limit(1)
            left.append(connection.execute(newest).scalar_one())
        return (ProbeResult("CPUExecutionProvider", None),)

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError

    left: list[float] = []
    monkeypatch.setattr("inference_service.worker.attempt_runner.segment_file", broken)
    monkeypatch.setattr(self_test, "run_probe", slow_probe)
    job = run(make_handler(max_attempts=1), database, request_for_scan)
    assert job.error_code == "internal_error"
    assert left[0] > PROBE_LIMIT_S


def test_unreadable_models_are_no_fault_of_the_job(
    make_handler: MakeHandler, database: Database, request_for_scan: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Path, "iterdir", failing)
    handler = make_handler(max_attempts=1)
    assert_does_not_count(handler, database, run(handler, database, request_for_scan), "storage_unavailable")


def test_a_refused_object_is_the_jobs_fault_and_is_tried_elsewhere_first(
    make_handler: MakeHandler, database: Database, request_for_scan: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise StorageRefused("the object storage denies access (AccessDenied)")

    monkeypatch.setattr(Storage, "fetch", refused)
    handler = make_handler(max_attempts=2)
    job = run(handler, database, request_for_scan)
    assert (job.state, job.attempt) == (JobState.QUEUED, 1)
    mark_sent(database, job.id)
    with other_worker(database, models=[]), pytest.raises(attempts.LeftToAnother):
        deliver(handler, database, job)
    with other_worker(database, queues=["priority"], models=[]):
        job = deliver(handler, database, job)
    assert (job.state, job.attempt, job.error_code) == (JobState.FAILED, 2, "storage_unavailable")


def test_a_job_that_no_disk_can_hold_fails(
    make_handler: MakeHandler, database: Database, request_for_scan: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Storage, "fetch", full)
    job = run(make_handler(max_attempts=1), database, request_for_scan)
    assert (job.state, job.error_code) == (JobState.FAILED, "storage_unavailable")


@pytest.mark.parametrize(
    ("error", "code"),
    [(MemoryError(), "out_of_memory"), (OutOfMemory("x"), "out_of_memory"), (ZeroDivisionError(), "internal_error")],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_an_error_that_may_be_the_workers_alone_is_final_only_if_no_other_worker_can_try(
    make_handler: MakeHandler,
    database: Database,
    request_for_scan: Request,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    code: str,
) -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("inference_service.worker.attempt_runner.segment_file", failing)
    sick, also_sick = make_handler(), make_handler()
    with other_worker(database, queues=["priority"], models=[MODEL]):
        assert run(sick, database, request_for_scan).error_code == code
    with other_worker(database, models=[MODEL]):
        job = run(sick, database, request_for_scan)
        assert (job.state, job.attempt) == (JobState.QUEUED, 1)
        assert job_store.transitions(database, job.id)[-1].detail == code
        mark_sent(database, job.id)
        with pytest.raises(attempts.LeftToAnother):
            deliver(sick, database, job)
        assert claim(database, job).attempts_left == 1
    job = run(also_sick, database, request_for_scan)
    assert (job.state, job.attempt, job.error_code) == (JobState.FAILED, 1, code)


def test_a_worker_that_has_too_little_memory_for_several_jobs_in_a_row_is_paused(
    make_handler: MakeHandler, database: Database, request_for_scan: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    def greedy(*_: Any, **__: Any) -> None:
        raise MemoryError

    handler = make_handler()
    with monkeypatch.context() as patch:
        patch.setattr("inference_service.worker.attempt_runner.segment_file", greedy)
        for _ in range(2):
            run(handler, database, request_for_scan)
    assert run(handler, database, request_for_scan).state is JobState.SUCCEEDED
    monkeypatch.setattr("inference_service.worker.attempt_runner.segment_file", greedy)
    for _ in range(3):
        run(handler, database, request_for_scan)
    with pytest.raises(WorkerPaused):
        run(handler, database, request_for_scan)


def test_one_job_that_is_lost_again_and_again_pauses_no_worker(settings: Settings, tmp_path: Path) -> None:
    tested = self_test.SelfTest(settings, tmp_path, worker="w")
    poison = uuid4()
    for _ in range(5):
        tested.count_loss(poison)
    tested.count_loss(uuid4())
    assert not tested.paused
    tested.count_loss(uuid4())
    assert tested.paused


@pytest.mark.parametrize("version", [None, "1"])
def test_a_model_that_another_worker_has_is_left_to_it(
    make_handler: MakeHandler, database: Database, request_for_scan: Request, tmp_path: Path, version: str | None
) -> None:
    lacking = make_handler(models_path=install(tmp_path, "another"))
    request = {**request_for_scan, "model_version": version}
    with other_worker(database, models=[MODEL]):
        job = run(lacking, database, request)
        assert (job.state, job.attempt) == (JobState.QUEUED, 1)
        mark_sent(database, job.id)
        with pytest.raises(attempts.LeftToAnother):
            deliver(lacking, database, job)
    assert deliver(make_handler(), database, job).state is JobState.SUCCEEDED


def install(tmp_path: Path, name: str) -> Path:
    """A folder of models that has a copy of one under another name, whose manifest is of the original."""
    models = tmp_path / "models"
    shutil.copytree(Path(os.environ["MODELS_PATH"]) / "ct-tissue", models / "ct-tissue")
    manifest = models / "ct-tissue" / "1" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"ct-tissue"', f'"{name}"'))
    (models / "ct-tissue").rename(models / name)
    return models


@pytest.mark.parametrize(
    ("held", "asked"),
    [([], {}), ([MODEL], {"model_version": "2"}), ([InstalledModel("ct-chest", "1", "0" * 64)], {})],
    ids=["no-model", "another-version", "another-model"],
)
def test_a_model_that_no_live_worker_has_is_not_found(
    make_handler: MakeHandler,
    database: Database,
    request_for_scan: Request,
    tmp_path: Path,
    held: list[InstalledModel],
    asked: Request,
) -> None:
    lacking = make_handler(models_path=install(tmp_path, "another"))
    with other_worker(database, models=held):
        job = run(lacking, database, {**request_for_scan, **asked})
    assert (job.state, job.error_code) == (JobState.FAILED, "model_not_found")


def test_a_model_that_a_paused_worker_has_is_waited_for(
    make_handler: MakeHandler, database: Database, request_for_scan: Request, tmp_path: Path
) -> None:
    lacking = make_handler(models_path=install(tmp_path, "another"))
    with other_worker(database, queues=[], models=[MODEL]):
        job = run(lacking, database, request_for_scan)
        assert deliver(lacking, database, job).state is JobState.QUEUED
    assert deliver(lacking, database, job).error_code == "model_not_found"


def test_an_invalid_model_is_tried_once_on_each_worker_that_has_it(
    make_handler: MakeHandler, database: Database, request_for_scan: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    def invalid(*_: Any) -> None:
        raise ModelInvalid("the network does not fit")

    monkeypatch.setattr("inference_service.model_store.model_library.find_model", invalid)
    handlers = [make_handler(max_attempts=1), make_handler(max_attempts=1)]
    for handler in handlers:
        identity = WorkerIdentity(handler._context.worker, Role.CPU, 1, [])
        worker_registry.record_heartbeat(database, identity, queues=["overflow"], models=[MODEL])
    job = run(handlers[0], database, request_for_scan)
    assert job.state is JobState.QUEUED
    job = deliver(handlers[1], database, job)
    assert (job.state, job.attempt, job.error_code) == (JobState.FAILED, 2, "model_invalid")


def test_a_job_avoids_any_number_of_workers_until_they_stop(database: Database) -> None:
    names = [f"worker-{number}" for number in range(60)]
    job_id = uuid4()
    job_store.create(database, job_id, None)

    def avoided() -> set[str]:
        with database.connection() as connection:
            return set(connection.execute(select(JobRow.avoided_workers).where(JobRow.id == job_id)).scalar_one() or ())

    for name in names:
        worker_registry.record_heartbeat(database, WorkerIdentity(name, Role.CPU, 1, []), queues=[])
        claim = attempts.claim(database, job_id, worker=name, lease_s=30, max_attempts=1)
        assert claim is not None
        attempts.schedule_retry(database, claim, delay_s=0, detail="x", counts=False, elsewhere=True)
    assert avoided() == {*names}
    for name in names[:59]:
        worker_registry.deregister(database, name)
    claim = attempts.claim(database, job_id, worker=names[0], lease_s=30, max_attempts=1)
    assert claim is not None
    attempts.schedule_retry(database, claim, delay_s=0, detail="x", counts=False, elsewhere=True)
    assert avoided() == {names[0], names[59]}


def test_a_new_worker_waits_until_it_knows_the_others(
    make_handler: MakeHandler, database: Database, request_for_scan: Request
) -> None:
    handler = make_handler(cpu_standby_s=30.0)
    object.__setattr__(handler._context, "started_at", time.monotonic() - 20)
    job = run(handler, database, {**request_for_scan, "model": "none"})
    assert job.state is JobState.QUEUED
    with database.connection() as connection:
        wait_s = select(func.extract("epoch", JobRow.not_before - func.now())).where(JobRow.id == job.id)
        assert 0 < connection.execute(wait_s).scalar_one() <= 10
    with database.begin() as connection:
        connection.execute(update(JobRow).where(JobRow.id == job.id).values(not_before=func.now()))
    object.__setattr__(handler._context, "started_at", time.monotonic() - 31)
    job = deliver(handler, database, job)
    assert (job.state, job.attempt, job.error_code) == (JobState.FAILED, 2, "model_not_found")


def test_the_self_test_leaves_nothing_behind(settings: Settings, tmp_path: Path) -> None:
    own = settings.model_copy(update={"output_prefix_root": "of/a/tenant"})
    assert self_test.SelfTest(own, tmp_path, worker="cpu-1@host").problem(with_engine=False) is None
    with closing(Storage(settings)) as storage:
        assert not [key for key in storage.list_keys("masks") if "self-tests" in key]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"minio_secret_key": SecretStr("0" * 40)}, "the object storage"),
        ({"minio_endpoint": "127.0.0.1:1"}, "the object storage does not answer"),
        ({"models_path": Path("/nowhere")}, "no model is installed under MODELS_PATH"),
    ],
    ids=["stale-key", "no-route", "no-model"],
)
def test_the_self_test_names_the_problem(
    settings: Settings, tmp_path: Path, changes: dict[str, object], problem: str
) -> None:
    tested = self_test.SelfTest(settings.model_copy(update=changes), tmp_path, worker="w")
    assert problem in (tested.problem(with_engine=False) or "")


def test_the_self_test_finds_a_disk_that_takes_no_file(settings: Settings, tmp_path: Path) -> None:
    tested = self_test.SelfTest(settings, tmp_path / "gone", worker="w")
    assert "no temporary file can be written to WORK_PATH" in (tested.problem(with_engine=False) or "")


def test_the_self_test_runs_onnx_runtime(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tested = self_test.SelfTest(settings, tmp_path, worker="w")
    assert tested.problem(with_engine=True) is None
    monkeypatch.setattr(self_test, "run_probe", lambda: (ProbeResult("CPUExecutionProvider", "it is gone"),))
    assert "ONNX Runtime does not work any more" in (tested.problem(with_engine=True) or "")
