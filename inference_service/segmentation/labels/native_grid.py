"""Labels on the native grid: interpolates logits to the scan's own grid, plane by plane as they come. Pure numerics.

Interpolated logits are weighted means of the logits at a cell's eight corners. Where all corners have the same label,
every point between them has it too, by the rule of the highest channel as by that of the last channel above zero. So
logits are interpolated only in cells whose corners differ.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from inference_service.core.threads import SINGLE_THREAD, ThreadPool
from inference_service.imaging.interpolation import Taps

_T = TypeVar("_T", bound=np.generic)
DecideLabels = Callable[[NDArray[np.float32]], NDArray[np.unsignedinteger]]

# Logits that a thread works on at a time: few enough for a core's cache, enough to keep threads from waiting for the
# GIL.
_VALUES_AT_A_TIME = 2**18
# Planes that are buffered where neighbouring planes of the target are neighbours in memory: a cache line of labels.
_PLANES_AT_A_TIME = 64


@dataclass(frozen=True)
class _LogitsPlane:
    """One plane of the logits' grid.

    Attributes:
        logits: Shape (h·w, labels), contiguous, so that the logits of a point lie together. It has no labels where
            nothing is interpolated.
        labels: Shape (h, w), decided from the logits.
    """

    logits: NDArray[np.float32]
    labels: NDArray[np.unsignedinteger]


@dataclass(frozen=True)
class _PlaneInterpolation:
    """Bilinear interpolation from a plane of logits (h, w) to a plane of the target (H, W).

    Attributes:
        rows: Samples of each row of the target.
        columns: Samples of each column of the target.
        corners: Shape (H, W, 4): flat indices of the four logits around each point of the target.
        weights: Shape (H, W, 4): their weights, of sum 1.
    """

    rows: Taps
    columns: Taps
    corners: NDArray[np.int32]
    weights: NDArray[np.float32]


@dataclass(frozen=True)
class _BoundaryPoints:
    """Points of the target in cells whose corners have different labels.

    Attributes:
        points: Their flat indices, ascending.
        source: The range of flat indices of the logits that they are interpolated from.
        operator: Shape (points, source): interpolates logits (source, labels).
    """

    points: NDArray[np.intp]
    source: slice
    operator: sparse.csr_array


def write_native_labels(
    planes: Iterable[NDArray[np.float32]],
    *,
    decide: DecideLabels,
    target: NDArray[np.unsignedinteger],
    taps: Sequence[Taps],
    threads: ThreadPool = SINGLE_THREAD,
) -> None:
    """Interpolates logits to the scan's grid plane by plane, and writes the labels that they decide.

    A plane of logits is taken when a plane of the target depends on it, and two are held at a time. Besides, it takes
    32 bytes for each point of a plane of the target, 32 more for each interpolated point, five times
    `_VALUES_AT_A_TIME` values for each thread, and `_PLANES_AT_A_TIME` planes of the target where its first axis is the
    fastest in memory.

    Args:
        planes: Planes of logits in order, each of shape (labels, h, w).
        decide: Decides labels (...) from logits (labels, ...). Where it gives one label for several logits, it must
            give the same label for their weighted means.
        target: Shape (D, H, W), written in place; may be a view.
        taps: The samples of the logits' grid that each point along each of the target's axes is interpolated from.
        threads: Share the work; the result does not depend on their number.
    """
    if not target.size:
        return
    incoming = enumerate(planes)
    held: dict[int, _LogitsPlane] = {}
    within_plane: _PlaneInterpolation | None = None
    along, rows_taps, columns_taps = taps
    interpolated = any(axis.weight.any() for axis in taps)
    pairs = list(zip(along.first.tolist(), along.second.tolist(), strict=True))
    buffer = _write_buffer(target)
    # Rows of one group lie between the same two planes of logits, and in the same filling of the buffer.
    for (start, near, far), group in groupby(range(len(pairs)), key=lambda row: (row - row % len(buffer), *pairs[row])):
        held = {index: plane for index, plane in held.items() if index >= near}
        while far not in held:
            index, logits = next(incoming)
            if index >= near:
                held[index] = _decide_plane(logits, decide, target.dtype, threads, interpolated=interpolated)
            del logits
        if within_plane is None:
            within_plane = _plane_interpolation(held[far].labels.shape[1], rows_taps, columns_taps)
        group_rows = list(group)
        rows = slice(group_rows[0], group_rows[-1] + 1)
        written = buffer[rows.start - start : rows.stop - start]
        _write_between(held[near], held[far], along.weight[rows], within_plane, decide, written, threads)
        if buffer is not target and rows.stop in (start + len(buffer), len(target)):
            _flush(buffer, target[start : rows.stop], threads)


def _write_buffer(target: NDArray[np.unsignedinteger]) -> NDArray[np.unsignedinteger]:
    """Returns the target itself, or a buffer of some planes where the target's first axis is its fastest in memory."""
    first, *others = (abs(stride) for stride in target.strides)
    return target if first >= min(others) else np.empty_like(target[:_PLANES_AT_A_TIME], order="C")


