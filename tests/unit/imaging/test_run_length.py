import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from scipy import ndimage

from inference_service.imaging.run_length import RunLengthEncoding

Mask = NDArray[np.uint16]
VALUES = (0, 3, 300)

masks = arrays.arrays(
    np.uint16, arrays.array_shapes(min_dims=3, max_dims=3, max_side=7), elements=st.sampled_from(VALUES)
)


def encoded(mask: Mask) -> RunLengthEncoding:
    return RunLengthEncoding.encode(mask.ravel(order="F"), mask.shape)


def decoded(runs: RunLengthEncoding) -> Mask:
    return np.repeat(runs.labels, runs.ends - runs.starts).reshape(runs.shape, order="F")


@given(masks)
def test_decoding_restores_the_mask(mask: Mask) -> None:
    runs = encoded(mask)
    assert decoded(runs).dtype == mask.dtype
    np.testing.assert_array_equal(decoded(runs), mask)


@given(masks)
def test_runs_are_as_long_as_possible_within_their_line(mask: Mask) -> None:
    runs = encoded(mask)
    width = mask.shape[0]
    assert (runs.starts // width == (runs.ends - 1) // width).all()
    adjoining = runs.starts[1:] % width != 0
    assert (runs.labels[1:] != runs.labels[:-1])[adjoining].all()
    j, k = runs.lines
    for index, label in enumerate(runs.labels):
        assert mask[runs.starts[index] % width, j[index], k[index]] == label


@given(masks, st.data())
def test_the_first_planes_are_those_of_the_mask(mask: Mask, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, mask.shape[2]))
    np.testing.assert_array_equal(decoded(encoded(mask).first_planes(count)), mask[:, :, :count])


@given(masks)
def test_components_agree_with_scipy(mask: Mask) -> None:
    runs = encoded(mask)
    count, components = runs.connected_components()
    found = np.repeat(components, runs.ends - runs.starts).reshape(mask.shape, order="F")
    total = 0
    for value in np.unique(mask):
        expected, number = ndimage.label(mask == value, structure=np.ones((3, 3, 3)))
        total += number
        pairs = {*zip(found[mask == value].tolist(), expected[mask == value].tolist(), strict=True)}
        assert len(pairs) == number
    assert count == total


@pytest.mark.parametrize("step", [(1, 1, 1), (1, -1, 1), (-1, 1, 1), (-1, -1, 1), (1, 1, 0), (1, -1, 0), (1, 0, 0)])
def test_voxels_that_share_a_corner_or_an_edge_are_connected(step: tuple[int, int, int]) -> None:
    mask = np.zeros((3, 3, 3), dtype=np.uint16)
    mask[1, 1, 1] = 3
    mask[tuple(np.add((1, 1, 1), step))] = 3
    runs = encoded(mask)
    _, components = runs.connected_components()
    assert len(set(components[runs.labels == 3].tolist())) == 1
