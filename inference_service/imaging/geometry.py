"""The geometry of a volume: where its voxels lie in the patient, and how its axes map to those of a model.

World frame: RAS+ millimetres (x towards the patient's right, y anterior, z superior), as in NIfTI. Arrays are indexed
(i, j, k) in the axis order of the file, and an affine maps the index of a voxel's centre to the world. An orientation
such as "LPS" gives the direction in which each array axis runs.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import permutations
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

AXIS_CODES = {"L": 0, "R": 0, "P": 1, "A": 1, "I": 2, "S": 2}
"""World axis of each orientation letter."""
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])
"""From LPS+, the world frame of DICOM, NRRD and MetaImage, to RAS+; its own inverse."""

# Letters of the negative and the positive direction of each world axis.
_LETTERS = ("LR", "PA", "IS")

Affine: TypeAlias = NDArray[np.float64]
Shape: TypeAlias = tuple[int, int, int]
Spacing: TypeAlias = tuple[float, float, float]
Box: TypeAlias = tuple[slice, slice, slice]
Sides: TypeAlias = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
"""The first index of a box along each axis, and the index after its last one; the box may exceed its grid."""
Voxel = TypeVar("Voxel", bound=np.generic)
Value = TypeVar("Value")


@dataclass(frozen=True)
class Volume:
    """A scalar 3-D image and its place in the world.

    Attributes:
        voxels: Shape (i, j, k), any real dtype, in the unit of the modality (HU for CT).
        affine: Shape (4, 4): voxel index to RAS+ mm.
    """

    voxels: NDArray[np.generic]
    affine: Affine

    @property
    def shape(self) -> Shape:
        """Number of voxels along each array axis."""
        i, j, k = self.voxels.shape
        return i, j, k

    @property
    def spacing_mm(self) -> Spacing:
        """Distance between neighbouring voxels along each array axis."""
        return spacing_mm(self.affine)

    @property
    def orientation(self) -> str:
        """Direction in which each array axis runs."""
        return orientation(self.affine)

    @property
    def voxel_volume_ml(self) -> float:
        """Volume of one voxel, with shear taken into account."""
        return voxel_volume_ml(self.affine)

    def cropped(self, box: Box) -> "Volume":
        """A view of the part within a box, at its own place in the world."""
        affine = self.affine.copy()
        affine[:3, 3] += affine[:3, :3] @ [side.start for side in box]
        return Volume(self.voxels[box], affine)


@dataclass(frozen=True)
class Reorientation:
    """A change of the order and direction of axes, which moves no data.

    Attributes:
        axes: For each target axis, the index of its source axis.
        flipped: For each target axis, whether it runs against its source axis.
    """

    axes: tuple[int, int, int]
    flipped: tuple[bool, bool, bool]

    def apply(self, array: NDArray[Voxel]) -> NDArray[Voxel]:
        """A view of an array (i, j, k) along the target's axes; writing to the view writes to the array."""
        i, j, k = (slice(None, None, -1 if flip else None) for flip in self.flipped)
        return array.transpose(self.axes)[i, j, k]

    def source_box(self, target: Box, shape: Shape) -> Box:
        """Returns the box along the source's axes from one along the target's.

        Args:
            target: A box within the reoriented array.
            shape: Shape of the source.
        """
        sides = [(0, 0)] * 3
        for axis, flipped, side in zip(self.axes, self.flipped, target, strict=True):
            size = shape[axis]
            sides[axis] = (size - side.stop, size - side.start) if flipped else (side.start, side.stop)
        return box(sides)

    def apply_triple(self, values: tuple[Value, Value, Value]) -> tuple[Value, Value, Value]:
        """Reorders values that belong to the axes, such as a shape or a spacing."""
        i, j, k = self.axes
        return values[i], values[j], values[k]


def box(sides: Iterable[tuple[int, int]]) -> Box:
    """A box within an array, from the first index along each axis and the index after the last.

    >>> box([(1, 3), (0, 2), (4, 5)])
    (slice(1, 3, None), slice(0, 2, None), slice(4, 5, None))
    """
    i, j, k = (slice(start, stop) for start, stop in sides)
    return i, j, k


def spacing_mm(affine: Affine) -> Spacing:
    """Distance between neighbouring voxels along each array axis: the lengths of the affine's columns.

    >>> spacing_mm(np.diag([-2.0, 0.5, 3.0, 1.0]))
    (2.0, 0.5, 3.0)
    """
    i, j, k = np.linalg.norm(affine[:3, :3], axis=0).tolist()
    return i, j, k


def voxel_volume_ml(affine: Affine) -> float:
    """Volume of one voxel in millilitres, by the determinant, which takes shear into account.

    >>> round(voxel_volume_ml(np.diag([-2.0, 0.5, 3.0, 1.0])), 9)
    0.003
    """
    return float(abs(np.linalg.det(affine[:3, :3])) / 1000)


def orientation(affine: Affine) -> str:
    """Direction in which each array axis runs; for an oblique grid, that of the nearest world axis.

    Each world axis is assigned once: of the six assignments, the one with the largest sum of absolute direction cosines
    is taken.

    >>> orientation(np.diag([-2.0, 0.5, 3.0, 1.0]))
    'LAS'
    """
    cosines = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    world_axes = max(permutations(range(3)), key=lambda axes: sum(abs(cosines[axes[i], i]) for i in range(3)))
    return "".join(_LETTERS[axis][int(cosines[axis, i] > 0)] for i, axis in enumerate(world_axes))


def reorientation(source: str, target: str) -> Reorientation:
    """The reorientation of arrays from one orientation to another.

    >>> reorientation("LPS", "SAL")
    Reorientation(axes=(2, 1, 0), flipped=(False, True, False))
    """
    source_axes = [AXIS_CODES[code] for code in source]
    i, j, k = (source_axes.index(AXIS_CODES[code]) for code in target)
    fi, fj, fk = (source[axis] != code for axis, code in zip((i, j, k), target, strict=True))
    return Reorientation((i, j, k), (fi, fj, fk))
