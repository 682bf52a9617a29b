import numpy as np
import pytest

from inference_service.imaging.geometry import Volume
from inference_service.imaging.slice_alignment import align_slices, aligned_shape

SHIFTS_PX = np.array([[0.0, 0.0], [0.6, -0.4], [1.2, -1.6]])


def test_slices_are_shifted_by_whole_pixels_and_a_mask_is_restored() -> None:
    voxels = np.arange(60, dtype=np.int16).reshape((4, 5, 3), order="F")
    affine = np.array([[2.0, 0, 0.3, 5], [0, 3, 0, -7], [0, 0, 4, 9], [0, 0, 0, 1]])
    aligned = align_slices(Volume(voxels, affine), SHIFTS_PX, background=-1)
    assert aligned.volume.shape == aligned_shape((4, 5, 3), SHIFTS_PX) == (5, 7, 3)
    assert aligned.origins.tolist() == [[0, 2], [1, 2], [1, 0]]
    for k, (i, j) in enumerate(aligned.origins):
        np.testing.assert_array_equal(aligned.volume.voxels[i : i + 4, j : j + 5, k], voxels[:, :, k])
    assert np.count_nonzero(aligned.volume.voxels == -1) == 5 * 7 * 3 - 60
    np.testing.assert_array_equal(aligned.restore_mask(aligned.volume.voxels.astype(np.uint16)), voxels)


def test_the_first_slice_is_not_moved_and_axes_become_perpendicular() -> None:
    affine = np.array([[2.0, 0, 0.3, 5], [0, 3, 0, -7], [0, 0, 4, 9], [0, 0, 0, 1]])
    aligned = align_slices(Volume(np.zeros((4, 5, 3), np.int16), affine), SHIFTS_PX, background=0)
    first_pixel = np.array([*aligned.origins[0], 0, 1])
    assert aligned.volume.affine @ first_pixel == pytest.approx(affine[:, 3])
    assert aligned.volume.affine[:3, 2] == pytest.approx((0, 0, 4))
