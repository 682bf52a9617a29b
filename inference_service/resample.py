"""Changing the resolution of an image. Pure numerics.

Two grids cover the same extent: their outer edges coincide, not the centres of their first voxels (nnU-Net's rule, and
PyTorch's align_corners=False). Interpolation here is separable, so that each axis is one matrix and BLAS does the work.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Shape = tuple[int, int, int]
Kind = Literal["nearest", "linear", "cubic"]
Kinds = tuple[Kind, Kind, Kind]

# Bounds the memory of resizing: planes along the last axis that are in float32 at full resolution at a time.
_PLANES_AT_A_TIME = 16
# Spacings come from float32 headers: their noise must not decide which way a half voxel is rounded.
_RATIO_DIGITS = 4
# Those of two scans; a large one takes 64 MiB.
_MATRICES_KEPT = 6


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


@dataclass(frozen=True)
class Taps:
    """What each sample of a resampled axis is made of: (1 - weight)·first + weight·second.

    Attributes:
        first: Index of the sample at or before it.
        second: The next one; `first` again where the weight is 0.
        weight: In [0, 1).
    """

    first: NDArray[np.intp]
    second: NDArray[np.intp]
    weight: NDArray[np.float32]

    @property
    def pairs(self) -> tuple[tuple[NDArray[np.intp], NDArray[np.float32]], ...]:
        """Indices and weights of the first and of the second."""
        return (self.first, 1 - self.weight), (self.second, self.weight)


def axis_taps(size_in: int, size_out: int, kind: Kind) -> Taps:
    """The samples that resampling one axis takes; beyond the outermost centres the edge value holds.

    >>> taps = axis_taps(2, 4, "linear")
    >>> taps.first.tolist(), taps.second.tolist(), taps.weight.tolist()
    ([0, 0, 0, 1], [0, 1, 1, 1], [0.0, 0.25, 0.75, 0.0])
    """
    if kind == "nearest":
        # In floats, rounding noise included: of two samples equally near, the one that SciPy's order 0 takes.
        first = np.clip(np.floor(_centres(size_in, size_out) + 0.5).astype(np.intp), 0, size_in - 1)
        return Taps(first, first, np.zeros(size_out, dtype=np.float32))
    # In units of 1 / unit voxels, so that whole positions are whole and no weight is the dust of rounding.
    unit = 2 * size_out
    positions = np.arange(1, unit, 2) * size_in - size_out
    first, rest = np.divmod(np.clip(positions, 0, unit * (size_in - 1)), unit)
    return Taps(first, first + (rest > 0), (rest / unit).astype(np.float32))


def _centres(size_in: int, size_out: int) -> NDArray[np.float64]:
    return np.asarray((np.arange(size_out) + 0.5) * (size_in / size_out) - 0.5)


@lru_cache(maxsize=_MATRICES_KEPT)
def axis_matrix(size_in: int, size_out: int, kind: Kind) -> NDArray[np.float32]:
    """The linear operator that resamples one axis.

    Beyond the outermost centres the edge value holds. The cubic kind is the interpolating spline of order 3, as in
    nnU-Net's resampling of images: what SciPy makes of each unit vector.

    Returns:
        Shape (size_out, size_in); its rows sum to 1.

    >>> axis_matrix(2, 4, "linear").tolist()
    [[1.0, 0.0], [0.75, 0.25], [0.25, 0.75], [0.0, 1.0]]
    """
    matrix = np.zeros((size_out, size_in), dtype=np.float32)
    if kind == "cubic":
        centres = _centres(size_in, size_out)
        for column, unit in enumerate(np.eye(size_in)):
            matrix[:, column] = ndimage.map_coordinates(unit, centres[np.newaxis], order=3, mode="nearest")
    else:
        for index, weight in axis_taps(size_in, size_out, kind).pairs:
            matrix[np.arange(size_out), index] += weight
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


def _resize_plane(
    planes: NDArray[np.float32], along_h: NDArray[np.float32], along_w: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Resamples planes (n, h, w) along their two axes; an axis whose size stays is not touched."""
    if along_h.shape[0] != along_h.shape[1]:
        planes = np.matmul(along_h, planes)
    if along_w.shape[0] != along_w.shape[1]:
        planes = np.matmul(planes, along_w.T)
    return planes
