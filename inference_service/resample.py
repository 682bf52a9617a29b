"""Changing the resolution of an image, and bringing logits back to the scan's grid as labels. Pure numerics.

Two grids cover the same extent: their outer edges coincide, not the centres of their first voxels (nnU-Net's rule, and
PyTorch's align_corners=False). Interpolation here is separable, so that each axis is one matrix and BLAS does the work.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Shape = tuple[int, int, int]
Kind = Literal["nearest", "linear", "cubic"]
Kinds = tuple[Kind, Kind, Kind]

_SPLINE_ORDER: dict[Kind, Literal[0, 1, 3]] = {"nearest": 0, "linear": 1, "cubic": 3}
# Bounds the memory of resizing: planes along the last axis that are in float32 at full resolution at a time.
_PLANES_AT_A_TIME = 16
# Spacings come from float32 headers: their noise must not decide which way a half voxel is rounded.
_RATIO_DIGITS = 4
# Weights below it are numerical dust of the spline's prefilter and do not make a plane needed.
_NO_WEIGHT = 1e-9


def resized_shape(shape: Shape, spacing_mm: tuple[float, float, float], target_mm: tuple[float, float, float]) -> Shape:
    """Voxels of the grid that covers the same extent at another spacing, the nearest whole number on each axis.

    >>> resized_shape((512, 512, 300), (0.7, 0.7, 1.0), (1.5, 1.5, 1.5))
    (239, 239, 200)
    """
    i, j, k = (
        max(1, round(round(size * spacing / target, _RATIO_DIGITS)))
        for size, spacing, target in zip(shape, spacing_mm, target_mm, strict=True)
    )
    return i, j, k


def axis_kinds(spacing_mm: tuple[float, float, float], kind: Kind, separate_axis_above: float | None) -> Kinds:
    """Kind of interpolation along each axis: nearest along the axis of thick slices where the model asks for it.

    Args:
        spacing_mm: Spacing of the scan.
        kind: What the other axes get.
        separate_axis_above: The ratio of the largest to the smallest spacing above which the largest one's axis is
            taken apart (nnU-Net's separate z, 3 there); None: never.

    >>> axis_kinds((0.7, 0.7, 5.0), "cubic", 3)
    ('cubic', 'cubic', 'nearest')
    """
    if separate_axis_above is None or max(spacing_mm) <= separate_axis_above * min(spacing_mm):
        return kind, kind, kind
    thick = max(range(3), key=lambda axis: spacing_mm[axis])
    kinds = [kind, kind, kind]
    kinds[thick] = "nearest"
    return kinds[0], kinds[1], kinds[2]


@lru_cache(maxsize=32)
def axis_matrix(size_in: int, size_out: int, kind: Kind) -> NDArray[np.float32]:
    """The linear operator that resamples one axis: what SciPy makes of each unit vector.

    Beyond the outermost centres the edge value holds. The cubic kind is the interpolating spline of order 3, as in
    nnU-Net's resampling of images.

    Returns:
        Shape (size_out, size_in); its rows sum to 1.

    >>> axis_matrix(2, 4, "linear").tolist()
    [[1.0, 0.0], [0.75, 0.25], [0.25, 0.75], [0.0, 1.0]]
    """
    centres = (np.arange(size_out) + 0.5) * (size_in / size_out) - 0.5
    order = _SPLINE_ORDER[kind]
    columns = [
        ndimage.map_coordinates(unit, centres[np.newaxis], order=order, mode="nearest") for unit in np.eye(size_in)
    ]
    matrix = np.stack(columns, axis=1).astype(np.float32)
    matrix.setflags(write=False)
    return matrix


def resize(image: NDArray[np.generic], shape: Shape, kinds: Kinds) -> NDArray[np.float32]:
    """Resamples an image to a grid of the same extent.

    Args:
        image: Shape (i, j, k), any real dtype; a view will do.
        shape: Voxels of the target grid.
        kinds: Interpolation along each axis.

    Returns:
        A new array of shape `shape`.
    """
    along_i, along_j, along_k = (
        axis_matrix(size, target, kind) for size, target, kind in zip(image.shape, shape, kinds, strict=True)
    )
    depth = image.shape[2]
    planes = np.empty((depth, shape[0], shape[1]), dtype=np.float32)
    for start in range(0, depth, _PLANES_AT_A_TIME):
        chunk = np.ascontiguousarray(np.moveaxis(image[:, :, start : start + _PLANES_AT_A_TIME], 2, 0), np.float32)
        planes[start : start + len(chunk)] = _resize_plane(chunk, along_i, along_j)
    if shape[2] != depth:
        planes = np.tensordot(along_k, planes, axes=(1, 0))
    return np.moveaxis(planes, 0, 2)


def map_planes(
    planes: Iterable[NDArray[np.float32]],
    *,
    depth: int,
    decide: Callable[[NDArray[np.float32]], NDArray[np.unsignedinteger]],
    target: NDArray[np.unsignedinteger],
    kinds: Sequence[Kind],
) -> None:
    """Interpolates logits to the scan's grid plane by plane, and writes the labels decided there.

    No more planes of logits are held than one plane of the target depends on.

    Args:
        planes: `depth` planes of logits in order, each of shape (labels, h, w).
        depth: Planes along the first axis of the logits' grid.
        decide: Turns logits (labels, H, W) into labels (H, W).
        target: Shape (D, H, W), written in place; a view will do.
        kinds: Interpolation along the target's axes.
    """
    incoming = enumerate(planes)
    held: dict[int, NDArray[np.float32]] = {}
    matrices: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None
    for row, weights in enumerate(axis_matrix(depth, target.shape[0], kinds[0])):
        needed = np.flatnonzero(np.abs(weights) > _NO_WEIGHT).tolist()
        held = {index: plane for index, plane in held.items() if index >= needed[0]}
        while needed[-1] not in held:
            index, plane = next(incoming)
            if index >= needed[0]:
                held[index] = plane
        first = held[needed[0]]
        if matrices is None:
            matrices = (
                axis_matrix(first.shape[1], target.shape[1], kinds[1]),
                axis_matrix(first.shape[2], target.shape[2], kinds[2]),
            )
        blended = first if len(needed) == 1 else sum(weights[index] * held[index] for index in needed)
        target[row] = decide(_resize_plane(np.asarray(blended), *matrices))


def _resize_plane(
    planes: NDArray[np.float32], along_h: NDArray[np.float32], along_w: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Resamples planes (n, h, w) along their two axes; an axis whose size stays is not touched."""
    if along_h.shape[0] != along_h.shape[1]:
        planes = np.matmul(along_h, planes)
    if along_w.shape[0] != along_w.shape[1]:
        planes = np.matmul(planes, along_w.T)
    return planes
