"""Aligning the slices of a sheared scan, as a tilted gantry makes it, and taking a mask back to them. Pure numerics.

Slices are shifted within their planes by whole pixels: no value is interpolated, and each label returns to exactly the
pixel it was decided for.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inference_service.imaging.geometry import Shape, Volume


@dataclass(frozen=True)
class AlignedVolume:
    """A sheared scan whose slices were shifted in line.

    Attributes:
        volume: With axes at right angles; wider than the scan, with background beside the slices.
        origins: Shape (slices, 2): index (i, j) in `volume` of the first pixel of each slice.
        slice_shape: Size (i, j) of a slice.
        axes: For each axis of `volume`, the index of the same axis in the scan; the last one runs across the slices.
    """

    volume: Volume
    origins: NDArray[np.intp]
    slice_shape: tuple[int, int]
    axes: Shape = (0, 1, 2)

    def restore_mask(self, mask: NDArray[np.unsignedinteger]) -> NDArray[np.unsignedinteger]:
        """Takes a mask on the grid of `volume` back to the scan's own grid."""
        planes = range(len(self.origins))
        return cut_slices(mask, self.slice_shape, planes, self.origins).transpose(np.argsort(self.axes))


def cut_slices(
    mask: NDArray[np.unsignedinteger], slice_shape: tuple[int, int], planes: Iterable[int], origins: NDArray[np.intp]
) -> NDArray[np.unsignedinteger]:
    """Cuts slices out of the planes of a mask.

    Args:
        mask: Shape (i, j, k).
        slice_shape: Size (i, j) of a slice.
        planes: Index along k of each slice's plane.
        origins: Shape (slices, 2): index (i, j) of the first pixel of each slice.

    Returns:
        Shape (*slice_shape, slices), Fortran order.
    """
    columns, rows = slice_shape
    slices = np.empty((columns, rows, len(origins)), dtype=mask.dtype, order="F")
    for k, (plane, (i, j)) in enumerate(zip(planes, origins, strict=True)):
        slices[:, :, k] = mask[i : i + columns, j : j + rows, plane]
    return slices


def aligned_shape(shape: Shape, shifts_px: NDArray[np.float64]) -> Shape:
    """Shape of the smallest grid that holds all slices once they are aligned.

    >>> aligned_shape((512, 512, 3), np.array([[0.0, 0.0], [0.0, -20.3], [0.0, -40.6]]))
    (512, 553, 3)
    """
    i, j = _origins(shifts_px).max(axis=0).tolist()
    return shape[0] + i, shape[1] + j, shape[2]


def align_slices(volume: Volume, shifts_px: NDArray[np.float64], *, background: float) -> AlignedVolume:
    """Shifts slices in line.

    The affine's third column becomes the part of it that is normal to the slices; the first slice stays where it is.

    Args:
        volume: The scan; its third axis runs across the slices.
        shifts_px: Shape (slices, 2): how far along i and j, in pixels, each slice lies from its place in a stack at
            right angles.
        background: The value of voxels beside the slices.
    """
    origins = _origins(shifts_px)
    voxels = np.full(aligned_shape(volume.shape, shifts_px), background, dtype=volume.voxels.dtype, order="F")
    for k, (i, j) in enumerate(origins):
        voxels[i : i + volume.shape[0], j : j + volume.shape[1], k] = volume.voxels[:, :, k]
    affine = volume.affine.copy()
    normal = np.cross(affine[:3, 0], affine[:3, 1])
    normal /= np.linalg.norm(normal)
    affine[:3, 2] = normal * (normal @ affine[:3, 2])
    affine[:3, 3] -= affine[:3, :2] @ origins[0]
    return AlignedVolume(Volume(voxels, affine), origins, volume.shape[:2])


def _origins(shifts_px: NDArray[np.float64]) -> NDArray[np.intp]:
    """Index (i, j) of the first pixel of each slice, from 0 along each axis."""
    shifts = np.rint(shifts_px).astype(np.intp)
    origins: NDArray[np.intp] = shifts - shifts.min(axis=0)
    return origins
