"""Jobs through queue, worker process, model and back."""

import gzip
import json
import subprocess
import sys
import time
from pathlib import Path
from uuid import UUID, uuid4

import nibabel
import numpy as np
import pytest
from dicom_files import read_segmentation
from kombu import Connection, Exchange, Producer

from inference_service import Client
from inference_service.contract.task_message import OutputReference, Priority, SegmentRequest
from inference_service.embedded.service_process import start_worker
from inference_service.embedded.stack import Stack
from inference_service.formats.read_limits import ReadLimits
from inference_service.formats.scan_reader import read_scan
from inference_service.jobs.job_store import Job
from inference_service.jobs.queues.lists import OVERFLOW_QUEUE
from inference_service.jobs.schema import JobState
from inference_service.jobs.storage.object_storage import Storage

LIMIT_S = 60.0

# An upstream knows the contract only: this process imports nothing of the package.
UPSTREAM = """
import json, sys
from celery import Celery

assert not any(name.startswith("inference_service") for name in sys.modules)
job_id = sys.argv[2]
request = json.loads(sys.argv[3])
queue = {"urgent": "priority", "routine": "overflow"}[request["priority"]] if "priority" in request else "overflow"
Celery(broker=sys.argv[1]).send_task(
    "inference_service.segment", kwargs={"job_id": job_id, "request": request}, task_id=job_id, queue=queue
)
"""


def send_as_upstream(stack: Stack, request: object, *, job_id: str | None = None) -> UUID:
    job_id = job_id or str(uuid4())
    command = [sys.executable, "-c", UPSTREAM, stack.settings.broker_url, job_id, json.dumps(request)]
    subprocess.run(command, check=True, timeout=LIMIT_S)
    return UUID(job_id)


def finished(client: Client, job_id: UUID) -> Job:
    """Waits also for the row, which the worker writes where the upstream sends the message alone."""
    for _ in range(int(LIMIT_S * 10)):
        if client.status(job_id) is not None:
            break
        time.sleep(0.1)
    return client.wait(job_id, timeout_s=LIMIT_S)


@pytest.mark.parametrize(("priority", "role"), [(Priority.URGENT, "gpu"), (Priority.ROUTINE, "cpu")])
def test_a_job_comes_back_as_a_mask_on_the_scans_grid(
    stack: Stack, client: Client, scan: Path, tmp_path: Path, priority: Priority, role: str
) -> None:
    request = SegmentRequest(input=client.upload(scan), model="ct-tissue", priority=priority)
    stages: list[str | None] = []
    job = client.wait(client.submit(request), timeout_s=LIMIT_S, progress=lambda job: stages.append(job.stage))
    assert (job.state, job.error_message) == (JobState.SUCCEEDED, None)
    assert job.lease_owner is not None
    # The gpu worker helps with the overflow queue while its own is empty; the cpu worker keeps to its own.
    assert role == "cpu" or job.lease_owner.startswith("gpu-")
    assert [(change.to_state, change.attempt) for change in client.transitions(job.id)] == [
        ("queued", 0),
        ("running", 1),
        ("succeeded", 1),
    ]
    mask_path, report_path, preview_path = client.result(job, tmp_path)
    assert preview_path.read_bytes().startswith(b"\x89PNG")
    mask = nibabel.Nifti1Image.from_filename(mask_path)
    image = nibabel.Nifti1Image.from_filename(scan)
    assert mask.shape == image.shape
    for field in ("qform_code", "sform_code", "srow_x", "srow_y", "srow_z", "pixdim", "quatern_b", "qoffset_x"):
        np.testing.assert_array_equal(mask.header[field], image.header[field], err_msg=field)
    report = json.loads(report_path.read_bytes())
    counted = np.bincount(np.asarray(mask.dataobj).ravel(), minlength=6)
    assert [label["voxels"] for label in report["labels"]] == counted.tolist()
    assert report["input"]["orientation"] == "LPS"
    # A mask that is shifted by as little as one voxel has other intensities under it.
    intensities = np.asarray(image.dataobj)
    for label in report["labels"]:
        under_label = intensities[np.asarray(mask.dataobj) == label["value"]]
        assert under_label.mean() == pytest.approx(label["intensity_mean"], abs=1e-6)


def test_an_upstream_without_this_package_enqueues(stack: Stack, client: Client, scan: Path) -> None:
    reference = client.upload(scan)
    request = {"input": {"bucket": reference.bucket, "key": reference.key}, "model": "ct-tissue", "priority": "urgent"}
    job = finished(client, send_as_upstream(stack, request))
    assert (job.state, job.error_message) == (JobState.SUCCEEDED, None)
    assert client.transitions(job.id)[0].to_state == "queued"


