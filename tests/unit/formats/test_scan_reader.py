from pathlib import Path

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray

from inference_service.core.errors import InputCorrupt, InputTooLarge, NotAVolume, ServiceError, UnsupportedFormat
from inference_service.formats.read_limits import ReadLimits
from inference_service.formats.scan_reader import read_scan

SHAPE = (3, 4, 5)
AFFINE = np.array([[-2.0, 0, 0, 30], [0, 0, 4.5, -40], [0, 0.5, 0, 50], [0, 0, 0, 1]])
MAX_VOXELS = 1000


def values(dtype: str = "f4") -> NDArray[np.floating]:
    return np.arange(60).reshape(SHAPE).astype(dtype) - 20


def save(path: Path, voxels: NDArray[np.generic]) -> Path:
    nibabel.save(nibabel.Nifti1Image(voxels, AFFINE), path)
    return path


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_scan_is_recognised_by_its_content_under_any_name(tmp_path: Path, suffix: str) -> None:
    path = save(tmp_path / f"scan{suffix}", values()).rename(tmp_path / "object.dcm")
    scan = read_scan(path, tmp_path, ReadLimits(MAX_VOXELS))
    np.testing.assert_array_equal(scan.volume.voxels, values(), strict=True)
    np.testing.assert_array_equal(scan.volume.affine, AFFINE)
    assert scan.grid.get_data_shape() == SHAPE
    assert scan.replaced_voxels == 0


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_nan_and_infinite_voxels_get_the_lowest_finite_value(tmp_path: Path, dtype: str) -> None:
    voxels = values(dtype)
    voxels[0, 0, 0] = np.nan
    voxels[1, 2, 3] = np.inf
    voxels[2, 3, 4] = -np.inf
    voxels[2, 0, 0] = np.nan
    scan = read_scan(save(tmp_path / "scan.nii", voxels), tmp_path, ReadLimits(MAX_VOXELS))
    expected = np.where(np.isfinite(voxels), voxels, np.array(-19, dtype))
    np.testing.assert_array_equal(scan.volume.voxels, expected, strict=True)
    assert scan.replaced_voxels == 4


def test_integers_are_not_changed(tmp_path: Path) -> None:
    scan = read_scan(save(tmp_path / "scan.nii", values().astype(np.int16)), tmp_path, ReadLimits(MAX_VOXELS))
    np.testing.assert_array_equal(scan.volume.voxels, values().astype(np.int16), strict=True)
    assert scan.replaced_voxels == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_volume_without_finite_values_is_refused(tmp_path: Path, value: float) -> None:
    path = save(tmp_path / "scan.nii", np.full(SHAPE, value, dtype=np.float32))
    with pytest.raises(InputCorrupt, match="NaN or infinite: expected finite values"):
        read_scan(path, tmp_path, ReadLimits(MAX_VOXELS))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", InputCorrupt),
        (b"\x1f\x8b", InputCorrupt),
        (b"\x1f\x8b\x08\x00garbage that is no deflate stream", InputCorrupt),
        (b"PK\x03\x04", InputCorrupt),
        (b"\0" * 128 + b"DICM", NotAVolume),
        (b"x", UnsupportedFormat),
        (b"plain text, longer than a NIfTI header\n" * 20, UnsupportedFormat),
        ((348).to_bytes(4, "little"), InputCorrupt),
        ((540).to_bytes(4, "big") + b"\0" * 100, InputCorrupt),
        ((348).to_bytes(4, "little") + b"\0" * 400, UnsupportedFormat),
    ],
    ids=[
        "empty",
        "gzip magic",
        "bad gzip",
        "zip",
        "dicom",
        "one byte",
        "text",
        "nifti-1 cut",
        "nifti-2 cut",
        "analyze",
    ],
)
def test_other_content_is_refused(tmp_path: Path, content: bytes, expected: type[ServiceError]) -> None:
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(content)
    with pytest.raises(ServiceError) as caught:
        read_scan(path, tmp_path, ReadLimits(MAX_VOXELS))
    assert type(caught.value) is expected
    assert str(tmp_path) not in caught.value.message


def test_the_error_on_an_unknown_format_names_the_supported_ones(tmp_path: Path) -> None:
    (tmp_path / "scan").write_bytes(b"plain text")
    with pytest.raises(UnsupportedFormat, match="NIfTI-1 or NIfTI-2 file, plain or gzipped"):
        read_scan(tmp_path / "scan", tmp_path, ReadLimits(MAX_VOXELS))


def test_the_limit_on_voxels_is_exact(tmp_path: Path) -> None:
    path = save(tmp_path / "scan.nii", values())
    assert read_scan(path, tmp_path, ReadLimits(60)).volume.shape == SHAPE
    with pytest.raises(InputTooLarge, match="has 60 voxels; this service takes at most 59"):
        read_scan(path, tmp_path, ReadLimits(59))


def test_a_series_of_volumes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotAVolume, match=r"\(3, 4, 5, 2\)"):
        read_scan(save(tmp_path / "scan.nii", np.zeros((*SHAPE, 2), np.int16)), tmp_path, ReadLimits(MAX_VOXELS))
