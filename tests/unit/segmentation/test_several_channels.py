"""A model of two channels, from files to mask and report."""

import json
from collections.abc import Mapping
from pathlib import Path

import nibabel
import numpy as np
import pytest
from dicom_files import affine_of, phantom, read_segmentation, regular_stack, write_series
from two_channels import (
    CHANNELS,
    GRID,
    NAME,
    expected_mask,
    install_model,
    labels_of,
    values_of,
    write_scan,
)

from inference_service.contract.input_options import InputOptions
from inference_service.contract.report import Report
from inference_service.contract.task_message import OutputFormat
from inference_service.core.errors import BadRequest, InputTooLarge, ModalityMismatch
from inference_service.core.execution import ExecutionOptions
from inference_service.core.files import Sources, input_sha256
from inference_service.core.progress import Stage
from inference_service.core.report_warnings import WarningCode
from inference_service.engine.model_registry import find_model
from inference_service.engine.session_cache import SessionCache
from inference_service.formats.read_limits import ReadLimits
from inference_service.segmentation.pipeline import ModelRun, SegmentOptions, segment_file
from inference_service.segmentation.resources import StageMonitor


@pytest.fixture
def models(tmp_path: Path) -> Path:
    install_model(tmp_path / "models")
    return tmp_path / "models"


@pytest.fixture
def scans(tmp_path: Path) -> dict[str, Path]:
    return {name: write_scan(tmp_path / f"{name}.nii.gz", name) for name in CHANNELS}


def segment(
    models: Path,
    sources: Sources,
    *,
    options: InputOptions | None = None,
    formats: tuple[OutputFormat, ...] = ("nifti",),
    scan: bool = False,
    max_voxels: int = 10**6,
    monitor: StageMonitor | None = None,
) -> tuple[Report, Path]:
    target = models.parent / "out"
    target.mkdir()
    execution = ExecutionOptions(("CPUExecutionProvider",), threads=1)
    report = segment_file(
        sources,
        target,
        ModelRun(find_model(models, NAME, None), execution, SessionCache()),
        limits=ReadLimits(max_voxels),
        options=SegmentOptions(options or InputOptions(), formats, scan),
        monitor=monitor or StageMonitor(),
    )
    return report, target


def test_the_network_sees_both_channels(models: Path, scans: dict[str, Path]) -> None:
    report, target = segment(models, scans)
    np.testing.assert_array_equal(labels_of(target / "mask.nii.gz"), expected_mask())
    assert [channel.name for channel in report.input.channels] == list(CHANNELS)
    assert [channel.sha256 for channel in report.input.channels] == [input_sha256(scan) for scan in scans.values()]
    assert {channel.shape for channel in report.input.channels} == {(8, 7, 6)}
    assert {channel.kind for channel in report.input.channels} == {"nifti"}
    assert not any(channel.resampled for channel in report.input.channels)
    assert report.input.sha256 == input_sha256(scans, CHANNELS)
    assert report.warnings == []


def test_the_stored_scan_is_that_of_the_first_channel(models: Path, scans: dict[str, Path]) -> None:
    moved = GRID.copy()
    moved[0, 3] = 1.0
    write_scan(scans["FLAIR"], "FLAIR", moved)
    report, target = segment(models, scans, scan=True)
    assert report.files == ["mask.nii.gz", "preview.png", "scan.nii.gz"]
    np.testing.assert_array_equal(labels_of(target / "scan.nii.gz"), values_of("T1"))
    headers = [nibabel.Nifti1Image.from_filename(target / f"{name}.nii.gz").header for name in ("mask", "scan")]
    for field in ("dim", "pixdim", "qform_code", "sform_code", "srow_x", "srow_y", "srow_z", "xyzt_units"):
        assert headers[0][field].tobytes() == headers[1][field].tobytes(), field


def test_channels_that_change_places_give_another_hash(models: Path, scans: dict[str, Path]) -> None:
    swapped = dict(zip(CHANNELS, reversed(scans.values()), strict=True))
    report, target = segment(models, swapped)
    assert report.input.sha256 != input_sha256(scans, CHANNELS)
    np.testing.assert_array_equal(labels_of(target / "mask.nii.gz"), expected_mask())


def test_a_folder_with_the_names_of_nnunet_gives_the_same_mask(models: Path, tmp_path: Path) -> None:
    for number, name in enumerate(CHANNELS):
        write_scan(tmp_path / "in" / f"case_{number:04}.nii.gz", name)
    report, target = segment(models, tmp_path / "in")
    np.testing.assert_array_equal(labels_of(target / "mask.nii.gz"), expected_mask())
    first, second = report.input.channels
    assert first.sha256 == input_sha256(tmp_path / "in" / "case_0000.nii.gz")
    assert second.sha256 == input_sha256(tmp_path / "in" / "case_0001.nii.gz")


