"""Instances that do not belong together are refused."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_files import (
    regular_stack,
    set_stored_values,
    with_attribute,
    with_stored_values,
    without_attributes,
    write_enhanced,
    write_series,
)
from pydicom.dataset import Dataset

from inference_service.core.errors import (
    InconsistentGeometry,
    InputCorrupt,
)
from inference_service.core.report_warnings import ReportWarning, WarningCode
from inference_service.formats.scan_reader import Scan

Read = Callable[..., Scan]


def test_slices_without_a_position_are_refused(tmp_path: Path, read: Read) -> None:
    write_series(tmp_path / "in", regular_stack(), change=without_attributes("ImagePositionPatient", only=2))
    with pytest.raises(InconsistentGeometry, match="1 of the series' 6 images"):
        read(tmp_path / "in")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("PixelSpacing", [1.25, 0.8], r"pixel spacing: .*0\.75 × 1\.25 .*0\.8 × 1\.25"),
        ("ImageOrientationPatient", [1, 0, 0, 0, 0.98, 0.199], "orientation"),
        ("FrameOfReferenceUID", "1.2.10", "frames of reference"),
        ("ImagePositionPatient", [-30.5, 13.25, -695.0], "one line"),
        ("ImagePositionPatient", [-30.5, 13.25], "expected 3 finite numbers"),
        ("ImageOrientationPatient", [1, 0, 0, 0, 0.5, 0], "orientation|axes"),
    ],
)
def test_inconsistent_slices_are_refused(tmp_path: Path, read: Read, name: str, value: object, message: str) -> None:
    write_series(tmp_path / "in", regular_stack(), change=with_attribute(name, value, only=2))
    with pytest.raises(InconsistentGeometry, match=message):
        read(tmp_path / "in")


def test_slices_of_different_size_are_refused(tmp_path: Path, read: Read) -> None:
    write_series(
        tmp_path / "in",
        regular_stack(),
        change=with_stored_values(np.zeros((7, 8), np.uint16), only=2),
    )
    with pytest.raises(InconsistentGeometry, match="differ in size: "):
        read(tmp_path / "in")


def test_repeated_instances_and_several_modalities_are_refused(tmp_path: Path, read: Read) -> None:
    write_series(tmp_path / "in", regular_stack(), change=with_attribute("SOPInstanceUID", "1.2.3.4.5"))
    with pytest.raises(InconsistentGeometry, match="5 of the series' 6 images have the SOPInstanceUID of another one"):
        read(tmp_path / "in")
    write_series(tmp_path / "in", regular_stack(), change=with_attribute("Modality", "MR", only=2))
    with pytest.raises(InconsistentGeometry, match="differ in modality: CT, MR"):
        read(tmp_path / "in")


def test_several_studies_are_refused(tmp_path: Path, read: Read) -> None:
    write_series(tmp_path / "in", regular_stack(), change=with_attribute("StudyInstanceUID", "1.2.3", only=2))
    with pytest.raises(InconsistentGeometry, match="belong to 2 studies"):
        read(tmp_path / "in")


@pytest.mark.parametrize(("numbers", "alternate"), [((1, 1, 1, 2, 2, 2), False), ((1, 2, 1, 2, 1, 2), True)])
def test_alternating_acquisitions_give_a_warning_in_mr(
    tmp_path: Path, read: Read, numbers: tuple[int, ...], alternate: bool
) -> None:
    def change(k: int, dataset: Dataset) -> None:
        dataset.Modality = "MR"
        dataset.AcquisitionNumber = numbers[k]

    write_series(tmp_path / "in", regular_stack(), change=change)
    message = "slices of 2 acquisitions seem to lie between each other, as AcquisitionNumber shows"
    expected = (ReportWarning(WarningCode.ALTERNATING_ACQUISITIONS, message),)
    assert read(tmp_path / "in").warnings == (expected if alternate else ())


RESCALING = ("RescaleSlope", "RescaleIntercept")


@pytest.mark.parametrize("keywords", [RESCALING, RESCALING[:1], RESCALING[1:]], ids=str)
@pytest.mark.parametrize("empty", [False, True])
def test_a_rescaling_of_some_slices_alone_is_refused(
    tmp_path: Path, read: Read, keywords: tuple[str, ...], empty: bool
) -> None:
    def change(k: int, dataset: Dataset) -> None:
        for keyword in keywords if k in (1, 4) else ():
            if empty:
                setattr(dataset, keyword, None)
            else:
                delattr(dataset, keyword)

    write_series(tmp_path / "in", regular_stack(), change=change)
    with pytest.raises(InputCorrupt, match=f"2 of the series' 6 slices do not state {keywords[0]}"):
        read(tmp_path / "in")


@pytest.mark.parametrize("keywords", [RESCALING, RESCALING[:1], RESCALING[1:]], ids=str)
def test_ct_without_rescaling_is_believed_with_a_warning(tmp_path: Path, read: Read, keywords: tuple[str, ...]) -> None:
    stored = regular_stack().voxels

    def change(k: int, dataset: Dataset) -> None:
        dataset.RescaleIntercept = 0
        set_stored_values(dataset, np.ascontiguousarray(stored[:, :, k].T))
        for keyword in keywords:
            delattr(dataset, keyword)

    write_series(tmp_path / "in", regular_stack(), change=change)
    scan = read(tmp_path / "in")
    np.testing.assert_array_equal(scan.volume.voxels, stored)
    assert [warning.code for warning in scan.warnings] == [WarningCode.RESCALE_MISSING] * len(keywords)
    assert f"no slice states {keywords[0]}" in scan.warnings[0].message


def test_frames_without_a_rescaling_beside_others_are_refused(tmp_path: Path, read: Read) -> None:
    path = write_enhanced(tmp_path / "in", regular_stack(), shared=False)
    dataset = pydicom.dcmread(path)
    del dataset.PerFrameFunctionalGroupsSequence[2].PixelValueTransformationSequence
    dataset.save_as(path)
    with pytest.raises(InputCorrupt, match="1 of the series' 6 slices do not state RescaleSlope"):
        read(path)


@pytest.mark.parametrize(("slope", "refused"), [(1, False), (2.5, True)])
def test_mr_may_miss_a_rescaling_that_changes_nothing(tmp_path: Path, read: Read, slope: float, refused: bool) -> None:
    def change(k: int, dataset: Dataset) -> None:
        dataset.Modality = "MR"
        dataset.RescaleIntercept = 0
        dataset.RescaleSlope = slope
        if k == 3:
            del dataset.RescaleSlope
            del dataset.RescaleIntercept

    write_series(tmp_path / "in", regular_stack(), change=change)
    with pytest.raises(InputCorrupt, match="do not state RescaleSlope") if refused else nullcontext():
        read(tmp_path / "in")
