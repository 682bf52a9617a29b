from collections.abc import Callable
from itertools import product
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from inference_service.contract.manifest import Manifest
from inference_service.contract.part import Blending, Gaussian
from inference_service.core.errors import InputTooLarge
from inference_service.imaging.geometry import Shape
from inference_service.segmentation.windows.tiling import (
    MAX_WINDOWS,
    Placement,
    importance_map,
    padding,
    plan_windows,
    window_shape,
    window_starts,
)

SHAPES = st.tuples(*[st.integers(1, 9)] * 3)
WINDOWS = st.tuples(*[st.integers(1, 6)] * 3)
OVERLAPS = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.625, 0.8]) | st.floats(0, 0.9)


def monai_starts(size: int, window: int, overlap: float) -> list[int]:
    """MONAI's _get_scan_interval and dense_patch_slices for one axis."""
    interval = window if window == size else max(int(window * (1 - overlap)), 1)
    number = next(index + 1 for index in range(size) if index * interval + window >= size)
    starts = [index * interval for index in range(number)]
    return [start - max(start + window - size, 0) for start in starts]


def nnunet_starts(size: int, window: int, overlap: float) -> list[int]:
    """nnU-Net's compute_steps_for_sliding_window for one axis."""
    # Each slice of a network for planes runs once.
    target_step = window * (1 - overlap) if window > 1 else 1
    number = int(np.ceil((size - window) / target_step)) + 1
    step = (size - window) / (number - 1) if number > 1 else 0.0
    return [int(np.round(step * index)) for index in range(number)]


@pytest.mark.parametrize(
    ("size", "window", "overlap", "snap", "even"),
    [
        (4, 4, 0.5, [0], [0]),
        (5, 4, 0.0, [0, 1], [0, 1]),
        (9, 4, 0.25, [0, 3, 5], [0, 2, 5]),
        (9, 4, 0.5, [0, 2, 4, 5], [0, 2, 3, 5]),
        (12, 5, 0.3, [0, 3, 6, 7], [0, 4, 7]),
        (110, 64, 0.5, [0, 32, 46], [0, 23, 46]),
        (300, 96, 0.25, [0, 72, 144, 204], [0, 68, 136, 204]),
        (6, 4, 0.9, [0, 1, 2], [0, 0, 1, 1, 1, 2, 2]),
    ],
)
def test_starts_of_windows_along_an_axis(
    size: int, window: int, overlap: float, snap: list[int], even: list[int]
) -> None:
    assert window_starts(size, window, overlap, "snap") == snap
    assert window_starts(size, window, overlap, "even") == even


@given(st.integers(1, 20), st.integers(0, 200), OVERLAPS)
def test_starts_agree_with_monai_and_nnunet(window: int, more: int, overlap: float) -> None:
    size = window + more
    assert window_starts(size, window, overlap, "snap") == monai_starts(size, window, overlap)
    assert window_starts(size, window, overlap, "even") == nnunet_starts(size, window, overlap)


@given(SHAPES, WINDOWS, OVERLAPS, st.sampled_from(["snap", "even"]), st.sampled_from(["gaussian", "constant"]))
def test_every_voxel_has_a_weight(
    shape: Shape, window: Shape, overlap: float, placement: Placement, blending: Blending
) -> None:
    plan = plan_windows(shape, window, overlap, placement)
    weights = importance_map(window, blending)
    total = np.zeros([size + sum(pads) for size, pads in zip(shape, plan.pads, strict=True)])
    for corner in product(*plan.starts):
        covered = total[tuple(slice(start, start + size) for start, size in zip(corner, window, strict=True))]
        covered += weights
    assert total.min() >= weights.min() > 0
    assert plan.count == len(list(product(*plan.starts)))


@pytest.mark.parametrize("placement", ["snap", "even"])
@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.9])
def test_windows_of_one_voxel_do_not_overlap(overlap: float, placement: Placement) -> None:
    assert window_starts(7, 1, overlap, placement) == list(range(7))


@pytest.mark.parametrize(
    ("window", "multiple_of", "expected"),
    [
        ((5, 4, 3), 8, (5, 4, 3)),
        ((None, 4, None), 1, (9, 4, 16)),
        ((None, None, None), 8, (16, 8, 16)),
        ((None, 1, None), 5, (10, 1, 20)),
    ],
)
def test_a_window_without_a_size_is_the_whole_image_padded_to_a_multiple(
    make_manifest: Callable[..., Manifest], window: tuple[int | None, ...], multiple_of: int, expected: Shape
) -> None:
    part = make_manifest(window=window, multiple_of=multiple_of)
    assert window_shape((9, 7, 16), part) == expected
    plan = plan_windows((9, 7, 16), expected, part.overlap, part.placement)
    assert all(len(starts) == 1 for size, starts in zip(window, plan.starts, strict=True) if size is None)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("shape", "window", "overlap", "placement"),
    [
        # One more than the limit of 2^18, and far more than can be listed.
        ((2**18 + 1, 1, 1), (1, 1, 1), 0.0, "snap"),
        ((2**29, 1, 1), (1, 1, 1), 0.5, "snap"),
        ((800, 800, 800), (2, 2, 2), 0.9, "snap"),
        ((97, 97, 97), (96, 96, 96), 1 - 2**-53, "even"),
        ((2**29, 1, 1), (1, 1, 1), 1 - 2**-53, "even"),
    ],
)
def test_too_many_windows_are_refused_before_they_are_listed(
    shape: Shape, window: Shape, overlap: float, placement: Placement
) -> None:
    with pytest.raises(InputTooLarge, match=r"^\d+ windows cover the scan .* at most 262144$"):
        plan_windows(shape, window, overlap, placement)


