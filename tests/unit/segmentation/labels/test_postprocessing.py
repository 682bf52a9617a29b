import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from inference_service.contract.labels import (
    Connectivity,
    FillHoles,
    LargestComponent,
    PostProcessing,
    RemoveSmallComponents,
)
from inference_service.segmentation.labels.postprocessing import postprocess

Box = tuple[slice | int, slice | int, slice | int]


def mask_of(*components: tuple[int, Box]) -> NDArray[np.uint8]:
    mask = np.zeros((12, 9, 7), dtype=np.uint8, order="F")
    for value, box in components:
        mask[box] = value
    return mask


def cleaned(
    mask: NDArray[np.unsignedinteger], *steps: PostProcessing, voxel_volume_ml: float = 0.001
) -> NDArray[np.unsignedinteger]:
    result = mask.copy()
    postprocess(result, steps, voxel_volume_ml=voxel_volume_ml)
    return result


def largest(*labels: int) -> LargestComponent:
    return LargestComponent(step="largest_component", labels=labels)


def remove_small(*labels: int, min_volume_ml: float) -> RemoveSmallComponents:
    return RemoveSmallComponents(step="remove_small", labels=labels, min_volume_ml=min_volume_ml)


BIG = (slice(0, 3), slice(0, 3), slice(0, 3))
MIDDLE = (slice(5, 7), slice(5, 7), slice(5, 7))
SMALL = (slice(10, 12), 8, 0)


def test_only_the_largest_component_is_kept() -> None:
    assert np.array_equal(cleaned(mask_of((1, SMALL), (1, BIG), (1, MIDDLE)), largest(1)), mask_of((1, BIG)))


def test_a_label_gets_all_that_it_encloses() -> None:
    shell = (slice(0, 6), slice(2, 8), slice(0, 6))
    hollow = mask_of((1, shell), (0, (slice(1, 4), slice(3, 6), slice(1, 5))), (2, (2, 4, 2)))
    fill = FillHoles(step="fill_holes", labels=(1,))
    assert np.array_equal(cleaned(hollow, fill), mask_of((1, shell)))
    assert np.array_equal(cleaned(hollow, FillHoles(step="fill_holes", labels=(2,))), hollow)
    # A corner that is open leads to the outside.
    hollow[4, 6, 5] = 0
    opened = hollow.copy()
    opened[5, 7, 5] = 0
    assert np.array_equal(cleaned(opened, fill), opened)


def test_dropped_components_get_the_value_of_the_step() -> None:
    step = LargestComponent(step="largest_component", labels=(1,), becomes=3)
    mask = mask_of((1, BIG), (1, MIDDLE), (2, SMALL))
    assert np.array_equal(cleaned(mask, step), mask_of((1, BIG), (3, MIDDLE), (2, SMALL)))


def test_dropped_components_get_the_most_frequent_value_around_them() -> None:
    step = RemoveSmallComponents(step="remove_small", labels=(1,), min_volume_ml=0.02, becomes="surroundings")
    everywhere = (slice(None), slice(None), slice(None))
    half = (slice(6, 12), slice(None), slice(None))
    dropped: list[Box] = [(5, 4, 3), (slice(6, 8), 4, 6), (slice(10, 12), 8, 0), (0, 0, 6)]
    mask = mask_of((3, everywhere), (2, half), (1, BIG), *[(1, place) for place in dropped])
    # At the border of two labels, one of its faces is shared with the other label.
    assert np.array_equal(cleaned(mask, step), mask_of((3, everywhere), (2, half), (1, BIG)))


def test_dropped_components_without_surroundings_become_background() -> None:
    step = RemoveSmallComponents(step="remove_small", labels=(1,), min_volume_ml=9.0, becomes="surroundings")
    assert not cleaned(np.ones((2, 3, 4), dtype=np.uint16), step).any()
    assert not cleaned(mask_of((1, MIDDLE), (1, SMALL)), step).any()


