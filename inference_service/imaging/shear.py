"""Grids whose axes are not at right angles: how far they are off, and their planes moved in line. Pure numerics."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from inference_service.imaging.geometry import AXIS_CODES, Affine, Volume, orientation
from inference_service.imaging.slice_alignment import Axes, Straightened, straighten

# What a shear that is none may come to.
_LEAST_SHEAR_DEGREES = 0.05


@dataclass(frozen=True)
class Shear:
    """How far a grid's axes are off right angles.

    Attributes:
        degrees: The most that two of them are.
        axes: The grid's axes, the last one across planes whose own two axes are at right angles; None where no two are.
        drift_px: How far along each of those two a plane lies from where it would be, for each plane up.
    """

    degrees: float
    axes: Axes | None
    drift_px: tuple[float, float] = (0.0, 0.0)


def find_shear(affine: Affine) -> Shear | None:
    """The shear of a grid; None where there is none.

    Of several ways to see it, planes that are stacked from feet to head are preferred, as a tilted gantry makes them.
    """
    spacings = np.linalg.norm(affine[:3, :3], axis=0)
    cosines = (affine[:3, :3] / spacings).T @ (affine[:3, :3] / spacings)
    off_degrees = np.degrees(np.arcsin(np.clip(np.abs(np.triu(cosines, 1)), 0, 1)))
    if off_degrees.max() <= _LEAST_SHEAR_DEGREES:
        return None
    world_axes = [AXIS_CODES[code] for code in orientation(affine)]
    for k in sorted(range(3), key=lambda axis: -world_axes[axis]):
        i, j = (axis for axis in range(3) if axis != k)
        if off_degrees[i, j] <= _LEAST_SHEAR_DEGREES:
            drift = cosines[k, [i, j]] * spacings[k] / spacings[[i, j]]
            return Shear(float(off_degrees.max()), (i, j, k), (float(drift[0]), float(drift[1])))
    return Shear(float(off_degrees.max()), None)


def straighten_sheared(volume: Volume, shear: Shear, *, background: float) -> Straightened:
    """Moves the planes of a sheared volume in line.

    Args:
        volume: The scan.
        shear: Of its grid, with axes.
        background: What lies beside the planes.
    """
    axes = shear.axes
    if axes is None:
        raise ValueError("expected a grid of which two axes are at right angles")
    affine = volume.affine.copy()
    affine[:3, :3] = affine[:3, axes]
    planes = Volume(volume.voxels.transpose(axes), affine)
    return replace(straighten(planes, drifts_px(shear, planes.shape[2]), background=background), axes=axes)


def drifts_px(shear: Shear, planes: int) -> NDArray[np.float64]:
    """Shape (planes, 2): how far each plane of a sheared grid has drifted."""
    return np.outer(np.arange(planes), shear.drift_px)
