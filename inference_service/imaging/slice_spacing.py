"""Interpolating unevenly spaced slices to even spacing, and taking a mask back to the slices. Pure numerics."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inference_service.imaging.geometry import Volume
from inference_service.imaging.slice_alignment import cut_slices


@dataclass(frozen=True)
class EvenlySpacedVolume:
    """A scan with uneven slice spacing, interpolated to even spacing.

    Attributes:
        volume: The interpolated planes; wider than the scan's slices where these were aligned first.
        nearest: Shape (slices,): index of the plane of `volume` that is nearest to each slice.
        origins: Shape (slices, 2): index (i, j) in `volume` of the first pixel of each slice.
        slice_shape: Size (i, j) of a slice.
    """

    volume: Volume
    nearest: NDArray[np.intp]
    origins: NDArray[np.intp]
    slice_shape: tuple[int, int]

    def restore_mask(self, mask: NDArray[np.unsignedinteger]) -> NDArray[np.unsignedinteger]:
        """Takes a mask on the grid of `volume` back to the slices: each gets the labels of the nearest plane.

        Returns:
            Shape (columns, rows, slices).
        """
        return cut_slices(mask, self.slice_shape, self.nearest, self.origins)


def even_plane_count(heights_mm: NDArray[np.float64], spacing_mm: float) -> int:
    """Number of evenly spaced planes from the first slice to the last whose spacing is nearest to `spacing_mm`.

    >>> even_plane_count(np.array([0.0, 2.0, 6.1]), 2.0)
    4
    """
    return max(2, round(float(heights_mm[-1]) / spacing_mm) + 1)


def nearest_even_planes(heights_mm: NDArray[np.float64], count: int) -> NDArray[np.intp]:
    """Index of the nearest of `count` even planes for each slice; the lower one of two that are equally near.

    >>> nearest_even_planes(np.array([0.0, 2.0, 6.1, 8.0]), 5).tolist()
    [0, 1, 3, 4]
    """
    positions = heights_mm * ((count - 1) / heights_mm[-1])
    nearest: NDArray[np.intp] = np.ceil(positions - 0.5).astype(np.intp)
    return nearest


def space_evenly(
    volume: Volume,
    heights_mm: NDArray[np.float64],
    spacing_mm: float,
    *,
    origins: NDArray[np.intp],
    slice_shape: tuple[int, int],
) -> EvenlySpacedVolume:
    """Interpolates linearly between slices; integers are rounded, and the dtype stays.

    Args:
        volume: The scan; its third axis runs across the slices, at right angles to them.
        heights_mm: Shape (slices,): distance of each slice's plane from that of the first, ascending from 0.
        spacing_mm: The wanted spacing. The first and the last slice stay where they are, so that the result's may
            differ slightly.
        origins: Shape (slices, 2): index (i, j) in the volume of the first pixel of each slice.
        slice_shape: Size (i, j) of a slice.
    """
    count = even_plane_count(heights_mm, spacing_mm)
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
    return EvenlySpacedVolume(Volume(voxels, affine), nearest_even_planes(heights_mm, count), origins, slice_shape)