def test_a_resampled_channel_is_reported(models: Path, scans: dict[str, Path]) -> None:
    moved = GRID.copy()
    moved[0, 3] = 1.0
    write_scan(scans["FLAIR"], "FLAIR", moved)
    report, target = segment(models, scans)
    expected = values_of("T1")
    expected[1:] += values_of("FLAIR")[:-1]
    np.testing.assert_array_equal(labels_of(target / "mask.nii.gz"), expected)
    assert [channel.resampled for channel in report.input.channels] == [False, True]
    (warning,) = report.warnings
    assert warning.code is WarningCode.CHANNEL_RESAMPLED
    assert warning.message.startswith("channel FLAIR was resampled to the grid of channel T1, of which it covers 87%")


def test_the_first_channel_decides_grid_slices_and_references(models: Path, tmp_path: Path) -> None:
    stack = regular_stack((phantom() + 1100) // 1100)
    write_series(tmp_path / "t1", stack)
    sources = {"T1": tmp_path / "t1", "FLAIR": write_scan(tmp_path / "b.nii.gz", "FLAIR", affine_of(stack))}
    options = InputOptions(modality_check=False)
    report, target = segment(models, sources, options=options, formats=("nifti", "dicom-seg"))
    assert [channel.kind for channel in report.input.channels] == ["dicom", "nifti"]
    assert report.input.kind == "dicom"
    assert report.input.slices == stack.voxels.shape[2]
    assert labels_of(target / "mask.nii.gz").shape == stack.voxels.shape
    (referenced,) = read_segmentation(target / "segmentation.dcm").ReferencedSeriesSequence
    assert referenced.SeriesInstanceUID == stack.series_uid
    assert len(referenced.ReferencedInstanceSequence) == stack.voxels.shape[2]


def test_a_dicom_segmentation_needs_slices_of_the_first_channel(models: Path, tmp_path: Path) -> None:
    stack = regular_stack()
    write_series(tmp_path / "flair", stack)
    sources = {"T1": write_scan(tmp_path / "a.nii.gz", "T1", affine_of(stack)), "FLAIR": tmp_path / "flair"}
    with pytest.raises(BadRequest, match=r"channel T1: .*dicom-seg refers to the slices of a DICOM series"):
        segment(models, sources, formats=("nifti", "dicom-seg"))


def test_each_channel_has_a_modality_of_its_own(tmp_path: Path) -> None:
    models = tmp_path / "models"
    channels = [
        {"name": "T1", "modality": "PT", "intensity": {"kind": "none"}},
        {"name": "FLAIR", "intensity": {"kind": "none"}},
    ]
    install_model(models, modality="CT", channels=channels)
    sources = {name: write_scan(tmp_path / f"{name}.nii.gz", name) for name in CHANNELS}
    with pytest.raises(ModalityMismatch, match="channel FLAIR: the model takes CT in HU"):
        segment(models, sources)


def test_channels_of_one_name_get_one_scan(tmp_path: Path) -> None:
    models = tmp_path / "models"
    intensities: list[Mapping[str, object]] = [
        {"kind": "none"},
        {"kind": "fixed_range", "input": [0, 2], "clip": False},
    ]
    install_model(models, channels=[{"name": "CT", "intensity": each} for each in intensities])
    report, target = segment(models, write_scan(tmp_path / "a.nii.gz", "T1"))
    # 0, 1 and 2 become 0, 0.5 and 1 in the second channel.
    np.testing.assert_array_equal(labels_of(target / "mask.nii.gz")[values_of("T1") == 2], 3)
    assert [channel.name for channel in report.input.channels] == ["CT"]


def test_the_limit_on_voxels_holds_for_all_channels(models: Path, scans: dict[str, Path]) -> None:
    with pytest.raises(InputTooLarge, match="channel FLAIR: the volume has 336 voxels"):
        segment(models, scans, max_voxels=2 * 336 - 1)


def test_the_progress_of_reading_grows_with_each_channel(models: Path, scans: dict[str, Path]) -> None:
    seen: list[tuple[Stage, float]] = []
    segment(models, scans, monitor=StageMonitor(progress=lambda stage, share: seen.append((stage, share))))
    assert [share for stage, share in seen if stage == "read"] == [0.0, 0.5, 1.0]


def test_the_report_has_the_options_of_each_channel(models: Path, tmp_path: Path) -> None:
    stack = regular_stack((phantom() + 1100) // 1100)
    write_series(tmp_path / "t1", stack)
    flair = write_scan(tmp_path / "b.nii.gz", "FLAIR", affine_of(stack))
    options = InputOptions(channels={"T1": InputOptions(series=stack.series_uid), "FLAIR": InputOptions()})
    report, target = segment(models, {"T1": tmp_path / "t1", "FLAIR": flair}, options=options)
    assert report.options.channels["T1"].series == stack.series_uid
    assert report.options.channels["FLAIR"].series is None
    assert Report.model_validate(json.loads((target / "report.json").read_text())) == report
