"""Tilted stacks."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dicom_files import Stack, affine_of, oblique_rotation, phantom, regular_stack, write_series

from inference_service.core.errors import (
    GantryTilt,
    InputError,
)
from inference_service.core.report_warnings import WarningCode
from inference_service.formats.scan_reader import Scan

Read = Callable[..., Scan]


def test_a_slight_tilt_of_a_long_stack_is_a_tilt(tmp_path: Path, read: Read) -> None:
    drift = np.tan(np.radians(0.045))
    write_series(
        tmp_path / "in", regular_stack(phantom((9, 7, 600)), step_mm=1, drift_mm=(0, drift, 0), pixel_mm=(0.75, 0.75))
    )
    with pytest.raises(InputError, match=r"tilted by 0\.045°.*drift by 0\.47"):
        read(tmp_path / "in")


@pytest.mark.parametrize("degrees", [-12, 0.5, 25])
def test_a_gantry_tilt_is_refused_with_its_angle(tmp_path: Path, read: Read, degrees: float) -> None:
    drift = np.array([0, np.tan(np.radians(degrees)) * 2.5, 0])
    write_series(tmp_path / "in", regular_stack(drift_mm=drift))
    with pytest.raises(GantryTilt, match=f"tilted by {abs(degrees):g}°"):
        read(tmp_path / "in")


def test_a_tilted_stack_is_aligned_and_its_mask_restored(tmp_path: Path, read: Read) -> None:
    turn = oblique_rotation()
    stack = regular_stack(row=turn[:, 0], column=turn[:, 1], drift_mm=turn @ (0.3, -1.1, 0))
    write_series(tmp_path / "in", stack)
    scan = read(tmp_path / "in", tolerate=("gantry_tilt",))
    np.testing.assert_array_equal(scan.volume.voxels, stack.voxels)
    np.testing.assert_allclose(scan.volume.affine, affine_of(stack), atol=1e-9)
    assert scan.aligned is not None
    seen = scan.aligned.volume
    gram = seen.affine[:3, :3].T @ seen.affine[:3, :3]
    np.testing.assert_allclose(gram, np.diag(np.diag(gram)), atol=1e-9)
    assert seen.spacing_mm[2] == pytest.approx(2.5)
    # Alignment moves a voxel by at most half a pixel in the world.
    here = np.argwhere(scan.volume.voxels == 60)
    there = np.argwhere(seen.voxels == 60)
    assert len(here) == len(there)
    for k in range(6):
        mean = [
            (volume.affine @ np.append(points[points[:, 2] == k].mean(axis=0), 1))[:3]
            for volume, points in ((scan.volume, here), (seen, there))
            if (points[:, 2] == k).any()
        ]
        if mean:
            assert np.linalg.norm(mean[0] - mean[1]) <= np.hypot(0.75, 1.25) / 2 + 1e-9
    labels = np.arange(seen.voxels.size, dtype=np.uint32).reshape(seen.shape)
    back = scan.aligned.restore_mask(labels)
    np.testing.assert_array_equal(seen.voxels.reshape(-1)[back], stack.voxels)
    assert scan.warnings[0].code == WarningCode.GANTRY_TILT_ALIGNED
    assert "aligned by shifts of whole pixels" in scan.warnings[0].message


def test_tilted_and_uneven_slices_are_corrected_together(tmp_path: Path, read: Read) -> None:
    stack = regular_stack(drift_mm=(0, 1.25, 0))
    kept = [0, 1, 2, 4, 5]
    write_series(
        tmp_path / "in",
        Stack(stack.voxels[:, :, kept], stack.row, stack.column, stack.pixel_mm, stack.positions_mm[kept]),
    )
    with pytest.raises(GantryTilt):
        read(tmp_path / "in", tolerate=("uneven_spacing",))
    scan = read(tmp_path / "in", tolerate=("uneven_spacing", "gantry_tilt"))
    assert scan.volume.shape == (9, 7 + 5, 6)
    codes = [warning.code for warning in scan.warnings]
    assert codes == [WarningCode.SLICES_INTERPOLATED, WarningCode.GANTRY_TILT_ALIGNED]
    np.testing.assert_allclose(np.diag(scan.volume.affine)[:3], (-0.75, -1.25, 2.5))
