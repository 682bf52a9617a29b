"""Synthetic scans with known labels: ellipsoids in patient space, drawn on any grid.

No phantom is symmetric, and each differs along each axis, so that swapped and reversed axes change the labels.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

Triple: TypeAlias = tuple[float, float, float]
Intensities: TypeAlias = NDArray[np.float32]
Labels: TypeAlias = NDArray[np.uint8]
Affine: TypeAlias = NDArray[np.float64]

# The unit vector of each letter in RAS+.
_DIRECTIONS = {
    "R": (1, 0, 0),
    "L": (-1, 0, 0),
    "A": (0, 1, 0),
    "P": (0, -1, 0),
    "S": (0, 0, 1),
    "I": (0, 0, -1),
}
# The blur of a scanner, in voxels.
_BLUR = 0.6


@dataclass(frozen=True)
class Grid:
    """Where the voxels of a scan lie.

    Attributes:
        shape: Number of voxels along each axis of the file.
        spacing_mm: Distance of voxels along each axis of the file.
        order: The direction in which each axis of the file grows: `RAS`, `LPS` or any other.
        tilt_degrees: Rotation of the grid about the patient's x, y and z axis, which makes its affine oblique.
    """

    shape: tuple[int, int, int]
    spacing_mm: Triple
    order: str = "LPS"
    tilt_degrees: Triple = (0, 0, 0)

    @property
    def affine(self) -> Affine:
        """Voxel indices to millimetres in RAS+; the middle of the grid is the origin."""
        directions = np.array([_DIRECTIONS[letter] for letter in self.order], float).T
        tilt = Rotation.from_euler("xyz", self.tilt_degrees, degrees=True).as_matrix()
        affine = np.eye(4)
        affine[:3, :3] = tilt @ directions @ np.diag(self.spacing_mm)
        affine[:3, 3] = -affine[:3, :3] @ ((np.array(self.shape) - 1) / 2)
        return affine

    def points_mm(self) -> NDArray[np.float64]:
        """Position of each voxel, shape (3, *shape)."""
        indices = np.indices(self.shape).reshape(3, -1)
        affine = self.affine
        return (affine[:3, :3] @ indices + affine[:3, 3:]).reshape(3, *self.shape)


@dataclass(frozen=True)
class Ellipsoid:
    """A part of a phantom. It covers the parts before it.

    Attributes:
        values: Intensity in each channel.
        label: Its value in the truth; 0 for tissue that no network is to find.
        turn_degrees: Rotation about the z axis.
    """

    centre_mm: Triple
    radii_mm: Triple
    values: tuple[float, ...]
    label: int = 0
    turn_degrees: float = 0

    def covers(self, points_mm: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which points are inside."""
        turn = Rotation.from_euler("z", -self.turn_degrees, degrees=True).as_matrix()
        relative = np.tensordot(turn, points_mm - np.reshape(self.centre_mm, (3, 1, 1, 1)), 1)
        return np.asarray(np.sum((relative / np.reshape(self.radii_mm, (3, 1, 1, 1))) ** 2, axis=0) <= 1)


@dataclass(frozen=True)
class Phantom:
    """A patient.

    Attributes:
        outside: Intensity around the patient in each channel.
        noise: Standard deviation in each channel.
        masked: Whether all outside the first part is exactly 0, as in a head without its skull.
    """

    parts: Sequence[Ellipsoid]
    outside: tuple[float, ...]
    noise: tuple[float, ...]
    masked: bool = False


def draw(phantom: Phantom, grid: Grid, seed: int) -> tuple[list[Intensities], Labels]:
    """Draws one array for each channel, and the labels."""
    rng = np.random.default_rng(seed)
    points_mm = grid.points_mm()
    channels = [np.full(grid.shape, value, np.float32) for value in phantom.outside]
    labels = np.zeros(grid.shape, np.uint8)
    for part in phantom.parts:
        inside = part.covers(points_mm)
        labels[inside] = part.label
        for channel, value in zip(channels, part.values, strict=True):
            channel[inside] = value
    drawn = []
    for channel, noise in zip(channels, phantom.noise, strict=True):
        scanned = gaussian_filter(channel, _BLUR) + noise * rng.standard_normal(grid.shape)
        if phantom.masked:
            scanned[(channel == 0) | ~phantom.parts[0].covers(points_mm)] = 0
        drawn.append(scanned.astype(np.float32))
    return drawn, labels


Draw: TypeAlias = Callable[[int], Phantom]


