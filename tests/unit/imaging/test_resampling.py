import tracemalloc
from collections.abc import Callable
from itertools import permutations
from typing import Literal

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from inference_service.core.threads import ThreadPool
from inference_service.imaging.geometry import Shape
from inference_service.imaging.interpolation import (
    Interpolation,
    Interpolations,
    axis_matrix,
    axis_taps,
)
from inference_service.imaging.resampling import resize, resized_shape, stepped_shape, zoomed_shape

Order = Literal[0, 1, 3]

SHAPES = st.tuples(*[st.integers(1, 8)] * 3)
INTERPOLATIONS: tuple[Interpolation, ...] = ("nearest", "linear", "area", "cubic")
ORDERS: dict[Interpolation, Order] = {"nearest": 0, "linear": 1, "cubic": 3}

# Bounds float32 rounding of an interpolated value of standard deviation 1.
CLOSE = 2e-5


def noise(shape: tuple[int, ...]) -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def zoomed(image: NDArray[np.float32], shape: Shape, orders: tuple[Order, Order, Order]) -> NDArray[np.float64]:
    """The image on a grid of the same extent by SciPy, axis by axis in float64."""
    result = image.astype(np.float64)
    for axis, (size, order) in enumerate(zip(shape, orders, strict=True)):
        ratios = [1.0, 1.0, 1.0]
        ratios[axis] = size / image.shape[axis]
        result = ndimage.zoom(result, ratios, order=order, mode="nearest", grid_mode=True)
    return result


@pytest.mark.parametrize(
    ("shape", "spacing", "target", "expected"),
    [
        ((512, 512, 60), (0.7, 0.7, 5.0), (1.5, 1.5, 1.5), (239, 239, 200)),
        ((10, 20, 30), (1.0, 2.0, 3.0), (3.0, 1.0, 2.0), (3, 40, 45)),
        ((1, 2, 3), (0.1, 0.1, 0.1), (9.0, 9.0, 0.1), (1, 1, 3)),
    ],
)
def test_resized_shape_covers_the_extent(
    shape: Shape, spacing: tuple[float, float, float], target: tuple[float, float, float], expected: Shape
) -> None:
    assert resized_shape(shape, spacing, target) == expected


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_same_grid_changes_nothing(interpolation: Interpolation) -> None:
    image = noise((5, 7, 4))
    assert np.array_equal(resize(image, (5, 7, 4), (interpolation, interpolation, interpolation)), image)
    assert np.array_equal(axis_matrix(9, 9, interpolation).toarray(), np.eye(9))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@given(SHAPES, SHAPES)
def test_constants_stay_constant(interpolation: Interpolation, shape: Shape, target: Shape) -> None:
    resized = resize(np.full(shape, -1024, dtype=np.int16), target, (interpolation, interpolation, interpolation))
    assert resized.shape == target
    assert resized.dtype == np.float32
    assert resized == pytest.approx(-1024, rel=CLOSE)


@pytest.mark.parametrize(("interpolation", "order"), [("linear", 1), ("quadratic", 2), ("cubic", 3)])
# The only plane of the result is one of the image: the range is still that of all planes.
@example((3, 2, 1), (1, 3, 1))
@given(SHAPES, SHAPES)
def test_resize_agrees_with_scipys_zoom(
    interpolation: Interpolation, order: Order, shape: Shape, target: Shape
) -> None:
    image = noise(shape)
    # The spline is clipped to the range of the image, as in scikit-image.
    expected = np.clip(zoomed(image, target, (order, order, order)), image.min(), image.max())
    assert np.allclose(resize(image, target, (interpolation, interpolation, interpolation)), expected, atol=CLOSE)


@pytest.mark.parametrize("thick", [0, 1, 2])
@pytest.mark.parametrize("memory_order", list(permutations(range(3))))
def test_a_spline_is_clipped_to_the_range_of_each_separate_slice(
    thick: int, memory_order: tuple[int, int, int]
) -> None:
    shape = (9, 8, 7)
    target = (13, 5, 11)
    image = np.where(noise(shape) > 0, 1, -1) * np.moveaxis(np.arange(1.0, shape[thick] + 1)[:, None, None], 0, thick)
    laid = image.transpose(memory_order).copy().transpose(np.argsort(memory_order))
    interpolations: list[Interpolation] = ["cubic", "cubic", "cubic"]
    interpolations[thick] = "nearest"
    got = np.moveaxis(resize(laid, target, (interpolations[0], interpolations[1], interpolations[2])), thick, 0)
    taken = axis_taps(shape[thick], target[thick], "nearest").first
    flat = tuple(size for axis, size in enumerate(target) if axis != thick)
    for plane, index in zip(got, taken, strict=True):
        slice_ = np.take(image, index, thick)[np.newaxis].astype(np.float32)
        expected = np.clip(zoomed(slice_, (1, flat[0], flat[1]), (0, 3, 3)), slice_.min(), slice_.max())[0]
        assert np.allclose(plane, expected, atol=CLOSE)
    assert np.abs(got).max() == pytest.approx(shape[thick])


