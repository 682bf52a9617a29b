"""Jobs of a model with two channels, against the real servers."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from dicom_files import affine_of, phantom, regular_stack, write_series
from jobs_in_process import Request, run
from two_channels import CHANNELS, NAME, expected_mask, install_model, labels_of, values_of, write_scan

from inference_service.client import Client
from inference_service.core.settings import Settings
from inference_service.jobs.database import Database
from inference_service.jobs.job_store import Job
from inference_service.jobs.schema import JobState
from inference_service.jobs.storage.object_storage import Storage
from inference_service.worker.task import TaskHandler


@pytest.fixture
def client(settings: Settings) -> Iterator[Client]:
    with Client(settings) as made:
        yield made


@pytest.fixture
def sums(make_handler: Callable[..., TaskHandler], tmp_path: Path) -> TaskHandler:
    """A handler with the model of two channels."""
    install_model(tmp_path / "models")
    return make_handler(models_path=tmp_path / "models")


@pytest.fixture
def request_for_channels(storage: Storage, tmp_path: Path) -> Request:
    channels = {}
    for name in CHANNELS:
        storage.store("volumes", f"study/{name}", write_scan(tmp_path / name / "a.nii.gz", name), content_type="x")
        channels[name] = {"bucket": "volumes", "key": f"study/{name}"}
    return {"input": {"channels": channels}, "model": NAME}


def mask_of(job: Job, storage: Storage, folder: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    assert (job.state, job.error_message) == (JobState.SUCCEEDED, None)
    assert job.result is not None
    storage.fetch("masks", job.result["mask"], folder / "mask.nii.gz", max_bytes=10**6)
    return labels_of(folder / "mask.nii.gz")


def test_a_job_segments_the_scans_of_both_channels_and_stores_the_first(
    sums: TaskHandler, database: Database, storage: Storage, request_for_channels: Request, tmp_path: Path
) -> None:
    job = run(sums, database, {**request_for_channels, "output": {"scan": True}})
    np.testing.assert_array_equal(mask_of(job, storage, tmp_path), expected_mask())
    storage.fetch("masks", (job.result or {})["scan"], tmp_path / "scan.nii.gz", max_bytes=10**6)
    np.testing.assert_array_equal(labels_of(tmp_path / "scan.nii.gz"), values_of("T1"))


def test_a_result_is_reused_only_for_the_same_scan_of_each_channel(
    sums: TaskHandler, database: Database, storage: Storage, request_for_channels: Request, tmp_path: Path
) -> None:
    channels = {name: {"key": f"study/{name}"} for name in CHANNELS}
    first = run(sums, database, request_for_channels)
    again = {**request_for_channels, "input": {"channels": channels}, "options": {"reuse": True}}
    reused = run(sums, database, again)
    np.testing.assert_array_equal(mask_of(reused, storage, tmp_path), expected_mask())
    with Client(sums._context.settings) as client:
        assert client.transitions(reused.id)[-1].detail == f"reused {first.id}"
        swapped = dict(zip(CHANNELS, reversed(channels.values()), strict=True))
        other = run(sums, database, {**again, "input": {"channels": swapped}})
        assert other.state is JobState.SUCCEEDED
        assert client.transitions(other.id)[-1].detail is None


def test_dicom_and_nifti_are_mixed(
    sums: TaskHandler, database: Database, client: Client, storage: Storage, tmp_path: Path
) -> None:
    stack = regular_stack((phantom() + 1100) // 1100)
    write_series(tmp_path / "t1", stack)
    scans = {"T1": tmp_path / "t1", "FLAIR": write_scan(tmp_path / "b.nii.gz", "FLAIR", affine_of(stack))}
    uploaded = client.upload_channels(scans).model_dump(mode="json")
    uploaded["channels"]["T1"]["series"] = stack.series_uid
    job = run(
        sums,
        database,
        {"input": uploaded, "model": NAME, "output": {"formats": ["dicom-seg"]}, "options": {"modality_check": False}},
    )
    assert mask_of(job, storage, tmp_path).shape == stack.voxels.shape
    assert job.result is not None
    storage.fetch("masks", job.result["report"], tmp_path / "report.json", max_bytes=10**6)
    report = json.loads((tmp_path / "report.json").read_text())
    assert [channel["kind"] for channel in report["input"]["channels"]] == ["dicom", "nifti"]
    assert report["options"]["channels"]["T1"]["series"] == stack.series_uid
    assert job.warnings is not None
    assert "channel_resampled" in {warning["code"] for warning in job.warnings}


def test_a_prefix_with_the_names_of_nnunet_is_reused_only_with_the_same_names(
    sums: TaskHandler, database: Database, client: Client, storage: Storage, tmp_path: Path
) -> None:
    detail = {}
    for case, numbers in {"first": (0, 1), "same": (0, 1), "swapped": (1, 0)}.items():
        for number, name in zip(numbers, CHANNELS, strict=True):
            write_scan(tmp_path / case / f"case_{number:04}.nii.gz", name)
        uploaded = client.upload(tmp_path / case).model_dump(mode="json")
        job = run(sums, database, {"input": uploaded, "model": NAME, "options": {"reuse": True}})
        np.testing.assert_array_equal(mask_of(job, storage, tmp_path), expected_mask())
        detail[case] = client.transitions(job.id)[-1].detail
    assert detail["first"] is None
    assert str(detail["same"]).startswith("reused ")
    assert detail["swapped"] is None


@pytest.mark.parametrize("channels", [["T1"], ["T1", "FLAIR", "T2"], ["T1", "MUELLER^HANS"]], ids=str)
def test_other_channels_are_refused_before_anything_is_fetched(
    sums: TaskHandler, database: Database, channels: list[str]
) -> None:
    references = {name: {"key": "there/is/no/such/object"} for name in channels}
    job = run(sums, database, {"input": {"channels": references}, "model": NAME})
    assert (job.state, job.error_code) == (JobState.FAILED, "bad_request")
    assert job.error_message == "input.channels: expected a scan for each channel of the model, by its name: T1, FLAIR"


def test_a_missing_object_and_the_limit_on_bytes_name_the_channel(
    sums: TaskHandler,
    make_handler: Callable[..., TaskHandler],
    database: Database,
    request_for_channels: Request,
    tmp_path: Path,
) -> None:
    missing = {"channels": {"T1": {"key": "study/T1"}, "FLAIR": {"key": "there/is/none"}}}
    job = run(sums, database, {"input": missing, "model": NAME})
    assert job.error_code == "input_not_found"
    assert str(job.error_message).startswith("channel FLAIR: ")
    size = sum((tmp_path / name / "a.nii.gz").stat().st_size for name in CHANNELS)
    bounded = make_handler(models_path=tmp_path / "models", max_input_bytes=size - 1)
    job = run(bounded, database, request_for_channels)
    assert job.error_code == "input_too_large"
    assert str(job.error_message).startswith("channel FLAIR: ")


def test_a_model_of_one_channel_takes_its_channel_by_name(
    handler: TaskHandler, database: Database, request_for_scan: Request
) -> None:
    job = run(handler, database, {**request_for_scan, "input": {"channels": {"CT": {"key": "scan"}}}})
    assert (job.state, job.error_message) == (JobState.SUCCEEDED, None)


def test_local_scans_and_objects_are_submitted_by_channel(
    command: Callable[..., Result], client: Client, storage: Storage, tmp_path: Path
) -> None:
    local = write_scan(tmp_path / "Doe^Jane.nii.gz", "FLAIR")
    submitted = command(
        "submit", "--channel", "T1=s3://volumes/study/T1", "--channel", f"FLAIR={local}", "--model", NAME,
        "--series", "FLAIR=1.2=3", "--select", "FLAIR=EchoTime=80",
    )  # fmt: skip
    assert submitted.exit_code == 0, submitted.output
    (job,) = (job for job in client.list() if str(job.id) == submitted.output.strip())
    assert job.request is not None
    channels = job.request["input"]["channels"]
    assert channels["T1"] == {"bucket": "volumes", "key": "study/T1", "series": None}
    assert (channels["FLAIR"]["series"], channels["FLAIR"]["select"]) == ("1.2=3", {"EchoTime": "80"})
    storage.fetch("volumes", channels["FLAIR"]["key"], tmp_path / "fetched", max_bytes=10**6)
    assert (tmp_path / "fetched").read_bytes() == local.read_bytes()
    assert "Doe" not in json.dumps(job.request)
    client.cancel(job.id)
