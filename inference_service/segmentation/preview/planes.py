"""Which planes of a scan a preview shows, and how they lie on a screen: radiological convention. Pure numerics.

Whatever the order of a scan's axes, it is seen along those of `DISPLAY_AXES`: the same patient gives the same picture.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inference_service.imaging.geometry import Affine, Reorientation, Volume, Voxel, reorientation

# Columns run to the patient's left, rows to the back or to the feet.
DISPLAY_AXES = "LPI"
_LETTERS = ("RL", "AP", "HF")

# A plane through the middle shows at least this share of what the fullest plane does.
_LEAST_SHARE = 0.5
# Headers in float32 are less right-angled than this: 0.06°.
_LEAST_LEAN = 1e-3


@dataclass(frozen=True)
class View:
    """How planes across one axis are shown; axes are those of `DISPLAY_AXES`.

    Attributes:
        name: For people.
        across: The axis at right angles to the planes.
        right: The axis that runs to the right of the screen.
        down: The axis that runs down.
    """

    name: str
    across: int
    right: int
    down: int

    @property
    def sides(self) -> str:
        """What lies at the left, the right, the top and the bottom of the screen."""
        return _LETTERS[self.right] + _LETTERS[self.down]


AXIAL, CORONAL, SAGITTAL = View("axial", 2, 0, 1), View("coronal", 1, 0, 2), View("sagittal", 0, 1, 2)
VIEWS = (AXIAL, CORONAL, SAGITTAL)


@dataclass(frozen=True)
class PlaneExtractor:
    """Cuts planes out of a scan and its mask.

    Attributes:
        turned: From the scan's own axes to `DISPLAY_AXES`.
        steps_mm: Shape (3, 3): each column goes from one voxel to the next along an axis of `DISPLAY_AXES`, RAS+.
        affine: From the scan's own voxels to RAS+ mm.
        shape: Voxels along the scan's own axes.
    """

    turned: Reorientation
    steps_mm: NDArray[np.float64]
    affine: Affine
    shape: tuple[int, int, int]

    @classmethod
    def of(cls, volume: Volume) -> "PlaneExtractor":
        """The extractor of a scan."""
        turned = reorientation(volume.orientation, DISPLAY_AXES)
        signs = np.where(turned.flipped, -1, 1)
        return cls(turned, volume.affine[:3, list(turned.axes)] * signs, volume.affine, volume.shape)

    @property
    def tilt_degrees(self) -> float:
        """The largest angle between an axis that is seen and the axis of the world that it stands for."""
        cosines = np.abs(np.diag(self.steps_mm)) / np.linalg.norm(self.steps_mm, axis=0)
        return float(np.degrees(np.arccos(np.min(np.minimum(cosines, 1)))))

    def profile(self, profiles: Sequence[NDArray[np.int64]], view: View) -> NDArray[np.int64]:
        """What lies in each plane of a view, from the same for the planes across each of the scan's own axes."""
        own = profiles[self.turned.axes[view.across]]
        return own[::-1] if self.turned.flipped[view.across] else own

    def size_mm(self, view: View) -> tuple[float, float]:
        """Width and height of a view's planes, before they lean."""
        shape = self.turned.apply_triple(self.shape)
        right, down = self.steps_mm[:, view.right], self.steps_mm[:, view.down]
        height = np.linalg.norm(np.cross(right, down)) / np.linalg.norm(right)
        return float(shape[view.right] * np.linalg.norm(right)), float(shape[view.down] * height)

    def lean(self, view: View) -> float:
        """How far a view's planes lean to the right: millimetres for each one down, 0 unless the grid is sheared."""
        right, down = self.steps_mm[:, view.right], self.steps_mm[:, view.down]
        lean = float(right @ down / np.linalg.norm(np.cross(right, down)))
        return lean if abs(lean) > _LEAST_LEAN else 0.0

    def plane(self, array: NDArray[Voxel], view: View, index: int) -> NDArray[Voxel]:
        """Views one plane, its rows from top to bottom, of an array on the scan's grid."""
        planes = np.moveaxis(self.turned.apply(array), (view.across, view.down, view.right), (0, 1, 2))
        plane: NDArray[Voxel] = planes[index]
        return plane

    def position(self, view: View, index: int) -> str:
        """Where the middle of a plane lies in the world, for example "F 187.5 mm"."""
        own = self.turned.axes[view.across]
        middle = (np.array(self.shape) - 1) / 2
        middle[own] = self.shape[own] - 1 - index if self.turned.flipped[view.across] else index
        mm = round(float((self.affine[:3, :3] @ middle + self.affine[:3, 3])[view.across]), 1)
        return f"{_LETTERS[view.across][mm < 0]} {abs(mm)} mm"


def middle_plane(profile: NDArray[np.int64]) -> int:
    """The plane nearest to the centre of mass that shows at least half of what the fullest plane does.

    Args:
        profile: The voxels of interest in each plane; where there are none, the middle of all planes is taken.

    >>> middle_plane(np.array([0, 5, 9, 4, 0, 0, 0, 8, 6]))
    2
    """
    if not profile.any():
        return (len(profile) - 1) // 2
    centre = np.average(np.arange(len(profile)), weights=profile)
    full = np.flatnonzero(profile >= _LEAST_SHARE * profile.max())
    return int(full[np.abs(full - centre).argmin()])


def evenly_spaced_planes(profile: NDArray[np.int64], count: int) -> list[int]:
    """So many planes or fewer, evenly over where something of interest is, or over all.

    >>> evenly_spaced_planes(np.array([0, 1, 1, 1, 1, 0, 1, 0]), 3), evenly_spaced_planes(np.array([0, 0, 1, 0]), 3)
    ([2, 4, 6], [1, 2, 3])
    """
    held = np.flatnonzero(profile)
    first, last = (int(held[0]), int(held[-1])) if held.size else (0, len(profile) - 1)
    # Of few planes, some around them are shown too.
    spare = max(0, min(count, len(profile)) - (last - first + 1))
    first = min(max(0, first - spare // 2), len(profile) - min(count, len(profile)))
    size = max(last - first + 1, min(count, len(profile)))
    count = min(count, size)
    return [first + (2 * place + 1) * size // (2 * count) for place in range(count)]
