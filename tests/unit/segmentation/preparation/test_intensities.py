import tracemalloc
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from preprocessing_numbers import INTENSITIES, NUMBERS, constant_scans, intensity_scan
from pydantic import TypeAdapter
from scipy import ndimage

from inference_service.contract.intensity import Intensity
from inference_service.segmentation.preparation.intensities import (
    filled_mask,
    maps_planes,
    normalise,
    plane_transform,
    working_bytes,
)

Doubles = NDArray[np.float64]
Fields = dict[str, object]

# Bounds float32 rounding of intensities near 1 made from intensities near 1000.
CLOSE = 1e-5
INTENSITY = TypeAdapter[Any](Intensity)


def ct(x: Doubles) -> Doubles:
    return np.asarray((np.clip(x, -900, 300) - 80) / 120)


def z_score(x: Doubles) -> Doubles:
    return np.asarray((x - x.mean()) / x.std())


def z_score_nonzero(x: Doubles) -> Doubles:
    return np.where(x == 0, 0, (x - x[x != 0].mean()) / x[x != 0].std())


def percentiles(x: Doubles) -> Doubles:
    low, high = np.percentile(x, [5, 90])
    return np.asarray(-1 + 3 * (x - low) / (high - low))


def clip_percentiles(x: Doubles) -> Doubles:
    return np.clip(x, *np.percentile(x, [5, 90]))


def min_max(x: Doubles) -> Doubles:
    return np.asarray(-1 + 4 * (x - x.min()) / (x.max() - x.min()))


def fixed_range(x: Doubles) -> Doubles:
    return -1 + 2 * (x + 200) / 500


CT: Fields = {"kind": "ct", "clip": (-900, 300), "mean": 80.0, "std": 120.0}
Z_SCORE: Fields = {"kind": "z_score"}
Z_SCORE_NONZERO: Fields = {"kind": "z_score", "nonzero_only": True}
Z_SCORE_FILLED: Fields = Z_SCORE_NONZERO | {"fill_holes": True}
PERCENTILES: Fields = {"kind": "percentiles", "percentiles": (5, 90), "output": (-1, 2)}
CLIP_PERCENTILES: Fields = {"kind": "clip_percentiles", "percentiles": (5, 90)}
MIN_MAX: Fields = {"kind": "min_max", "output": (-1, 3)}
FIXED_RANGE: Fields = {"kind": "fixed_range", "input": (-200, 300), "output": (-1, 1)}
CLIP: Fields = {"kind": "clip", "range": (-150, 250.5)}
LINEAR: Fields = {"kind": "linear", "scale": 0.5, "offset": -1.5}
NONE: Fields = {"kind": "none"}
TOGETHER: Fields = {"statistics": "all_channels"}

FORMULAS: list[tuple[Fields, Callable[[Doubles], Doubles]]] = [
    (CT, ct),
    (Z_SCORE, z_score),
    (Z_SCORE_NONZERO, z_score_nonzero),
    (PERCENTILES, lambda x: np.clip(percentiles(x), -1, 2)),
    (PERCENTILES | {"clip": False}, percentiles),
    (CLIP_PERCENTILES, clip_percentiles),
    (MIN_MAX, min_max),
    (FIXED_RANGE, lambda x: np.clip(fixed_range(x), -1, 1)),
    (FIXED_RANGE | {"clip": False}, fixed_range),
    (CLIP, lambda x: np.clip(x, -150, 250.5)),
    (LINEAR, lambda x: x / 2 - 1.5),
    (NONE, lambda x: x),
]
# The fields of the mappings that compute the numbers of MONAI.
OF_MONAI: dict[str, list[Fields]] = {
    "z_score": [Z_SCORE],
    "z_score of all channels": [Z_SCORE | TOGETHER],
    "z_score of nonzero": [Z_SCORE_NONZERO],
    "z_score of nonzero of all channels": [Z_SCORE_NONZERO | TOGETHER],
    "min_max": [MIN_MAX],
    "min_max of all channels": [MIN_MAX | TOGETHER],
    "percentiles": [PERCENTILES],
    "percentiles of all channels": [PERCENTILES | TOGETHER],
    "clip_percentiles": [CLIP_PERCENTILES],
    "clip_percentiles of all channels": [CLIP_PERCENTILES | TOGETHER],
    "linear": [LINEAR],
    "fixed_range": [FIXED_RANGE],
    "z_score and min_max": [Z_SCORE_NONZERO | TOGETHER, MIN_MAX | TOGETHER | {"output": (-1, 1)}],
    "clip_percentiles and z_score": [CLIP_PERCENTILES, Z_SCORE],
}


