import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import permutations
from typing import Literal

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from inference_service.contract.manifest import Manifest
from inference_service.core.threads import SINGLE_THREAD, ThreadPool
from inference_service.imaging.geometry import Shape
from inference_service.imaging.interpolation import EQUAL_EXTENTS, Interpolation, Interpolations, Steps, Taps, axis_taps
from inference_service.segmentation.labels import native_grid
from inference_service.segmentation.labels.label_decision import decide_labels
from inference_service.segmentation.labels.native_grid import write_native_labels

Floats = NDArray[np.float32]
Labels = NDArray[np.unsignedinteger]
Order = Literal[0, 1]

SHAPES = st.tuples(*[st.integers(1, 8)] * 3)
LINEAR: Interpolations = ("linear", "linear", "linear")
ALL_KINDS: tuple[Interpolations, ...] = (
    LINEAR, ("nearest", "linear", "linear"), ("linear", "nearest", "linear"), ("linear", "linear", "nearest"),
)  # fmt: skip
ORDERS: dict[Interpolation, Order] = {"nearest": 0, "linear": 1}

# In float32, two logits closer than this may be in either order.
TIE = 1e-5


def noise(shape: tuple[int, ...]) -> Floats:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def highest(logits: Floats) -> Labels:
    return np.asarray(logits.argmax(axis=0), dtype=np.uint8)


def last_above_zero(logits: Floats) -> Labels:
    labels = np.zeros(logits.shape[1:], dtype=np.uint8)
    for channel, logit in enumerate(logits, start=1):
        labels[logit > 0] = channel
    return labels


def taps_between(
    source: tuple[int, ...], target: Shape, kinds: Interpolations = LINEAR, steps: Steps = EQUAL_EXTENTS
) -> list[Taps]:
    return [axis_taps(*axis) for axis in zip(source, target, kinds, steps, strict=True)]


def mapped(
    logits: Floats,
    shape: Shape,
    kinds: Interpolations = LINEAR,
    decide: Callable[[Floats], Labels] = highest,
    threads: ThreadPool = SINGLE_THREAD,
) -> NDArray[np.uint8]:
    """Labels of logits (labels, d, h, w) on a grid of another shape."""
    labels = np.full(shape, 255, dtype=np.uint8)
    planes = np.moveaxis(logits, 1, 0)
    taps = taps_between(logits.shape[1:], shape, kinds)
    write_native_labels(planes, decide=decide, target=labels, taps=taps, threads=threads)
    return labels


def interpolated(logits: Floats, shape: Shape, kinds: Interpolations) -> Floats:
    """All logits (labels, d, h, w) on the target's grid, by the operations of the module in the same order."""
    along_d, along_h, along_w = taps_between(logits.shape[1:], shape, kinds)
    weight = along_d.weight[:, np.newaxis, np.newaxis]
    planes = logits[:, along_d.first] * (1 - weight) + logits[:, along_d.second] * weight
    result = np.zeros((len(logits), *shape), dtype=np.float32)
    for rows, row_weights in along_h.pairs:
        for columns, column_weights in along_w.pairs:
            result += planes[:, :, rows][..., columns] * (row_weights[:, np.newaxis] * column_weights)
    return result


def zoomed(image: Floats, shape: Shape, kinds: Interpolations) -> NDArray[np.float64]:
    """The image on a grid of the same extent, by SciPy, axis by axis in float64."""
    result = image.astype(np.float64)
    for axis, (size, kind) in enumerate(zip(shape, kinds, strict=True)):
        ratios = [1.0, 1.0, 1.0]
        ratios[axis] = size / image.shape[axis]
        result = ndimage.zoom(result, ratios, order=ORDERS[kind], mode="nearest", grid_mode=True)
    return result


@dataclass(frozen=True)
class Mapping:
    """Logits, shape (labels, d, h, w), and the grid that they are mapped to."""

    logits: Floats
    target: Shape
    kinds: Interpolations


