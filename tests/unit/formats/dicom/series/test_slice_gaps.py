"""Uneven spacing and missing slices."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from dicom_files import Stack, phantom, regular_stack, with_attribute, with_heights, without_attributes, write_series

from inference_service.core.errors import (
    InconsistentGeometry,
    InputError,
    MissingSlices,
    NotAVolume,
)
from inference_service.core.report_warnings import WarningCode
from inference_service.formats.scan_reader import Scan

Read = Callable[..., Scan]


def at_heights(heights_mm: list[float]) -> Stack:
    stack = regular_stack(phantom((9, 7, len(heights_mm))))
    positions = stack.positions_mm.copy()
    positions[:, 2] = heights_mm
    return Stack(stack.voxels, stack.row, stack.column, stack.pixel_mm, positions)


@pytest.mark.parametrize("tolerate", [(), ("uneven_spacing",)])
@pytest.mark.parametrize(
    "heights_mm",
    [[0, 3, 6, 6.02, 9, 12, 15], [0, 0.5, 5, 5.5, 10, 10.5, 15], [0, 0.5, 3, 3.5, 6, 6.5, 9, 9.5]],
    ids=["a slice nearly twice", "two phases", "as many of each"],
)
def test_interleaved_acquisitions_are_never_interpolated(
    tmp_path: Path, read: Read, heights_mm: list[float], tolerate: tuple[str, ...]
) -> None:
    write_series(tmp_path / "in", at_heights(heights_mm))
    with pytest.raises(InconsistentGeometry, match="two acquisitions seem to be interleaved"):
        read(tmp_path / "in", tolerate=tolerate)


@pytest.mark.parametrize("wide_mm", [5.0, 7.5, 10.0])
def test_two_spacings_are_interpolated_if_tolerated(tmp_path: Path, read: Read, wide_mm: float) -> None:
    """Thin slices through the base of the skull, thick ones above."""
    write_series(tmp_path / "in", at_heights(np.cumsum([0, *[2.5] * 8, *[wide_mm] * 10]).tolist()))
    with pytest.raises(InconsistentGeometry, match=rf"slices are 2\.5 to {wide_mm:g} mm apart"):
        read(tmp_path / "in")
    scan = read(tmp_path / "in", tolerate=("uneven_spacing",))
    assert scan.evenly_spaced is not None
    assert scan.volume.spacing_mm[2] == pytest.approx(2.5)


def test_a_slice_between_two_others_is_interpolated_if_tolerated(tmp_path: Path, read: Read) -> None:
    write_series(tmp_path / "in", at_heights([0, 2.5, 5, 5.5, *np.arange(7.5, 30, 2.5).tolist()]))
    with pytest.raises(InconsistentGeometry, match=r"slices are 0\.5 to 2\.5 mm apart"):
        read(tmp_path / "in")
    assert read(tmp_path / "in", tolerate=("uneven_spacing",)).volume.spacing_mm[2] == pytest.approx(2.5)


def test_missing_slices_in_several_places_are_counted(tmp_path: Path, read: Read) -> None:
    heights_mm = [2.5 * number for number in range(20) if number not in (4, 9, 10, 15)]
    write_series(tmp_path / "in", at_heights(heights_mm))
    with pytest.raises(MissingSlices, match="4 slices are missing"):
        read(tmp_path / "in")


@pytest.mark.parametrize(
    ("step_mm", "thickness_mm", "warned"),
    [(10.5, None, True), (9.5, None, False), (5, 2.5, True), (4, 2.5, False), (2, 3, False)],
)
def test_slices_far_apart_give_a_warning(
    tmp_path: Path, read: Read, step_mm: float, thickness_mm: float | None, warned: bool
) -> None:
    change = (
        without_attributes("SliceThickness") if thickness_mm is None else with_attribute("SliceThickness", thickness_mm)
    )
    write_series(tmp_path / "in", regular_stack(step_mm=step_mm), change=change)
    codes = [warning.code for warning in read(tmp_path / "in").warnings]
    assert (WarningCode.SPARSE_SLICES in codes) == warned


def test_growing_spacing_is_no_missing_slice(tmp_path: Path, read: Read) -> None:
    write_series(tmp_path / "in", at_heights(np.cumsum([0, *np.arange(3.02, 3.43, 0.04)]).tolist()))
    with pytest.raises(InconsistentGeometry, match=r"slices are 3\.02 to 3\.42 mm apart"):
        read(tmp_path / "in")


@pytest.mark.parametrize(
    ("heights", "expected", "message"),
    [
        ((0, 2, 4, 8, 10), MissingSlices, r"1 slice is missing: between slices 3 and 4 of 5 lie 4 mm, elsewhere 2 mm"),
        ((0, 2, 8, 10, 14), MissingSlices, r"3 slices are missing: between slices 2 and 3 of 5 lie 6 mm"),
        ((0, 2, 4.5, 6.5), InconsistentGeometry, r"2 to 2\.5 mm apart: between slices 2 and 3 of 4 lie 2\.5 mm"),
        ((0, 2, 4, 4, 6), InconsistentGeometry, r"1 of 4 slice positions have more than one slice"),
        ((0, 0, 2, 2, 4, 4), NotAVolume, r"2 volumes.*each of its 3 positions has 2 slices"),
    ],
)
def test_missing_uneven_and_repeated_slices_are_refused_with_numbers(
    tmp_path: Path, read: Read, heights: Sequence[float], expected: type[InputError], message: str
) -> None:
    write_series(tmp_path / "in", with_heights(regular_stack(), heights))
    with pytest.raises(expected, match=message):
        read(tmp_path / "in")


def test_rounded_positions_are_even(tmp_path: Path, read: Read) -> None:
    heights = np.round(np.arange(9) * 0.625, 1)
    write_series(tmp_path / "in", with_heights(regular_stack(), heights))
    assert read(tmp_path / "in").volume.spacing_mm[2] == pytest.approx(0.625)


def test_uneven_slices_are_interpolated_if_tolerated(tmp_path: Path, read: Read) -> None:
    ramp = np.zeros((4, 5, 5), dtype=np.int16)
    heights = np.array([0, 2, 4, 8, 10])
    ramp[:] = heights * 10
    write_series(tmp_path / "in", with_heights(regular_stack(ramp), heights))
    scan = read(tmp_path / "in", tolerate=("uneven_spacing",))
    assert scan.volume.shape == (4, 5, 6)
    np.testing.assert_allclose(scan.volume.spacing_mm, (0.75, 1.25, 2))
    np.testing.assert_array_equal(scan.volume.voxels[1, 1], [0, 20, 40, 60, 80, 100])
    assert scan.volume.voxels.dtype == np.int16
    (warning,) = scan.warnings
    assert re.search("1 slice is missing.*4 mm.*interpolated to evenly spaced slices", warning.message)
    assert warning.code == WarningCode.SLICES_INTERPOLATED


def test_a_wide_gap_is_never_interpolated(tmp_path: Path, read: Read) -> None:
    write_series(tmp_path / "in", with_heights(regular_stack(), (0, 2, 4, 16, 18)))
    with pytest.raises(MissingSlices, match="lie 12 mm"):
        read(tmp_path / "in", tolerate=("uneven_spacing",))
