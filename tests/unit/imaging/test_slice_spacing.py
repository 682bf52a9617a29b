from collections.abc import Sequence

import numpy as np
import pytest

from inference_service.imaging.geometry import Volume
from inference_service.imaging.slice_alignment import align_slices
from inference_service.imaging.slice_spacing import nearest_even_planes, space_evenly


@pytest.mark.parametrize(
    ("heights_mm", "count", "expected"),
    [
        ((0, 2, 4, 6), 4, (0, 1, 2, 3)),
        ((0, 2, 6), 4, (0, 1, 3)),
        ((0, 0.9, 1.1, 4), 3, (0, 0, 1, 2)),
        ((0, 1, 3, 4), 3, (0, 0, 1, 2)),
        ((0, 10), 2, (0, 1)),
    ],
)
def test_each_slice_has_its_nearest_even_plane(
    heights_mm: Sequence[float], count: int, expected: Sequence[int]
) -> None:
    assert tuple(nearest_even_planes(np.array(heights_mm, dtype=float), count)) == expected


@pytest.mark.parametrize("shifts_px", [(0, 0), (0.6, -2.3)], ids=["straight", "tilted"])
def test_a_mask_is_restored_to_uneven_slices(shifts_px: Sequence[float]) -> None:
    heights_mm = np.array([0, 2.0, 4, 8, 10.1])
    voxels = np.random.default_rng(0).integers(0, 4, (5, 4, 5), dtype=np.int16)
    aligned = align_slices(
        Volume(np.asfortranarray(voxels), np.eye(4)), np.outer(heights_mm / 2, shifts_px), background=9
    )
    even = space_evenly(aligned.volume, heights_mm, 2.0, origins=aligned.origins, slice_shape=(5, 4))
    assert even.volume.shape[2] == 6
    labels = np.asfortranarray(even.volume.voxels.astype(np.uint8))
    restored = even.restore_mask(labels)
    # The first and the last slice are also even planes.
    np.testing.assert_array_equal(restored[:, :, [0, 4]], voxels[:, :, [0, 4]])
    assert restored.shape == voxels.shape
    numbered = np.arange(labels.size, dtype=np.uint32).reshape(labels.shape)
    indices = even.restore_mask(numbered)
    for k, plane in enumerate(even.nearest):
        i, j = aligned.origins[k]
        np.testing.assert_array_equal(indices[:, :, k], numbered[i : i + 5, j : j + 4, plane])