def test_resize_computes_more_planes_than_one_band() -> None:
    image = noise((3, 4, 50))
    assert np.allclose(resize(image, (5, 3, 31), ("linear",) * 3), zoomed(image, (5, 3, 31), (1, 1, 1)), atol=CLOSE)


def test_each_axis_has_its_own_interpolation() -> None:
    image = noise((5, 6, 7))
    resized = resize(image, (9, 4, 12), ("nearest", "linear", "cubic"))
    assert np.allclose(resized, zoomed(image, (9, 4, 12), (0, 1, 3)), atol=CLOSE)


def test_nearest_takes_the_voxel_that_covers_the_centre() -> None:
    image = np.arange(3, dtype=np.float32).reshape(3, 1, 1)
    assert resize(image, (7, 1, 1), ("nearest",) * 3).ravel().tolist() == [0, 0, 1, 1, 1, 2, 2]


@given(SHAPES, st.tuples(*[st.integers(1, 4)] * 3))
def test_area_is_the_mean_of_blocks(target: Shape, factors: Shape) -> None:
    image = noise(tuple(size * factor for size, factor in zip(target, factors, strict=True)))
    blocks = image.reshape([part for pair in zip(target, factors, strict=True) for part in pair])
    assert np.allclose(resize(image, target, ("area",) * 3), blocks.mean(axis=(1, 3, 5)), atol=CLOSE)


VIEWS: dict[str, Callable[[NDArray[np.generic]], NDArray[np.generic]]] = {
    "as stored": lambda image: image,
    "Fortran order": np.asfortranarray,
    "turned": lambda image: np.ascontiguousarray(image.transpose(1, 2, 0)).transpose(2, 0, 1),
    "flipped": lambda image: image[::-1, :, ::-1],
    "every other": lambda image: np.repeat(np.repeat(image, 2, axis=0), 3, axis=2)[::2, :, 1::3],
}


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_views_are_resized_like_arrays(interpolation: Interpolation) -> None:
    image = noise((6, 5, 4))
    view = image.transpose(2, 0, 1)[::-1, :, ::-1]
    interpolations: Interpolations = (interpolation, interpolation, interpolation)
    resized = resize(view, (7, 3, 9), interpolations)
    assert np.array_equal(resized, resize(view.copy(order="K"), (7, 3, 9), interpolations))
    # Another memory order changes the order of the axes, and with it the rounding.
    assert np.allclose(resized, resize(np.ascontiguousarray(view), (7, 3, 9), interpolations), atol=CLOSE)


@pytest.mark.parametrize("change", VIEWS.values(), ids=list(VIEWS))
@pytest.mark.parametrize("dtype", ["u1", "i2", ">i2", "i4", "f4", ">f4", "f8"])
@pytest.mark.parametrize("target", [(20, 13, 31), (5, 19, 8), (1, 17, 60), (17, 1, 24)])
@pytest.mark.parametrize("interpolation", ["linear", "cubic"])
def test_any_dtype_and_layout_is_resized_as_by_scipy(
    interpolation: Interpolation,
    target: Shape,
    dtype: str,
    change: Callable[[NDArray[np.generic]], NDArray[np.generic]],
) -> None:
    image = (noise((9, 17, 24)) * 30 + 100).astype(dtype)
    view = change(image)
    order = ORDERS[interpolation]
    resized = resize(view, target, (interpolation, interpolation, interpolation))
    assert resized.dtype == np.float32
    expected = zoomed(np.ascontiguousarray(view, dtype=np.float32), target, (order, order, order))
    assert np.allclose(resized, expected, atol=100 * CLOSE)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("target", [(31, 13, 77), (90, 11, 20), (2, 19, 8)])
def test_threads_change_nothing(interpolation: Interpolation, target: Shape) -> None:
    image = np.asfortranarray(noise((40, 17, 53)))
    interpolations: Interpolations = (interpolation, interpolation, interpolation)
    alone = resize(image, target, interpolations)
    for count in (2, 3, 7):
        with ThreadPool(count) as threads:
            assert np.array_equal(resize(image, target, interpolations, threads=threads), alone)


