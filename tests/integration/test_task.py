"""Handles messages in this process, against the real servers."""

import errno
import json
import os
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, cast
from uuid import UUID, uuid4

import nibabel
import numpy as np
import pytest
from dicom_files import affine_of, read_segmentation, regular_stack, write_series
from sqlalchemy import text, update

from inference_service.client import Client
from inference_service.contract.task_message import parse_request
from inference_service.core.errors import (
    DatabaseUnavailable,
    GpuFailed,
    GpuOutOfMemory,
    InternalError,
    ServiceError,
    StorageUnavailable,
)
from inference_service.core.execution import CPU, ExecutionOptions
from inference_service.core.settings import Settings
from inference_service.embedded.phantom import chest_phantom
from inference_service.embedded.servers import Servers
from inference_service.engine.model_registry import Model
from inference_service.engine.session_cache import SessionCache, load_session
from inference_service.formats.nifti import write_volume
from inference_service.imaging.geometry import Volume
from inference_service.jobs import attempts, job_store, recovery, reservations
from inference_service.jobs.celery_app import RedisState
from inference_service.jobs.database import Database
from inference_service.jobs.object_storage import Storage
from inference_service.jobs.result_store import ResultStore
from inference_service.jobs.schema import JobRow, JobState
from inference_service.worker.job_context import JobContext
from inference_service.worker.scratch_space import ScratchSpace
from inference_service.worker.task import TaskHandler

Request = dict[str, object]
EXECUTION = ExecutionOptions(("CPUExecutionProvider",), 1)


@pytest.fixture(scope="session")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scan") / "scan.nii.gz"
    write_volume(path, chest_phantom((64, 60, 48), (2.0, 2.0, 3.0)))
    return path


@pytest.fixture
def make_handler(settings: Settings, tmp_path: Path) -> Iterator[Callable[..., TaskHandler]]:
    """Makes a handler with settings of its own. During an outage, its attempts fail early and are due again at once."""
    with ExitStack() as stack:

        def make(execution: ExecutionOptions = EXECUTION, **changes: object) -> TaskHandler:
            scratch_space = ScratchSpace(tmp_path)
            stack.callback(scratch_space.close)
            own = settings.model_copy(update={"outage_patience_s": 0.1, "retry_delay_s": 0.0, **changes})
            return TaskHandler(JobContext(own, execution, scratch_space, worker="w"))

        yield make


@pytest.fixture
def handler(make_handler: Callable[..., TaskHandler]) -> TaskHandler:
    return make_handler()


@pytest.fixture
def request_for_scan(storage: Storage, scan: Path) -> Request:
    storage.store("volumes", "scan", scan, content_type="application/gzip")
    return {"input": {"bucket": "volumes", "key": "scan"}, "model": "ct-tissue"}


def run(handler: TaskHandler, database: Database, request: object) -> job_store.Job:
    job_id = uuid4()
    handler.handle({"job_id": str(job_id), "request": request}, task_id=str(job_id))
    return get(database, job_id)


def get(database: Database, job_id: UUID) -> job_store.Job:
    job = job_store.get(database, job_id)
    assert job is not None
    return job


def test_a_job_ends_with_mask_and_report(
    handler: TaskHandler, database: Database, storage: Storage, request_for_scan: Request, scan: Path, tmp_path: Path
) -> None:
    job = run(handler, database, request_for_scan)
    assert (job.state, job.error_message) == (JobState.SUCCEEDED, None)
    assert job.result == {
        "bucket": "masks",
        "mask": f"{job.id}/mask.nii.gz",
        "report": f"{job.id}/report.json",
        "preview": f"{job.id}/preview.png",
    }
    for name in ("mask", "report", "preview"):
        storage.fetch("masks", job.result[name], tmp_path / name, max_bytes=10**7)
    (tmp_path / "mask").rename(tmp_path / "mask.nii.gz")
    mask = nibabel.Nifti1Image.from_filename(tmp_path / "mask.nii.gz")
    image = nibabel.Nifti1Image.from_filename(scan)
    np.testing.assert_array_equal(mask.affine, image.affine)
    assert mask.shape == image.shape
    assert len(np.unique(np.asarray(mask.dataobj))) == 6
    report = json.loads((tmp_path / "report").read_bytes())
    assert (tmp_path / "preview").read_bytes().startswith(b"\x89PNG")
    assert report["providers"] == job.providers == ["CPUExecutionProvider"]
    assert (job.model_name, job.model_version, job.model_sha256) == ("ct-tissue", "1", report["model"]["sha256"])
    assert set(job.timings_s or {}) >= {"fetch", "read", "preprocess", "windows", "map", "preview", "write", "store"}