def mappings(*fields: Fields) -> tuple[Intensity, ...]:
    return tuple(INTENSITY.validate_python(each) for each in fields)


def mapped(scan: NDArray[np.float32], *fields: Fields) -> NDArray[np.float32]:
    """A copy of channels, all of them mapped alike."""
    return mapped_each(scan, [fields] * len(scan))


def mapped_each(scan: NDArray[np.float32], fields: Sequence[Sequence[Fields]]) -> NDArray[np.float32]:
    of_channels = [mappings(*each) for each in fields]
    image = scan.copy()
    normalise(list(image), of_channels, filled_mask(list(image), of_channels))
    return image


def hounsfield(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Values from about -1500 to 1500, a fifth of them 0."""
    random = np.random.default_rng(0)
    values = random.normal(50, 500, shape)
    return np.where(random.random(shape) < 0.2, 0, values).astype(np.float32)


@pytest.fixture(scope="module")
def numbers() -> dict[str, NDArray[Any]]:
    with np.load(NUMBERS) as file:
        return dict(file)


@pytest.mark.parametrize(("fields", "formula"), FORMULAS)
def test_intensities_are_mapped_by_their_formulas(fields: Fields, formula: Callable[[Doubles], Doubles]) -> None:
    scan = hounsfield((2, 11, 7, 5))
    image = mapped(scan, fields)
    assert image.dtype == np.float32
    for channel, values in zip(image, scan.astype(np.float64), strict=True):
        assert np.allclose(channel, formula(values), rtol=CLOSE, atol=CLOSE)
    if "percentiles" in fields or fields["kind"] in ("z_score", "min_max"):
        together = mapped(scan, fields | TOGETHER)
        assert np.allclose(together, formula(scan.astype(np.float64)), rtol=CLOSE, atol=CLOSE)


@pytest.mark.parametrize("name", INTENSITIES)
def test_intensities_are_those_of_monai(numbers: dict[str, NDArray[Any]], name: str) -> None:
    assert np.allclose(mapped(intensity_scan(), *OF_MONAI[name]), numbers[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["z_score of nonzero", "min_max", "percentiles"])
@pytest.mark.parametrize("scan", ["constant", "sparse"])
def test_ranges_of_one_value_are_mapped_as_in_monai(numbers: dict[str, NDArray[Any]], name: str, scan: str) -> None:
    assert np.allclose(mapped(constant_scans()[scan], *OF_MONAI[name]), numbers[f"{name}, {scan}"], atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (Z_SCORE, lambda value: 0),
        (Z_SCORE_NONZERO, lambda value: 0),
        (Z_SCORE_FILLED, lambda value: 0),
        (PERCENTILES, lambda value: -1),
        (PERCENTILES | {"clip": False}, lambda value: -1),
        (MIN_MAX, lambda value: -value),
        (MIN_MAX | {"output": (0, 1)}, lambda value: 0),
    ],
)
@pytest.mark.parametrize("value", [0.0, 0.1, -1024.3])
def test_constant_volumes_are_not_divided_by_0(
    fields: Fields, expected: Callable[[np.float32], float], value: float
) -> None:
    scan = np.full((2, 5, 4, 3), value, dtype=np.float32)
    for each in (fields, fields | TOGETHER):
        assert (mapped(scan, each) == expected(np.float32(value))).all()


def test_views_are_normalised_in_place() -> None:
    image = hounsfield((6, 5, 4))
    expected = z_score_nonzero(image.astype(np.float64))
    normalise([image.transpose(2, 0, 1)[::-1]], [mappings(Z_SCORE_NONZERO)])
    assert np.allclose(image, expected, atol=CLOSE)


def test_a_mapping_takes_the_statistics_of_the_values_before_it() -> None:
    scan = hounsfield((2, 11, 7, 5))
    clipped = np.stack([np.clip(x, *np.percentile(x, [5, 90])) for x in scan.astype(np.float64)])
    expected = min_max(clipped) / 2 - 1.5
    got = mapped(scan, CLIP_PERCENTILES, MIN_MAX | TOGETHER, LINEAR)
    assert np.allclose(got, expected, atol=CLOSE)


def test_statistics_of_all_channels_count_the_channels_as_they_then_are() -> None:
    scan = hounsfield((2, 11, 7, 5))
    first = np.clip(scan[0].astype(np.float64), -150, 250.5)
    second = scan[1].astype(np.float64)
    both = np.stack([first, second])
    got = mapped_each(scan, [[CLIP, Z_SCORE | TOGETHER], [NONE]])
    assert np.allclose(got[0], (first - both.mean()) / both.std(), atol=CLOSE)
    assert np.array_equal(got[1], scan[1])


def test_filled_holes_are_normalised_and_voxels_outside_stay_0(numbers: dict[str, NDArray[Any]]) -> None:
    """nnU-Net crops the scan to the mask before; outside it, all channels are 0."""
    scan = intensity_scan()
    image = mapped(scan, Z_SCORE_FILLED)
    assert np.allclose(image[:, 3:], numbers["nnU-Net: normalised"], atol=CLOSE)
    assert (image[:, :3] == 0).all()
    assert (image[:, 5:7, 4:6, 3:5] != 0).all()
    assert (mapped(scan, Z_SCORE_NONZERO)[:, 5:7, 4:6, 3:5] == 0).all()


def test_the_mask_is_that_of_all_channels_with_its_holes_filled() -> None:
    random = np.random.default_rng(2)
    channels = [np.where(random.random((12, 11, 10)) < 0.6, 0, 7).astype(np.int16) for _ in range(2)]
    mask = filled_mask(channels, [mappings(Z_SCORE_FILLED), mappings(NONE)])
    nonzero = (channels[0] != 0) | (channels[1] != 0)
    regions, count = ndimage.label(np.pad(~nonzero, 1, constant_values=True))
    assert count > 2
    assert mask is not None
    assert np.array_equal(mask, (regions != 1)[1:-1, 1:-1, 1:-1])
    assert filled_mask(channels, [mappings(Z_SCORE_NONZERO)]) is None


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ([CT], True),
        ([Z_SCORE_NONZERO, LINEAR, CLIP, FIXED_RANGE, CT, NONE], True),
        ([CLIP, Z_SCORE], False),
        ([LINEAR, MIN_MAX], False),
        ([Z_SCORE_FILLED], False),
        ([PERCENTILES | TOGETHER], False),
    ],
)
def test_planes_are_mapped_alone_where_statistics_are_of_the_whole_channel(
    fields: list[Fields], *, expected: bool
) -> None:
    each = mappings(*fields)
    assert maps_planes(each) == expected
    if expected:
        scan = hounsfield((1, 6, 5, 4))
        whole = mapped(scan, *fields)
        transform = plane_transform(scan[0], each)
        for plane in scan[0]:
            transform(plane)
        assert np.array_equal(scan, whole)


@pytest.mark.parametrize(
    "fields", [CT, Z_SCORE_NONZERO, Z_SCORE_FILLED, PERCENTILES, PERCENTILES | TOGETHER, CLIP_PERCENTILES, MIN_MAX]
)
def test_no_more_memory_is_taken_than_stated(fields: Fields) -> None:
    scan = hounsfield((2, 80, 64, 64))
    scan[:, 20:60] = 5
    each = [mappings(fields)] * 2
    tracemalloc.start()
    try:
        normalise(list(scan), each, filled_mask(list(scan), each))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # Beside a few planes in float64.
    assert peak < working_bytes(each, scan[0].size) + 16 * 8 * 64 * 64