def test_the_same_job_sent_three_times_runs_once(stack: Stack, client: Client, scan: Path) -> None:
    reference = client.upload(scan)
    request = {"input": {"bucket": reference.bucket, "key": reference.key}, "model": "ct-tissue"}
    job_id = send_as_upstream(stack, request)
    send_as_upstream(stack, request, job_id=str(job_id))
    finished(client, job_id)
    send_as_upstream(stack, request, job_id=str(job_id))
    after = client.submit(SegmentRequest(input=reference, model="ct-tissue"))
    finished(client, after)
    assert [change.to_state for change in client.transitions(job_id)] == ["queued", "running", "succeeded"]


def bad_files(scan: Path, folder: Path) -> dict[str, Path]:
    files = {name: folder / name for name in ("empty.nii.gz", "truncated.nii.gz", "text.nii.gz", "four-d.nii.gz")}
    files["empty.nii.gz"].touch()
    files["truncated.nii.gz"].write_bytes(scan.read_bytes()[: scan.stat().st_size // 2])
    files["text.nii.gz"].write_text("Dear colleague,\n")
    nibabel.save(nibabel.Nifti1Image(np.zeros((5, 6, 7, 2), np.int16), np.eye(4)), files["four-d.nii.gz"])
    return files


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("empty.nii.gz", "input_corrupt"),
        ("truncated.nii.gz", "input_corrupt"),
        ("text.nii.gz", "unsupported_format"),
        ("four-d.nii.gz", "not_a_volume"),
    ],
)
def test_a_bad_file_fails_with_its_code_and_harms_nothing(
    stack: Stack, client: Client, scan: Path, tmp_path: Path, name: str, code: str
) -> None:
    reference = client.upload(bad_files(scan, tmp_path)[name])
    failed = finished(client, client.submit(SegmentRequest(input=reference, model="ct-tissue")))
    assert_refused(stack, client, failed, code)
    next_job = finished(client, client.submit(SegmentRequest(input=client.upload(scan), model="ct-tissue")))
    assert next_job.state is JobState.SUCCEEDED


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"input": {"bucket": "volumes", "key": "no/such/key"}}, "input_not_found"),
        ({"input": {"bucket": "no-such-bucket", "key": "x"}}, "bad_request"),
        ({"model": "no-such-model"}, "model_not_found"),
        ({"model_version": "99"}, "model_not_found"),
        ({"model": "../../etc"}, "bad_request"),
        ({"model": "a\u0000b"}, "bad_request"),
        ({"x\u0000y": 1}, "bad_request"),
        ({"input": {"bucket": "a..b", "key": "x"}}, "bad_request"),
        ({"input": {"bucket": "volumes", "key": "../secret"}}, "bad_request"),
        ({"output": {"prefix": "/etc"}}, "bad_request"),
        ({"colour": "green"}, "bad_request"),
    ],
)
def test_a_bad_request_fails_with_its_code(
    stack: Stack, client: Client, scan: Path, change: dict[str, object], code: str
) -> None:
    reference = client.upload(scan)
    request: dict[str, object] = {"input": {"bucket": reference.bucket, "key": reference.key}, "model": "ct-tissue"}
    assert_refused(stack, client, finished(client, send_as_upstream(stack, {**request, **change})), code)


def assert_refused(stack: Stack, client: Client, job: Job, code: str) -> None:
    """Checks that the job failed on its first attempt, with a message, and left no object."""
    assert (job.state, job.error_code) == (JobState.FAILED, code)
    # A worker that has just started waits for others that may have the model.
    assert job.attempt == 1 or code == "model_not_found"
    assert job.error_message
    assert job.result is None
    storage = Storage(stack.settings)
    assert not any(str(job.id) in key for key in storage.list_keys("masks"))


def test_a_pickled_message_is_never_opened(stack: Stack, client: Client, scan: Path, tmp_path: Path) -> None:
    trap = tmp_path / "opened"
    pickled = b"cposix\nsystem\n(S'touch " + str(trap).encode() + b"'\ntR."
    headers = {"lang": "py", "task": "inference_service.segment", "id": str(uuid4()), "argsrepr": "", "kwargsrepr": ""}
    with Connection(stack.settings.broker_url) as connection, connection.channel() as channel:
        Producer(channel).publish(
            pickled,
            exchange=Exchange(""),
            routing_key=OVERFLOW_QUEUE,
            headers=headers,
            content_type="application/x-python-serialize",
            content_encoding="binary",
        )
    job = finished(client, client.submit(SegmentRequest(input=client.upload(scan), model="ct-tissue")))
    assert job.state is JobState.SUCCEEDED
    assert not trap.exists()


def test_operators_find_the_provider_lines(stack: Stack) -> None:
    for log_path in (worker.log_path for worker in stack.workers):
        lines = [line.partition("ONNX providers ")[2] for line in log_path.read_text().splitlines()]
        assert [line for line in lines if line] == [
            "requested: ['CUDAExecutionProvider', 'CPUExecutionProvider']",
            "available: ['CPUExecutionProvider']",
            "using: ['CPUExecutionProvider']",
        ]
        warnings = [line for line in log_path.read_text().splitlines() if " WARNING " in line]
        assert any("ONNX provider CUDAExecutionProvider is requested but not usable" in line for line in warnings)