@given(st.integers(0, 2**20))
def test_each_component_has_its_own_surroundings(seed: int) -> None:
    mask = np.random.default_rng(seed).choice([0, 1, 2, 5], (6, 5, 4), p=[0.5, 0.1, 0.2, 0.2]).astype(np.uint8)
    step = RemoveSmallComponents(step="remove_small", labels=(1,), min_volume_ml=2.0, becomes="surroundings")
    result = cleaned(np.asfortranarray(mask) if seed % 2 else mask, step, voxel_volume_ml=0.5)
    components, count = ndimage.label(mask == 1, np.ones((3, 3, 3), dtype=bool))
    for number in range(1, count + 1):
        component = np.pad(components == number, 1)
        faces = [np.roll(component, step, axis)[1:-1, 1:-1, 1:-1] for axis in range(3) for step in (-1, 1)]
        touching = np.concatenate([mask[face & (components != number)] for face in faces])
        expected = np.bincount(touching, minlength=1).argmax() if np.count_nonzero(component) < 4 else 1
        assert set(result[components == number]) == {expected}
    assert np.array_equal(result[mask != 1], mask[mask != 1])


def test_surroundings_of_many_and_of_large_components(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = np.random.default_rng(0).choice([0, 1, 2, 5], (40, 50, 30), p=[0.4, 0.1, 0.2, 0.3]).astype(np.uint16)
    step = LargestComponent(step="largest_component", labels=(1, 5), becomes="surroundings")
    at_once = cleaned(mask, step)
    monkeypatch.setattr("inference_service.segmentation.labels.postprocessing._VOXELS_AT_A_TIME", 7)
    assert np.array_equal(cleaned(mask, step), at_once)
    assert np.count_nonzero(at_once == 1) < np.count_nonzero(mask == 1)


def test_surroundings_of_thousands_of_long_thin_components() -> None:
    # The bounding box of each component is a large part of the volume.
    size = 160
    mask = np.full((size, size, size), 3, dtype=np.uint8)
    steps = np.arange(size - 40)
    for i, j in np.ndindex(13, 13):
        mask[3 * i + steps, 3 * j + steps, steps] = 1
    step = RemoveSmallComponents(step="remove_small", labels=(1,), min_volume_ml=1.0, becomes="surroundings")
    assert ndimage.label(mask == 1, np.ones((3, 3, 3)))[1] == 169
    assert np.all(cleaned(mask, step, voxel_volume_ml=0.001) == 3)


def test_each_label_keeps_its_own_largest_component() -> None:
    mask = mask_of((1, BIG), (1, (11, 8, 6)), (2, MIDDLE), (2, SMALL), (3, (4, 4, 4)), (3, (9, 0, 0)))
    expected = mask_of((1, BIG), (2, MIDDLE), (3, (4, 4, 4)), (3, (9, 0, 0)))
    assert np.array_equal(cleaned(mask, largest(1, 2)), expected)


def test_several_labels_keep_the_largest_component_of_them_together() -> None:
    beside = (slice(3, 5), slice(0, 3), slice(0, 3))
    mask = mask_of((1, BIG), (2, beside), (2, MIDDLE), (3, SMALL))
    step = LargestComponent(step="largest_component", labels=(1, 2, 3), together=True)
    assert np.array_equal(cleaned(mask, step), mask_of((1, BIG), (2, beside)))


def test_of_several_largest_components_all_are_kept() -> None:
    """As nnU-Net does; a single one would depend on the order of the axes."""
    as_large = (slice(5, 8), slice(3, 6), slice(3, 6))
    mask = mask_of((1, BIG), (1, as_large), (1, SMALL))
    assert np.array_equal(cleaned(mask, largest(1)), mask_of((1, BIG), (1, as_large)))


def test_touching_labels_are_separate_components() -> None:
    mask = mask_of((1, (slice(0, 2), 0, 0)), (2, (slice(2, 9), 0, 0)), (1, (slice(9, 12), 0, 0)))
    expected = mask_of((2, (slice(2, 9), 0, 0)), (1, (slice(9, 12), 0, 0)))
    assert np.array_equal(cleaned(mask, largest(1)), expected)


@pytest.mark.parametrize("second", [(3, 3, 3), (3, 3, 2), (3, 2, 2)])
def test_voxels_that_share_a_corner_are_connected(second: tuple[int, int, int]) -> None:
    mask = mask_of((1, BIG), (1, second))
    assert np.array_equal(cleaned(mask, largest(1)), mask)


def test_small_components_are_dropped_by_their_volume_in_ml() -> None:
    voxel_volume_ml = 0.7 * 0.8 * 5 / 1000
    mask = mask_of((1, BIG), (1, MIDDLE), (1, SMALL))
    volumes = [count * voxel_volume_ml for count in (27, 8, 2)]
    for kept in range(4):
        step = remove_small(1, min_volume_ml=[*volumes, 1e-9][kept] * 1.001)
        expected = mask_of(*[(1, box) for box in (BIG, MIDDLE, SMALL)][:kept])
        assert np.array_equal(cleaned(mask, step, voxel_volume_ml=voxel_volume_ml), expected)


def test_component_of_exactly_the_minimum_volume_is_kept() -> None:
    mask = mask_of((1, MIDDLE), (1, SMALL))
    assert np.array_equal(cleaned(mask, remove_small(1, min_volume_ml=2.0), voxel_volume_ml=0.25), mask_of((1, MIDDLE)))


@pytest.mark.parametrize(("min_share", "kept"), [(0.0, 3), (0.07, 3), (0.08, 2), (0.29, 2), (0.3, 1), (1.0, 1)])
def test_small_components_are_dropped_by_their_share_of_the_largest(min_share: float, kept: int) -> None:
    # 27, 8 and 2 voxels.
    mask = mask_of((1, BIG), (1, MIDDLE), (1, SMALL), (2, (11, 0, 0)))
    step = RemoveSmallComponents(step="remove_small", labels=(1,), min_volume_ml=1e-9, min_share=min_share)
    expected = mask_of(*[(1, box) for box in (BIG, MIDDLE, SMALL)][:kept], (2, (11, 0, 0)))
    assert np.array_equal(cleaned(mask, step), expected)


def test_shares_of_equal_components_are_1() -> None:
    mask = mask_of((1, SMALL), (1, (slice(0, 2), 0, 0)))
    step = RemoveSmallComponents(step="remove_small", labels=(1,), min_volume_ml=1e-9, min_share=1.0)
    assert np.array_equal(cleaned(mask, step), mask)


def test_other_labels_and_absent_labels_are_unchanged() -> None:
    mask = mask_of((2, BIG), (2, SMALL))
    for step in (largest(1), remove_small(1, min_volume_ml=9.0), largest(200)):
        assert np.array_equal(cleaned(mask, step), mask)
    empty = np.zeros((3, 1, 2), dtype=np.uint16)
    assert np.array_equal(cleaned(empty, largest(300), remove_small(1, min_volume_ml=1.0)), empty)


def test_steps_are_applied_in_order() -> None:
    mask = mask_of((1, SMALL), (1, BIG), (2, MIDDLE))
    steps = (largest(1), remove_small(1, 2, min_volume_ml=0.01))
    assert np.array_equal(cleaned(mask, *steps), mask_of((1, BIG)))


@given(st.integers(0, 2**20))
def test_only_whole_components_are_dropped_from_random_masks(seed: int) -> None:
    random = np.random.default_rng(seed)
    mask = np.asfortranarray(random.choice([0, 1, 300], (6, 5, 4), p=[0.8, 0.1, 0.1]).astype(np.uint16))
    result = cleaned(mask, largest(300))
    assert np.array_equal(result[mask != 300], mask[mask != 300])
    kept = result == 300
    rest = (mask == 300) & (result == 0)
    for voxel in np.argwhere(kept):
        assert not (rest & (np.abs(np.indices(mask.shape).T - voxel).max(axis=-1).T <= 1)).any()
    assert kept.any() == (mask == 300).any()


@pytest.mark.parametrize(("connectivity", "kept"), [("faces", 0), ("edges", 2), ("corners", 3)])
def test_connected_voxels_share_a_face_an_edge_or_a_corner(connectivity: Connectivity, kept: int) -> None:
    """The second voxel shares an edge with the first one, and the third one a corner with the second one."""
    places = [(2, 2, 2), (3, 3, 2), (4, 4, 3)]
    mask = mask_of(*((1, place) for place in places))
    step = RemoveSmallComponents(step="remove_small", labels=(1,), min_volume_ml=0.002, connectivity=connectivity)
    assert np.count_nonzero(cleaned(mask, step)) == kept


@pytest.mark.parametrize("connectivity", ["faces", "edges", "corners"])
def test_a_hole_opens_where_connected_voxels_lead_out(connectivity: Connectivity) -> None:
    hollow = mask_of((1, (slice(0, 6), slice(2, 8), slice(0, 6))), (0, (slice(1, 4), slice(3, 6), slice(1, 5))))
    hollow[4, 6, 5] = 0
    hollow[5, 7, 5] = 0
    fill = FillHoles(step="fill_holes", labels=(1,), connectivity=connectivity)
    filled = cleaned(hollow, fill)
    # The first opened voxel shares a corner with the hole, and an edge with the second one.
    assert bool(filled[2, 4, 2]) == (connectivity != "corners")