def test_no_copy_of_the_scan_is_made() -> None:
    image = np.zeros((64, 64, 300), dtype=np.int16, order="F")
    tracemalloc.start()
    try:
        resized = resize(image, (30, 30, 200), ("linear",) * 3)
        assert tracemalloc.get_traced_memory()[1] < resized.nbytes + 64 * 64 * 4 * 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("size", [4, 7, 15, 23])
def test_outer_edges_of_the_grids_coincide(axis: int, size: int) -> None:
    extent_mm = 30.0

    def centres_mm(count: int) -> NDArray[np.float64]:
        return np.asarray((np.arange(count) + 0.5) * extent_mm / count)

    shape = [1, 1, 1]
    target = [1, 1, 1]
    shape[axis] = 10
    target[axis] = size
    image = centres_mm(10).reshape(shape)
    resized = resize(image, (target[0], target[1], target[2]), ("linear",) * 3).ravel()
    inside = (centres_mm(size) >= centres_mm(10)[0]) & (centres_mm(size) <= centres_mm(10)[-1])
    assert inside.sum() >= size - 4
    assert resized[inside] == pytest.approx(centres_mm(size)[inside], rel=1e-6)


@pytest.mark.parametrize(
    ("size", "decimal", "target", "expected"),
    [(17, 0.8, 1.6, 9), (28, 1.8, 1.6, 31), (9, 1.25, 1.5, 8), (3, 1.25, 1.5, 2)],
)
def test_of_half_a_voxel_the_spacing_in_float32_decides(
    size: int, decimal: float, target: float, expected: int
) -> None:
    """As in nnU-Net, and so for a DICOM series of decimal numbers, and on an oblique grid, whose spacing is rounded."""
    for spacing in (decimal, float(np.float32(decimal)), decimal * (1 + 5e-8), decimal * (1 - 5e-8)):
        in_header = float(np.float32(decimal))
        assert expected == round(in_header / target * size)
        assert resized_shape((size,) * 3, (spacing,) * 3, (target,) * 3) == (expected,) * 3


def test_a_grid_of_equal_centres_has_the_shape_that_totalsegmentator_gives_it() -> None:
    """The float32 number of the header decides which way half a voxel is rounded."""
    assert zoomed_shape((25, 3, 5), (0.15, 0.7, 0.75), (1.5, 1.4, 1.5)) == (3, 1, 2)
    assert zoomed_shape((1, 3, 40), (0.1, 0.75, 3.0), (1.5, 1.5, 1.5)) == (1, 2, 80)


@pytest.mark.parametrize(("interpolation", "order"), [("nearest", 0), ("linear", 1), ("quadratic", 2), ("cubic", 3)])
def test_overshoot_is_kept_where_steps_are_given(interpolation: Interpolation, order: Literal[0, 1, 2, 3]) -> None:
    """As MONAI and SciPy do; scikit-image clips it."""
    image = np.where(noise((9, 8, 7)) > 0, 1, -1).astype(np.float32)
    steps = (0.71, 1.31, 0.46)
    target = stepped_shape(image.shape, (1.0, 1.0, 1.0), steps)
    positions = [np.arange(size) * step for size, step in zip(target, steps, strict=True)]
    grid = np.meshgrid(*positions, indexing="ij")
    expected = ndimage.map_coordinates(image.astype(np.float64), grid, order=order, mode="nearest")
    resized = resize(image, target, (interpolation,) * 3, steps=steps)
    assert np.allclose(resized, expected, atol=CLOSE)
    assert (np.abs(resized).max() > 1.01) == (order > 1)


def test_a_grid_of_the_same_shape_with_another_step_is_interpolated() -> None:
    image = noise((5, 6, 7))
    steps = (1.05, None, 0.98)
    resized = resize(image, (5, 6, 7), ("linear",) * 3, steps=steps)
    rows = np.clip(np.arange(5) * 1.05, 0, 4)
    columns = np.arange(7) * 0.98
    grid = np.meshgrid(rows, np.arange(6), columns, indexing="ij")
    assert np.allclose(resized, ndimage.map_coordinates(image, grid, order=1), atol=CLOSE)


@pytest.mark.parametrize("out_order", list(permutations(range(3))))
@pytest.mark.parametrize("image_order", [(0, 1, 2), (2, 0, 1)])
def test_the_result_is_written_to_an_array_in_any_memory_order(
    out_order: tuple[int, int, int], image_order: tuple[int, int, int]
) -> None:
    image = noise((9, 8, 7)).transpose(image_order)
    target = (5, 11, 8)
    out = np.empty([target[axis] for axis in out_order], dtype=np.float32).transpose(np.argsort(out_order))
    assert resize(image, target, ("cubic", "linear", "nearest"), out=out) is out
    assert np.allclose(out, resize(image, target, ("cubic", "linear", "nearest")), atol=CLOSE)
