"""Bringing logits back to the scan's grid as labels, plane by plane as they come. Pure numerics.

Interpolated logits are weighted means of those at a cell's eight corners. Where the corners agree on the decided label,
every point between them has it, by the rule of the highest channel and by that of the last one above zero: only cells
whose corners differ are interpolated.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from inference_service.core.threads import SINGLE_THREAD, ThreadPool
from inference_service.imaging.resampling import Interpolation, Taps, axis_taps

_T = TypeVar("_T", bound=np.generic)
DecideLabels = Callable[[NDArray[np.float32]], NDArray[np.unsignedinteger]]

# Logits that a thread works on at a time: few enough for a core's cache, enough for threads not to wait for the GIL.
_VALUES_AT_A_TIME = 2**18
# Planes written at a time to a target whose neighbouring bytes are of neighbouring planes: a line of the cache.
_PLANES_AT_A_TIME = 64


@dataclass(frozen=True)
class _LogitsPlane:
    """One plane of the logits' grid.

    Attributes:
        logits: Shape (h·w, labels), contiguous: one point's logits lie together. Of no labels
            where nothing is interpolated.
        labels: Shape (h, w), decided from them.
    """

    logits: NDArray[np.float32]
    labels: NDArray[np.unsignedinteger]


@dataclass(frozen=True)
class _PlaneInterpolation:
    """How a plane of the target lies over one of the logits.

    Attributes:
        rows: What each row of the target is made of.
        columns: What each column of the target is made of.
        corners: Shape (H, W, 4): the points of the source that each point of the target lies between.
        weights: Shape (H, W, 4): theirs, of sum 1.
    """

    rows: Taps
    columns: Taps
    corners: NDArray[np.int32]
    weights: NDArray[np.float32]


@dataclass(frozen=True)
class _BoundaryPoints:
    """Points of the target whose labels differ at their corners.

    Attributes:
        points: Where they lie, ascending.
        source: Within which range of the source their corners lie.
        operator: Takes the logits (points, labels) of that range to theirs.
    """

    points: NDArray[np.intp]
    source: slice
    operator: sparse.csr_array


def write_native_labels(
    planes: Iterable[NDArray[np.float32]],
    *,
    depth: int,
    decide: DecideLabels,
    target: NDArray[np.unsignedinteger],
    kinds: Sequence[Interpolation],
    threads: ThreadPool = SINGLE_THREAD,
) -> None:
    """Interpolates logits to the scan's grid plane by plane, and writes the labels decided there.

    A plane is taken when a plane of the target depends on it; two are held at a time. Besides, 32 bytes are for each
    point of a plane of the target, as many again for those that are interpolated, for each thread five pieces of
    `_VALUES_AT_A_TIME`, and `_PLANES_AT_A_TIME` planes of the target where its first axis is its fastest.

    Args:
        planes: `depth` planes of logits in order, each of shape (labels, h, w).
        depth: Planes along the first axis of the logits' grid.
        decide: Turns logits (labels, ...) into labels (...). What it says of some logits it says of their means too.
        target: Shape (D, H, W), written in place; a view will do.
        kinds: Interpolation along the target's axes, linear or nearest.
        threads: Share the work, and the result is the same for any number of them.
    """
    incoming = enumerate(planes)
    held: dict[int, _LogitsPlane] = {}
    grids: _PlaneInterpolation | None = None
    along = axis_taps(depth, target.shape[0], kinds[0])
    pairs = list(zip(along.first.tolist(), along.second.tolist(), strict=True))
    band = _write_buffer(target)
    for (start, near, far), rows in groupby(range(len(pairs)), key=lambda row: (row - row % len(band), *pairs[row])):
        held = {index: plane for index, plane in held.items() if index >= near}
        while far not in held:
            index, logits = next(incoming)
            if index >= near:
                interpolated = bool(along.weight.any()) or logits.shape[1:] != target.shape[1:]
                held[index] = _decide_plane(logits, decide, target.dtype, threads, interpolated=interpolated)
            del logits
        if grids is None:
            grids = _plane_interpolation(held[far].labels.shape, target.shape[1:], kinds[1:])
        here = list(rows)
        between, written = slice(here[0], here[-1] + 1), band[here[0] - start : here[-1] + 1 - start]
        _write_between(held[near], held[far], along.weight[between], grids, decide, written, threads)
        if band is not target and between.stop in (start + len(band), len(target)):
            _flush(band, target[start : between.stop], threads)


def _write_buffer(target: NDArray[np.unsignedinteger]) -> NDArray[np.unsignedinteger]:
    """Where planes are gathered before they are written: the target itself unless its first axis is its fastest."""
    first, *others = (abs(stride) for stride in target.strides)
    return target if first >= min(others) else np.empty_like(target[:_PLANES_AT_A_TIME], order="C")


def _flush(band: NDArray[np.unsignedinteger], target: NDArray[np.unsignedinteger], threads: ThreadPool) -> None:
    """Copies the first planes of a band, row by row, so that what is written stays in the cache."""

    def work(part: slice) -> None:
        for row in range(part.start, part.stop):
            target[:, row] = band[: len(target), row]

    threads.for_each_slice(target.shape[1], work)


def _plane_interpolation(
    source: tuple[int, ...], target: tuple[int, ...], kinds: Sequence[Interpolation]
) -> _PlaneInterpolation:
    (h, w), (height, width) = source, target
    rows, columns = axis_taps(h, height, kinds[0]), axis_taps(w, width, kinds[1])
    corners = np.empty((height, width, 2, 2), dtype=np.int32)
    weights = np.empty((height, width, 2, 2), dtype=np.float32)
    for i, (row, row_weight) in enumerate(rows.pairs):
        for j, (column, column_weight) in enumerate(columns.pairs):
            np.add.outer(row * w, column, out=corners[:, :, i, j], casting="same_kind")
            np.multiply.outer(row_weight, column_weight, out=weights[:, :, i, j])
    return _PlaneInterpolation(rows, columns, corners.reshape(height, width, 4), weights.reshape(height, width, 4))


def _decide_plane(
    logits: NDArray[np.float32],
    decide: DecideLabels,
    dtype: np.dtype[np.unsignedinteger],
    threads: ThreadPool,
    *,
    interpolated: bool,
) -> _LogitsPlane:
    kept = logits if interpolated else logits[:0]
    points = np.empty((*kept.shape[1:], len(kept)), dtype=np.float32)
    labels = np.empty(logits.shape[1:], dtype=dtype)
    step = max(1, _VALUES_AT_A_TIME // logits[:, 0].size)

    def work(part: slice) -> None:
        for start in range(part.start, part.stop, step):
            rows = slice(start, min(start + step, part.stop))
            labels[rows] = decide(logits[:, rows])
            points[rows] = kept[:, rows].transpose(1, 2, 0)

    threads.for_each_slice(len(labels), work)
    return _LogitsPlane(points.reshape(labels.size, len(kept)), labels)


def _write_between(
    first: _LogitsPlane,
    second: _LogitsPlane,
    weights: NDArray[np.float32],
    grids: _PlaneInterpolation,
    decide: DecideLabels,
    target: NDArray[np.unsignedinteger],
    threads: ThreadPool,
) -> None:
    """Writes the planes of the target that lie between two planes of logits, by the second one's weights there."""

    def work(rows: slice) -> None:
        labels, points = _settled_labels(first.labels, second.labels, grids, rows)
        count = 1 + points.size * first.logits.shape[1] // _VALUES_AT_A_TIME
        pieces = [_boundary_points(some, grids, rows) for some in np.array_split(points, count) if some.size]
        for plane, weight in zip(target[:, rows], weights, strict=True):
            for mixed in pieces:
                blended = _interpolate_between(first.logits[mixed.source], second.logits[mixed.source], weight)
                labels.reshape(-1)[mixed.points] = decide(np.ascontiguousarray((mixed.operator @ blended).T))
            plane[...] = labels

    threads.for_each_slice(len(grids.rows.first), work)


