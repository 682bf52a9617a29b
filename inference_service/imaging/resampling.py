"""Changing the resolution of an image. Pure numerics.

Two grids cover the same extent: their outer edges coincide, not the centres of their first voxels (nnU-Net's rule, and
PyTorch's align_corners=False). Interpolation here is separable, so that each axis is one sparse matrix.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, sparse

from inference_service.core.threads import ALONE, Threads

Shape = tuple[int, int, int]
Kind = Literal["nearest", "linear", "area", "cubic"]
Kinds = tuple[Kind, Kind, Kind]
Spacing = tuple[float, float, float]
Mapping = Callable[[NDArray[np.float32]], None]

# Bounds the memory of resizing: planes of the result that are made at a time.
_PLANES_AT_A_TIME = 8
# Spacings come from float32 headers: their noise must not decide which way a half voxel is rounded.
_RATIO_DIGITS = 4
# Samples on either side that a cubic spline is taken to depend on. Their weights fall by 3.7 from one to the next, and
# those too small for float32 are left out.
_SPLINE_REACH = 24
_LEAST_WEIGHT = 1e-8


def resized_shape(shape: Shape, spacing_mm: Spacing, target_mm: Spacing) -> Shape:
    """Voxels of the grid that covers the same extent at another spacing, the nearest whole number on each axis.

    >>> resized_shape((512, 512, 300), (0.7, 0.7, 1.0), (1.5, 1.5, 1.5))
    (239, 239, 200)
    """
    i, j, k = (
        max(1, round(round(size * spacing / target, _RATIO_DIGITS)))
        for size, spacing, target in zip(shape, spacing_mm, target_mm, strict=True)
    )
    return i, j, k


def axis_kinds(source_mm: Spacing, target_mm: Spacing, kind: Kind, separate_axis_above: float | None) -> Kinds:
    """Kind of interpolation along each axis: nearest along the axis of thick slices where the model asks for it.

    As nnU-Net's determine_do_sep_z_and_axis: the grid that is left decides, or else the one that is gone to, and where
    two axes are equally thick none is taken apart.

    Args:
        source_mm: Spacing of the grid that is resampled.
        target_mm: Spacing that it gets.
        kind: What the other axes get.
        separate_axis_above: The ratio of the largest to the smallest spacing above which the largest one's axis is
            taken apart (nnU-Net's separate z, 3 there); None: never.

    >>> axis_kinds((0.7, 0.7, 5.0), (1.0, 1.0, 1.0), "cubic", 3)
    ('cubic', 'cubic', 'nearest')
    """
    kinds = [kind, kind, kind]
    for spacing in (source_mm, target_mm):
        if separate_axis_above is not None and max(spacing) > separate_axis_above * min(spacing):
            if spacing.count(max(spacing)) == 1:
                kinds[spacing.index(max(spacing))] = "nearest"
            break
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


def axis_matrix(size_in: int, size_out: int, kind: Kind) -> sparse.csr_array[np.float32]:
    """The linear operator that resamples one axis; between equal grids the identity, as every kind interpolates.

    Beyond the outermost centres the edge value holds. The cubic kind is the interpolating spline of order 3, as in
    nnU-Net's resampling of images, which takes some 27 samples. The area kind is the mean of all that a sample of a
    coarser axis covers, and linear on a finer one (OpenCV's INTER_AREA).

    Returns:
        Shape (size_out, size_in); its rows sum to 1.

    >>> axis_matrix(2, 4, "linear").toarray().tolist()
    [[1.0, 0.0], [0.75, 0.25], [0.25, 0.75], [0.0, 1.0]]
    >>> axis_matrix(4, 2, "area").toarray().tolist()
    [[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]]
    """
    if kind == "cubic" and size_in != size_out:
        return _spline_matrix(size_in, size_out)
    if kind == "area" and size_in > size_out:
        return _area_matrix(size_in, size_out)
    taps = axis_taps(size_in, size_out, "nearest" if size_in == size_out else kind)
    columns, weights = (np.concatenate(parts) for parts in zip(*taps.pairs, strict=True))
    rows = np.tile(np.arange(size_out), 2)
    return _without_dust(sparse.csr_array((weights, (rows, columns)), shape=(size_out, size_in)))


def _spline_matrix(size_in: int, size_out: int) -> sparse.csr_array[np.float32]:
    """What SciPy makes of unit vectors, many at a time: so far apart that each sample sees the nearest only."""
    centres = _centres(size_in, size_out)
    lowest = np.floor(centres).astype(np.intp) - _SPLINE_REACH
    dense = np.zeros((2 * _SPLINE_REACH, size_out))
    columns = np.empty(dense.shape, dtype=np.intp)
    for first in range(len(dense)):
        comb = np.zeros(size_in)
        comb[first :: len(dense)] = 1
        columns[first] = lowest + (first - lowest) % len(dense)
        ndimage.map_coordinates(comb, centres[np.newaxis], dense[first], order=3, mode="nearest")
    rows, inside = np.broadcast_to(np.arange(size_out), dense.shape), (columns >= 0) & (columns < size_in)
    values = dense[inside].astype(np.float32), (rows[inside], columns[inside])
    return _without_dust(sparse.csr_array(values, shape=(size_out, size_in)))


def _area_matrix(size_in: int, size_out: int) -> sparse.csr_array[np.float32]:
    """The share of each sample of the finer axis in each of the coarser one."""
    # In units of 1 / size_out samples of the finer axis, so that edges are whole numbers.
    starts = np.arange(size_out)[:, np.newaxis] * size_in
    columns = starts // size_out + np.arange(-(-size_in // size_out) + 1)
    covered = np.minimum(starts + size_in, (columns + 1) * size_out) - np.maximum(starts, columns * size_out)
    rows, inside = np.broadcast_to(np.arange(size_out)[:, np.newaxis], columns.shape), covered > 0
    weights = (covered[inside] / size_in).astype(np.float32)
    return sparse.csr_array((weights, (rows[inside], columns[inside])), shape=(size_out, size_in))


def _without_dust(matrix: sparse.csr_array[np.float32]) -> sparse.csr_array[np.float32]:
    matrix.data[np.abs(matrix.data) < _LEAST_WEIGHT] = 0
    matrix.eliminate_zeros()
    return matrix


def resize(
    image: NDArray[np.generic],
    shape: Shape,
    kinds: Kinds,
    *,
    before: Mapping | None = None,
    threads: Threads = ALONE,
) -> NDArray[np.float32]:
    """Resamples an image to a grid of the same extent.

    Where a cubic spline overshoots, the result is cut to the range of the image's values, or of each slice's where one
    axis is not cubic, as scikit-image does for nnU-Net.

    Goes along the axis that is slowest in memory, so that a scan is read once and in the order it lies. Besides the
    result, each thread holds one plane of the scan in float32 and, already resampled within themselves, those planes
    that `_PLANES_AT_A_TIME` of the result are made of: at most 16 if linear, 39 if cubic from 300 to 200.

    Args:
        image: Shape (i, j, k), any real dtype; a view will do.
        shape: Voxels of the target grid.
        kinds: Interpolation along each axis.
        before: Applied to the image's values first, plane by plane.
        threads: Share the work, and the result is the same for any number of them. Let BLAS use one thread meanwhile.

    Returns:
        A new array of shape `shape`, whose axes lie in memory in the order of the image's.
    """
    slowest_first = sorted(range(3), key=lambda axis: -abs(image.strides[axis]))
    across, *along = (axis_matrix(image.shape[axis], shape[axis], kinds[axis]) for axis in slowest_first)
    used = np.unique(across.indices)
    planes = image.transpose(slowest_first)
    resized = np.empty([shape[axis] for axis in slowest_first], dtype=np.float32)
    bands = [across[start : start + _PLANES_AT_A_TIME, used] for start in range(0, len(resized), _PLANES_AT_A_TIME)]
    # The widest of all, so that whatever bands a thread gets, it adds up in the same order.
    width = max(int(np.ptp(band.indices)) for band in bands) + 1
    limits = _Limits([image.shape[axis] for axis in slowest_first], [kinds[axis] for axis in slowest_first])

    def taken(index: int) -> NDArray[np.float32]:
        plane = np.array(planes[index], dtype=np.float32, order="C")
        if before is not None:
            before(plane)
        limits.see(index, plane)
        return _resize_plane(plane, *along)

    def work(part: slice) -> None:
        first = part.start * _PLANES_AT_A_TIME
        _blend_planes(map(taken, used[bands[part.start].indices.min() :]), bands[part], width, resized[first:])

    threads.each_slice(len(bands), work)
    if image.shape != shape:
        limits.clip(resized)
    return resized.transpose(np.argsort(slowest_first))


def _blend_planes(
    planes: Iterator[NDArray[np.float32]],
    bands: Sequence[sparse.csr_array[np.float32]],
    width: int,
    blended: NDArray[np.float32],
) -> None:
    """Writes the planes that some adjoining bands of a matrix make.

    Args:
        planes: From the first that the first band needs on; taken when they are needed.
        bands: Rows of the matrix, a few planes of the result each.
        width: The most neighbouring planes that a band needs.
        blended: Written from its first plane on.
    """
    # Plane n lies in row n % width, which no band needs any longer. Rows not yet filled count with weight 0.
    ring = np.zeros((width, blended[0].size), dtype=np.float32)
    taken = int(bands[0].indices.min())
    for band in bands:
        for index in range(taken, band.indices.max() + 1):
            ring[index % width] = next(planes).reshape(-1)
            taken = index + 1
        needed = np.unique(band.indices)
        weights = np.zeros((band.shape[0], width), dtype=np.float32)
        weights[:, needed % width] = band.toarray()[:, needed]
        np.matmul(weights, ring, out=blended[: len(weights)].reshape(len(weights), -1))
        blended = blended[len(weights) :]


def _resize_plane(
    plane: NDArray[np.float32], along_h: sparse.csr_array[np.float32], along_w: sparse.csr_array[np.float32]
) -> NDArray[np.float32]:
    """Resamples a plane (h, w) along its two axes; an axis whose size stays is not touched."""
    if along_h.shape[0] != along_h.shape[1]:
        plane = along_h @ plane
    if along_w.shape[0] != along_w.shape[1]:
        plane = (along_w @ plane.T).T
    return plane


class _Limits:
    """The range of an image's values, as they are seen plane by plane, for cubic splines to be cut to.

    Args:
        shape: The image's, its planes along the first axis.
        kinds: Interpolation along each axis. Along one that is not cubic, each slice has a range of its own.
    """

    def __init__(self, shape: Sequence[int], kinds: Sequence[Kind]) -> None:
        self._needed = "cubic" in kinds
        self._apart = [axis for axis, kind in enumerate(kinds) if kind != "cubic" and self._needed]
        self._across = tuple({1, 2} - set(self._apart))
        self._kinds = kinds
        # Of each plane, and of each slice within it where those are apart.
        within = [size if axis in self._apart else 1 for axis, size in enumerate(shape)]
        self._low = np.full((shape[0], *within[1:]), np.inf, dtype=np.float32)
        self._high = -self._low

    def see(self, index: int, plane: NDArray[np.float32]) -> None:
        """Takes a plane (h, w) into account."""
        if self._needed:
            axes = tuple(axis - 1 for axis in self._across)
            self._low[index] = plane.min(axis=axes, keepdims=True)
            self._high[index] = plane.max(axis=axes, keepdims=True)

    def clip(self, resized: NDArray[np.float32]) -> None:
        """Cuts the resampled image to the range, in place."""
        if not self._needed:
            return
        low, high = self._low, self._high
        for axis, kind in enumerate(self._kinds):
            if axis in self._apart:
                taps = axis_taps(low.shape[axis], resized.shape[axis], kind)
                low = np.minimum(low.take(taps.first, axis), low.take(taps.second, axis))
                high = np.maximum(high.take(taps.first, axis), high.take(taps.second, axis))
            else:
                low, high = low.min(axis, keepdims=True), high.max(axis, keepdims=True)
        np.clip(resized, low, high, out=resized)
