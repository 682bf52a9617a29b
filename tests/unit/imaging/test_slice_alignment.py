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
def test_each_slice_has_the_even_one_nearest_to_it(
    heights_mm: Sequence[float], count: int, expected: Sequence[int]
) -> None:
    assert tuple(nearest_even_planes(np.array(heights_mm, dtype=float), count)) == expected


@pytest.mark.parametrize("shifts_px", [(0, 0), (0.6, -2.3)], ids=["straight", "tilted"])
def test_labels_come_back_to_uneven_slices(shifts_px: Sequence[float]) -> None:
    heights_mm = np.array([0, 2.0, 4, 8, 10.1])
    voxels = np.random.default_rng(0).integers(0, 4, (5, 4, 5), dtype=np.int16)
    along = align_slices(
        Volume(np.asfortranarray(voxels), np.eye(4)), np.outer(heights_mm / 2, shifts_px), background=9
    )
    evened = space_evenly(along.volume, heights_mm, 2.0, origins=along.origins, slice_shape=(5, 4))
    assert evened.volume.shape[2] == 6
    labels = np.asfortranarray(evened.volume.voxels.astype(np.uint8))
    back = evened.restore_mask(labels)
    # The first three lie on even slices to rounding, and the last is the last.
    np.testing.assert_array_equal(back[:, :, [0, 4]], voxels[:, :, [0, 4]])
    assert back.shape == voxels.shape
    where = np.arange(labels.size, dtype=np.uint32).reshape(labels.shape)
    places = evened.restore_mask(where)
    for k, plane in enumerate(evened.nearest):
        i, j = along.origins[k]
        np.testing.assert_array_equal(places[:, :, k], where[i : i + 5, j : j + 4, plane])