@st.composite
def mappings(draw: st.DrawFn) -> Mapping:
    shape = draw(SHAPES)
    target = draw(SHAPES)
    kinds = draw(st.sampled_from(ALL_KINDS))
    channels = draw(st.integers(1, 5))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    logits = random.normal(size=(channels, *shape), scale=2).astype(np.float32)
    return Mapping(logits, target, kinds)


@pytest.fixture(params=[2**18, 40, 1], ids=["all at once", "some at a time", "one at a time"])
def at_a_time(request: pytest.FixtureRequest) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native_grid, "_VALUES_AT_A_TIME", request.param)
        yield


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[ThreadPool]:
    with ThreadPool(request.param) as threads:
        yield threads


@pytest.mark.usefixtures("at_a_time")
@pytest.mark.parametrize("decide", [highest, last_above_zero])
@pytest.mark.parametrize("step", [None, 1, 3])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mappings())
def test_labels_are_those_of_all_interpolated_logits(
    threads: ThreadPool, decide: Callable[[Floats], Labels], step: int | None, mapping: Mapping
) -> None:
    logits = mapping.logits
    if step is not None:
        # Rounded logits have many ties, at the corners and between them.
        logits = (np.round(logits / step) * step).astype(np.float32)
    expected = decide(interpolated(logits, mapping.target, mapping.kinds))
    assert np.array_equal(mapped(logits, mapping.target, mapping.kinds, decide, threads), expected)


@pytest.mark.parametrize("decide", [highest, last_above_zero])
@pytest.mark.parametrize(
    ("shape", "target"), [((9, 40, 50), (13, 171, 207)), ((30, 60, 50), (11, 25, 33)), ((10, 20, 30), (10, 60, 30))]
)
def test_labels_of_smooth_logits_are_those_of_all_interpolated_logits(
    threads: ThreadPool, decide: Callable[[Floats], Labels], shape: Shape, target: Shape
) -> None:
    logits = ndimage.gaussian_filter(noise((4, *shape)), (0, 2, 4, 4))
    for kinds in ALL_KINDS:
        expected = decide(interpolated(logits, target, kinds))
        assert np.array_equal(mapped(logits, target, kinds, decide, threads), expected)
        assert len(np.unique(expected)) >= 4


@given(SHAPES, SHAPES, st.sampled_from(ALL_KINDS))
def test_labels_agree_with_scipys_zoom(shape: Shape, target: Shape, kinds: Interpolations) -> None:
    logits = noise((3, *shape))
    full = np.stack([zoomed(channel, target, kinds) for channel in logits])
    second, first = np.sort(full, axis=0)[-2:]
    sure = first - second > TIE
    assert np.array_equal(mapped(logits, target, kinds)[sure], full.argmax(axis=0)[sure])
    assert sure.mean() > 0.9


@given(SHAPES, st.sampled_from(ALL_KINDS))
def test_equal_grids_need_no_interpolation(shape: Shape, kinds: Interpolations) -> None:
    logits = noise((3, *shape))
    assert np.array_equal(mapped(logits, shape, kinds), highest(logits))


@pytest.mark.parametrize(("activation", "values"), [("softmax", (0, 7, 3)), ("sigmoid", (2, 300, 1))])
def test_labels_are_those_of_the_channels(
    make_manifest: Callable[..., Manifest], activation: str, values: tuple[int, ...]
) -> None:
    part = make_manifest(activation=activation, values=values)
    decide = partial(decide_labels, part=part, values=values, dtype=np.uint16)
    logits = noise((3, 4, 5, 6))
    labels = np.zeros((7, 9, 8), dtype=np.uint16)
    write_native_labels(
        np.moveaxis(logits, 1, 0), decide=decide, target=labels, taps=taps_between((4, 5, 6), (7, 9, 8))
    )
    assert np.array_equal(labels, decide(interpolated(logits, (7, 9, 8), LINEAR)))
    assert set(values) <= set(labels.ravel().tolist())


