"""The README's first command, and the command line over the running service."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import nibabel
import numpy as np
import psutil
import pytest
from dicom_files import affine_of, regular_stack, write_series
from faults import wait_for

from inference_service.embedded.stack import Stack

LIMIT_S = 100.0
COMMAND = [sys.executable, "-m", "inference_service"]
# Typical ranges of mean HU of the tissue that each label of the model names.
USUAL_HU = {
    "lung_left": (-940, -600),
    "lung_right": (-940, -600),
    "trachea": (-1010, -850),
    "bone": (150, 700),
    "body": (-100, 80),
}


def started_by(mark: str) -> list[psutil.Process]:
    """Returns all other processes that have a mark in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("DEMO_MARK") == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.fixture
def mark(tmp_path: Path) -> Iterator[str]:
    """Marks the processes of one test, and checks that none is left after it."""
    mark = str(tmp_path)
    yield mark
    wait_for(
        lambda: not started_by(mark),
        lambda: f"still running: {[each.cmdline() for each in started_by(mark)]}",
        limit_s=10,
    )


def run_demo(mark: str, *arguments: str | Path, limit_s: float = LIMIT_S) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, "demo", *map(str, arguments)],
        env={**os.environ, "DEMO_MARK": mark},
        capture_output=True,
        text=True,
        timeout=limit_s,
        check=False,
    )


def assert_found_in_their_ranges(folder: Path, *names: str) -> None:
    """Checks that each of these labels is present and covers voxels of its typical HU."""
    mask = np.asarray(nibabel.Nifti1Image.from_filename(folder / "mask.nii.gz").dataobj)
    image = np.asarray(nibabel.Nifti1Image.from_filename(folder / "input.nii.gz").dataobj)
    labels = {label["name"]: label for label in json.loads((folder / "report.json").read_bytes())["labels"]}
    for name in names:
        assert labels[name]["volume_ml"] > 10, name
        low, high = USUAL_HU[name]
        mean = image[mask == labels[name]["value"]].mean()
        assert low < mean < high, name
        assert mean == pytest.approx(labels[name]["intensity_mean"], abs=0.01)


def assert_same_grid(mask_path: Path, scan_path: Path) -> None:
    mask = nibabel.Nifti1Image.from_filename(mask_path)
    scan = nibabel.Nifti1Image.from_filename(scan_path)
    assert mask.shape == scan.shape
    np.testing.assert_array_equal(mask.affine, scan.affine)
    for kind in ("sform", "qform"):
        mask_form, mask_code = getattr(mask.header, f"get_{kind}")(coded=True)
        form, code = getattr(scan.header, f"get_{kind}")(coded=True)
        assert mask_code == code
        np.testing.assert_array_equal(mask_form, form)


def test_the_demo_shows_the_main_job(mark: str, scan: Path, tmp_path: Path) -> None:
    done = run_demo(mark, "--input", scan, "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    for expected in (
        "ONNX providers requested: ['CUDAExecutionProvider', 'CPUExecutionProvider']",
        "ONNX providers available: ['CPUExecutionProvider']",
        "ONNX providers using: ['CPUExecutionProvider']",
        "urgent: succeeded by gpu-",
        "routine: succeeded by ",
        "Stage timings",
        "volume, mL",
        "lung_left",
        str(tmp_path / "out" / "mask.nii.gz"),
    ):
        assert expected in done.stdout
    assert (tmp_path / "out" / "input.nii.gz").read_bytes() == scan.read_bytes()
    assert_same_grid(tmp_path / "out" / "mask.nii.gz", scan)
    assert json.loads((tmp_path / "out" / "report.json").read_bytes())["model"]["name"] == "ct-chest"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_demo_of_the_readme_finds_all_of_its_phantom(mark: str, tmp_path: Path) -> None:
    done = run_demo(mark, "--output", tmp_path, limit_s=280)
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "preview.png") in done.stdout
    assert (tmp_path / "preview.png").read_bytes().startswith(b"\x89PNG")
    assert_found_in_their_ranges(tmp_path, *USUAL_HU)