def test_as_many_windows_as_the_limit_are_planned() -> None:
    assert plan_windows((64, 64, 64), (1, 1, 1), 0.0, "snap").count == MAX_WINDOWS


@pytest.mark.parametrize("size", [1, 4, 5, 6])
def test_padding_is_symmetric_and_minimal(size: int) -> None:
    before, after = padding(size, 5)
    assert size + before + after == max(size, 5)
    assert after - before in (0, 1)


def test_axis_smaller_than_the_window_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one window"):
        window_starts(3, 4, 0.5, "snap")


def test_even_starts_round_as_nnunet_does() -> None:
    assert window_starts(473, 40, 0.5, "even") == nnunet_starts(473, 40, 0.5)


@pytest.mark.parametrize(
    ("shape", "axes"), [((40, 20, 10), (0, 1, 2)), ((10, 40, 20), (1, 0, 2)), ((20, 10, 40), (2, 0, 1))]
)
def test_planes_are_finished_along_the_longest_axis(shape: Shape, axes: tuple[int, int, int]) -> None:
    plan = plan_windows(shape, (4, 4, 4), 0.5, "snap")
    assert plan.axes == axes
    assert plan.stream_axis == axes[0]


def test_the_longest_axis_is_measured_in_windows() -> None:
    assert plan_windows((40, 30, 20), (40, 10, 4), 0.5, "snap").stream_axis == 2


@given(WINDOWS, st.sampled_from(["gaussian", "constant"]))
def test_importance_map_is_symmetric_and_highest_in_the_centre(window: Shape, blending: Blending) -> None:
    weights = importance_map(window, blending)
    assert weights.shape == window
    assert weights.dtype == np.float32
    for axis in range(3):
        assert np.array_equal(weights, np.flip(weights, axis))
    assert weights[window[0] // 2, window[1] // 2, window[2] // 2] == weights.max() <= 1
    assert weights.min() >= np.float32(1e-3)


def test_gaussian_has_a_sigma_of_an_eighth_of_the_window_and_a_lower_bound() -> None:
    weights = importance_map((9, 17, 33), "gaussian")
    distances = [(np.arange(size) - size // 2) / (size / 8) for size in weights.shape]
    squares = sum(np.ix_(*(distance**2 for distance in distances)))
    assert np.allclose(weights, np.maximum(np.exp(-squares / 2), 1e-3), rtol=1e-5)
    assert weights[0, 0, 0] == np.float32(1e-3)


@pytest.mark.parametrize("window", [(16, 24, 20), (9, 12, 7), (5, 1, 8)])
@pytest.mark.parametrize("sigma", [0.125, 0.0625, 0.3])
def test_gaussian_around_a_voxel_is_that_of_nnunet(window: Shape, sigma: float) -> None:
    """nnU-Net filters an impulse with SciPy, which cuts the Gaussian at 4 sigma, and raises weights of 0."""
    impulse = np.zeros(window)
    impulse[tuple(size // 2 for size in window)] = 1
    expected = ndimage.gaussian_filter(impulse, [size * sigma for size in window], 0, mode="constant", cval=0)
    expected /= expected.max()
    expected[expected == 0] = expected[expected > 0].min()
    weights = importance_map(window, Gaussian(sigma=sigma, centre="voxel"))
    np.testing.assert_allclose(weights, expected, rtol=1e-5)


def test_gaussian_around_the_middle_has_the_sigma_of_the_model() -> None:
    weights = importance_map((8, 1, 1), Gaussian(sigma=0.25))
    expected = np.exp(-((np.arange(8) - 3.5) ** 2) / (2 * 2**2))
    np.testing.assert_allclose(weights[:, 0, 0], expected, rtol=1e-5)
    assert np.array_equal(importance_map((8, 6, 5), Gaussian()), importance_map((8, 6, 5), "gaussian"))


def test_constant_blending_gives_equal_weights() -> None:
    assert (importance_map((3, 4, 5), "constant") == 1).all()


@pytest.mark.parametrize(("sides", "expected"), [("both", (2, 3)), ("end", (0, 5))])
def test_volumes_are_padded_on_both_sides_or_at_the_end(
    sides: Literal["both", "end"], expected: tuple[int, int]
) -> None:
    plan = plan_windows((3, 9, 4), (8, 4, 4), 0.5, "snap", sides)
    assert plan.pads == (expected, (0, 0), (0, 0))
