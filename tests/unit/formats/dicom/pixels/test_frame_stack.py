"""Rescaled values and padding."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dicom_files import (
    Change,
    phantom,
    regular_stack,
    set_stored_values,
    with_attribute,
    with_stored_values,
    write_mr,
    write_series,
)
from pydicom.dataset import Dataset

from inference_service.core.errors import InputCorrupt
from inference_service.core.report_warnings import ReportWarning, WarningCode
from inference_service.formats.scan_reader import Scan

Read = Callable[..., Scan]


def test_padding_within_tissue_is_ignored(tmp_path: Path, read: Read) -> None:
    write_series(tmp_path / "in", regular_stack(), change=with_attribute("PixelPaddingValue", 60 + 1024))
    scan = read(tmp_path / "in")
    np.testing.assert_array_equal(scan.volume.voxels, regular_stack().voxels)
    message = "the series marks values as padding that are tissue in CT: they were not taken for padding"
    assert ReportWarning(WarningCode.PADDING_VALUE_IGNORED, message) in scan.warnings


@pytest.mark.parametrize(("value", "limit"), [(65535, 200), (0, 65535)])
def test_a_padding_range_that_spans_tissue_is_ignored(tmp_path: Path, read: Read, value: int, limit: int) -> None:
    def change(k: int, dataset: Dataset) -> None:
        dataset.PixelPaddingValue = value
        dataset.PixelPaddingRangeLimit = limit
        set_stored_values(dataset, dataset.pixel_array.astype(np.uint16))

    write_series(tmp_path / "in", regular_stack(), change=change)
    scan = read(tmp_path / "in")
    np.testing.assert_array_equal(scan.volume.voxels, regular_stack().voxels)
    message = "the series marks values as padding that are tissue in CT: they were not taken for padding"
    assert ReportWarning(WarningCode.PADDING_VALUE_IGNORED, message) in scan.warnings


def test_padding_may_exceed_the_stored_bits(tmp_path: Path, read: Read) -> None:
    stored = np.full((7, 9), 1084, np.uint16)
    stored[2, 3] = 63536

    def change(k: int, dataset: Dataset) -> None:
        set_stored_values(dataset, stored, bits=12)
        dataset.add_new("PixelPaddingValue", "US", 63536)

    write_series(tmp_path / "in", regular_stack(), change=change)
    scan = read(tmp_path / "in")
    assert set(np.unique(scan.volume.voxels)) == {-1024, 60}
    assert scan.volume.voxels[3, 2, 0] == -1024


def test_each_slice_is_rescaled_by_its_own_slope_and_intercept(tmp_path: Path, read: Read) -> None:
    def change(k: int, dataset: Dataset) -> None:
        set_stored_values(dataset, np.full((7, 9), 100 * k, np.uint16))
        dataset.RescaleSlope = 0.5 + k
        dataset.RescaleIntercept = -k

    write_series(tmp_path / "in", regular_stack(), change=change)
    voxels = read(tmp_path / "in").volume.voxels
    assert voxels.dtype == np.float32
    np.testing.assert_array_equal(voxels[4, 3], [100 * k * (0.5 + k) - k for k in range(6)])


@pytest.mark.parametrize("padding", [-2000, 63536])
def test_padding_becomes_air(tmp_path: Path, read: Read, padding: int) -> None:
    stored = np.arange(63).reshape(7, 9).astype(np.int16)
    stored[0] = -2000

    def change(k: int, dataset: Dataset) -> None:
        set_stored_values(dataset, stored)
        dataset.add_new("PixelPaddingValue", "SS" if padding < 0 else "US", padding)

    write_series(tmp_path / "in", regular_stack(), change=change)
    scan = read(tmp_path / "in")
    assert set(np.unique(scan.volume.voxels[:, 0])) == {-1024}
    np.testing.assert_array_equal(scan.volume.voxels[:, 1:, 0].T, stored[1:] - 1024)
    message = "54 voxels are padding, and got the value -1024"
    assert scan.warnings == (ReportWarning(WarningCode.PADDING_VOXELS, message),)


def test_a_padding_range_is_padding(tmp_path: Path, read: Read) -> None:
    def change(k: int, dataset: Dataset) -> None:
        set_stored_values(dataset, np.arange(63).reshape(7, 9).astype(np.uint16))
        dataset.PixelPaddingValue = 20
        dataset.PixelPaddingRangeLimit = 10
        dataset.Modality = "MR"
        dataset.RescaleIntercept = 0

    write_series(tmp_path / "in", regular_stack(), change=change)
    values = np.unique(read(tmp_path / "in").volume.voxels)
    assert set(values) == {*range(10), *range(21, 63)}


def test_values_beyond_int16_are_kept(tmp_path: Path, read: Read) -> None:
    stored = np.linspace(0, 65535, 63).astype(np.uint16).reshape(7, 9)
    write_series(tmp_path / "in", regular_stack(), change=with_stored_values(stored))
    voxels = read(tmp_path / "in").volume.voxels
    assert voxels.dtype == np.float32
    np.testing.assert_array_equal(voxels[:, :, 3].T, stored - np.float32(1024))


def test_monochrome1_is_not_inverted_and_gives_a_warning(tmp_path: Path, read: Read) -> None:
    stack = regular_stack()
    write_series(tmp_path / "in", stack, change=with_attribute("PhotometricInterpretation", "MONOCHROME1"))
    scan = read(tmp_path / "in")
    np.testing.assert_array_equal(scan.volume.voxels, stack.voxels)
    assert scan.warnings[0].code == WarningCode.MONOCHROME1
    assert "MONOCHROME1" in scan.warnings[0].message


def test_an_mr_series_is_read(tmp_path: Path, read: Read) -> None:
    write_mr(tmp_path / "in", regular_stack())
    scan = read(tmp_path / "in")
    assert scan.modality == "MR"
    assert scan.volume.voxels.min() == 24


def empty_slices(*indices: int, intercept: float, stored: int = 0) -> Change:
    def change(k: int, dataset: Dataset) -> None:
        if k in indices:
            dataset.RescaleSlope, dataset.RescaleIntercept = 0, intercept
            set_stored_values(dataset, np.full((7, 9), stored, np.uint16))

    return change


@pytest.mark.parametrize("intercept", [-1000, 0, -1024.5])
@pytest.mark.parametrize("stored", [0, 17])
def test_a_slice_with_slope_0_and_no_content_is_background(
    tmp_path: Path, read: Read, intercept: float, stored: int
) -> None:
    write_series(tmp_path / "in", regular_stack(), change=empty_slices(0, 5, intercept=intercept, stored=stored))
    scan = read(tmp_path / "in")
    np.testing.assert_array_equal(scan.volume.voxels[:, :, 1:5], phantom()[:, :, 1:5])
    assert np.unique(scan.volume.voxels[:, :, [0, 5]]).tolist() == [-1024]
    message = "2 of 6 slices have the RescaleSlope 0 and no content: they got the value -1024"
    assert ReportWarning(WarningCode.EMPTY_SLICES, message) in scan.warnings


def test_a_slope_of_0_is_refused_in_a_slice_with_content_and_in_all_slices(tmp_path: Path, read: Read) -> None:
    write_series(tmp_path / "in", regular_stack(), change=with_attribute("RescaleSlope", 0, only=2))
    with pytest.raises(InputCorrupt, match="RescaleSlope is 0 in a slice whose stored values differ"):
        read(tmp_path / "in")
    write_series(tmp_path / "in", regular_stack(), change=empty_slices(*range(6), intercept=0))
    with pytest.raises(InputCorrupt, match="RescaleSlope is 0 in all slices"):
        read(tmp_path / "in")
