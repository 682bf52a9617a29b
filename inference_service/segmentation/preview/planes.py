"""The planes that a preview shows, cut out of the scan in radiological convention. Pure numerics.

A scan is displayed along `DISPLAY_AXES` whatever the order of its own axes, so that one patient gives one picture.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inference_service.imaging.geometry import Affine, Reorientation, Volume, Voxel, reorientation

# On the screen, columns run to the patient's left, rows to the back or to the feet.
DISPLAY_AXES = "LPI"
_LETTERS = ("RL", "AP", "HF")

# The plane through the middle contains at least this share of the labelled voxels of the fullest plane.
_MIN_SHARE = 0.5
# Smaller shears are rounding errors of float32 headers: 0.06°.
_MIN_SHEAR = 1e-3


@dataclass(frozen=True)
class View:
    """How the planes across one axis are displayed; axes are indices of `DISPLAY_AXES`.

    Attributes:
        name: Name of the view.
        across: The axis at right angles to the planes.
        right: The axis that runs to the right of the screen.
        down: The axis that runs down the screen.
    """

    name: str
    across: int
    right: int
    down: int

    @property
    def sides(self) -> str:
        """Letters of the patient's sides at the left, right, top and bottom of the screen."""
        return _LETTERS[self.right] + _LETTERS[self.down]


AXIAL = View("axial", 2, 0, 1)
CORONAL = View("coronal", 1, 0, 2)
SAGITTAL = View("sagittal", 0, 1, 2)
VIEWS = (AXIAL, CORONAL, SAGITTAL)


@dataclass(frozen=True)
class PlaneExtractor:
    """Cuts planes out of a scan and its mask.

    Attributes:
        reorientation: From the scan's own axes to `DISPLAY_AXES`.
        steps_mm: Shape (3, 3): each column is the step from one voxel to the next along an axis of `DISPLAY_AXES`, in
            RAS+ mm.
        affine: Shape (4, 4), from the scan's own voxels to RAS+ mm.
        shape: Voxels along the scan's own axes.
    """

    reorientation: Reorientation
    steps_mm: NDArray[np.float64]
    affine: Affine
    shape: tuple[int, int, int]

    @classmethod
    def of(cls, volume: Volume) -> "PlaneExtractor":
        """Returns the extractor for a scan."""
        change = reorientation(volume.orientation, DISPLAY_AXES)
        signs = np.where(change.flipped, -1, 1)
        return cls(change, volume.affine[:3, list(change.axes)] * signs, volume.affine, volume.shape)

    @property
    def tilt_degrees(self) -> float:
        """The largest angle between a displayed axis and the world axis that it is displayed as."""
        cosines = np.abs(np.diag(self.steps_mm)) / np.linalg.norm(self.steps_mm, axis=0)
        return float(np.degrees(np.arccos(np.min(np.minimum(cosines, 1)))))

    def profile(self, profiles: Sequence[NDArray[np.int64]], view: View) -> NDArray[np.int64]:
        """Takes the counts of each plane of a view from those of the planes across each of the scan's own axes."""
        own = profiles[self.reorientation.axes[view.across]]
        return own[::-1] if self.reorientation.flipped[view.across] else own

    def size_mm(self, view: View) -> tuple[float, float]:
        """Width and height of a view's planes, before they are sheared."""
        shape = self.reorientation.apply_triple(self.shape)
        right = self.steps_mm[:, view.right]
        down = self.steps_mm[:, view.down]
        height = np.linalg.norm(np.cross(right, down)) / np.linalg.norm(right)
        return float(shape[view.right] * np.linalg.norm(right)), float(shape[view.down] * height)

    def shear(self, view: View) -> float:
        """Shear of a view's planes, in millimetres to the right for each millimetre down; 0 for a right-angled grid."""
        right = self.steps_mm[:, view.right]
        down = self.steps_mm[:, view.down]
        shear = float(right @ down / np.linalg.norm(np.cross(right, down)))
        return shear if abs(shear) > _MIN_SHEAR else 0.0

    def plane(self, array: NDArray[Voxel], view: View, index: int) -> NDArray[Voxel]:
        """Returns a view of one plane of an array on the scan's grid, its rows from top to bottom."""
        planes = np.moveaxis(self.reorientation.apply(array), (view.across, view.down, view.right), (0, 1, 2))
        plane: NDArray[Voxel] = planes[index]
        return plane

    def position(self, view: View, index: int) -> str:
        """The world coordinate of the middle of a plane, for example "F 187.5 mm"."""
        own = self.reorientation.axes[view.across]
        middle = (np.array(self.shape) - 1) / 2
        middle[own] = self.shape[own] - 1 - index if self.reorientation.flipped[view.across] else index
        mm = round(float((self.affine[:3, :3] @ middle + self.affine[:3, 3])[view.across]), 1)
        return f"{_LETTERS[view.across][mm < 0]} {abs(mm)} mm"


def middle_plane(profile: NDArray[np.int64]) -> int:
    """Index of the plane nearest to the centre of mass that has at least half the voxels of the fullest plane.

    Args:
        profile: Number of labelled voxels in each plane; without any, the middle of all planes is taken.

    >>> middle_plane(np.array([0, 5, 9, 4, 0, 0, 0, 8, 6]))
    2
    """
    if not profile.any():
        return (len(profile) - 1) // 2
    centre = np.average(np.arange(len(profile)), weights=profile)
    full = np.flatnonzero(profile >= _MIN_SHARE * profile.max())
    return int(full[np.abs(full - centre).argmin()])


def evenly_spaced_planes(profile: NDArray[np.int64], count: int) -> list[int]:
    """Indices of up to `count` planes, evenly spaced over the planes with labelled voxels; without any, over all.

    >>> evenly_spaced_planes(np.array([0, 1, 1, 1, 1, 0, 1, 0]), 3), evenly_spaced_planes(np.array([0, 0, 1, 0]), 3)
    ([2, 4, 6], [1, 2, 3])
    """
    occupied = np.flatnonzero(profile)
    first, last = (int(occupied[0]), int(occupied[-1])) if occupied.size else (0, len(profile) - 1)
    # Where they are fewer than `count`, planes around them are added.
    spare = max(0, min(count, len(profile)) - (last - first + 1))
    first = min(max(0, first - spare // 2), len(profile) - min(count, len(profile)))
    size = max(last - first + 1, min(count, len(profile)))
    count = min(count, size)
    return [first + (2 * number + 1) * size // (2 * count) for number in range(count)]
