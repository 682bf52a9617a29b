"""Counts compared with brute force, on slabs so small that components cross their boundaries."""

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from scipy import ndimage

from inference_service.imaging import components
from inference_service.imaging.components import LabelComponents, find_components

Mask = NDArray[np.uint8]
VALUES = (0, 3, 200)

masks = arrays.arrays(
    np.uint8, arrays.array_shapes(min_dims=3, max_dims=3, max_side=7), elements=st.sampled_from((*VALUES, 9))
)


@pytest.fixture(scope="module", autouse=True)
def small_slabs() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(components, "_VOXELS_PER_SLAB", 60)
        yield


def counted(mask: Mask, values: Sequence[int]) -> list[int]:
    return [int(ndimage.label(mask == value, structure=np.ones((3, 3, 3)))[1]) for value in values]


def assert_as_counted(found: LabelComponents, mask: Mask, values: Sequence[int] = VALUES) -> None:
    for axis, profile in enumerate(found.voxels_per_plane):
        across = tuple(other for other in range(3) if other != axis)
        np.testing.assert_array_equal(profile, [(mask == value).sum(axis=across) for value in values])
    assert found.counts == counted(mask, values)


@given(masks)
def test_counts_agree_with_brute_force(mask: Mask) -> None:
    assert_as_counted(find_components(mask, VALUES), mask)
    assert_as_counted(find_components(np.asfortranarray(mask), VALUES), mask)


@pytest.mark.parametrize("sigma", [0.0, 0.8, 1.5])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 40, 3), (40, 1, 3), (17, 13, 1), (17, 13, 29), (2, 3, 200)])
def test_counts_of_larger_masks_agree_with_brute_force(shape: tuple[int, int, int], sigma: float) -> None:
    noise = ndimage.gaussian_filter(np.random.default_rng(1).normal(size=shape), sigma)
    mask = np.asfortranarray(np.digitize(noise, np.quantile(noise, (0.4, 0.6, 0.8))).astype(np.uint8))
    values = (0, 1, 3, 2)
    assert_as_counted(find_components(mask, values), mask, values)


def test_a_spiral_through_all_slabs_is_one_component() -> None:
    mask = np.zeros((9, 9, 40), dtype=np.uint8)
    k = np.arange(40)
    mask[np.rint(4 + 3 * np.cos(k / 4)).astype(int), np.rint(4 + 3 * np.sin(k / 4)).astype(int), k] = 3
    assert_as_counted(find_components(mask, VALUES), mask)
    assert find_components(mask, (3,)).counts == [1]


def test_components_of_one_slab_may_join_in_another() -> None:
    mask = np.zeros((5, 4, 30), dtype=np.uint8)
    mask[0, 0] = 200
    mask[4, 3] = 200
    mask[2, 2, 10:12] = 3
    assert find_components(mask, (200, 3)).counts == [2, 1]
    mask[:, 1, 29] = mask[4, 1:, 29] = 200
    assert find_components(mask, (200, 3)).counts == [1, 1]


def test_components_of_noise_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = np.random.default_rng(0).integers(0, 2, (8, 8, 8), dtype=np.uint8)
    monkeypatch.setattr(components, "_MAX_RUNS_PER_SLAB", 20)
    found = find_components(mask, (1,))
    assert found.counts is None
    np.testing.assert_array_equal(found.voxels_per_plane[2][0], mask.sum(axis=(0, 1)))


def test_labels_of_16_bits_are_counted() -> None:
    mask = np.array([[[0, 300, 300]], [[65535, 0, 300]]], dtype=np.uint16)
    found = find_components(mask, (300, 65535))
    assert found.counts == [1, 1]
    assert found.voxels_per_plane[2].tolist() == [[0, 1, 2], [1, 0, 0]]
