"""Resampling of an image to another resolution. Pure numerics.

The two grids cover the same extent: their outer edges coincide, not the centres of their first voxels, as in nnU-Net
and PyTorch (align_corners=False). Interpolation is separable: each axis is resampled by one sparse matrix.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, sparse

from inference_service.core.threads import SINGLE_THREAD, ThreadPool
from inference_service.imaging.geometry import Shape, Spacing

Interpolation = Literal["nearest", "linear", "area", "cubic"]
Interpolations = tuple[Interpolation, Interpolation, Interpolation]
IntensityTransform = Callable[[NDArray[np.float32]], None]
"""Maps the values of an array in place."""

# Planes of the result that are computed at a time; bounds the memory of `resize`.
_PLANES_PER_BAND = 8
# Spacings come from float32 headers: their rounding must not decide which way half a voxel is rounded.
_RATIO_DIGITS = 4
# Samples on either side of a position that contribute to a cubic spline there. Their weights fall by a factor of 3.7
# from one to the next, and those too small for float32 are dropped.
_SPLINE_REACH = 24
_MIN_WEIGHT = 1e-8


def resized_shape(shape: Shape, spacing_mm: Spacing, target_mm: Spacing) -> Shape:
    """Shape of the grid that covers the same extent at another spacing, rounded to whole voxels on each axis.

    >>> resized_shape((512, 512, 300), (0.7, 0.7, 1.0), (1.5, 1.5, 1.5))
    (239, 239, 200)
    """
    i, j, k = (
        max(1, round(round(size * spacing / target, _RATIO_DIGITS)))
        for size, spacing, target in zip(shape, spacing_mm, target_mm, strict=True)
    )
    return i, j, k


def axis_interpolations(
    source_mm: Spacing, target_mm: Spacing, interpolation: Interpolation, separate_axis_above: float | None
) -> Interpolations:
    """Interpolation along each axis: nearest along the axis of thick slices if the model asks for it.

    Follows nnU-Net's determine_do_sep_z_and_axis: the source spacing decides if it is anisotropic, and the target
    spacing otherwise. Where two axes have the largest spacing, none of them is treated separately.

    Args:
        source_mm: Spacing of the grid that is resampled.
        target_mm: Spacing of the resampled grid.
        interpolation: Interpolation along the other axes.
        separate_axis_above: Ratio of the largest to the smallest spacing above which the axis with the largest one is
            treated separately (nnU-Net's separate z; 3 there). None never does.

    >>> axis_interpolations((0.7, 0.7, 5.0), (1.0, 1.0, 1.0), "cubic", 3)
    ('cubic', 'cubic', 'nearest')
    """
    interpolations = [interpolation, interpolation, interpolation]
    for spacing in (source_mm, target_mm):
        if separate_axis_above is not None and max(spacing) > separate_axis_above * min(spacing):
            if spacing.count(max(spacing)) == 1:
                interpolations[spacing.index(max(spacing))] = "nearest"
            break
    return interpolations[0], interpolations[1], interpolations[2]


@dataclass(frozen=True)
class Taps:
    """The two source samples of each sample of a resampled axis: (1 - weight)·first + weight·second.

    Attributes:
        first: Index of the source sample at or before the position.
        second: Index of the next source sample; equals `first` where the weight is 0.
        weight: Weight of `second`, in [0, 1).
    """

    first: NDArray[np.intp]
    second: NDArray[np.intp]
    weight: NDArray[np.float32]

    @property
    def pairs(self) -> tuple[tuple[NDArray[np.intp], NDArray[np.float32]], ...]:
        """Indices and weights of `first` and of `second`."""
        return (self.first, 1 - self.weight), (self.second, self.weight)


def axis_taps(size_in: int, size_out: int, interpolation: Interpolation) -> Taps:
    """The source samples of nearest or linear interpolation along one axis.

    Beyond the centres of the outermost source samples, the edge value holds.

    >>> taps = axis_taps(2, 4, "linear")
    >>> taps.first.tolist(), taps.second.tolist(), taps.weight.tolist()
    ([0, 0, 0, 1], [0, 1, 1, 1], [0.0, 0.25, 0.75, 0.0])
    """
    if interpolation == "nearest":
        # Computed in floats so that of two equally near samples, rounding picks the one that SciPy's order 0 picks.
        first = np.clip(np.floor(_centres(size_in, size_out) + 0.5).astype(np.intp), 0, size_in - 1)
        return Taps(first, first, np.zeros(size_out, dtype=np.float32))
    # Integers, in units of 1 / unit voxels: weights of exactly 0 stay 0.
    unit = 2 * size_out
    positions = np.arange(1, unit, 2) * size_in - size_out
    first, rest = np.divmod(np.clip(positions, 0, unit * (size_in - 1)), unit)
    return Taps(first, first + (rest > 0), (rest / unit).astype(np.float32))


def _centres(size_in: int, size_out: int) -> NDArray[np.float64]:
    """Positions of the resampled centres, in source samples; shape (size_out,)."""
    return np.asarray((np.arange(size_out) + 0.5) * (size_in / size_out) - 0.5)


def axis_matrix(size_in: int, size_out: int, interpolation: Interpolation) -> sparse.csr_array[np.float32]:
    """The linear operator that resamples one axis; the identity between equal grids.

    Beyond the centres of the outermost source samples, the edge value holds. Cubic is the interpolating spline of order
    3, as in nnU-Net's resampling of images; each sample depends on about 27 source samples. Area is the mean over the
    extent of a coarser sample, and linear on a finer grid (OpenCV's INTER_AREA).

    Returns:
        Shape (size_out, size_in); each row sums to 1.

    >>> axis_matrix(2, 4, "linear").toarray().tolist()
    [[1.0, 0.0], [0.75, 0.25], [0.25, 0.75], [0.0, 1.0]]
    >>> axis_matrix(4, 2, "area").toarray().tolist()
    [[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]]
    """
    if interpolation == "cubic" and size_in != size_out:
        return _spline_matrix(size_in, size_out)
    if interpolation == "area" and size_in > size_out:
        return _area_matrix(size_in, size_out)
    taps = axis_taps(size_in, size_out, "nearest" if size_in == size_out else interpolation)
    columns, weights = (np.concatenate(parts) for parts in zip(*taps.pairs, strict=True))
    rows = np.tile(np.arange(size_out), 2)
    return _drop_tiny(sparse.csr_array((weights, (rows, columns)), shape=(size_out, size_in)))


def _spline_matrix(size_in: int, size_out: int) -> sparse.csr_array[np.float32]:
    """Obtains the weights by resampling unit impulses with SciPy.

    One array holds many impulses, far enough apart that each resampled value depends on the nearest one alone.
    """
    centres = _centres(size_in, size_out)
    lowest = np.floor(centres).astype(np.intp) - _SPLINE_REACH
    dense = np.zeros((2 * _SPLINE_REACH, size_out))
    columns = np.empty(dense.shape, dtype=np.intp)
    for first in range(len(dense)):
        comb = np.zeros(size_in)
        comb[first :: len(dense)] = 1
        columns[first] = lowest + (first - lowest) % len(dense)
        ndimage.map_coordinates(comb, centres[np.newaxis], dense[first], order=3, mode="nearest")
    rows = np.broadcast_to(np.arange(size_out), dense.shape)
    inside = (columns >= 0) & (columns < size_in)
    weights = dense[inside].astype(np.float32)
    return _drop_tiny(sparse.csr_array((weights, (rows[inside], columns[inside])), shape=(size_out, size_in)))


def _area_matrix(size_in: int, size_out: int) -> sparse.csr_array[np.float32]:
    """The share of each sample of the finer axis in each sample of the coarser one."""
    # In units of 1 / size_out samples of the finer axis, in which all edges are integers.
    starts = np.arange(size_out)[:, np.newaxis] * size_in
    columns = starts // size_out + np.arange(-(-size_in // size_out) + 1)
    covered = np.minimum(starts + size_in, (columns + 1) * size_out) - np.maximum(starts, columns * size_out)
    rows = np.broadcast_to(np.arange(size_out)[:, np.newaxis], columns.shape)
    inside = covered > 0
    weights = (covered[inside] / size_in).astype(np.float32)
    return sparse.csr_array((weights, (rows[inside], columns[inside])), shape=(size_out, size_in))


def _drop_tiny(matrix: sparse.csr_array[np.float32]) -> sparse.csr_array[np.float32]:
    matrix.data[np.abs(matrix.data) < _MIN_WEIGHT] = 0
    matrix.eliminate_zeros()
    return matrix


def resize(
    image: NDArray[np.generic],
    shape: Shape,
    interpolations: Interpolations,
    *,
    transform: IntensityTransform | None = None,
    threads: ThreadPool = SINGLE_THREAD,
) -> NDArray[np.float32]:
    """Resamples an image to a grid of the same extent.

    Overshoot of a cubic spline is clipped to the range of the image's values, or to the range of each slice where one
    axis is not cubic, as scikit-image does for nnU-Net.

    The image is read once, plane by plane along the axis that is slowest in memory. Besides the result, each thread
    holds one plane in float32 and the resampled planes that `_PLANES_PER_BAND` planes of the result depend on: at most
    16 for linear interpolation, 39 for cubic from 300 to 200.

    Args:
        image: Shape (i, j, k), any real dtype; may be a view.
        shape: Voxels of the target grid.
        interpolations: Interpolation along each axis.
        transform: Applied to each plane of the image before it is resampled.
        threads: Share the work; their number does not change the result. BLAS should use one thread meanwhile.

    Returns:
        A new array of shape `shape`; its axes have the same order in memory as the image's.
    """
    slowest_first = sorted(range(3), key=lambda axis: -abs(image.strides[axis]))
    across, *along = (axis_matrix(image.shape[axis], shape[axis], interpolations[axis]) for axis in slowest_first)
    used = np.unique(across.indices)
    planes = image.transpose(slowest_first)
    resized = np.empty([shape[axis] for axis in slowest_first], dtype=np.float32)
    bands = [across[start : start + _PLANES_PER_BAND, used] for start in range(0, len(resized), _PLANES_PER_BAND)]
    # The widest of all bands, so that the order of additions does not depend on how threads share them.
    width = max(int(np.ptp(band.indices)) for band in bands) + 1
    value_range = _ValueRange(planes.shape, [interpolations[axis] for axis in slowest_first])

    def read_plane(index: int) -> NDArray[np.float32]:
        plane = np.array(planes[index], dtype=np.float32, order="C")
        if transform is not None:
            transform(plane)
        value_range.update(index, plane)
        return _resize_plane(plane, *along)

    def work(part: slice) -> None:
        needed = used[bands[part.start].indices.min() :]
        _blend_planes(map(read_plane, needed), bands[part], width, resized[part.start * _PLANES_PER_BAND :])

    threads.for_each_slice(len(bands), work)
    if image.shape != shape:
        value_range.clip(resized)
    return resized.transpose(np.argsort(slowest_first))


def _blend_planes(
    planes: Iterator[NDArray[np.float32]],
    bands: Sequence[sparse.csr_array[np.float32]],
    width: int,
    blended: NDArray[np.float32],
) -> None:
    """Computes planes of the result as weighted sums of planes.

    Args:
        planes: Planes from the first one that the first band needs; each is requested when it is needed.
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
    plane: NDArray[np.float32], along_h: sparse.csr_array[np.float32], along_w: sparse.csr_array[np.float32]
) -> NDArray[np.float32]:
    """Resamples a plane (h, w) along its two axes; skips an axis whose size stays the same."""
    if along_h.shape[0] != along_h.shape[1]:
        plane = along_h @ plane
    if along_w.shape[0] != along_w.shape[1]:
        plane = (along_w @ plane.T).T
    return plane


class _ValueRange:
    """The range of an image's values, collected plane by plane, to which cubic interpolation is clipped.

    Args:
        shape: Of the image, whose planes lie along the first axis.
        interpolations: Interpolation along each axis. Along an axis that is not cubic, each slice has its own range.
    """

    def __init__(self, shape: Sequence[int], interpolations: Sequence[Interpolation]) -> None:
        self._needed = "cubic" in interpolations
        self._separate = [axis for axis, name in enumerate(interpolations) if name != "cubic" and self._needed]
        # Axes of a plane (h, w) over which its range is taken.
        self._plane_axes = tuple(axis - 1 for axis in (1, 2) if axis not in self._separate)
        self._interpolations = interpolations
        plane_shape = [size if axis in self._separate else 1 for axis, size in enumerate(shape)][1:]
        self._low = np.full((shape[0], *plane_shape), np.inf, dtype=np.float32)
        self._high = -self._low

    def update(self, index: int, plane: NDArray[np.float32]) -> None:
        """Takes the plane (h, w) at an index into account."""
        if self._needed:
            self._low[index] = plane.min(axis=self._plane_axes, keepdims=True)
            self._high[index] = plane.max(axis=self._plane_axes, keepdims=True)

    def clip(self, resized: NDArray[np.float32]) -> None:
        """Clips the resampled image to the range, in place."""
        if not self._needed:
            return
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