def test_a_message_delivered_again_changes_nothing(
    handler: TaskHandler, database: Database, request_for_scan: Request
) -> None:
    job = run(handler, database, request_for_scan)
    handler.handle({"job_id": str(job.id), "request": request_for_scan}, task_id=str(job.id))
    assert get(database, job.id) == job


def test_results_of_another_job_are_not_overwritten(
    handler: TaskHandler, database: Database, storage: Storage, request_for_scan: Request, tmp_path: Path
) -> None:
    prefix = f"kept/{uuid4()}"
    kept = tmp_path / "kept"
    kept.write_text("somebody's result")
    storage.store("masks", f"{prefix}/report.json", kept, content_type="text/plain")
    job = run(handler, database, {**request_for_scan, "output": {"prefix": prefix}})
    assert (job.state, job.error_code) == (JobState.FAILED, "bad_request")
    storage.fetch("masks", f"{prefix}/report.json", tmp_path / "now", max_bytes=100)
    assert (tmp_path / "now").read_text() == "somebody's result"
    assert not storage.exists("masks", f"{prefix}/mask.nii.gz")


def test_a_recorded_job_runs_as_recorded_even_if_its_message_is_malformed(
    handler: TaskHandler, database: Database, request_for_scan: Request
) -> None:
    job_id = uuid4()
    job_store.create(database, job_id, parse_request(request_for_scan))
    handler.handle({"job_id": str(job_id), "request": {"model": 1}}, task_id=str(job_id))
    assert get(database, job_id).state is JobState.SUCCEEDED


@pytest.mark.parametrize(
    "message",
    [{}, {"request": None}, {"request": "x"}, {"request": []}, {"request": {"model": "m"}}, {"request": {}, "more": 1}],
)
def test_a_malformed_message_fails_as_bad_request(
    handler: TaskHandler, database: Database, message: dict[str, object]
) -> None:
    job_id = uuid4()
    handler.handle({**message, "job_id": str(job_id)}, task_id=str(uuid4()))
    job = get(database, job_id)
    assert (job.state, job.error_code, job.attempt) == (JobState.FAILED, "bad_request", 1)


def test_the_task_id_replaces_a_job_id_that_is_not_a_uuid(handler: TaskHandler, database: Database) -> None:
    task_id = uuid4()
    handler.handle({"job_id": "not a uuid", "request": {}}, task_id=str(task_id))
    assert get(database, task_id).error_code == "bad_request"


def test_a_message_without_any_id_is_dropped_and_logged(handler: TaskHandler, caplog: pytest.LogCaptureFixture) -> None:
    handler.handle({"request": {}}, task_id="no uuid either")
    assert "dropped" in caplog.text


def test_an_outage_of_the_storage_queues_the_job_for_another_attempt(
    handler: TaskHandler, database: Database, servers: Servers, request_for_scan: Request
) -> None:
    servers.s3.stop()
    try:
        job = run(handler, database, request_for_scan)
    finally:
        servers.s3.start()
    assert (job.state, job.attempt, job.error_code) == (JobState.QUEUED, 1, None)
    assert job_store.transitions(database, job.id)[-1].detail == "storage_unavailable"
    handler.handle({"job_id": str(job.id), "request": request_for_scan}, task_id=str(job.id))
    assert get(database, job.id).state is JobState.SUCCEEDED


def test_the_last_attempt_records_the_error_of_a_lasting_outage(
    make_handler: Callable[..., TaskHandler], database: Database, servers: Servers, request_for_scan: Request
) -> None:
    servers.s3.stop()
    try:
        job = run(make_handler(max_attempts=1), database, request_for_scan)
    finally:
        servers.s3.start()
    assert (job.state, job.error_code) == (JobState.FAILED, "storage_unavailable")


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


