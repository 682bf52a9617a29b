"""Bringing logits back to the scan's grid as labels, plane by plane as they come. Pure numerics.

Interpolated logits are weighted means of those at a cell's eight corners. Where the corners agree on the decided label,
every point between them has it, by the rule of the highest channel and by that of the last one above zero: only cells
whose corners differ are interpolated.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import prod
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from inference_service.resample import Kind, Taps, axis_taps

_T = TypeVar("_T", bound=np.generic)
Decide = Callable[[NDArray[np.float32]], NDArray[np.unsignedinteger]]

# Bounds the memory of interpolating: points whose logits are held at a time.
_POINTS_AT_A_TIME = 2**15


@dataclass(frozen=True)
class _Plane:
    """One plane of the logits' grid.

    Attributes:
        logits: Shape (h·w, labels), contiguous: one point's logits lie together.
        labels: Shape (h, w), decided from them.
    """

    logits: NDArray[np.float32]
    labels: NDArray[np.unsignedinteger]


@dataclass(frozen=True)
class _Grids:
    """How a plane of the target lies over one of the logits.

    Attributes:
        source: Voxels of a plane of logits, (h, w).
        rows: What each row of the target is made of.
        columns: What each column of the target is made of.
        corners: Shape (H·W, 4): the points of the source that each point of the target lies between.
        weights: Shape (H·W, 4): theirs, of sum 1.
    """

    source: tuple[int, int]
    rows: Taps
    columns: Taps
    corners: NDArray[np.int32]
    weights: NDArray[np.float32]


def map_planes(
    planes: Iterable[NDArray[np.float32]],
    *,
    depth: int,
    decide: Decide,
    target: NDArray[np.unsignedinteger],
    kinds: Sequence[Kind],
) -> None:
    """Interpolates logits to the scan's grid plane by plane, and writes the labels decided there.

    A plane is taken when a plane of the target depends on it; two are held at a time.

    Args:
        planes: `depth` planes of logits in order, each of shape (labels, h, w).
        depth: Planes along the first axis of the logits' grid.
        decide: Turns logits (labels, ...) into labels (...). What it says of some logits it says of their means too.
        target: Shape (D, H, W), written in place; a view will do.
        kinds: Interpolation along the target's axes, linear or nearest.
    """
    incoming = enumerate(planes)
    held: dict[int, _Plane] = {}
    grids: _Grids | None = None
    along = axis_taps(depth, target.shape[0], kinds[0])
    pairs = list(zip(along.first.tolist(), along.second.tolist(), strict=True))
    for (near, far), rows in groupby(range(len(pairs)), key=pairs.__getitem__):
        held = {index: plane for index, plane in held.items() if index >= near}
        while far not in held:
            index, logits = next(incoming)
            if index >= near:
                held[index] = _Plane(_points_first(logits), decide(logits))
            del logits
        if grids is None:
            grids = _lay_over(held[far].labels.shape, target.shape[1:], kinds[1:])
        here = list(rows)
        between = slice(here[0], here[-1] + 1)
        _map_between(held[near], held[far], along.weight[between], grids, decide, target[between])


def _map_between(
    first: _Plane,
    second: _Plane,
    weights: NDArray[np.float32],
    grids: _Grids,
    decide: Decide,
    target: NDArray[np.unsignedinteger],
) -> None:
    """Writes the planes of the target that lie between two planes of logits, by the second one's weights there."""
    labels, mixed = _agreed(first.labels, second.labels, grids)
    operators = [_operator(points, grids) for points in mixed]
    for plane, weight in zip(target, weights, strict=True):
        blended = _blend(first.logits, second.logits, weight)
        for points, operator in zip(mixed, operators, strict=True):
            labels.put(points, decide(_points_last(operator @ blended)))
        plane[...] = labels


def _lay_over(source: tuple[int, ...], target: tuple[int, ...], kinds: Sequence[Kind]) -> _Grids:
    (h, w), (height, width) = source, target
    rows, columns = axis_taps(h, height, kinds[0]), axis_taps(w, width, kinds[1])
    corners = np.empty((height, width, 2, 2), dtype=np.int32)
    weights = np.empty((height, width, 2, 2), dtype=np.float32)
    for i, (row, row_weight) in enumerate(rows.pairs):
        for j, (column, column_weight) in enumerate(columns.pairs):
            np.add.outer(row * w, column, out=corners[:, :, i, j], casting="same_kind")
            np.multiply.outer(row_weight, column_weight, out=weights[:, :, i, j])
    return _Grids((h, w), rows, columns, corners.reshape(-1, 4), weights.reshape(-1, 4))


def _agreed(
    first: NDArray[np.unsignedinteger], second: NDArray[np.unsignedinteger], grids: _Grids
) -> tuple[NDArray[np.unsignedinteger], list[NDArray[np.intp]]]:
    """The labels of the target's points between two planes, and where they are not known without interpolating."""
    least, greatest = np.minimum(first, second), np.maximum(first, second)
    if grids.rows.weight.any():
        np.minimum(least[:-1], least[1:], out=least[:-1])
        np.maximum(greatest[:-1], greatest[1:], out=greatest[:-1])
    if grids.columns.weight.any():
        np.minimum(least[:, :-1], least[:, 1:], out=least[:, :-1])
        np.maximum(greatest[:, :-1], greatest[:, 1:], out=greatest[:, :-1])
    points = np.flatnonzero(_spread(least != greatest, grids))
    return _spread(least, grids), np.split(points, range(_POINTS_AT_A_TIME, len(points), _POINTS_AT_A_TIME))


def _spread(cells: NDArray[_T], grids: _Grids) -> NDArray[_T]:
    """What holds in the cell of each point of the target."""
    return cells.take(grids.columns.first, axis=1).take(grids.rows.first, axis=0)


def _operator(points: NDArray[np.intp], grids: _Grids) -> sparse.csr_array:
    """Takes the logits of a plane, shape (h·w, labels), to those of some points of the target."""
    weights = grids.weights.take(points, axis=0).reshape(-1)
    corners = grids.corners.take(points, axis=0).reshape(-1)
    starts = np.arange(0, corners.size + 1, 4, dtype=np.int32)
    return sparse.csr_array((weights, corners, starts), shape=(len(points), prod(grids.source)))


def _blend(first: NDArray[np.float32], second: NDArray[np.float32], weight: np.float32) -> NDArray[np.float32]:
    if weight == 0:
        return first
    blended = first * (1 - weight)
    blended += second * weight
    return blended


def _points_first(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    return logits.reshape(len(logits), -1).T.copy()


def _points_last(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.ascontiguousarray(logits.T)