def _settled_labels(
    first: NDArray[np.unsignedinteger], second: NDArray[np.unsignedinteger], grids: _PlaneInterpolation, rows: slice
) -> tuple[NDArray[np.unsignedinteger], NDArray[np.intp]]:
    """The labels of some rows of the target between two planes, and which points are not known without interpolating.

    Returns:
        Labels, shape (rows, W), and flat indices into them.
    """
    near, far = grids.rows.first[rows], grids.rows.second[rows]
    source = slice(near[0], far[-1] + 1)
    least, greatest = np.minimum(first[source], second[source]), np.maximum(first[source], second[source])
    if grids.rows.weight.any():
        np.minimum(least[:-1], least[1:], out=least[:-1])
        np.maximum(greatest[:-1], greatest[1:], out=greatest[:-1])
    if grids.columns.weight.any():
        np.minimum(least[:, :-1], least[:, 1:], out=least[:, :-1])
        np.maximum(greatest[:, :-1], greatest[:, 1:], out=greatest[:, :-1])
    cells = near - near[0], grids.columns.first
    return _at_target_points(least, *cells), np.flatnonzero(_at_target_points(least != greatest, *cells))


def _at_target_points(of_cells: NDArray[_T], rows: NDArray[np.intp], columns: NDArray[np.intp]) -> NDArray[_T]:
    """What holds in the cell of each point of the target."""
    return of_cells.take(columns, axis=1).take(rows, axis=0)


def _boundary_points(points: NDArray[np.intp], grids: _PlaneInterpolation, rows: slice) -> _BoundaryPoints:
    corners = grids.corners[rows].reshape(-1, 4).take(points, axis=0).reshape(-1)
    weights = grids.weights[rows].reshape(-1, 4).take(points, axis=0).reshape(-1)
    source = slice(int(corners.min()), int(corners.max()) + 1)
    corners -= corners.dtype.type(source.start)
    starts = np.arange(0, corners.size + 1, 4, dtype=np.int32)
    operator = sparse.csr_array((weights, corners, starts), shape=(len(points), source.stop - source.start))
    return _BoundaryPoints(points, source, operator)


def _interpolate_between(
    first: NDArray[np.float32], second: NDArray[np.float32], weight: np.float32
) -> NDArray[np.float32]:
    if weight == 0:
        return first
    blended = first * (1 - weight)
    blended += second * weight
    return blended