def test_a_failed_allocation_is_not_retried(
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


@pytest.mark.parametrize("packed", [False, True], ids=["prefix", "zip"])
def test_a_dicom_series_is_segmented_on_its_own_grid(
    handler: TaskHandler, database: Database, storage: Storage, tmp_path: Path, packed: bool
) -> None:
    phantom = chest_phantom((40, 36, 12), (3.0, 3.0, 5.0))
    series = regular_stack(phantom.voxels.astype(np.int16), pixel_mm=(3.0, 3.0), step_mm=5.0)
    paths = write_series(tmp_path / "series", series)
    key = f"study/{uuid4()}" + ("" if packed else "/")
    if packed:
        with zipfile.ZipFile(tmp_path / "zip", "w") as archive:
            for path in paths:
                archive.write(path, path.name)
        storage.store("volumes", key, tmp_path / "zip", content_type="application/zip")
    for path in [] if packed else paths:
        storage.store("volumes", key + path.name, path, content_type="application/dicom")
    job = run(handler, database, {"input": {"bucket": "volumes", "key": key}, "model": "ct-tissue"})
    assert job.state is JobState.SUCCEEDED, job.error_message
    assert job.result is not None
    storage.fetch("masks", job.result["mask"], tmp_path / "mask.nii.gz", max_bytes=10**7)
    mask = nibabel.Nifti1Image.from_filename(tmp_path / "mask.nii.gz")
    np.testing.assert_allclose(mask.affine, affine_of(series), atol=1e-4)
    assert len(np.unique(np.asanyarray(mask.dataobj))) > 2
    storage.fetch("masks", job.result["report"], tmp_path / "report.json", max_bytes=10**6)
    report = json.loads((tmp_path / "report.json").read_text())["input"]
    assert (report["kind"], report["modality"], report["slices"]) == ("dicom", "CT", 12)
    assert not [
        path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size == 0 and path.suffix != ".lock"
    ]


def test_a_dicom_mask_of_a_series_is_stored_and_reused(
    handler: TaskHandler, database: Database, storage: Storage, settings: Settings, tmp_path: Path
) -> None:
    phantom = chest_phantom((40, 36, 12), (3.0, 3.0, 5.0))
    key = f"study/{uuid4()}/"
    for path in write_series(
        tmp_path / "in", regular_stack(phantom.voxels.astype(np.int16), pixel_mm=(3, 3), step_mm=5.0)
    ):
        storage.store("volumes", key + path.name, path, content_type="application/dicom")
    request = {
        "input": {"bucket": "volumes", "key": key},
        "model": "ct-tissue",
        "output": {"formats": ["dicom-seg"]},
        "options": {"reuse": True},
    }
    job = run(handler, database, request)
    assert job.state is JobState.SUCCEEDED, job.error_message
    assert job.result == {
        "bucket": "masks",
        "mask": f"{job.id}/mask.nii.gz",
        "report": f"{job.id}/report.json",
        "preview": f"{job.id}/preview.png",
        "dicom-seg": f"{job.id}/segmentation.dcm",
    }
    with Client(settings) as client:
        mask_path, _, _, seg_path = client.result(job, tmp_path / "out")
    assert seg_path.name == "segmentation.dcm"
    seg = read_segmentation(seg_path)
    planes = seg.get_pixels_by_source_instance(
        [f"1.2.3.4.{k + 1}" for k in range(12)], combine_segments=True, assert_missing_frames_are_empty=True
    )
    mask = np.asanyarray(nibabel.Nifti1Image.from_filename(mask_path).dataobj)
    np.testing.assert_array_equal(planes.transpose(2, 1, 0), mask)
    again = run(handler, database, request)
    assert job_store.transitions(database, again.id)[-1].detail == f"reused {job.id}"
    assert storage.exists("masks", f"{again.id}/segmentation.dcm")
    plain = run(handler, database, {**request, "output": {}})
    assert job_store.transitions(database, plain.id)[-1].detail not in (f"reused {job.id}", f"reused {again.id}")
    assert not storage.exists("masks", f"{plain.id}/segmentation.dcm")


def test_a_dicom_mask_of_a_nifti_file_is_rejected_and_nothing_is_stored(
    handler: TaskHandler, database: Database, storage: Storage, request_for_scan: Request
) -> None:
    job = run(handler, database, {**request_for_scan, "output": {"formats": ["nifti", "dicom-seg"]}})
    assert (job.state, job.error_code) == (JobState.FAILED, "bad_request")
    assert "dicom-seg refers to the slices of a DICOM series" in (job.error_message or "")
    assert not storage.exists("masks", f"{job.id}/mask.nii.gz")


def test_a_result_is_reused_only_for_the_same_series(
    handler: TaskHandler, database: Database, storage: Storage, tmp_path: Path
) -> None:
    prefix = f"two/{uuid4()}/"
    for uid, step_mm in (("1.2.7", 3.0), ("1.2.8", 4.0)):
        for path in write_series(tmp_path / uid, replace(regular_stack(step_mm=step_mm), series_uid=uid)):
            storage.store("volumes", f"{prefix}{uid}/{path.name}", path, content_type="application/dicom")
    request = {"model": "ct-tissue", "options": {"reuse": True}}

    def ended(**which: str) -> job_store.Job:
        return run(handler, database, {**request, "input": {"bucket": "volumes", "key": prefix, **which}})

    assert ended().error_code == "mixed_series"
    details = []
    for uid in ("1.2.7", "1.2.8", "1.2.7"):
        job = ended(series=uid)
        assert job.state is JobState.SUCCEEDED, job.error_message
        details.append(job_store.transitions(database, job.id)[-1].detail)
    assert details[:2] == [None, None]
    assert str(details[2]).startswith("reused ")


def other_scan(storage: Storage, folder: Path) -> Request:
    """A scan of bone only, whose mask differs from the phantom's in every voxel."""
    path = folder / "bone.nii.gz"
    write_volume(path, Volume(np.full((20, 21, 22), 500, np.int16), np.diag([1.5, 1.5, 1.5, 1.0])))
    storage.store("volumes", "bone", path, content_type="application/gzip")
    options = {"modality_check": False}
    return {"input": {"bucket": "volumes", "key": "bone"}, "model": "ct-tissue", "options": options}


def stored_mask(storage: Storage, job: job_store.Job, folder: Path) -> bytes:
    assert job.result is not None
    storage.fetch("masks", job.result["mask"], folder / "stored", max_bytes=10**7)
    return (folder / "stored").read_bytes()


def test_of_two_simultaneous_jobs_with_one_prefix_one_is_rejected(
    make_handler: Callable[..., TaskHandler],
    database: Database,
    storage: Storage,
    request_for_scan: Request,
    tmp_path: Path,
) -> None:
    output = {"output": {"prefix": f"race/{uuid4()}"}}
    requests = [{**request_for_scan, **output}, {**other_scan(storage, tmp_path), **output}]
    alone = [run(make_handler(), database, {**r, "output": {}}) for r in requests]
    with ThreadPoolExecutor(2) as pool:
        ended = list(pool.map(lambda r: run(make_handler(), database, r), requests))
    assert sorted(str(job.state) for job in ended) == ["failed", "succeeded"]
    (winner,) = (index for index, job in enumerate(ended) if job.state is JobState.SUCCEEDED)
    assert ended[1 - winner].error_code == "bad_request"
    assert stored_mask(storage, ended[winner], tmp_path) == stored_mask(storage, alone[winner], tmp_path)


def test_a_later_attempt_does_not_overwrite_another_jobs_result(
    handler: TaskHandler, database: Database, storage: Storage, request_for_scan: Request, tmp_path: Path
) -> None:
    output = {"output": {"prefix": f"second/{uuid4()}"}}
    first = run(handler, database, {**request_for_scan, **output})
    before = stored_mask(storage, first, tmp_path)
    second = {**other_scan(storage, tmp_path), **output}
    job_id = uuid4()
    job_store.create(database, job_id, parse_request(second))
    claim = attempts.claim(database, job_id, worker="w", lease_s=30, max_attempts=3)
    assert claim is not None
    assert attempts.schedule_retry(database, claim, delay_s=0, detail="storage_unavailable")
    handler.handle({"job_id": str(job_id), "request": second}, task_id=str(job_id))
    assert get(database, job_id).error_code == "bad_request"
    assert stored_mask(storage, first, tmp_path) == before


def test_a_finished_job_runs_again_after_the_database_is_restored(
    handler: TaskHandler, database: Database, request_for_scan: Request
) -> None:
    job = run(handler, database, request_for_scan)
    before = {"state": JobState.QUEUED, "attempt": 0, "result_location": None, "result": None, "finished_at": None}
    with database.begin() as connection:
        connection.execute(update(JobRow).where(JobRow.id == job.id).values(before))
    handler.handle({"job_id": str(job.id), "request": request_for_scan}, task_id=str(job.id))
    assert get(database, job.id).result == job.result


def test_a_failed_job_frees_its_prefix(handler: TaskHandler, database: Database, request_for_scan: Request) -> None:
    output = {"output": {"prefix": f"freed/{uuid4()}"}}
    missing = {**request_for_scan, **output, "input": {"bucket": "volumes", "key": "no/such"}}
    assert run(handler, database, missing).error_code == "input_not_found"
    assert run(handler, database, {**request_for_scan, **output}).state is JobState.SUCCEEDED


def test_the_message_of_a_job_that_runs_on_another_worker_is_dropped(
    handler: TaskHandler, database: Database, request_for_scan: Request, expire_lease: Callable[[UUID], None]
) -> None:
    job_id = uuid4()
    job_store.create(database, job_id, parse_request(request_for_scan))
    assert attempts.claim(database, job_id, worker="other", lease_s=60, max_attempts=3)
    message = {"job_id": str(job_id), "request": request_for_scan}
    handler.handle(message, task_id=str(job_id))
    assert (get(database, job_id).state, get(database, job_id).attempt) == (JobState.RUNNING, 1)
    expire_lease(job_id)
    handler.handle(message, task_id=str(job_id))
    assert (get(database, job_id).state, get(database, job_id).attempt) == (JobState.SUCCEEDED, 2)


def test_objects_of_a_failed_job_are_removed(
    handler: TaskHandler,
    database: Database,
    storage: Storage,
    request_for_scan: Request,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = Storage.store

    def half(self: Storage, bucket: str, key: str, *rest: Any, **options: Any) -> None:
        if key.endswith("report.json"):
            raise InternalError("half of it is there")
        store(self, bucket, key, *rest, **options)

    monkeypatch.setattr(Storage, "store", half)
    job = run(handler, database, request_for_scan)
    assert job.error_code == "internal_error"
    assert not storage.exists("masks", f"{job.id}/mask.nii.gz")
    with reservations.clearing(database, job.id, f"masks/{job.id}") as reserved:
        assert not reserved()


def test_the_location_of_a_failed_job_is_free_for_another_job(
    handler: TaskHandler,
    database: Database,
    storage: Storage,
    request_for_scan: Request,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prefix = f"mine/{uuid4()}"
    request = {**request_for_scan, "output": {"prefix": prefix}}
    with monkeypatch.context() as patched:

        def store(self: Storage, bucket: str, key: str, *_: Any, **__: Any) -> None:
            real(self, bucket, key, *_, **__)
            raise InternalError("one of them is there")

        def remove(*_: Any) -> None:
            raise StorageUnavailable("x")

        real = Storage.store
        patched.setattr(Storage, "store", store)
        patched.setattr(Storage, "remove", remove)
        failed = run(handler, database, request)
    assert failed.error_code == "internal_error"
    assert storage.exists("masks", f"{prefix}/mask.nii.gz")
    again = run(handler, database, request)
    assert (again.state, again.error_message) == (JobState.SUCCEEDED, None)
    assert failed.id not in dict(reservations.find_uncleared(database))
    # Cleaning up after the failed job removes nothing of it.
    ResultStore(storage, f"masks/{prefix}").discard(database, failed.id)
    assert storage.exists("masks", f"{prefix}/mask.nii.gz")


def test_clearing_stops_when_the_reservation_is_lost(database: Database) -> None:
    """As when Postgres ends the transaction of a frozen process."""
    job_id = uuid4()
    job_store.create(database, job_id, None)
    claim = attempts.claim(database, job_id, worker="w", lease_s=30, max_attempts=3)
    assert claim is not None
    assert reservations.reserve(database, claim, f"masks/{job_id}")
    attempts.fail(database, claim, InternalError("x"))
    removed: list[str] = []

    class Slow:
        def remove(self, bucket: str, key: str) -> None:
            removed.append(f"{bucket}/{key}")
            with database.begin() as connection:
                connection.execute(
                    text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE state = 'idle in transaction'")
                )

    with pytest.raises(DatabaseUnavailable):
        ResultStore(cast("Storage", Slow()), f"masks/{job_id}").discard(database, job_id)
    assert removed == [f"masks/{job_id}/mask.nii.gz"]
    assert (job_id, f"masks/{job_id}") in reservations.find_uncleared(database)


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

    class Gpu:
        """A session on the GPU, which fails on every run."""

        providers = ("CUDAExecutionProvider",)
        fixed_batch_size = 1
        on_gpu = True
        precision = "fp32"
        single_provider = True
        aggregates_on_device = False

        def run(self, windows: np.ndarray) -> np.ndarray:
            raise failure

    def load(self: SessionCache, model: Model, execution: ExecutionOptions) -> object:
        used.append(execution.providers)
        return load_session(model, execution) if execution.providers == (CPU,) else Gpu()

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
    (unsent,) = [each for each in recovery.find_unsent(database, RedisState("r", {}), grace_s=0) if each.id == job.id]
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


def test_a_full_disk_fails_the_attempt(
    handler: TaskHandler, database: Database, request_for_scan: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Storage, "fetch", full)
    job = run(handler, database, request_for_scan)
    assert (job.state, job.attempt) == (JobState.QUEUED, 1)
    assert job_store.transitions(database, job.id)[-1].detail == "storage_unavailable"


def test_objects_that_a_lost_attempt_stores_late_are_removed(
    make_handler: Callable[..., TaskHandler],
    database: Database,
    storage: Storage,
    request_for_scan: Request,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job_id = uuid4()
    place = f"masks/{job_id}"
    store = Storage.store

    def late(self: Storage, bucket: str, key: str, *rest: Any, **options: Any) -> None:
        if get(database, job_id).state is JobState.RUNNING:
            assert job_id in {ended.job_id for ended in recovery.return_jobs(database, worker="w", max_attempts=0)}
            ResultStore(self, place).discard(database, job_id)
        store(self, bucket, key, *rest, **options)

    monkeypatch.setattr(Storage, "store", late)
    make_handler().handle({"job_id": str(job_id), "request": request_for_scan}, task_id=str(job_id))
    assert get(database, job_id).error_code == "worker_lost"
    assert storage.exists("masks", f"{job_id}/mask.nii.gz")
    assert (job_id, place) in reservations.find_uncleared(database)
    ResultStore(storage, place).discard(database, job_id)
    assert not storage.exists("masks", f"{job_id}/mask.nii.gz")


def test_a_location_reserved_by_another_job_is_not_cleared(database: Database) -> None:
    first = uuid4()
    second = uuid4()
    place = f"masks/{first}"
    for job_id in (first, second):
        job_store.create(database, job_id, None)
        claim = attempts.claim(database, job_id, worker="w", lease_s=30, max_attempts=3)
        assert claim is not None
        if job_id == first:
            attempts.fail(database, claim, InternalError("x"))
        else:
            assert reservations.reserve(database, claim, place)
    reservations.reserve_for_clearing(database, first, place)
    with reservations.clearing(database, first, place) as is_reserved:
        assert not is_reserved()


def test_a_missing_earlier_result_is_computed_again(
    handler: TaskHandler, database: Database, storage: Storage, request_for_scan: Request
) -> None:
    reusing = {**request_for_scan, "options": {"reuse": True}}
    first = run(handler, database, request_for_scan)
    assert job_store.transitions(database, run(handler, database, reusing).id)[-1].detail == f"reused {first.id}"
    for job in job_store.latest(database, state=JobState.SUCCEEDED, limit=1000):
        storage.remove("masks", f"{job.id}/mask.nii.gz")
    again = run(handler, database, reusing)
    assert (again.state, job_store.transitions(database, again.id)[-1].detail) == (JobState.SUCCEEDED, None)
    assert storage.exists("masks", f"{again.id}/mask.nii.gz")


@pytest.mark.parametrize("change", [{"model": "a\0b"}, {"model_version": "1\0"}, {"x\0y": 1}])
def test_a_nul_character_is_a_bad_request(
    handler: TaskHandler, database: Database, request_for_scan: Request, change: Request
) -> None:
    assert run(handler, database, {**request_for_scan, **change}).error_code == "bad_request"
