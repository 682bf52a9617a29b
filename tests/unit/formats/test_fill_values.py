"""Voxels without a measurement are replaced and counted, whatever the data type and the format of the file."""

from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from numpy.typing import NDArray

from inference_service.core.errors import InputCorrupt
from inference_service.core.report_warnings import WarningCode
from inference_service.formats.fill_values import replace_fill_values
from inference_service.formats.read_limits import ReadLimits
from inference_service.formats.scan_reader import Scan, read_scan
from inference_service.imaging.geometry import Volume

SHAPE = (9, 8, 7)
OUTSIDE = np.hypot(*np.indices(SHAPE[:2]) - 4.0) > 3.5


def image(low: float, high: float) -> NDArray[np.float64]:
    """Whole numbers of a range, in random order."""
    values = np.linspace(low, high, np.prod(SHAPE)).round()
    return np.random.default_rng(0).permutation(values).reshape(SHAPE)


MR = image(0, 900)
# A CT without air, and one with air.
BODY = image(-150, 900)
CHEST = image(-1000, 900)


def filled(measured: NDArray[np.float64], dtype: str, fill: float) -> NDArray[np.generic]:
    """An image whose voxels outside a circle have a fill value."""
    voxels = measured.astype(dtype)
    voxels[OUTSIDE] = fill
    return voxels


def replaced(voxels: NDArray[np.generic]) -> tuple[NDArray[np.generic], int]:
    volume = Volume(voxels.copy(order="F"), np.eye(4))
    count = replace_fill_values(volume)
    return volume.voxels, count


LOWEST = [("i2", -(2.0**15)), ("i4", -(2.0**15)), ("i4", -(2.0**31)), ("i8", -(2.0**63)), ("f4", -(2.0**15))]
HIGHEST = [("i4", 2**31 - 1), ("u4", 2**31 - 1), ("u4", 2**32 - 1), ("u8", 2**63), ("f4", 2.0**31), ("f8", 2**31 - 1)]
FLOATS = [("f4", np.nan), ("f8", -np.inf), ("f8", float(np.finfo("f4").min)), ("f4", -(2.0**31))]


@pytest.mark.parametrize(("dtype", "fill"), [*LOWEST, *HIGHEST, *FLOATS])
def test_fill_values_become_the_lowest_of_the_others(dtype: str, fill: float) -> None:
    voxels, count = replaced(filled(MR, dtype, fill))
    expected = MR.astype(dtype)
    expected[OUTSIDE] = expected[~OUTSIDE].min()
    np.testing.assert_array_equal(voxels, expected, strict=True)
    assert count == OUTSIDE.sum() * SHAPE[2]


@pytest.mark.parametrize(("dtype", "fill"), [*LOWEST, *FLOATS])
@pytest.mark.parametrize("measured", [BODY, CHEST], ids=["body", "chest"])
def test_fill_values_of_a_ct_become_air(dtype: str, fill: float, measured: NDArray[np.float64]) -> None:
    """The lowest value of a CT without air is fat."""
    voxels, _ = replaced(filled(measured, dtype, fill))
    assert (voxels[OUTSIDE] == -1024).all()
    np.testing.assert_array_equal(voxels[~OUTSIDE], measured.astype(dtype)[~OUTSIDE])


@pytest.mark.parametrize("scale", [0.01, 0.05])
def test_fill_values_of_small_numbers_become_the_lowest_of_them(scale: float) -> None:
    """Such values are no HU, also where some are negative."""
    small = (BODY * scale).astype(np.float32)
    voxels, _ = replaced(filled(BODY * scale, "f4", np.nan))
    assert (voxels[OUTSIDE] == small[~OUTSIDE].min()).all()


@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [("i1", -128, 127), ("u1", 0, 255), ("i2", -(2**15), 2**15 - 1), ("u2", 0, 2**16 - 1), ("f4", -40000, 40000)],
)
def test_the_whole_range_of_a_data_type_may_be_measured(dtype: str, low: int, high: int) -> None:
    measured = image(low, high).astype(dtype)
    measured[0, 0, 0] = low
    voxels, count = replaced(measured)
    np.testing.assert_array_equal(voxels, measured, strict=True)
    assert count == 0


def test_the_lowest_byte_is_no_fill_value() -> None:
    """An image of HU divided by 8 has −128 in air, and little below 0 elsewhere."""
    voxels = filled(MR / 8, "i1", -128)
    assert replaced(voxels)[1] == 0


def test_the_lowest_integer_is_measured_beside_huge_fill_values() -> None:
    measured = image(-(2**15), 2**15)
    voxels, count = replaced(filled(measured, "f4", np.inf))
    assert count == OUTSIDE.sum() * SHAPE[2]
    assert voxels[OUTSIDE].max() == voxels.min()
    np.testing.assert_array_equal(voxels[~OUTSIDE], measured.astype("f4")[~OUTSIDE])


@pytest.mark.parametrize(("dtype", "fill"), [("i2", -(2**15)), ("i4", -(2**31)), ("f4", np.nan)])
def test_a_volume_of_fill_values_is_refused(dtype: str, fill: float) -> None:
    with pytest.raises(InputCorrupt, match="all voxels of the volume are NaN, infinite or a fill value"):
        replaced(np.full(SHAPE, fill, dtype))


def write_nifti(path: Path, voxels: NDArray[np.generic]) -> None:
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4), dtype=voxels.dtype), path)


def write_by_simpleitk(path: Path, voxels: NDArray[np.generic]) -> None:
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(voxels.transpose()), str(path))


def read(path: Path) -> Scan:
    return read_scan(path, path.parent, ReadLimits(10**6))


@pytest.mark.parametrize(
    ("name", "write"),
    [("scan.nii.gz", write_nifti), ("scan.nrrd", write_by_simpleitk), ("scan.mha", write_by_simpleitk)],
)
@pytest.mark.parametrize(("dtype", "fill"), [("i2", -(2**15)), ("i4", -(2**31)), ("f4", -3.4028235e38)])
def test_fill_values_are_replaced_in_every_format(
    tmp_path: Path, name: str, write: Callable[[Path, NDArray[np.generic]], None], dtype: str, fill: float
) -> None:
    write(tmp_path / name, filled(CHEST, dtype, fill))
    scan = read(tmp_path / name)
    assert (scan.volume.voxels[OUTSIDE] == -1024).all()
    assert scan.replaced_voxels == OUTSIDE.sum() * SHAPE[2]
    assert [warning.code for warning in scan.warnings] == [WarningCode.FILL_VALUES_REPLACED]


def test_scaled_integers_may_use_their_whole_range(tmp_path: Path) -> None:
    """nibabel stores the lowest value of a float image as the lowest integer."""
    scaled = nibabel.Nifti1Image(filled(BODY, "f8", -1024), np.eye(4))
    scaled.header.set_data_dtype(np.int16)
    nibabel.save(scaled, tmp_path / "scan.nii")
    stored = np.asarray(nibabel.load(tmp_path / "scan.nii").dataobj.get_unscaled())  # type: ignore[attr-defined]
    assert stored.min() == -(2**15)
    scan = read(tmp_path / "scan.nii")
    assert scan.replaced_voxels == 0
    np.testing.assert_allclose(scan.volume.voxels[OUTSIDE], -1024, atol=0.1)
