"""The grid of a series."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dicom_files import (
    affine_of,
    axis_directions,
    oblique_rotation,
    phantom,
    regular_stack,
    with_attribute,
    without_attributes,
    write_series,
)
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from inference_service.core.errors import (
    InconsistentGeometry,
    NotAVolume,
)
from inference_service.core.report_warnings import WarningCode
from inference_service.formats.scan_reader import Scan

Read = Callable[..., Scan]


@pytest.mark.parametrize("turned", [False, True], ids=["straight", "oblique"])
@pytest.mark.parametrize(("row", "column"), axis_directions())
def test_every_orientation_is_read_with_its_values_and_affine(
    tmp_path: Path, read: Read, row: NDArray[np.float64], column: NDArray[np.float64], turned: bool
) -> None:
    turn = oblique_rotation() if turned else np.eye(3)
    stack = regular_stack(row=turn @ row, column=turn @ column)
    write_series(tmp_path / "in", stack)
    scan = read(tmp_path / "in")
    np.testing.assert_array_equal(scan.volume.voxels, stack.voxels, strict=True)
    np.testing.assert_allclose(scan.volume.affine, affine_of(stack), atol=1e-9)
    assert (scan.input_format, scan.modality, scan.warnings, scan.set_aside) == ("dicom", "CT", (), {})
    # Slices run along the normal, independent of their numbers, and keep the source's values.
    assert [slice_.instance.sop_instance_uid for slice_ in scan.slices] == [f"1.2.3.4.{k + 1}" for k in range(6)]


def test_a_mask_gets_the_grid_of_the_series(tmp_path: Path, read: Read) -> None:
    stack = regular_stack(row=oblique_rotation()[:, 0], column=oblique_rotation()[:, 1])
    write_series(tmp_path / "in", stack)
    grid = read(tmp_path / "in").grid
    assert grid.get_data_shape() == (9, 7, 6)
    np.testing.assert_allclose(grid.get_sform(), affine_of(stack), atol=1e-4)
    np.testing.assert_allclose(grid.get_qform(), affine_of(stack), atol=1e-3)


def test_the_grid_does_not_depend_on_file_names(tmp_path: Path, read: Read) -> None:
    """The directions of the files differ by rounding."""

    def change(k: int, dataset: Dataset) -> None:
        dataset.ImageOrientationPatient = [1, k * 1e-4, 0, -k * 1e-4, 1, 0]

    paths = write_series(tmp_path / "in", regular_stack(), change=change)
    affine = read(tmp_path / "in").volume.affine
    (tmp_path / "other").mkdir()
    for number, path in enumerate(reversed(paths)):
        path.rename(tmp_path / "other" / str(number))
    np.testing.assert_array_equal(read(tmp_path / "other").volume.affine, affine)


@pytest.mark.parametrize("value", [[1, 0, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0], [2, 0, 0, 0, 2, 0]])
def test_an_invalid_orientation_is_refused(tmp_path: Path, read: Read, value: list[float]) -> None:
    write_series(tmp_path / "in", regular_stack(), change=with_attribute("ImageOrientationPatient", value))
    with pytest.raises(InconsistentGeometry, match="axes make no sense"):
        read(tmp_path / "in")


def test_a_single_slice_needs_a_thickness_and_gives_a_warning(tmp_path: Path, read: Read) -> None:
    stack = regular_stack(phantom()[:, :, :1])
    write_series(tmp_path / "in", stack)
    scan = read(tmp_path / "in")
    assert scan.volume.spacing_mm == pytest.approx((0.75, 1.25, 7))
    assert scan.warnings[0].code == WarningCode.SINGLE_SLICE
    assert "depend on its SliceThickness, 7 mm" in scan.warnings[0].message
    write_series(tmp_path / "in", stack, change=without_attributes("SliceThickness"))
    with pytest.raises(NotAVolume, match="single slice"):
        read(tmp_path / "in")
