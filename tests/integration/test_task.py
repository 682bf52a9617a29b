"""Handles messages in this process, against the real servers."""

import json
import re
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from uuid import UUID, uuid4

import nibabel
import numpy as np
import pytest
from dicom_files import affine_of, read_segmentation, regular_stack, with_attribute, write_series
from jobs_in_process import Request, get, run
from pydicom import Dataset

from inference_service.client import Client
from inference_service.contract.report import Report
from inference_service.contract.task_message import parse_request
from inference_service.core.report_warnings import WarningCode
from inference_service.core.settings import Settings
from inference_service.embedded.phantom import chest_phantom
from inference_service.jobs import attempts, job_store
from inference_service.jobs.database import Database
from inference_service.jobs.schema import JobState
from inference_service.jobs.storage.object_storage import Storage
from inference_service.worker.task import TaskHandler


def result_files_of(job: job_store.Job) -> dict[str, str]:
    """Names and files of a job's result, after it is checked that they are in the folder of the first attempt."""
    assert job.result is not None
    names = {name: key for name, key in job.result.items() if name != "bucket"}
    (folder,) = {key.rpartition("/")[0] for key in names.values()}
    assert re.fullmatch(rf"{job.id}/1-[0-9a-f]{{32}}", folder)
    return {name: key.rpartition("/")[2] for name, key in names.items()}


def test_a_job_ends_with_mask_and_report(
    handler: TaskHandler, database: Database, storage: Storage, request_for_scan: Request, scan: Path, tmp_path: Path
) -> None:
    job = run(handler, database, request_for_scan)
    assert (job.state, job.error_message) == (JobState.SUCCEEDED, None)
    assert result_files_of(job) == {"mask": "mask.nii.gz", "report": "report.json", "preview": "preview.png"}
    assert job.result is not None
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


def test_a_requested_scan_is_stored_on_the_grid_of_the_mask_and_reused(
    handler: TaskHandler, database: Database, settings: Settings, request_for_scan: Request, scan: Path, tmp_path: Path
) -> None:
    without = run(handler, database, request_for_scan)
    request = {**request_for_scan, "output": {"scan": True}, "options": {"reuse": True}}
    job = run(handler, database, request)
    assert (job.state, job.error_message) == (JobState.SUCCEEDED, None)
    assert job_store.transitions(database, job.id)[-1].detail != f"reused {without.id}"
    assert result_files_of(job)["scan"] == "scan.nii.gz"
    with Client(settings) as client:
        paths = client.result(job, tmp_path / "out")
    assert [path.name for path in paths] == ["mask.nii.gz", "report.json", "preview.png", "scan.nii.gz"]
    report = Report.model_validate_json(paths[1].read_bytes())
    assert report.checksums["scan.nii.gz"] == (job.checksums or {})["scan"]
    mask, _, _, stored = (nibabel.load(path) if path.suffix == ".gz" else None for path in paths)
    assert isinstance(mask, nibabel.Nifti1Image)
    assert isinstance(stored, nibabel.Nifti1Image)
    np.testing.assert_array_equal(stored.affine, mask.affine)
    image = nibabel.Nifti1Image.from_filename(scan)
    np.testing.assert_array_equal(np.asanyarray(stored.dataobj), np.asanyarray(image.dataobj))

    handler.handle({"job_id": str(job.id), "request": request}, task_id=str(job.id))
    assert get(database, job.id) == job
    again = run(handler, database, request)
    assert job_store.transitions(database, again.id)[-1].detail == f"reused {job.id}"
    assert again.checksums == job.checksums
    plain = run(handler, database, {**request_for_scan, "options": {"reuse": True}})
    assert job_store.transitions(database, plain.id)[-1].detail == f"reused {without.id}"
    assert "scan" not in result_files_of(plain)


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
        tmp_path / "in",
        regular_stack(phantom.voxels.astype(np.int16), pixel_mm=(3, 3), step_mm=5.0),
        change=with_attribute("PhotometricInterpretation", "MONOCHROME1"),
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
    assert result_files_of(job) == {
        "mask": "mask.nii.gz",
        "report": "report.json",
        "preview": "preview.png",
        "dicom-seg": "segmentation.dcm",
    }
    with Client(settings) as client:
        mask_path, report_path, _, seg_path = client.result(job, tmp_path / "out")
    assert seg_path.name == "segmentation.dcm"
    assert [warning["code"] for warning in job.warnings or []] == [WarningCode.MONOCHROME1, WarningCode.UIDS_GENERATED]
    assert json.loads(report_path.read_bytes())["warnings"] == job.warnings
    seg = read_segmentation(seg_path)
    planes = seg.get_pixels_by_source_instance(
        [f"1.2.3.4.{k + 1}" for k in range(12)], combine_segments=True, assert_missing_frames_are_empty=True
    )
    mask = np.asanyarray(nibabel.Nifti1Image.from_filename(mask_path).dataobj)
    np.testing.assert_array_equal(planes.transpose(2, 1, 0), mask)
    again = run(handler, database, request)
    assert job_store.transitions(database, again.id)[-1].detail == f"reused {job.id}"
    assert "dicom-seg" in result_files_of(again)
    assert again.warnings == job.warnings
    plain = run(handler, database, {**request, "output": {}})
    assert job_store.transitions(database, plain.id)[-1].detail not in (f"reused {job.id}", f"reused {again.id}")
    assert "dicom-seg" not in result_files_of(plain)


