"""Bringing slices that are tilted or unevenly spaced onto a straight, even grid, and labels back. Pure numerics.

Slices keep their planes and pixels: a tilted one is moved within its plane by whole pixels, so that no value is
interpolated and each label goes back to the very pixel that it was decided for.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inference_service.imaging.geometry import Volume

Axes = tuple[int, int, int]


@dataclass(frozen=True)
class Straightened:
    """A tilted scan whose slices were moved in line.

    Attributes:
        volume: At right angles; wider than the scan, with background beside the slices.
        starts: Shape (slices, 2): where in it the first pixel of each slice lies, along a row and along a column.
        axes: Which of the scan's axes each of the volume's is, that across the slices last.
    """

    volume: Volume
    starts: NDArray[np.intp]
    axes: Axes = (0, 1, 2)

    def labels_of_slices(
        self, mask: NDArray[np.unsignedinteger], shape: tuple[int, int, int]
    ) -> NDArray[np.unsignedinteger]:
        """Takes labels back to the slices.

        Args:
            mask: On the grid of `volume`.
            shape: Of the scan.
        """
        i, j, k = (shape[axis] for axis in self.axes)
        return _taken(mask, (i, j, k), range(len(self.starts)), self.starts).transpose(np.argsort(self.axes))


@dataclass(frozen=True)
class Evened:
    """A scan of slices at uneven distances, interpolated to even ones.

    Attributes:
        volume: Of even slices; wider than the scan's where these were moved in line first.
        nearest: Shape (slices,): which even slice is nearest to each one.
        starts: Shape (slices, 2): where in `volume` the first pixel of each slice lies, along a row and along a column.
    """

    volume: Volume
    nearest: NDArray[np.intp]
    starts: NDArray[np.intp]

    def labels_of_slices(self, mask: NDArray[np.unsignedinteger], size: tuple[int, int]) -> NDArray[np.unsignedinteger]:
        """Takes labels back to the slices: each gets those of the even slice that is nearest.

        Args:
            mask: On the grid of `volume`.
            size: Columns and rows of a slice.

        Returns:
            Shape (columns, rows, slices).
        """
        return _taken(mask, (*size, len(self.nearest)), self.nearest, self.starts)


def _taken(
    mask: NDArray[np.unsignedinteger], shape: tuple[int, int, int], planes: Iterable[int], starts: NDArray[np.intp]
) -> NDArray[np.unsignedinteger]:
    taken = np.empty(shape, dtype=mask.dtype, order="F")
    for k, (plane, (i, j)) in enumerate(zip(planes, starts, strict=True)):
        taken[:, :, k] = mask[i : i + shape[0], j : j + shape[1], plane]
    return taken


def straight_shape(shape: tuple[int, int, int], drift_px: NDArray[np.float64]) -> tuple[int, int, int]:
    """The grid that holds all slices when they are moved in line.

    >>> straight_shape((512, 512, 3), np.array([[0.0, 0.0], [0.0, -20.3], [0.0, -40.6]]))
    (512, 553, 3)
    """
    i, j = _starts(drift_px)[1].tolist()
    return shape[0] + i, shape[1] + j, shape[2]


def straighten(volume: Volume, drift_px: NDArray[np.float64], *, background: float) -> Straightened:
    """Moves slices in line.

    Args:
        volume: The scan, its third axis across the slices; of its affine, that axis is made a right angle.
        drift_px: Shape (slices, 2): how far along each of the other two axes a slice lies from where it would be then.
        background: What lies beside the slices.
    """
    starts, _ = _starts(drift_px)
    voxels = np.full(straight_shape(volume.shape, drift_px), background, dtype=volume.voxels.dtype, order="F")
    for k, (i, j) in enumerate(starts):
        voxels[i : i + volume.shape[0], j : j + volume.shape[1], k] = volume.voxels[:, :, k]
    affine = volume.affine.copy()
    normal = np.cross(affine[:3, 0], affine[:3, 1])
    normal /= np.linalg.norm(normal)
    affine[:3, 2] = normal * (normal @ affine[:3, 2])
    # The first slice stays where it is.
    affine[:3, 3] -= affine[:3, :2] @ starts[0]
    return Straightened(Volume(voxels, affine), starts)


def _starts(drift_px: NDArray[np.float64]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Where slices begin, from 0 on along each axis, and where the last of them does."""
    moved = np.rint(drift_px).astype(np.intp)
    starts = moved - moved.min(axis=0)
    return starts, starts.max(axis=0)


def even_count(heights_mm: NDArray[np.float64], spacing_mm: float) -> int:
    """How many even slices it takes from the first to the last one, nearest to a spacing.

    >>> even_count(np.array([0.0, 2.0, 6.1]), 2.0)
    4
    """
    return max(2, round(float(heights_mm[-1]) / spacing_mm) + 1)


def nearest_planes(heights_mm: NDArray[np.float64], count: int) -> NDArray[np.intp]:
    """Which of so many even slices, from the first to the last, is nearest to each slice; of two, the lower one.

    >>> nearest_planes(np.array([0.0, 2.0, 6.1, 8.0]), 5).tolist()
    [0, 1, 3, 4]
    """
    places = heights_mm * ((count - 1) / heights_mm[-1])
    nearest: NDArray[np.intp] = np.ceil(places - 0.5).astype(np.intp)
    return nearest


def even_out(volume: Volume, heights_mm: NDArray[np.float64], spacing_mm: float, *, starts: NDArray[np.intp]) -> Evened:
    """Interpolates linearly between slices at uneven distances.

    Args:
        volume: The scan, its third axis across the slices and at right angles to them.
        heights_mm: Shape (slices,), ascending from 0: where they lie.
        spacing_mm: What the even spacing is to be nearest to; the first and the last slice stay where they are.
        starts: Shape (slices, 2): where in the volume the first pixel of each slice lies.

    Returns:
        With a volume of the same dtype, integers rounded.
    """
    count = even_count(heights_mm, spacing_mm)
    planes_mm = np.linspace(0, heights_mm[-1], count)
    voxels = np.empty((*volume.shape[:2], count), dtype=volume.voxels.dtype, order="F")
    after = np.clip(np.searchsorted(heights_mm, planes_mm), 1, len(heights_mm) - 1)
    weights = (planes_mm - heights_mm[after - 1]) / (heights_mm[after] - heights_mm[after - 1])
    for k, (index, weight) in enumerate(zip(after, weights, strict=True)):
        plane = volume.voxels[:, :, index - 1].astype(np.float32) * np.float32(1 - weight)
        plane += volume.voxels[:, :, index].astype(np.float32) * np.float32(weight)
        voxels[:, :, k] = np.rint(plane) if np.issubdtype(voxels.dtype, np.integer) else plane
    affine = volume.affine.copy()
    affine[:3, 2] *= planes_mm[1] / np.linalg.norm(affine[:3, 2])
    return Evened(Volume(voxels, affine), nearest_planes(heights_mm, count), starts)
