import csv
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from dicom_files import regular_stack, write_series
from two_channels import CHANNELS, NAME, install_model, write_scan

from inference_service.cli.main import main
from inference_service.contract.report import Report
from inference_service.core.settings import get_settings
from inference_service.embedded.phantom import chest_phantom
from inference_service.engine import session_cache
from inference_service.engine.model_registry import Model
from inference_service.engine.session_cache import LoadedModel
from inference_service.formats.nifti import write_volume
from inference_service.segmentation import local_run, pipeline

MODEL = "ct-tissue"
Row = dict[str, str]


def run(folder: Path, out: Path, *options: str, model: str = MODEL) -> Result:
    return CliRunner().invoke(main, ["segment", str(folder), str(out), "--each", "--model", model, *options])


def table(out: Path) -> list[Row]:
    with (out / "results.csv").open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture
def scans(tmp_path: Path, scan: Path) -> Path:
    """A NIfTI, a DICOM series, a broken file and a table."""
    folder = tmp_path / "scans"
    folder.mkdir()
    shutil.copy(scan, folder / "MUELLER.nii.gz")
    write_series(folder / "series", regular_stack())
    (folder / "broken.nii.gz").write_bytes(b"\x1f\x8b")
    (folder / "dataset.json").write_text("{}")
    return folder


@pytest.fixture
def segmented(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The inputs that are segmented, in order."""
    names: list[str] = []
    segment_file = pipeline.segment_file

    def spy(sources: Path, *arguments: object, **options: object) -> Report:
        names.append(sources.name)
        return segment_file(sources, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(local_run, "segment_file", spy)
    return names


def test_each_scan_is_segmented_and_a_failure_stops_none(
    scans: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    result = run(scans, out)
    assert result.exit_code == 3
    assert [line for line in result.stderr.splitlines() if "broken" in line] == [
        "broken: input_corrupt: the file's gzip stream is truncated or damaged"
    ]
    assert "left out: dataset.json" in result.stderr
    assert "2 segmented\n1 failed" in result.stdout
    assert sorted(path.name for path in out.iterdir()) == ["MUELLER", "results.csv", "scans.jsonl", "series"]
    assert sorted(path.name for path in (out / "series").iterdir()) == ["mask.nii.gz", "preview.png", "report.json"]
    rows = table(out)
    report = Report.model_validate_json((out / "MUELLER" / "report.json").read_bytes())
    lung = next(label for label in report.labels if label.name == "lung")
    (row,) = (row for row in rows if (row["scan"], row["label_name"]) == ("MUELLER", "lung"))
    assert (int(row["label"]), float(row["volume_ml"])) == (lung.value, lung.volume_ml)
    assert (float(row["intensity_mean"]), float(row["intensity_std"])) == (lung.intensity_mean, lung.intensity_std)
    assert [row["error_code"] for row in rows if row["scan"] == "broken"] == ["input_corrupt"]
    assert len(rows) == 2 * len(report.labels) + 1
    assert "MUELLER" not in caplog.text


def test_a_second_run_skips_what_is_finished(scans: Path, tmp_path: Path, segmented: list[str]) -> None:
    out = tmp_path / "out"
    run(scans, out)
    first = table(out)
    segmented.clear()
    result = run(scans, out)
    assert "0 segmented\n2 skipped: finished by an earlier run\n1 failed" in result.stdout
    assert segmented == ["broken.nii.gz"]
    assert table(out) == first
    (scans / "broken.nii.gz").unlink()
    shutil.copytree(scans / "series", scans / "more")
    result = run(scans, out, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {
        "finished": 1,
        "skipped": 2,
        "failed": 0,
        "unfinished": 0,
        "failures": {},
        "table": str(out / "results.csv"),
    }
    assert {row["scan"] for row in table(out)} == {"MUELLER", "more", "series"}


def test_a_stopped_run_goes_on(scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        copy = shutil.copyfileobj

        def interrupt(stream: object, target: object) -> None:
            if "series" in str(getattr(target, "name", "")):
                raise KeyboardInterrupt
            copy(stream, target)  # type: ignore[arg-type]

        patch.setattr(shutil, "copyfileobj", interrupt)
        result = run(scans, out)
    assert result.exit_code == 1
    assert "stopped with 2 of 3 scans done" in result.stderr
    assert {row["scan"] for row in table(out)} == {"MUELLER", "broken"}
    assert not (out / "series").exists()
    # A killed run leaves a half-written result and a part of a line.
    (out / ".series.unfinished").mkdir()
    (out / ".series.unfinished" / "mask.nii.gz").write_bytes(b"half")
    with (out / "scans.jsonl").open("a") as journal:
        journal.write('{"scan": "ser')
    assert "1 segmented\n1 skipped" in run(scans, out).stdout
    assert {row["scan"] for row in table(out)} == {"MUELLER", "broken", "series"}
    assert not (out / ".series.unfinished").exists()
    assert "0 segmented\n2 skipped" in run(scans, out).stdout


def test_an_incomplete_result_is_not_taken_as_finished(scans: Path, tmp_path: Path, segmented: list[str]) -> None:
    out = tmp_path / "out"
    run(scans, out)
    os.truncate(out / "series" / "mask.nii.gz", 10)
    segmented.clear()
    result = run(scans, out)
    assert segmented == ["broken.nii.gz"]
    assert "series: bad_request: OUT holds 'series', which is no complete result: move it away" in result.stderr
    shutil.rmtree(out / "series")
    assert "1 segmented\n1 skipped" in run(scans, out).stdout


def test_a_changed_scan_is_not_taken_as_finished(scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(scans, out)
    os.utime(scans / "MUELLER.nii.gz", ns=(0, 0))
    assert "2 skipped" in run(scans, out).stdout
    write_volume(scans / "MUELLER.nii.gz", chest_phantom((32, 30, 24), (4.0, 4.0, 6.0)))
    result = run(scans, out)
    assert "MUELLER: bad_request: OUT holds 'MUELLER' of another content of the scan" in result.stderr
    assert "1 skipped" in result.stdout


def test_the_model_is_loaded_once(scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[Model] = []
    load_model = session_cache.load_model

    def load(model: Model, *arguments: object, **options: object) -> LoadedModel:
        loaded.append(model)
        return load_model(model, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(session_cache, "load_model", load)
    run(scans, tmp_path / "out")
    assert len(loaded) == 1


def test_an_unexpected_error_fails_one_scan(
    scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    segment_file = pipeline.segment_file

    def fail(sources: Path, *arguments: object, **options: object) -> Report:
        if sources.name.startswith("MUELLER"):
            raise ValueError(sources.name)
        return segment_file(sources, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(local_run, "segment_file", fail)
    result = run(scans, tmp_path / "out")
    assert result.exit_code == 1
    assert "MUELLER: internal_error" in result.stderr
    assert "1 segmented\n2 failed" in result.stdout
    assert "ValueError in fail" in caplog.text
    assert "MUELLER" not in caplog.text


@pytest.fixture
def two_channels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A model of two channels, in place of the installed ones."""
    install_model(tmp_path / "models")
    with monkeypatch.context() as patch:
        patch.setenv("MODELS_PATH", str(tmp_path / "models"))
        get_settings.cache_clear()
        yield
    get_settings.cache_clear()


@pytest.mark.usefixtures("two_channels")
def test_channels_of_cases_are_segmented(tmp_path: Path) -> None:
    scans = tmp_path / "imagesTs"
    scans.mkdir()
    for case in ("p_1", "p_2"):
        for number, channel in enumerate(CHANNELS):
            write_scan(scans / f"{case}_{number:04}.nii.gz", channel)
    (scans / "p_2_0001.nii.gz").unlink()
    result = run(scans, tmp_path / "out", model=NAME)
    assert result.exit_code == 3, result.output
    assert "p_2: not_a_volume: the model takes 2 channels" in result.stderr
    assert {row["scan"] for row in table(tmp_path / "out") if row["label"]} == {"p_1"}
    write_scan(scans / "p_2_0001.nii.gz", "FLAIR")
    (scans / "p_1_0000.nii.gz").touch()
    assert "1 segmented\n1 skipped" in run(scans, tmp_path / "out", model=NAME).stdout


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        (lambda scans: scans / "out", "OUT lies in the folder of scans"),
        (lambda scans: scans / "broken.nii.gz", "OUT lies in the folder of scans"),
        (lambda scans: scans.parent / "foreign", "results.csv of something else"),
        (lambda scans: scans.parent / "file", "OUT is a file"),
    ],
)
def test_an_unfit_out_is_refused(scans: Path, prepare: Callable[[Path], Path], reason: str) -> None:
    (scans.parent / "foreign").mkdir()
    (scans.parent / "foreign" / "results.csv").write_text("mine")
    (scans.parent / "file").write_text("mine")
    result = run(scans, prepare(scans))
    assert result.exit_code == 3
    assert reason in result.stderr