def test_logs_as_json_carry_the_job(stack: Stack, client: Client, scan: Path, tmp_path: Path) -> None:
    environment = {**stack.environment, "LOG_FORMAT": "json"}
    with start_worker("gpu", environment, folder=tmp_path) as worker:
        worker.wait_until_ready()
        jobs = [
            finished(client, client.submit(SegmentRequest(input=client.upload(scan), model="ct-tissue")))
            for _ in range(4)
        ]
    lines = [json.loads(line) for line in worker.log_path.read_text().splitlines() if line.startswith("{")]
    mine = {str(job.id) for job in jobs if job.lease_owner and job.lease_owner.startswith(f"gpu-{worker.pid}-")}
    said = {line["job_id"] for line in lines if line["message"].startswith("succeeded")}
    assert said == mine
    assert any(line["message"] == "ONNX providers using: ['CPUExecutionProvider']" for line in lines)
    assert all({"time", "level", "logger", "message", "job_id"} <= line.keys() for line in lines)


def test_secrets_do_not_reach_the_logs(stack: Stack, client: Client) -> None:
    secrets = [stack.environment[name] for name in ("POSTGRES_PASSWORD", "MINIO_ACCESS_KEY", "MINIO_SECRET_KEY")]
    secrets.append(stack.environment["REDIS_URL"].split(":")[2].partition("@")[0])
    for log_path in (worker.log_path for worker in stack.workers):
        text = log_path.read_text()
        assert text
        assert not any(secret in text for secret in secrets)


def test_unpacked_files_are_read_as_well(stack: Stack, client: Client, scan: Path, tmp_path: Path) -> None:
    plain = tmp_path / "scan.nii"
    plain.write_bytes(gzip.decompress(scan.read_bytes()))
    job = finished(client, client.submit(SegmentRequest(input=client.upload(plain), model="ct-tissue")))
    assert (job.state, job.error_message) == (JobState.SUCCEEDED, None)


@pytest.mark.parametrize("name", ["chest_cta.nii.gz", "example_ct.nii.gz"])
def test_a_real_scan_through_the_whole_service(
    stack: Stack, client: Client, real_scans: Path, tmp_path: Path, name: str
) -> None:
    """An LPS grid, and values of int32."""
    job = client.wait(client.submit(SegmentRequest(input=client.upload(real_scans / name), model="ct-tissue")))
    assert (job.state, job.error_message) == (JobState.SUCCEEDED, None)
    mask_path, report_path, _ = client.result(job, tmp_path)
    mask = nibabel.Nifti1Image.from_filename(mask_path)
    image = nibabel.Nifti1Image.from_filename(real_scans / name)
    np.testing.assert_array_equal(mask.affine, image.affine)
    assert mask.shape == image.shape
    assert_tissues(np.asarray(mask.dataobj), image.get_fdata())
    assert json.loads(report_path.read_bytes())["warnings"] == []


def test_a_real_series_through_the_whole_service(
    stack: Stack, client: Client, real_scans: Path, tmp_path: Path
) -> None:
    """JPEG 2000 without file extensions, with a SliceThickness that is not the spacing and empty UIDs."""
    request = SegmentRequest(
        input=client.upload(real_scans / "example_ct_dicom"),
        model="ct-tissue",
        output=OutputReference(formats=("nifti", "dicom-seg")),
    )
    job = client.wait(client.submit(request))
    assert (job.state, job.error_message) == (JobState.SUCCEEDED, None)
    mask_path, _, preview_path, seg_path = client.result(job, tmp_path)
    mask = nibabel.Nifti1Image.from_filename(mask_path)
    labels = np.asarray(mask.dataobj)
    scan = read_scan(real_scans / "example_ct_dicom", tmp_path, ReadLimits(10**7))
    np.testing.assert_allclose(mask.affine, scan.volume.affine, rtol=0, atol=1e-4)
    np.testing.assert_allclose(mask.header.get_zooms()[2], 2.0, atol=1e-4)
    assert_tissues(labels, scan.volume.voxels)
    assert preview_path.read_bytes().startswith(b"\x89PNG")
    seg = read_segmentation(seg_path)
    assert seg.number_of_segments == 5
    planes = {
        tuple(frame.PlanePositionSequence[0].ImagePositionPatient) for frame in seg.PerFrameFunctionalGroupsSequence
    }
    slices = {tuple(each.frame.position_mm) for each in scan.slices}
    assert {tuple(map(float, plane)) for plane in planes} <= slices


def assert_tissues(mask: np.ndarray, values: np.ndarray) -> None:
    """Checks that lung, fat, soft tissue and bone (labels 2 to 5) have typical mean HU."""
    ranges = {2: (-950, -400), 3: (-200, -30), 4: (-20, 120), 5: (180, 900)}
    for label, (low, high) in ranges.items():
        assert low < values[mask == label].mean() < high, label
