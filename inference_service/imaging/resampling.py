"""Resampling of an image to another resolution. Pure numerics.

Interpolation is separable: each axis is resampled by one sparse matrix of `interpolation`.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from inference_service.core.threads import SINGLE_THREAD, ThreadPool
from inference_service.imaging.geometry import Shape, Spacing
from inference_service.imaging.interpolation import (
    EQUAL_EXTENTS,
    SPLINE_ORDERS,
    Interpolation,
    Interpolations,
    Step,
    Steps,
    axis_matrix,
    axis_taps,
    keeps_axis,
)

IntensityTransform = Callable[[NDArray[np.float32]], None]
"""Maps the values of an array in place."""

# Planes of the result that are computed at a time; bounds the memory of `resize`.
_PLANES_PER_BAND = 8
# Spacings are those of decimal numbers in float32 headers. On an oblique grid they are off by some 1e-7 of their size.
_SPACING_DIGITS = 6
_SPACING_ERROR = 2e-7


def resized_shape(shape: Shape, spacing_mm: Spacing, target_mm: Spacing) -> Shape:
    """Shape of the grid that covers the same extent at another spacing, rounded to whole voxels on each axis.

    Where half a voxel remains, the spacing in float32 decides, as in nnU-Net, which reads it from a NIfTI header.

    >>> resized_shape((512, 512, 300), (0.7, 0.7, 1.0), (1.5, 1.5, 1.5))
    (239, 239, 200)
    """
    i, j, k = (
        max(1, round(_in_float32(spacing) / target * size))
        for size, spacing, target in zip(shape, spacing_mm, target_mm, strict=True)
    )
    return i, j, k


def _in_float32(spacing: float) -> float:
    """The float32 number of a header whose spacing this is; the same for the number in double precision.

    >>> _in_float32(1.8), _in_float32(1.7999999523162842), _in_float32(1.80000004)
    (1.7999999523162842, 1.7999999523162842, 1.7999999523162842)
    """
    decimal = round(spacing, _SPACING_DIGITS)
    return float(np.float32(decimal if abs(decimal - spacing) <= _SPACING_ERROR * spacing else spacing))


def stepped_shape(shape: Shape, spacing_mm: Spacing, target_mm: Spacing) -> Shape:
    """Shape of the grid that begins at the same centre with another spacing: MONAI's compute_shape_offset.

    The distance between the first and the last centre is rounded to whole voxels, half to even.

    >>> stepped_shape((512, 4, 5), (0.7, 2.5, 1.0), (1.5, 1.0, 2.5))
    (239, 8, 3)
    """
    i, j, k = (
        round((size - 1) * (spacing / target) + 1)
        for size, spacing, target in zip(shape, spacing_mm, target_mm, strict=True)
    )
    return i, j, k


def zoomed_shape(shape: Shape, spacing_mm: Spacing, target_mm: Spacing) -> Shape:
    """Shape of the grid with the same first and last centres at about another spacing, as TotalSegmentator counts it.

    Sizes are those of the covered extents, rounded half to even; spacings are the float32 numbers of NIfTI's header.

    >>> zoomed_shape((512, 512, 300), (0.7, 0.7, 1.0), (1.5, 1.5, 1.5))
    (239, 239, 200)
    """
    i, j, k = (
        max(1, round(size * (float(np.float32(spacing)) / target)))
        for size, spacing, target in zip(shape, spacing_mm, target_mm, strict=True)
    )
    return i, j, k


def resize(
    image: NDArray[np.generic],
    shape: Shape,
    interpolations: Interpolations,
    *,
    steps: Steps = EQUAL_EXTENTS,
    transform: IntensityTransform | None = None,
    out: NDArray[np.float32] | None = None,
    threads: ThreadPool = SINGLE_THREAD,
) -> NDArray[np.float32]:
    """Resamples an image to another grid.

    Overshoot of a spline is clipped to the range of the image, or of each slice where one axis is not a spline, as
    scikit-image does for nnU-Net; not so where the extents differ (MONAI, SciPy).

    The image is read once, plane by plane along the axis that is slowest in memory. Besides the result, each thread
    holds one plane in float32 and the resampled planes that `_PLANES_PER_BAND` planes of the result depend on: at most
    16 for linear interpolation, 39 for cubic from 300 to 200.

    Args:
        image: Shape (i, j, k), any real dtype; may be a view.
        shape: Voxels of the target grid.
        interpolations: Interpolation along each axis.
        steps: How the target grid lies on the image along each axis.
        transform: Applied to each plane of the image before it is resampled.
        out: Shape `shape`, with axes that are contiguous in some order; it gets the result. None: a new array, whose
            axes have the same order in memory as the image's.
        threads: Share the work; their number does not change the result. BLAS should use one thread meanwhile.

    Returns:
        `out` or the new array.
    """
    slowest_first = slow_axes(image if out is None else out)
    if out is None:
        out = np.empty([shape[axis] for axis in slowest_first], dtype=np.float32).transpose(np.argsort(slowest_first))
    axes = [(image.shape[axis], shape[axis], interpolations[axis], steps[axis]) for axis in slowest_first]
    value_range = _ValueRange(
        [image.shape[axis] for axis in slowest_first],
        [interpolations[axis] for axis in slowest_first],
        clipped=image.shape != shape and steps == EQUAL_EXTENTS,
    )
    _resize_planes(image.transpose(slowest_first), out.transpose(slowest_first), axes, transform, value_range, threads)
    return out


def _resize_planes(
    planes: NDArray[np.generic],
    resized: NDArray[np.float32],
    axes: Sequence[tuple[int, int, Interpolation, Step]],
    transform: IntensityTransform | None,
    value_range: "_ValueRange",
    threads: ThreadPool,
) -> None:
    """Resamples an image whose slowest axis comes first.

    Args:
        planes: The image.
        resized: Gets the result.
        axes: Sizes before and after, interpolation and step of each axis.
        transform: Applied to each plane before it is resampled.
        value_range: Collects the range of the image, and clips the result to it.
        threads: Share the work.
    """
    along_h, along_w = (None if keeps_axis(*axis[:2], axis[3]) else axis_matrix(*axis) for axis in axes[1:])
    used, bands, width = _bands(axis_matrix(*axes[0]))

    def read_plane(index: int) -> NDArray[np.float32]:
        plane = np.array(planes[index], dtype=np.float32, order="C")
        if transform is not None:
            transform(plane)
        value_range.update(index, plane)
        return plane

    def work(part: slice) -> None:
        needed = used[bands[part.start].indices.min() :]
        resized_planes = (_resize_plane(read_plane(index), along_h, along_w) for index in needed)
        _blend_planes(resized_planes, bands[part], width, resized[part.start * _PLANES_PER_BAND :])

    threads.for_each_slice(len(bands), work)
    if value_range.needed:
        for index in np.setdiff1d(np.arange(len(planes)), used):
            read_plane(index)
        value_range.clip(resized)


def _bands(
    across: sparse.csr_array[np.float32],
) -> tuple[NDArray[np.integer], list[sparse.csr_array[np.float32]], int]:
    """Divides the matrix of the slowest axis into bands of `_PLANES_PER_BAND` planes of the result.

    Returns:
        The planes of the image that the result depends on, ascending; the weights of these in each band; and the
        largest number of neighbouring ones that a band depends on. It is that of all bands, so that the order of
        additions does not depend on how threads share them.
    """
    used = np.unique(across.indices)
    starts = range(0, across.shape[0], _PLANES_PER_BAND)
    bands = [across[start : start + _PLANES_PER_BAND, used] for start in starts]
    return used, bands, max(int(np.ptp(band.indices)) for band in bands) + 1


def slow_axes(array: NDArray[np.generic]) -> list[int]:
    """Returns the axes of an array in the order in which they lie in memory, the slowest first."""
    return sorted(range(array.ndim), key=lambda axis: -abs(array.strides[axis]))


def _blend_planes(
    planes: Iterator[NDArray[np.float32]],
    bands: Sequence[sparse.csr_array[np.float32]],
    width: int,
    blended: NDArray[np.float32],
) -> None:
    """Computes planes of the result as weighted sums of planes.

    Args:
        planes: Planes from the first one that the first band needs; each is requested only when a band needs it.
        bands: Adjoining bands of the matrix, with the weights of a few planes of the result each.
        width: Largest number of neighbouring planes that a band needs.
        blended: The result, written from its first plane on.
    """
    # A ring buffer: plane n is stored in row n % width. Rows that are not filled yet have weight 0.
    ring = np.zeros((width, blended[0].size), dtype=np.float32)
    next_index = int(bands[0].indices.min())
    for band in bands:
        for index in range(next_index, band.indices.max() + 1):
            ring[index % width] = next(planes).reshape(-1)
            next_index = index + 1
        needed = np.unique(band.indices)
        weights = np.zeros((band.shape[0], width), dtype=np.float32)
        weights[:, needed % width] = band.toarray()[:, needed]
        np.matmul(weights, ring, out=blended[: len(weights)].reshape(len(weights), -1))
        blended = blended[len(weights) :]


def _resize_plane(
    plane: NDArray[np.float32],
    along_h: sparse.csr_array[np.float32] | None,
    along_w: sparse.csr_array[np.float32] | None,
) -> NDArray[np.float32]:
    """Resamples a plane (h, w) along its two axes, or along those that change."""
    if along_h is not None:
        plane = along_h @ plane
    if along_w is not None:
        plane = (along_w @ plane.T).T
    return plane


class _ValueRange:
    """The range of an image's values, collected plane by plane, to which a spline is clipped.

    Args:
        shape: Shape of the image, whose planes lie along the first axis.
        interpolations: Interpolation along each axis. Along an axis that is not a spline, each slice has its own range.
        clipped: Whether splines are clipped.

    Attributes:
        needed: Whether there is anything to clip.
    """

    def __init__(self, shape: Sequence[int], interpolations: Sequence[Interpolation], *, clipped: bool) -> None:
        splines = [name in SPLINE_ORDERS for name in interpolations]
        self.needed = clipped and any(splines)
        self._separate = [axis for axis, spline in enumerate(splines) if not spline and self.needed]
        # Axes of a plane (h, w) over which its range is taken.
        self._plane_axes = tuple(axis - 1 for axis in (1, 2) if axis not in self._separate)
        self._interpolations = interpolations
        plane_shape = [size if axis in self._separate else 1 for axis, size in enumerate(shape)][1:]
        self._low = np.full((shape[0], *plane_shape), np.inf, dtype=np.float32)
        self._high = -self._low

    def update(self, index: int, plane: NDArray[np.float32]) -> None:
        """Takes the plane (h, w) at an index into account."""
        if self.needed:
            self._low[index] = plane.min(axis=self._plane_axes, keepdims=True)
            self._high[index] = plane.max(axis=self._plane_axes, keepdims=True)

    def clip(self, resized: NDArray[np.float32]) -> None:
        """Clips the resampled image to the range, in place."""
        low = self._low
        high = self._high
        for axis, interpolation in enumerate(self._interpolations):
            if axis in self._separate:
                taps = axis_taps(low.shape[axis], resized.shape[axis], interpolation)
                low = np.minimum(low.take(taps.first, axis), low.take(taps.second, axis))
                high = np.maximum(high.take(taps.first, axis), high.take(taps.second, axis))
            else:
                low = low.min(axis, keepdims=True)
                high = high.max(axis, keepdims=True)
        np.clip(resized, low, high, out=resized)
