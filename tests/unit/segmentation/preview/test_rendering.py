import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from inference_service.segmentation.preview.rendering import (
    BONE,
    LUNG,
    SOFT_TISSUE,
    IntensityWindow,
    ct_intensity_window,
    overlay,
    percentile_intensity_window,
)

COLOURS = np.array([(0, 0, 0), (255, 0, 0), (0, 0, 255)], dtype=np.uint8)


def test_an_intensity_window_runs_from_black_to_white() -> None:
    grey = SOFT_TISSUE.grey(np.array([[-1000, -160, 40, 240, 3000]], dtype=">i2"))
    assert grey.dtype == np.uint8
    assert grey.tolist() == [[0, 0, 128, 255, 255]]
    assert str(SOFT_TISSUE) == "Window 400 / level 40 HU"
    assert str(LUNG) == "Window 1500 / level -600 HU"


@pytest.mark.parametrize(
    ("labels", "window"),
    [
        ([], SOFT_TISSUE),
        ([(60.0, 0)], SOFT_TISSUE),
        ([(55.0, 100), (-800.0, 90)], SOFT_TISSUE),
        ([(55.0, 90), (-800.0, 100)], LUNG),
        ([(55.0, 90), (-800.0, 80), (-1000.0, 9000)], SOFT_TISSUE),
        ([(500.0, 90), (60.0, 80)], BONE),
    ],
)
def test_the_ct_intensity_window_is_chosen_by_most_of_the_tissue(
    labels: list[tuple[float, int]], window: IntensityWindow
) -> None:
    assert ct_intensity_window(labels) == window


def test_percentiles_leave_out_the_background() -> None:
    plane = np.zeros((100, 100))
    plane[:10] = np.linspace(100, 300, 1000).reshape(10, 100)
    window = percentile_intensity_window([plane, plane[:5]])
    assert (window.low, window.high) == pytest.approx((100, 300), abs=2)


@pytest.mark.parametrize("value", [0.0, 7.0, -1e9, 1e30])
def test_a_constant_scan_has_an_intensity_window(value: float) -> None:
    plane = np.full((4, 4), value, dtype=np.float32)
    window = percentile_intensity_window([plane])
    assert window.low < window.high
    assert window.grey(plane).tolist() == [[0] * 4] * 4


@given(
    arrays.arrays(np.intp, arrays.array_shapes(min_dims=2, max_dims=2, max_side=8), elements=st.integers(0, 2)),
    st.integers(0, 255),
)
def test_labels_have_opaque_outlines_and_light_fills_and_other_pixels_are_unchanged(
    places: NDArray[np.intp], level: int
) -> None:
    grey = np.full(places.shape, level, dtype=np.uint8)
    painted = overlay(grey, places, COLOURS)
    padded = np.pad(places, 1, mode="edge")
    for (row, column), place in np.ndenumerate(places):
        around = {int(padded[row + i, column + j]) for i, j in ((0, 1), (2, 1), (1, 0), (1, 2))}
        pixel = painted[row, column].tolist()
        if place == 0:
            assert pixel == [level] * 3
        elif around != {place}:
            assert pixel == COLOURS[place].tolist()
        else:
            assert pixel == pytest.approx(0.72 * level + 0.28 * COLOURS[place], abs=1)
