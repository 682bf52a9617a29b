from typing import Literal

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from scipy import ndimage

from inference_service.imaging.geometry import Spacing
from inference_service.imaging.interpolation import (
    Interpolation,
    Interpolations,
    axis_interpolations,
    axis_matrix,
    axis_taps,
)

Order = Literal[0, 1, 2, 3]

INTERPOLATIONS: tuple[Interpolation, ...] = ("nearest", "linear", "area", "quadratic", "cubic")
ORDERS: dict[Interpolation, Order] = {"nearest": 0, "linear": 1, "quadratic": 2, "cubic": 3}

# Bounds float32 rounding of weights, and of an interpolated value of standard deviation 1.
CLOSE = 2e-5


@pytest.mark.parametrize(
    ("source", "target", "threshold", "expected"),
    [
        ((0.7, 0.7, 5.0), (1.0, 1.0, 1.0), None, ("cubic", "cubic", "cubic")),
        ((0.7, 0.7, 5.0), (1.0, 1.0, 1.0), 3, ("cubic", "cubic", "nearest")),
        ((6.5, 2.0, 3.0), (1.0, 1.0, 1.0), 3, ("nearest", "cubic", "cubic")),
        ((2.0, 6.0, 3.0), (1.0, 1.0, 1.0), 3, ("cubic", "cubic", "cubic")),
        ((2.0, 6.1, 3.0), (1.0, 1.0, 1.0), 3, ("cubic", "nearest", "cubic")),
        # The target decides if the source is isotropic.
        ((1.0, 1.0, 1.0), (3.6, 0.6, 0.6), 3, ("nearest", "cubic", "cubic")),
        ((1.0, 1.0, 4.0), (3.6, 0.6, 0.6), 3, ("cubic", "cubic", "nearest")),
        # With two thick axes, none is treated separately.
        ((5.0, 5.0, 1.0), (1.0, 1.0, 1.0), 3, ("cubic", "cubic", "cubic")),
        ((5.0, 5.0, 1.0), (0.5, 0.5, 4.0), 3, ("cubic", "cubic", "cubic")),
    ],
)
def test_the_axis_of_thick_slices_is_not_interpolated(
    source: Spacing, target: Spacing, threshold: float | None, expected: Interpolations
) -> None:
    assert axis_interpolations(source, target, "cubic", threshold) == expected


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@given(st.integers(1, 30), st.integers(1, 30))
def test_rows_of_a_matrix_sum_to_1(interpolation: Interpolation, size_in: int, size_out: int) -> None:
    matrix = axis_matrix(size_in, size_out, interpolation).toarray()
    assert matrix.shape == (size_out, size_in)
    assert matrix.sum(axis=1) == pytest.approx(1, abs=CLOSE)


@example(2, 49)
@example(7, 2)
@given(st.integers(1, 300), st.integers(1, 300))
def test_taps_are_those_of_scipy(size_in: int, size_out: int) -> None:
    centres = (np.arange(size_out) + 0.5) * (size_in / size_out) - 0.5
    for interpolation in ("nearest", "linear"):
        taps = axis_taps(size_in, size_out, interpolation)
        assert (taps.first >= 0).all()
        assert (taps.second <= size_in - 1).all()
        assert np.array_equal(taps.second - taps.first, taps.weight > 0)
        scipys = ndimage.map_coordinates(
            np.arange(size_in, dtype=np.float64), centres[np.newaxis], order=ORDERS[interpolation], mode="nearest"
        )
        assert taps.first + taps.weight == pytest.approx(scipys, abs=1e-4)


@given(st.integers(1, 150), st.integers(1, 150), st.sampled_from(["quadratic", "cubic"]))
def test_a_matrix_is_the_spline_of_scipy(size_in: int, size_out: int, interpolation: Interpolation) -> None:
    centres = (np.arange(size_out) + 0.5) * (size_in / size_out) - 0.5
    samples = np.random.default_rng(0).normal(size=size_in)
    spline = ndimage.map_coordinates(samples, centres[np.newaxis], order=ORDERS[interpolation], mode="nearest")
    assert axis_matrix(size_in, size_out, interpolation) @ samples == pytest.approx(spline, abs=1e-6)