def abdomen(seed: int) -> Phantom:
    """CT: liver 1, kidney 2, vertebra 3; vessels and bowel look like the kidney and are no label."""
    vary = _variation(seed)
    parts = [
        Ellipsoid(vary((0, 0, 0), 2), vary((52, 40, 62), 2), (-90,)),
        Ellipsoid(vary((0, 1, 0), 1), vary((47, 35, 70), 2), (45,)),
        Ellipsoid(vary((20, 6, 12), 3), vary((21, 20, 24), 3), (105,), label=1, turn_degrees=25),
        Ellipsoid(vary((24, 12, 14), 3), vary((3, 3, 16), 1), (190,)),
        Ellipsoid(vary((-24, -8, -8), 3), vary((10, 9, 16), 2), (210,), label=2, turn_degrees=-30),
        Ellipsoid(vary((-14, 18, 14), 4), vary((6, 5, 7), 2), (160,)),
        Ellipsoid(vary((-8, 20, -26), 4), vary((5, 5, 5), 2), (-700,)),
        Ellipsoid(vary((2, -22, 0), 2), vary((11, 9, 70), 1), (320,), label=3),
        Ellipsoid(vary((2, -31, 0), 2), vary((5, 3, 70), 1), (40,)),
    ]
    return Phantom(parts, outside=(-1000,), noise=(28,))


def head(seed: int) -> Phantom:
    """MR of two channels, 0 outside the brain: oedema 2, in it the enhancing tumour 3, in that necrosis 1."""
    vary = _variation(seed)
    x, y, z = vary((18, 10, 10), 7)
    parts = [
        Ellipsoid(vary((0, 0, 0), 2), vary((46, 56, 42), 3), (420, 300)),
        Ellipsoid(vary((0, 0, 0), 2), vary((36, 46, 33), 2), (620, 240)),
        # A hole of the non-zero region, and a place where one channel alone is 0.
        Ellipsoid(vary((-9, -4, 4), 2), vary((6, 15, 8), 1), (0, 0)),
        Ellipsoid(vary((-22, -38, 3), 2), vary((9, 14, 9), 1), (0, 210)),
        Ellipsoid((x, y, z), vary((16, 19, 14), 3), (480, 620), label=2, turn_degrees=35),
        Ellipsoid((x + 2, y - 1, z - 1), vary((10, 11, 8), 2), (980, 520), label=3, turn_degrees=35),
        Ellipsoid((x + 3, y - 2, z), vary((5, 5, 4), 1), (330, 560), label=1),
    ]
    return Phantom(parts, outside=(0, 0), noise=(60, 50), masked=True)


def pelvis(seed: int) -> Phantom:
    """MR of one channel: gland 1 with a nodule 2; muscle on one side has the nodule's intensity."""
    vary = _variation(seed)
    parts = [
        Ellipsoid(vary((0, 0, 0), 1), vary((60, 50, 60), 3), (260,)),
        Ellipsoid(vary((-22, -14, 0), 3), vary((8, 12, 40), 2), (140,)),
        Ellipsoid(vary((6, 4, 2), 4), vary((21, 17, 25), 3), (520,), label=1, turn_degrees=15),
        Ellipsoid(vary((11, 6, 4), 3), vary((10, 8, 14), 2), (150,), label=2),
        Ellipsoid(vary((4, -24, 0), 3), vary((9, 6, 45), 2), (480,)),
    ]
    return Phantom(parts, outside=(15,), noise=(45,))


def _variation(seed: int) -> Callable[[Triple, float], Triple]:
    """A function that moves three numbers at random by up to a limit."""
    rng = np.random.default_rng([seed, 1])

    def vary(values: Triple, by: float) -> Triple:
        x, y, z = np.asarray(values, float) + rng.uniform(-by, by, 3)
        return float(x), float(y), float(z)

    return vary


def varied(grid: Grid, seeds: Sequence[int]) -> Iterator[tuple[int, Grid]]:
    """Each seed with a grid whose shape and spacing differ a little from the one given."""
    for seed in seeds:
        rng = np.random.default_rng([seed, 2])
        x, y, z = (int(size * rng.uniform(0.94, 1.06)) for size in grid.shape)
        spacing_mm = tuple(float(round(mm * rng.uniform(0.95, 1.05), 3)) for mm in grid.spacing_mm)
        yield seed, Grid((x, y, z), (spacing_mm[0], spacing_mm[1], spacing_mm[2]), grid.order)
