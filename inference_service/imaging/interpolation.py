"""Interpolation along one axis of an image, as the weights of its samples. Pure numerics.

The two grids cover the same extent, so that their outer edges coincide (nnU-Net; PyTorch with align_corners=False). Or
the centres of their first samples coincide, and a step is given (MONAI's Spacing). Or the centres of their first and of
their last samples coincide (SciPy's zoom; PyTorch with align_corners=True).
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, sparse

from inference_service.imaging.geometry import Spacing

Interpolation = Literal["nearest", "linear", "area", "quadratic", "cubic"]
Interpolations = tuple[Interpolation, Interpolation, Interpolation]
Step = float | Literal["centres"] | None
"""How the samples of an axis lie on another one: source samples between two resampled ones, where the centres of the
first samples coincide; "centres" where those of the first and of the last samples do; None where the outer edges do."""
Steps = tuple[Step, Step, Step]

EQUAL_EXTENTS: Steps = (None, None, None)
"""The steps of grids whose outer edges coincide."""
EQUAL_CENTRES: Steps = ("centres", "centres", "centres")
"""The steps of grids whose first and last centres coincide."""
SPLINE_ORDERS: dict[Interpolation, Literal[2, 3]] = {"quadratic": 2, "cubic": 3}
"""Order of each spline that may overshoot."""

# Samples on either side of a position that contribute to a cubic spline there. Their weights fall by a factor of 3.7
# from one to the next (quadratic: 5.8), and those too small for float32 are dropped.
_SPLINE_REACH = 24
_MIN_WEIGHT = 1e-8
# Positions this close to a sample are on it: rounding of the step moved them. Bounds their float32 weights.
_ON_SAMPLE = 1e-6


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


def axis_taps(size_in: int, size_out: int, interpolation: Interpolation, step: Step = None) -> Taps:
    """The source samples of nearest or linear interpolation along one axis.

    Beyond the centres of the outermost source samples, the edge value holds.

    Args:
        size_in: Number of source samples.
        size_out: Number of resampled ones.
        interpolation: "nearest" or "linear".
        step: How the samples lie on each other.

    >>> taps = axis_taps(2, 4, "linear")
    >>> taps.first.tolist(), taps.second.tolist(), taps.weight.tolist()
    ([0, 0, 0, 1], [0, 1, 1, 1], [0.0, 0.25, 0.75, 0.0])
    >>> taps = axis_taps(3, 4, "linear", step=0.75)
    >>> taps.first.tolist(), taps.second.tolist(), taps.weight.tolist()
    ([0, 0, 1, 2], [0, 1, 2, 2], [0.0, 0.75, 0.5, 0.0])
    >>> taps = axis_taps(2, 3, "linear", "centres")
    >>> taps.first.tolist(), taps.second.tolist(), taps.weight.tolist()
    ([0, 0, 1], [0, 1, 1], [0.0, 0.5, 0.0])
    """
    if interpolation == "nearest":
        positions = _centres(size_in, size_out, step)
        # Of two equally near samples, SciPy's order 0 picks the second one, and PyTorch's grid_sample the even one.
        # Computed in floats, as SciPy does, so that rounding picks the same one.
        nearest = np.rint(positions) if isinstance(step, float) else np.floor(positions + 0.5)
        first = np.clip(nearest.astype(np.intp), 0, size_in - 1)
        return Taps(first, first, np.zeros(size_out, dtype=np.float32))
    if isinstance(step, float):
        return _taps_at(np.clip(_centres(size_in, size_out, step), 0, size_in - 1))
    # Integers, in units of 1 / unit voxels: weights of exactly 0 stay 0.
    if step == "centres":
        unit = max(1, size_out - 1)
        units = np.arange(size_out) * (size_in - 1)
    else:
        unit = 2 * size_out
        units = np.arange(1, unit, 2) * size_in - size_out
    first, rest = np.divmod(np.clip(units, 0, unit * (size_in - 1)), unit)
    return Taps(first, first + (rest > 0), (rest / unit).astype(np.float32))


def _taps_at(positions: NDArray[np.float64]) -> Taps:
    """The samples of linear interpolation at positions within the source."""
    samples = np.rint(positions)
    positions = np.where(np.abs(positions - samples) < _ON_SAMPLE, samples, positions)
    first = np.floor(positions)
    weight = (positions - first).astype(np.float32)
    return Taps(first.astype(np.intp), first.astype(np.intp) + (weight > 0), weight)


def _centres(size_in: int, size_out: int, step: Step) -> NDArray[np.float64]:
    """Positions of the resampled centres, in source samples; shape (size_out,)."""
    if step == "centres":
        step = (size_in - 1) / max(1, size_out - 1)
    if step is not None:
        return np.asarray(np.arange(size_out) * step)
    return np.asarray((np.arange(size_out) + 0.5) * (size_in / size_out) - 0.5)


def keeps_axis(size_in: int, size_out: int, step: Step) -> bool:
    """Returns True if an axis stays as it is."""
    return size_in == size_out and step in (None, "centres", 1.0)


def axis_matrix(
    size_in: int, size_out: int, interpolation: Interpolation, step: Step = None
) -> sparse.csr_array[np.float32]:
    """The linear operator that resamples one axis; the identity between equal grids.

    Beyond the centres of the outermost source samples, the edge value holds. Quadratic and cubic are the interpolating
    splines of order 2 and 3, as in nnU-Net's resampling of images; each sample of a cubic one depends on about 27
    source samples. Area is the mean over the extent of a coarser sample, and linear on a finer grid (OpenCV's
    INTER_AREA).

    Args:
        size_in: Number of source samples.
        size_out: Number of resampled ones.
        interpolation: The interpolation; "area" needs equal extents.
        step: How the samples lie on each other.

    Returns:
        Shape (size_out, size_in); each row sums to 1.

    >>> axis_matrix(2, 4, "linear").toarray().tolist()
    [[1.0, 0.0], [0.75, 0.25], [0.25, 0.75], [0.0, 1.0]]
    >>> axis_matrix(4, 2, "area").toarray().tolist()
    [[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]]
    """
    if keeps_axis(size_in, size_out, step):
        return sparse.eye_array(size_in, dtype=np.float32, format="csr")
    if interpolation in SPLINE_ORDERS:
        return _spline_matrix(size_in, _centres(size_in, size_out, step), SPLINE_ORDERS[interpolation])
    if interpolation == "area" and size_in > size_out:
        return _area_matrix(size_in, size_out)
    taps = axis_taps(size_in, size_out, interpolation, step)
    columns, weights = (np.concatenate(parts) for parts in zip(*taps.pairs, strict=True))
    rows = np.tile(np.arange(size_out), 2)
    return _drop_tiny(sparse.csr_array((weights, (rows, columns)), shape=(size_out, size_in)))


def _spline_matrix(size_in: int, centres: NDArray[np.float64], order: Literal[2, 3]) -> sparse.csr_array[np.float32]:
    """Obtains the weights by resampling unit impulses with SciPy.

    One array holds many impulses, far enough apart that each resampled value depends on the nearest one alone.
    """
    lowest = np.floor(centres).astype(np.intp) - _SPLINE_REACH
    dense = np.zeros((2 * _SPLINE_REACH, len(centres)))
    columns = np.empty(dense.shape, dtype=np.intp)
    for first in range(len(dense)):
        comb = np.zeros(size_in)
        comb[first :: len(dense)] = 1
        columns[first] = lowest + (first - lowest) % len(dense)
        ndimage.map_coordinates(comb, centres[np.newaxis], dense[first], order=order, mode="nearest")
    rows = np.broadcast_to(np.arange(len(centres)), dense.shape)
    inside = (columns >= 0) & (columns < size_in)
    weights = dense[inside].astype(np.float32)
    return _drop_tiny(sparse.csr_array((weights, (rows[inside], columns[inside])), shape=(len(centres), size_in)))


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