def test_a_dicom_mask_of_a_nifti_file_is_rejected_and_nothing_is_stored(
    handler: TaskHandler, database: Database, storage: Storage, request_for_scan: Request
) -> None:
    job = run(handler, database, {**request_for_scan, "output": {"formats": ["nifti", "dicom-seg"]}})
    assert (job.state, job.error_code) == (JobState.FAILED, "bad_request")
    assert "dicom-seg refers to the slices of a DICOM series" in (job.error_message or "")
    assert not any(key.startswith(str(job.id)) for key in storage.list_keys("masks"))


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


def test_a_result_is_reused_only_for_the_same_slices(
    handler: TaskHandler, database: Database, storage: Storage, tmp_path: Path
) -> None:
    prefix = f"phases/{uuid4()}/"
    for number in (1, 2):

        def change(k: int, dataset: Dataset, number: int = number) -> None:
            dataset.SOPInstanceUID = f"1.2.7.{number}.{k}"
            dataset.TemporalPositionIdentifier = number

        for path in write_series(tmp_path / str(number), regular_stack(), change=change):
            storage.store("volumes", f"{prefix}{number}/{path.name}", path, content_type="application/dicom")
    request = {"model": "ct-tissue", "options": {"reuse": True}}

    def ended(**which: object) -> job_store.Job:
        return run(handler, database, {**request, "input": {"bucket": "volumes", "key": prefix, **which}})

    refused = ended()
    assert refused.error_code == "not_a_volume"
    assert '{"TemporalPositionIdentifier": 1} (6 slices)' in (refused.error_message or "")
    details = []
    for number in (1, 2, 1):
        job = ended(select={"TemporalPositionIdentifier": number})
        assert job.state is JobState.SUCCEEDED, job.error_message
        details.append(job_store.transitions(database, job.id)[-1].detail)
    assert details[:2] == [None, None]
    assert str(details[2]).startswith("reused ")
    assert ended(select={"PatientName": "x"}).error_code == "bad_request"


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


@pytest.mark.parametrize("change", [{"model": "a\0b"}, {"model_version": "1\0"}, {"x\0y": 1}])
def test_a_nul_character_is_a_bad_request(
    handler: TaskHandler, database: Database, request_for_scan: Request, change: Request
) -> None:
    assert run(handler, database, {**request_for_scan, **change}).error_code == "bad_request"


@pytest.mark.parametrize(
    ("place", "field"),
    [
        ({"input": {"bucket": "masks", "key": "in/scan"}}, "request.input.bucket"),
        ({"input": {"key": "out/scan"}}, "request.input.key"),
        ({"output": {"prefix": "elsewhere"}}, "request.output.prefix"),
    ],
)
def test_a_place_that_the_settings_do_not_allow_is_refused_before_an_object_is_touched(
    make_handler: Callable[..., TaskHandler],
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    place: Request,
    field: str,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("an object was touched")

    for name in ("fetch", "fetch_folder", "store", "exists", "remove"):
        monkeypatch.setattr(Storage, name, fail)
    handler = make_handler(input_prefixes=["in"], output_prefix_root="results")
    job = run(handler, database, {"input": {"key": "in/scan"}, "model": "ct-tissue", **place})
    assert (job.state, job.error_code, job.attempt) == (JobState.FAILED, "bad_request", 1)
    assert str(job.error_message).startswith(f"{field}: expected ")


def test_a_scan_of_a_listed_bucket_is_segmented_below_the_root(
    make_handler: Callable[..., TaskHandler], database: Database, storage: Storage, scan: Path
) -> None:
    storage.ensure_bucket("research")
    storage.store("research", "in/scan", scan, content_type="application/gzip")
    handler = make_handler(input_buckets=["research"], input_prefixes=["in"], output_prefix_root="results")
    job = run(handler, database, {"input": {"bucket": "research", "key": "in/scan"}, "model": "ct-tissue"})
    assert job.state is JobState.SUCCEEDED, job.error_message
    assert job.result is not None
    assert job.result["mask"].startswith(f"results/{job.id}/1-")