def test_without_each_a_folder_of_many_scans_is_refused_with_a_hint(scans: Path, tmp_path: Path) -> None:
    shutil.copy(scans / "MUELLER.nii.gz", scans / "second.nii.gz")
    shutil.rmtree(scans / "series")
    result = CliRunner().invoke(main, ["segment", str(scans), str(tmp_path / "out"), "--model", MODEL])
    assert result.exit_code == 3
    assert "--each segments every scan of a folder" in result.stderr


def test_other_options_need_another_out(scans: Path, tmp_path: Path) -> None:
    run(scans, tmp_path / "out")
    result = run(scans, tmp_path / "out", "--format", "nrrd")
    assert result.exit_code == 3
    assert "another model or other options" in result.stderr
    assert run(scans, tmp_path / "out", "--scan").exit_code == 3


def test_the_journal_of_a_run_without_scans_is_that_of_earlier_versions(scans: Path, tmp_path: Path) -> None:
    run(scans, tmp_path / "out")
    first, *_ = (tmp_path / "out" / "scans.jsonl").read_text().splitlines()
    assert json.loads(first)["request"].keys() == {"model", "model_version", "manifest_sha256", "formats", "options"}
    run(scans, tmp_path / "with scans", "--scan")
    assert (tmp_path / "with scans" / "MUELLER" / "scan.nii.gz").exists()


def test_a_missing_model_ends_the_run(scans: Path, tmp_path: Path) -> None:
    result = run(scans, tmp_path / "out", model="none")
    assert result.exit_code == 3
    assert result.stderr.count("model_not_found") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["segment", "in", "--each", "--channel", "CT=a.nii", "--model", MODEL],
        ["submit", "in", "--each", "--model", MODEL],
        ["submit", "in", "--to", "out", "--model", MODEL],
        ["submit", "s3://bucket/key/", "--each", "--to", "out", "--model", MODEL],
    ],
)
def test_wrong_use_of_each_is_explained(arguments: list[str]) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert "--each" in result.stderr