@pytest.mark.parametrize("axes", list(permutations(range(3))))
@pytest.mark.parametrize("planes_at_a_time", [2, 64])
def test_reversed_and_transposed_views_are_written(
    monkeypatch: pytest.MonkeyPatch, threads: ThreadPool, axes: tuple[int, int, int], planes_at_a_time: int
) -> None:
    monkeypatch.setattr(native_grid, "_PLANES_AT_A_TIME", planes_at_a_time)
    logits = noise((3, 5, 4, 6))
    expected = mapped(logits, (9, 7, 8))
    mask = np.full([(9, 7, 8)[axis] for axis in axes], 255, dtype=np.uint8)
    target = mask.transpose(np.argsort(axes))[::-1, :, ::-1]
    write_native_labels(
        np.moveaxis(logits, 1, 0),
        decide=highest,
        target=target,
        taps=taps_between((5, 4, 6), (9, 7, 8)),
        threads=threads,
    )
    assert np.array_equal(mask, expected[::-1, :, ::-1].transpose(axes))
    assert expected.max() == 2


def test_logits_are_interpolated_only_in_cells_whose_corners_differ() -> None:
    """The border of two halves lies in the middle of a cell, which contains two of the 10 target columns."""
    logits = np.zeros((2, 3, 4, 4), dtype=np.float32)
    logits[0, :, :, :2] = 3
    logits[1, :, :, 2:] = 1
    decided: list[int] = []

    def decide(logits: Floats) -> Labels:
        decided.append(logits[0].size)
        return highest(logits)

    labels = mapped(logits, (6, 8, 10), decide=decide)
    assert (labels == [0, 0, 0, 0, 0, 0, 1, 1, 1, 1]).all()
    assert sum(decided) == 3 * 4 * 4 + 6 * 8 * 2


def test_one_label_everywhere_needs_no_interpolation() -> None:
    shapes: list[tuple[int, ...]] = []

    def decide(logits: Floats) -> Labels:
        shapes.append(logits.shape[1:])
        return highest(logits)

    assert (mapped(np.abs(noise((1, 4, 5, 6))), (9, 11, 13), decide=decide) == 0).all()
    assert shapes == [(5, 6)] * 4


@pytest.mark.parametrize(("depth", "rows"), [(6, 17), (17, 6), (9, 9), (31, 3), (1, 5), (5, 1), (15, 5)])
def test_planes_are_consumed_only_when_needed(depth: int, rows: int) -> None:
    target = np.full((rows, 3, 4), 255, dtype=np.uint8)
    written: list[int] = []

    def planes() -> Iterator[Floats]:
        for plane in np.moveaxis(noise((2, depth, 3, 4)), 1, 0):
            written.append(int((target != 255).all(axis=(1, 2)).sum()))
            yield plane

    write_native_labels(planes(), decide=highest, target=target, taps=taps_between((depth, 3, 4), (rows, 3, 4)))
    centres = np.clip((np.arange(rows) + 0.5) * depth / rows - 0.5, 0, depth - 1)
    last_needed = np.ceil(centres - TIE)
    assert written == [int((last_needed < index).sum()) for index in range(int(last_needed[-1]) + 1)]
    assert (target != 255).all()


@pytest.mark.parametrize("rows", [100, 50, 3])
def test_no_more_than_two_planes_are_held(threads: ThreadPool, rows: int) -> None:
    labels = 30
    height = 40
    width = 50
    depth = 50
    target = np.zeros((rows, 4, 5), dtype=np.uint8)

    def planes() -> Iterator[Floats]:
        for index in range(depth):
            yield np.full((labels, height, width), index, dtype=np.float32)

    tracemalloc.start()
    try:
        write_native_labels(
            planes(),
            decide=highest,
            target=target,
            taps=taps_between((depth, height, width), (rows, 4, 5)),
            threads=threads,
        )
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # Two planes held, one coming in, two for interpolation between them, and the temporaries of argmax.
    assert peak < 7 * labels * height * width * 4
