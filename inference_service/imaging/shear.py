"""Grids whose axes are not at right angles: their shear, and how to align their planes. Pure numerics."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from inference_service.imaging.geometry import AXIS_CODES, Affine, Shape, Volume, orientation
from inference_service.imaging.slice_alignment import AlignedVolume, align_slices

# Deviation from right angles that is taken for rounding in the header.
_MAX_ROUNDING_DEGREES = 0.05


@dataclass(frozen=True)
class Shear:
    """The shear of a grid.

    Attributes:
        degrees: Largest deviation from a right angle between two axes.
        axes: The grid's axes (i, j, k) such that i and j are at right angles and k runs across their planes; None
            where no two axes are at right angles.
        shift_px: Shift of each plane against the plane before it, along i and along j, in pixels.
    """

    degrees: float
    axes: Shape | None
    shift_px: tuple[float, float] = (0.0, 0.0)


def find_shear(affine: Affine) -> Shear | None:
    """Finds the shear of a grid; None where its axes are at right angles.

    Where several choices of planes are possible, planes stacked along the patient's long axis are preferred, as a
    tilted CT gantry produces them.

    >>> affine = np.eye(4)
    >>> affine[:3, :3] = np.transpose([(2, 0, 0), (0, 3, 0), (0, 1.5, 4)])
    >>> shear = find_shear(affine)
    >>> round(shear.degrees, 2), shear.axes, [round(px, 6) for px in shear.shift_px]
    (20.56, (0, 1, 2), [0.0, 0.5])
    """
    spacings = np.linalg.norm(affine[:3, :3], axis=0)
    cosines = (affine[:3, :3] / spacings).T @ (affine[:3, :3] / spacings)
    off_degrees = np.degrees(np.arcsin(np.clip(np.abs(np.triu(cosines, 1)), 0, 1)))
    if off_degrees.max() <= _MAX_ROUNDING_DEGREES:
        return None
    world_axes = [AXIS_CODES[code] for code in orientation(affine)]
    for k in sorted(range(3), key=lambda axis: -world_axes[axis]):
        i, j = (axis for axis in range(3) if axis != k)
        if off_degrees[i, j] <= _MAX_ROUNDING_DEGREES:
            shift = cosines[k, [i, j]] * spacings[k] / spacings[[i, j]]
            return Shear(float(off_degrees.max()), (i, j, k), (float(shift[0]), float(shift[1])))
    return Shear(float(off_degrees.max()), None)


def align_sheared(volume: Volume, shear: Shear, *, background: float) -> AlignedVolume:
    """Aligns the planes of a sheared volume.

    Args:
        volume: The scan.
        shear: The shear of the volume's grid; `axes` must be set.
        background: The value of voxels beside the planes.
    """
    axes = shear.axes
    if axes is None:
        raise ValueError("expected a grid with two axes at right angles, got a shear without `axes`")
    affine = volume.affine.copy()
    affine[:3, :3] = affine[:3, axes]
    planes = Volume(volume.voxels.transpose(axes), affine)
    return replace(align_slices(planes, shifts_px(shear, planes.shape[2]), background=background), axes=axes)


def shifts_px(shear: Shear, planes: int) -> NDArray[np.float64]:
    """Shift of each plane of a sheared grid against the first one, along i and j, in pixels; shape (planes, 2).

    >>> shifts_px(Shear(20.6, (0, 1, 2), (0.0, 0.5)), 3).tolist()
    [[0.0, 0.0], [0.0, 0.5], [0.0, 1.0]]
    """
    return np.outer(np.arange(planes), shear.shift_px)
