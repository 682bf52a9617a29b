from pathlib import Path

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray

from inference_service.core.errors import InconsistentGeometry, InputTooLarge
from inference_service.core.report_warnings import WarningCode
from inference_service.formats.read_limits import ReadLimits
from inference_service.formats.scan_reader import read_scan
from inference_service.imaging.geometry import Volume
from inference_service.imaging.shear import align_sheared, find_shear


def grid(*columns: tuple[float, float, float]) -> NDArray[np.float64]:
    affine = np.eye(4)
    affine[:3, :3] = np.transpose(columns)
    return affine


# Rows of 2 mm, columns of 3 mm, slices of 4 mm that drift to the front by 1.5 mm each.
TILTED = grid((2, 0, 0), (0, 3, 0), (0, 1.5, 4))
SKEWED = grid((2, 0.1, 0), (0.1, 3, 0.2), (0, 0.3, 4))


def save(path: Path, affine: NDArray[np.float64]) -> Path:
    image = nibabel.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), None)
    image.set_sform(affine, code="scanner")
    nibabel.save(image, path)
    return path


@pytest.mark.parametrize("affine", [grid((2, 0, 0), (0, -3, 0), (0, 0, 4)), grid((0, 0, 2), (3, 0.001, 0), (0, 4, 0))])
def test_right_angles_are_no_shear(affine: NDArray[np.float64]) -> None:
    assert find_shear(affine) is None


def test_planes_along_the_long_axis_are_preferred() -> None:
    shear = find_shear(TILTED)
    assert shear is not None
    assert shear.axes == (0, 1, 2)
    assert shear.shift_px == pytest.approx((0, 0.5))
    assert shear.degrees == pytest.approx(np.degrees(np.arctan(1.5 / 4)))
    turned = find_shear(TILTED[:, [2, 0, 1, 3]])
    assert turned is not None
    assert turned.axes == (1, 2, 0)
    assert turned.shift_px == pytest.approx((0, 0.5))


def test_planes_are_aligned_and_a_mask_is_restored() -> None:
    shear = find_shear(TILTED)
    assert shear is not None
    voxels = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    aligned = align_sheared(Volume(voxels, TILTED), shear, background=-1)
    assert aligned.volume.shape == (3, 6, 5)
    np.testing.assert_allclose(aligned.volume.affine, grid((2, 0, 0), (0, 3, 0), (0, 0, 4)))
    np.testing.assert_array_equal(aligned.volume.voxels[:, 2:, 4], voxels[:, :, 4])
    assert (aligned.volume.voxels[:, :2, 4] == -1).all()
    restored = aligned.restore_mask(aligned.volume.voxels.astype(np.uint16))
    np.testing.assert_array_equal(restored, voxels)


def test_a_slightly_skewed_grid_is_read_without_alignment(tmp_path: Path) -> None:
    shear = find_shear(SKEWED)
    assert shear is not None
    assert shear.axes is None
    with pytest.raises(ValueError, match="two axes at right angles"):
        align_sheared(Volume(np.zeros((3, 4, 5)), SKEWED), shear, background=0)
    scan = read_scan(save(tmp_path / "scan.nii", SKEWED), tmp_path, ReadLimits(100))
    assert scan.aligned is None
    assert scan.warnings[-1].code == WarningCode.SHEAR_IGNORED
    assert "the network saw the scan without this shear" in scan.warnings[-1].message


def test_a_grid_far_from_right_angles_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "scan.nii", grid((2, 0.5, 0), (0.5, 3, 0.5), (0, 1, 4)))
    with pytest.raises(
        InconsistentGeometry,
        match=r"no two axes .* are at right angles; the deviation is up to .*°, and at most 10°",
    ):
        read_scan(path, tmp_path, ReadLimits(100))


def test_a_grid_too_large_once_it_is_aligned_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "scan.nii", TILTED)
    assert read_scan(path, tmp_path, ReadLimits(90)).aligned is not None
    with pytest.raises(InputTooLarge, match="has 90 voxels once its planes are aligned; this service takes at most 89"):
        read_scan(path, tmp_path, ReadLimits(89))
