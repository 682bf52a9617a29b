"""The geometry of a volume: where its voxels lie in the patient, and how its axes map to a model's.

World frame: RAS+ millimetres (x to the patient's right, y to the front, z to the head), as in NIfTI. Arrays are indexed
(i, j, k) in the file's own axis order, and an affine maps the index of a voxel's centre to the world. An orientation
such as "LPS" says towards where each array axis runs. Files are left to `nifti`, changing resolution to `resample`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import permutations
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

# World axis of each orientation letter, and the letters for the negative and positive direction of each world axis.
AXIS_CODES = {"L": 0, "R": 0, "P": 1, "A": 1, "I": 2, "S": 2}
_LETTERS = ("LR", "PA", "IS")

Affine: TypeAlias = NDArray[np.float64]
Shape: TypeAlias = tuple[int, int, int]
Spacing: TypeAlias = tuple[float, float, float]
Box: TypeAlias = tuple[slice, slice, slice]
Voxel = TypeVar("Voxel", bound=np.generic)
Value = TypeVar("Value")


@dataclass(frozen=True)
class Volume:
    """One scalar 3-D image and its place in the world.

    Attributes:
        voxels: Shape (i, j, k), any real dtype, in the unit of the modality (HU for CT).
        affine: Shape (4, 4), voxel index to RAS+ mm.
    """

    voxels: NDArray[np.generic]
    affine: Affine

    @property
    def shape(self) -> Shape:
        """Voxels along each array axis."""
        i, j, k = self.voxels.shape
        return i, j, k

    @property
    def spacing_mm(self) -> Spacing:
        """Distance of neighbouring voxels along each array axis."""
        return spacing_mm(self.affine)

    @property
    def orientation(self) -> str:
        """Towards where each array axis runs."""
        return orientation(self.affine)

    @property
    def voxel_volume_ml(self) -> float:
        """Volume of one voxel; the determinant, so that shear is counted right."""
        return voxel_volume_ml(self.affine)

    def cropped(self, kept: Box) -> "Volume":
        """Views a part of the volume, at its own place in the world."""
        affine = self.affine.copy()
        affine[:3, 3] += affine[:3, :3] @ [side.start for side in kept]
        return Volume(self.voxels[kept], affine)


@dataclass(frozen=True)
class Reorientation:
    """A change of axis order and direction that moves no data: `apply` gives a view.

    Attributes:
        axes: For each target axis, the source axis that it is.
        flipped: For each target axis, whether it runs against the source axis.
    """

    axes: tuple[int, int, int]
    flipped: tuple[bool, bool, bool]

    def apply(self, array: NDArray[Voxel]) -> NDArray[Voxel]:
        """Views an array (i, j, k) along the target's axes; writing to the view writes to the array."""
        i, j, k = (slice(None, None, -1 if flip else None) for flip in self.flipped)
        return array.transpose(self.axes)[i, j, k]

    def apply_triple(self, values: tuple[Value, Value, Value]) -> tuple[Value, Value, Value]:
        """Reorders what belongs to the axes, such as a shape or a spacing."""
        i, j, k = self.axes
        return values[i], values[j], values[k]


def box(sides: Iterable[tuple[int, int]]) -> Box:
    """A part of an array, from the first index and the one after the last along each axis.

    >>> box([(1, 3), (0, 2), (4, 5)])
    (slice(1, 3, None), slice(0, 2, None), slice(4, 5, None))
    """
    i, j, k = (slice(start, stop) for start, stop in sides)
    return i, j, k


def spacing_mm(affine: Affine) -> Spacing:
    """Distance of neighbouring voxels along each array axis: the lengths of the affine's columns.

    >>> spacing_mm(np.diag([-2.0, 0.5, 3.0, 1.0]))
    (2.0, 0.5, 3.0)
    """
    i, j, k = np.linalg.norm(affine[:3, :3], axis=0).tolist()
    return i, j, k


def voxel_volume_ml(affine: Affine) -> float:
    """Volume of one voxel, in millilitres.

    >>> round(voxel_volume_ml(np.diag([-2.0, 0.5, 3.0, 1.0])), 9)
    0.003
    """
    return float(abs(np.linalg.det(affine[:3, :3])) / 1000)


def orientation(affine: Affine) -> str:
    """Towards where each array axis runs, the nearest world axis for an oblique grid.

    Each world axis is given once: of the six assignments, the one with the largest sum of absolute direction cosines.

    >>> orientation(np.diag([-2.0, 0.5, 3.0, 1.0]))
    'LAS'
    """
    cosines = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    world_axes = max(permutations(range(3)), key=lambda axes: sum(abs(cosines[axes[i], i]) for i in range(3)))
    return "".join(_LETTERS[axis][int(cosines[axis, i] > 0)] for i, axis in enumerate(world_axes))


def reorientation(source: str, target: str) -> Reorientation:
    """How arrays of one orientation are viewed in another.

    >>> reorientation("LPS", "SAL")
    Reorientation(axes=(2, 1, 0), flipped=(False, True, False))
    """
    source_axes = [AXIS_CODES[code] for code in source]
    i, j, k = (source_axes.index(AXIS_CODES[code]) for code in target)
    fi, fj, fk = (source[axis] != code for axis, code in zip((i, j, k), target, strict=True))
    return Reorientation((i, j, k), (fi, fj, fk))