@pytest.mark.parametrize("interpolation", ORDERS)
@given(st.integers(1, 60), st.floats(0.2, 5))
def test_first_centres_coincide_where_a_step_is_given(interpolation: Interpolation, size_in: int, step: float) -> None:
    size_out = round((size_in - 1) / step) + 1
    positions = np.arange(size_out) * step
    # Of two equally near samples, SciPy's order 0 takes another one.
    assume(interpolation != "nearest" or (np.abs(positions % 1 - 0.5) > 1e-9).all())
    samples = np.random.default_rng(0).normal(size=size_in)
    expected = ndimage.map_coordinates(samples, positions[np.newaxis], order=ORDERS[interpolation], mode="nearest")
    assert axis_matrix(size_in, size_out, interpolation, step) @ samples == pytest.approx(expected, abs=CLOSE)


@example(2, 3)
@example(61, 121)
@example(5, 1)
@given(st.integers(1, 200), st.integers(1, 200))
def test_taps_of_equal_centres_are_those_of_scipys_zoom(size_in: int, size_out: int) -> None:
    samples = np.arange(size_in, dtype=np.float64)
    nearest = ndimage.zoom(samples, size_out / size_in, order=0, mode="nearest")
    assert np.array_equal(axis_taps(size_in, size_out, "nearest", "centres").first, nearest)
    taps = axis_taps(size_in, size_out, "linear", "centres")
    linear = ndimage.zoom(samples, size_out / size_in, order=1, mode="nearest")
    assert taps.first + taps.weight == pytest.approx(linear, abs=1e-4)
    assert np.array_equal(taps.second - taps.first, taps.weight > 0)


@pytest.mark.parametrize("interpolation", ["quadratic", "cubic"])
@given(st.integers(1, 80), st.integers(1, 80))
def test_a_matrix_of_equal_centres_is_that_of_scipys_zoom(
    interpolation: Interpolation, size_in: int, size_out: int
) -> None:
    samples = np.random.default_rng(0).normal(size=size_in)
    spline = ndimage.zoom(samples, size_out / size_in, order=ORDERS[interpolation], mode="nearest")
    assert axis_matrix(size_in, size_out, interpolation, "centres") @ samples == pytest.approx(spline, abs=1e-6)


def test_of_two_equally_near_samples_the_even_one_is_taken_where_a_step_is_given() -> None:
    assert axis_taps(4, 7, "nearest", 0.5).first.tolist() == [0, 0, 1, 2, 2, 2, 3]


@given(st.integers(2, 200), st.integers(1, 12), st.integers(1, 12))
def test_rounding_moves_no_position_off_a_sample(size_in: int, numerator: int, denominator: int) -> None:
    step = numerator / denominator
    size_out = round((size_in - 1) / step) + 1
    taps = axis_taps(size_in, size_out, "linear", step)
    on_samples = np.arange(size_out) * numerator % denominator == 0
    assert not taps.weight[on_samples].any()
    assert (taps.weight < 1).all()
    assert np.array_equal(taps.second - taps.first, taps.weight > 0)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("step", [None, 1.0])
def test_an_axis_that_stays_is_not_interpolated(interpolation: Interpolation, step: float | None) -> None:
    assert np.array_equal(axis_matrix(7, 7, interpolation, step).toarray(), np.eye(7))
    assert not np.array_equal(axis_matrix(7, 7, "linear", 1.05).toarray(), np.eye(7))


@given(st.integers(1, 40), st.data())
def test_area_keeps_the_mean_on_coarser_grids_and_is_linear_on_finer_ones(size_in: int, data: st.DataObject) -> None:
    coarser = axis_matrix(size_in, data.draw(st.integers(1, size_in)), "area").toarray()
    assert coarser.min() >= 0
    assert coarser.mean(axis=0) == pytest.approx(1 / size_in, rel=1e-4)
    finer = data.draw(st.integers(size_in, 80))
    assert np.array_equal(
        axis_matrix(size_in, finer, "area").toarray(), axis_matrix(size_in, finer, "linear").toarray()
    )


def test_a_cubic_matrix_drops_weights_too_small_for_float32() -> None:
    assert np.diff(axis_matrix(512, 239, "cubic").indptr).max() < 32