def _flush(buffer: NDArray[np.unsignedinteger], target: NDArray[np.unsignedinteger], threads: ThreadPool) -> None:
    """Copies the first planes of the buffer to the target, row by row, so that each row stays in the cache."""

    def work(part: slice) -> None:
        for row in range(part.start, part.stop):
            target[:, row] = buffer[: len(target), row]

    threads.for_each_slice(target.shape[1], work)


def _plane_interpolation(source_width: int, rows: Taps, columns: Taps) -> _PlaneInterpolation:
    height = len(rows.first)
    width = len(columns.first)
    corners = np.empty((height, width, 2, 2), dtype=np.int32)
    weights = np.empty((height, width, 2, 2), dtype=np.float32)
    for i, (row, row_weight) in enumerate(rows.pairs):
        for j, (column, column_weight) in enumerate(columns.pairs):
            np.add.outer(row * source_width, column, out=corners[:, :, i, j], casting="same_kind")
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
    """Decides the labels of a plane of logits (labels, h, w), and keeps the logits where they are interpolated."""
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
    within_plane: _PlaneInterpolation,
    decide: DecideLabels,
    target: NDArray[np.unsignedinteger],
    threads: ThreadPool,
) -> None:
    """Writes planes (n, H, W) of the target that lie between two planes of logits, by the second one's weights (n,)."""

    def work(rows: slice) -> None:
        labels, points = _settled_labels(first.labels, second.labels, within_plane, rows)
        count = 1 + points.size * first.logits.shape[1] // _VALUES_AT_A_TIME
        parts = [_boundary_points(part, within_plane, rows) for part in np.array_split(points, count) if part.size]
        for plane, weight in zip(target[:, rows], weights, strict=True):
            for part in parts:
                blended = _interpolate_between(first.logits[part.source], second.logits[part.source], weight)
                labels.reshape(-1)[part.points] = decide(np.ascontiguousarray((part.operator @ blended).T))
            plane[...] = labels

    threads.for_each_slice(len(within_plane.rows.first), work)


def _settled_labels(
    first: NDArray[np.unsignedinteger],
    second: NDArray[np.unsignedinteger],
    within_plane: _PlaneInterpolation,
    rows: slice,
) -> tuple[NDArray[np.unsignedinteger], NDArray[np.intp]]:
    """Finds the labels of some rows of the target between two planes, as far as they follow from equal corners.

    Returns:
        Labels, shape (rows, W), and the flat indices of those that must be decided from interpolated logits.
    """
    near = within_plane.rows.first[rows]
    far = within_plane.rows.second[rows]
    source = slice(near[0], far[-1] + 1)
    least = np.minimum(first[source], second[source])
    greatest = np.maximum(first[source], second[source])
    if within_plane.rows.weight.any():
        np.minimum(least[:-1], least[1:], out=least[:-1])
        np.maximum(greatest[:-1], greatest[1:], out=greatest[:-1])
    if within_plane.columns.weight.any():
        np.minimum(least[:, :-1], least[:, 1:], out=least[:, :-1])
        np.maximum(greatest[:, :-1], greatest[:, 1:], out=greatest[:, :-1])
    cell_rows = near - near[0]
    cell_columns = within_plane.columns.first
    unsettled = np.flatnonzero(_at_target_points(least != greatest, cell_rows, cell_columns))
    return _at_target_points(least, cell_rows, cell_columns), unsettled


def _at_target_points(cells: NDArray[_T], cell_rows: NDArray[np.intp], cell_columns: NDArray[np.intp]) -> NDArray[_T]:
    """Takes the value of the cell that each point of the target lies in."""
    return cells.take(cell_columns, axis=1).take(cell_rows, axis=0)


def _boundary_points(points: NDArray[np.intp], within_plane: _PlaneInterpolation, rows: slice) -> _BoundaryPoints:
    corners = within_plane.corners[rows].reshape(-1, 4).take(points, axis=0).reshape(-1)
    weights = within_plane.weights[rows].reshape(-1, 4).take(points, axis=0).reshape(-1)
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
