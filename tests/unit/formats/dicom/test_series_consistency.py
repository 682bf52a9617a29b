"""Instances that do not belong together are refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dicom_files import (
    regular_stack,
    with_attribute,
    with_stored_values,
    without_attributes,
    write_series,
)
from pydicom.dataset import Dataset

from inference_service.core.errors import (
    InconsistentGeometry,
)
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
def test_alternating_acquisitions_give_a_warning(
    tmp_path: Path, read: Read, numbers: tuple[int, ...], alternate: bool
) -> None:
    def change(k: int, dataset: Dataset) -> None:
        dataset.AcquisitionNumber = numbers[k]

    write_series(tmp_path / "in", regular_stack(), change=change)
    expected = ("slices of 2 acquisitions alternate: they may have been taken at different times",)
    assert read(tmp_path / "in").warnings == (expected if alternate else ())