@pytest.mark.slow
def test_the_demo_on_a_real_scan_finds_each_tissue_in_its_range(mark: str, real_scans: Path, tmp_path: Path) -> None:
    scan = real_scans / "example_ct.nii.gz"
    done = run_demo(mark, "--input", scan, "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    assert_same_grid(tmp_path / "mask.nii.gz", scan)
    assert_found_in_their_ranges(tmp_path, "lung_left", "lung_right", "bone", "body")


def test_a_bad_file_ends_the_demo_with_its_code(mark: str, tmp_path: Path) -> None:
    bad = tmp_path / "bad.nii.gz"
    bad.write_text("Dear colleague,\n")
    done = run_demo(mark, "--input", bad, "--output", tmp_path / "out")
    assert done.returncode == 3
    assert "error: unsupported_format:" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_missing_file_ends_the_demo_before_anything_starts(mark: str, tmp_path: Path) -> None:
    done = run_demo(mark, "--input", tmp_path / "none.nii.gz", "--output", tmp_path / "out")
    assert (done.returncode, done.stdout) == (3, "")
    assert "error: input_not_found:" in done.stderr


def start(mark: str, *arguments: str | Path) -> subprocess.Popen[str]:
    """Starts a command of the service; its output can be read line by line."""
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        env={**os.environ, "DEMO_MARK": mark, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def read_until(process: subprocess.Popen[str], text: str) -> Iterator[str]:
    """Yields the lines that a command prints, up to one that contains a text."""
    assert process.stdout is not None
    for line in process.stdout:
        yield line
        if text in line:
            return
    raise AssertionError(f"the command has not printed {text!r}")


def test_the_stack_serves_http_and_restarts_a_worker_that_ends(mark: str, tmp_path: Path) -> None:
    with start(mark, "stack", "--data", tmp_path / "data") as process:
        assert process.stdout is not None
        (address,) = (line.split()[2] for line in read_until(process, "press Ctrl-C to stop it") if "HTTP API" in line)
        with httpx.Client() as client:
            assert client.get(address).json()["openapi"].startswith("3.1")
            assert len(client.get(address.replace("openapi.json", "workers")).json()) == 2
        (worker,) = (
            child
            for child in psutil.Process(process.pid).children()
            if child.cmdline()[-3:] == ["worker", "--role", "cpu"]
        )
        worker.kill()
        assert any("the cpu worker ended and is restarted" in line for line in process.stdout)
        health_path = tmp_path / "data" / "worker-cpu.health"
        wait_for(health_path.exists)
        process.terminate()
        assert "Traceback" not in process.stdout.read()
    assert process.returncode == 128 + signal.SIGTERM


@pytest.mark.parametrize(
    ("moment", "sent"),
    [
        pytest.param(moment, sent, id=f"{moment}-{sent.name}", marks=[] if at_once else pytest.mark.slow)
        for moment, sent, at_once in (
            ("Starting", signal.SIGINT, True),
            ("Starting", signal.SIGTERM, False),
            ("Starting", signal.SIGHUP, False),
            ("Making", signal.SIGTERM, True),
            ("Making", signal.SIGINT, False),
            ("Making", signal.SIGHUP, False),
            ("running", signal.SIGHUP, True),
            ("running", signal.SIGINT, False),
            ("running", signal.SIGTERM, False),
        )
    ],
)
def test_the_demo_stops_every_process_that_it_started(
    mark: str, tmp_path: Path, moment: str, sent: signal.Signals
) -> None:
    with start(mark, "demo", "--output", tmp_path / "out") as process:
        assert process.stdout is not None
        assert any(moment in line for line in process.stdout)
        wait_for(lambda: bool(psutil.Process(process.pid).children()))
        process.send_signal(sent)
        rest = process.stdout.read()
    assert process.returncode != 0
    assert "Traceback" not in rest
    assert not (tmp_path / "out").exists()


def run_cli(stack: Stack, *arguments: str | Path, code: int = 0) -> str:
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        env={**os.environ, **stack.environment},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


def test_a_job_from_the_command_line(stack: Stack, scan: Path, tmp_path: Path) -> None:
    job = json.loads(run_cli(stack, "submit", scan, "--model", "ct-tissue", "--priority", "urgent", "--wait", "--json"))
    assert (job["state"], job["request"]["priority"]) == ("succeeded", "urgent")
    job_id = job["id"]
    assert json.loads(run_cli(stack, "status", job_id, "--json"))["transitions"][-1]["to_state"] == "succeeded"
    assert "succeeded" in run_cli(stack, "status", job_id)
    assert "succeeded" in run_cli(stack, "watch", job_id)
    assert run_cli(stack, "cancel", job_id).strip() == "succeeded"
    assert job_id in run_cli(stack, "jobs", "--json")
    files = json.loads(run_cli(stack, "result", job_id, "--to", tmp_path, "--json"))
    assert files == [str(tmp_path / name) for name in ("mask.nii.gz", "report.json", "preview.png")]
    assert_same_grid(tmp_path / "mask.nii.gz", scan)


def test_a_folder_of_slices_from_the_command_line(stack: Stack, tmp_path: Path) -> None:
    write_series(tmp_path / "Mueller^Hans", regular_stack())
    (tmp_path / "Mueller^Hans" / "notes.txt").write_text("no slice")
    arguments = ("--model", "ct-tissue", "--format", "dicom-seg", "--wait", "--json")
    job = json.loads(run_cli(stack, "submit", tmp_path / "Mueller^Hans", *arguments))
    assert (job["state"], job["error_message"]) == ("succeeded", None)
    assert [warning["code"] for warning in job["warnings"]] == ["uids_generated"]
    key = job["request"]["input"]["key"]
    assert re.fullmatch(r"uploads/[0-9a-f-]{36}/", key)
    files = [Path(path) for path in json.loads(run_cli(stack, "result", job["id"], "--to", tmp_path / "out", "--json"))]
    assert [path.name for path in files] == ["mask.nii.gz", "report.json", "preview.png", "segmentation.dcm"]
    np.testing.assert_allclose(
        nibabel.Nifti1Image.from_filename(files[0]).affine, affine_of(regular_stack()), atol=1e-4
    )
    report = json.loads(files[1].read_text())
    assert (report["input"]["slices"], report["input"]["set_aside"]) == (6, {"not_dicom": 1})
    logs = "".join(worker.log_path.read_text() for worker in stack.workers)
    assert "Mueller" not in logs + files[1].read_text()


def test_a_folder_without_files_is_rejected(stack: Stack, tmp_path: Path) -> None:
    message = run_cli(stack, "submit", tmp_path, "--model", "ct-tissue", code=3)
    assert "error: input_not_found: the folder holds no file" in message


def test_a_stored_volume_is_submitted_by_its_address(stack: Stack) -> None:
    message = run_cli(stack, "submit", "s3://volumes/no/such", "--model", "ct-tissue", "--wait", code=3)
    assert "error: input_not_found: there is no object" in message


def test_the_table_of_jobs_shows_whole_ids(stack: Stack, scan: Path) -> None:
    job_id = run_cli(stack, "submit", scan, "--model", "ct-tissue").strip()
    assert job_id in run_cli(stack, "jobs", "--limit", "1")


def test_a_healthy_deployment_passes_its_check(stack: Stack) -> None:
    lines = run_cli(stack, "check").splitlines()
    assert [line.split()[0] for line in lines] == ["redis", "postgres", "minio", "models", "providers"]
    assert all(" ok: " in line for line in lines)
    assert "up to date" in run_cli(stack, "migrate")


def test_a_check_names_what_is_not_usable(stack: Stack, tmp_path: Path) -> None:
    broken = Stack(stack.settings, {**stack.environment, "MODELS_PATH": str(tmp_path), "POSTGRES_PORT": "1"}, [])
    done = subprocess.run(
        [*COMMAND, "check"], env={**os.environ, **broken.environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 4
    verdicts = {line.split()[0]: "NOT USABLE" in line for line in done.stdout.splitlines()}
    assert verdicts == {"redis": False, "postgres": True, "minio": False, "models": True, "providers": False}


def test_health_follows_the_workers_heartbeat(stack: Stack, tmp_path: Path) -> None:
    (health_path,) = (worker.health_path for worker in stack.workers if worker.role == "cpu")
    with_path = Stack(stack.settings, {**stack.environment, "HEALTH_PATH": str(health_path)}, [])
    assert "consumes" in run_cli(with_path, "health", "--within", "10")
    before = health_path.stat().st_mtime
    wait_for(lambda: health_path.stat().st_mtime > before)
    without = Stack(stack.settings, {**stack.environment, "HEALTH_PATH": str(tmp_path / "none")}, [])
    assert "no heartbeat within 30 s" in run_cli(without, "health", code=4)


def test_a_worker_without_models_exits_with_an_error(stack: Stack, tmp_path: Path) -> None:
    without = Stack(stack.settings, {**stack.environment, "MODELS_PATH": str(tmp_path)}, [])
    message = run_cli(without, "worker", "--role", "cpu", code=3)
    assert f"error: model_not_found: no model is installed under MODELS_PATH {tmp_path}" in message


def test_a_gpu_that_is_required_and_missing_stops_the_worker(stack: Stack) -> None:
    demanding = Stack(stack.settings, {**stack.environment, "REQUIRE_GPU": "true"}, [])
    message = run_cli(demanding, "worker", "--role", "gpu", code=1)
    assert "REQUIRE_GPU" in message
    assert "nvidia-smi" in message
