"""A synthetic chest CT made of ellipses: an input for the demo and the tests that contains no patient data.

Nothing in it was measured on a person. `formats.nifti` writes the volume to a file.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from inference_service.imaging.geometry import Volume

PADDING_HU = -3024
NOISE_HU = 18.0

# The anatomy is drawn for this extent around its centre, with the axes of the voxels: x to the left, y to the back,
# z to the head. It is stretched to any other extent.
_EXTENT_MM = (410.0, 410.0, 300.0)
_FIELD_OF_VIEW_MM = 204.0

# CT numbers in HU.
_AIR = -1000.0
_TABLE_FOAM = -920.0
_TABLE_SHELL = -350.0
_FAT = -100.0
_CORD = 30.0
_BLOOD = 42.0
_SPLEEN = 50.0
_MUSCLE = 55.0
_LIVER = 60.0
_DISC = 80.0
_CARTILAGE = 110.0
_MARROW = 240.0
_CORTEX = 850.0
# Lung is denser towards the back, as in a patient who lies on the back.
_LUNG_AT_CENTRE = -858.0
_LUNG_PER_MM = 0.35
_MAX_LUNG_HU = -600.0

# Standard deviation of white noise of 1 after smoothing by [1 2 1] / 4 along two axes.
_NOISE_AFTER_SMOOTHING = 0.375

_SKIN_MM = 2.0
_FAT_MM = 17.0
_RIB_MM = 9.0
_CORTEX_MM = 2.5
_BACK_MM = 100.0
_CAGE_BACK_MM = 78.0
_CAGE_TOP_MM = 132.0
_RIB_PITCH_MM = 26.0
_RIB_SLOPE = 0.5
_RIB_SHARE = 0.45
_VERTEBRA_PITCH_MM = 27.0

Plane: TypeAlias = NDArray[np.float32]
Mask: TypeAlias = NDArray[np.bool_]
Point: TypeAlias = tuple[float, float, float]


class _Oval(NamedTuple):
    """An ellipse in a plane: centre and half axes in mm."""

    x: float
    y: float
    rx: float
    ry: float

    def grown(self, by_mm: float) -> "_Oval":
        return _Oval(self.x, self.y, max(self.rx + by_mm, 1e-3), max(self.ry + by_mm, 1e-3))


class _Ellipsoid(NamedTuple):
    hu: float
    centre: Point
    radii: Point


class _Tube(NamedTuple):
    hu: float
    x: float
    y: float
    radius: float
    z_from: float
    z_to: float


class _Chain(NamedTuple):
    """Balls along a line that form a vessel, a bronchus or a clavicle; rows of `balls` are x, y, z and radius in mm."""

    hu: float
    balls: Plane


# In painting order: the domes of the diaphragm and the organs below them, then the heart.
_ORGANS = (
    _Ellipsoid(_MUSCLE, (68, -2, -140), (75, 84, 85)),
    _Ellipsoid(_FAT, (68, -2, -140), (72, 81, 82)),
    _Ellipsoid(_SPLEEN, (88, 38, -125), (28, 32, 45)),
    _Ellipsoid(_MUSCLE, (58, -22, -128), (40, 38, 40)),
    _Ellipsoid(_CORD, (58, -22, -128), (36, 34, 36)),
    _Ellipsoid(_AIR, (58, -40, -120), (24, 13, 20)),
    _Ellipsoid(_LIVER, (-62, -8, -135), (92, 88, 95)),
    _Ellipsoid(_LIVER, (8, -40, -130), (45, 42, 42)),
    _Ellipsoid(_FAT, (26, -30, -28), (60, 49, 53)),
    _Ellipsoid(_MUSCLE, (26, -30, -28), (55, 45, 49)),
    _Ellipsoid(_BLOOD, (36, -28, -32), (34, 28, 32)),
    _Ellipsoid(_BLOOD, (-18, -22, -25), (28, 30, 38)),
)
_GREAT_VESSELS = (
    _Tube(_BLOOD, -8, -18, 15, 0, 50),
    _Tube(_BLOOD, 30, 28, 12, -150, 50),
    _Tube(_BLOOD, -28, -14, 9, 0, 75),
    _Tube(_BLOOD, 18, -28, 14, 0, 28),
    _Tube(_BLOOD, -22, -4, 6, 75, 150),
    _Tube(_BLOOD, 22, -2, 6, 60, 150),
    _Tube(_MUSCLE, 5, 24, 7, -150, 150),
)
_TRACHEA = (_Tube(_MUSCLE, -2, 6, 11, 6, 150), _Tube(_AIR, -2, 6, 9, 6, 150))


@dataclass(frozen=True)
class _Slice:
    """One plane of the volume while it is painted.

    Attributes:
        hu: Shape (i, j).
        x: Shape (i, 1), mm to the left.
        y: Shape (1, j), mm to the back.
        z: Millimetres to the head.
    """

    hu: Plane
    x: Plane
    y: Plane
    z: float

    def box(self, oval: _Oval) -> "_Slice":
        """Returns the part around an oval as a view, so that the cost of painting depends on the oval's size."""
        i = slice(*np.searchsorted(self.x[:, 0], (oval.x - oval.rx, oval.x + oval.rx)))
        j = slice(*np.searchsorted(self.y[0], (oval.y - oval.ry, oval.y + oval.ry)))
        return _Slice(self.hu[i, j], self.x[i], self.y[:, j], self.z)

    def inside(self, oval: _Oval) -> Mask:
        across = ((self.x - np.float32(oval.x)) / np.float32(oval.rx)) ** 2
        return across + ((self.y - np.float32(oval.y)) / np.float32(oval.ry)) ** 2 < 1

    def paint(self, oval: _Oval, hu: float, *, below_hu: float = np.inf) -> None:
        """Fills an oval where the plane is less dense than `below_hu`."""
        part = self.box(oval)
        part.hu[part.inside(oval) & (part.hu < below_hu)] = hu

    def paint_bone(self, oval: _Oval) -> None:
        self.paint(oval, _CORTEX)
        self.paint(oval.grown(-_CORTEX_MM), _MARROW)

    def paint_ellipsoid(self, ellipsoid: _Ellipsoid) -> None:
        x, y, z = ellipsoid.centre
        rx, ry, rz = ellipsoid.radii
        share = _section(self.z - z, rz)
        if share:
            self.paint(_Oval(x, y, rx * share, ry * share), ellipsoid.hu)

    def paint_tube(self, tube: _Tube) -> None:
        if tube.z_from <= self.z <= tube.z_to:
            self.paint(_Oval(tube.x, tube.y, tube.radius, tube.radius), tube.hu)

    def paint_chain(self, chain: _Chain, *, below_hu: float = np.inf) -> None:
        for x, y, z, radius in chain.balls[np.abs(chain.balls[:, 2] - self.z) < chain.balls[:, 3]].tolist():
            cut = radius * _section(self.z - z, radius)
            self.paint(_Oval(x, y, cut, cut), chain.hu, below_hu=below_hu)


def chest_phantom(
    shape: tuple[int, int, int] = (512, 512, 120),
    spacing_mm: tuple[float, float, float] = (0.8, 0.8, 2.5),
    *,
    seed: int = 0,
) -> Volume:
    """Paints a chest CT without contrast agent: lungs, heart, liver, bones, the scanner's table, noise and padding.

    The heart is on the patient's left, the higher dome of the diaphragm on the right, the spine at the back. The
    anatomy always fills the whole extent. Memory use is the volume and a few planes.

    Args:
        shape: Voxels along (i, j, k); the axes run to the left, the back and the head (LPS).
        spacing_mm: Voxel size along (i, j, k).
        seed: Seed of the lung vessels and the noise; the same seed gives the same voxels.

    Returns:
        The volume in int16 HU; `PADDING_HU` outside the round field of view.
    """
    rng = np.random.default_rng(seed)
    vessels = list(_lung_vessels(rng))
    voxels = np.empty(shape, np.int16)
    x_mm, y_mm, z_mm = (_centres(count, extent) for count, extent in zip(shape, _EXTENT_MM, strict=True))
    x = x_mm[:, np.newaxis]
    y = y_mm[np.newaxis]
    room = _empty_room(x, y)
    outside = x**2 + y**2 > _FIELD_OF_VIEW_MM**2
    for k, z in enumerate(z_mm.tolist()):
        plane = _Slice(np.full(shape[:2], _FAT, np.float32), x, y, z)
        _paint_patient(plane, room, vessels)
        noise = rng.standard_normal(shape[:2], np.float32) * np.float32(NOISE_HU / _NOISE_AFTER_SMOOTHING)
        hu = np.rint(_smoothed(plane.hu + noise))
        hu[outside] = PADDING_HU
        voxels[:, :, k] = hu
    return Volume(voxels, _affine(shape, spacing_mm))


def _affine(shape: tuple[int, int, int], spacing_mm: tuple[float, float, float]) -> NDArray[np.float64]:
    # Like most patients, this one does not lie exactly in the scanner's centre.
    centre_mm = (4.0, -13.0, -187.0)
    affine = np.diag([-spacing_mm[0], -spacing_mm[1], spacing_mm[2], 1.0])
    affine[:3, 3] = centre_mm - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def _centres(count: int, extent_mm: float) -> Plane:
    return ((np.arange(count) + 0.5) / count * extent_mm - extent_mm / 2).astype(np.float32)


def _section(distance_mm: float, radius_mm: float) -> float:
    """Radius of a ball's section at a distance from its centre, as a share of its own: 0.8 at 3 of 5 mm, 0 outside."""
    return float(max(1 - (distance_mm / radius_mm) ** 2, 0) ** 0.5)


def _smoothed(plane: Plane) -> Plane:
    """Smooths by [1 2 1] / 4 along both axes.

    This stands for the scanner's point spread: it gives edges partial volume, and noise its grain.
    """
    padded = np.pad(plane, 1, mode="edge")
    across = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    smoothed: Plane = (across[:, :-2] + 2 * across[:, 1:-1] + across[:, 2:]) / 16
    return smoothed


def _empty_room(x: Plane, y: Plane) -> Plane:
    """Air and the scanner's curved table, the same in every plane."""
    room = np.full((x.shape[0], y.shape[1]), _AIR, np.float32)
    depth = y - (_BACK_MM + 3 - x**2 / 1200)
    room[(depth > 0) & (depth < 18)] = _TABLE_SHELL
    room[(depth > 3) & (depth < 15)] = _TABLE_FOAM
    return room


def _paint_patient(plane: _Slice, room: Plane, vessels: list[_Chain]) -> None:
    """Paints from the inside out; the body's wall overwrites organs that reach too far."""
    _paint_lungs(plane, vessels)
    for organ in _ORGANS:
        plane.paint_ellipsoid(organ)
    _paint_wall(plane, room)
    _paint_ribs(plane)
    _paint_shoulders(plane)
    plane.paint(_Oval(0, 74, 34, 17), _MUSCLE)
    for tube in _GREAT_VESSELS:
        plane.paint_tube(tube)
    plane.paint_chain(_AORTIC_ARCH)
    for airway in _BRONCHI:
        plane.paint_chain(airway)
    for tube in _TRACHEA:
        plane.paint_tube(tube)
    _paint_spine(plane)


def _body(z: float) -> _Oval:
    knots = (-150, 60, 105, 150)
    width = np.interp(z, knots, (158, 165, 182, 150))
    depth = np.interp(z, knots, (112, 109, 92, 68))
    return _Oval(0, _BACK_MM - depth, float(width), float(depth))


def _cage(z: float) -> _Oval:
    """The outer surface of the rib cage; the chest cavity begins `_RIB_MM` further in."""
    knots = (-150, -60, 40, 110, 140)
    width = np.interp(z, knots, (128, 133, 122, 80, 45))
    depth = np.interp(z, knots, (87, 88, 83, 57, 35))
    return _Oval(0, _CAGE_BACK_MM - depth, float(width), float(depth))


def _paint_lungs(plane: _Slice, vessels: list[_Chain]) -> None:
    cavity = _cage(plane.z).grown(-_RIB_MM - 2)
    taper = _section(max(plane.z - 60, 0), 65)
    if not taper:
        return
    pleura = _Oval(0, cavity.y + 8 * (1 - taper), cavity.rx * taper, cavity.ry * taper)
    mediastinum = _Oval(0, -8, float(np.interp(plane.z, (-150, -20, 40, 120), (44, 42, 34, 26))), 96)
    part = plane.box(pleura)
    lungs = part.inside(pleura) & ~part.inside(mediastinum)
    np.copyto(part.hu, _LUNG_AT_CENTRE + _LUNG_PER_MM * part.y, where=lungs)
    for vessel in vessels:
        plane.paint_chain(vessel, below_hu=_MAX_LUNG_HU)


def _paint_wall(plane: _Slice, room: Plane) -> None:
    """Paints muscle, fat and skin around the chest cavity, and the room around the patient."""
    body = _body(plane.z)
    cage = _cage(plane.z)
    muscle = plane.inside(body.grown(-_FAT_MM))
    if plane.z < _CAGE_TOP_MM:
        muscle &= ~plane.inside(cage.grown(-_RIB_MM))
    plane.hu[muscle] = _MUSCLE
    beneath_skin = plane.inside(body.grown(-_SKIN_MM))
    plane.hu[beneath_skin & ~plane.inside(body.grown(-_FAT_MM))] = _FAT
    within = plane.inside(body)
    plane.hu[within & ~beneath_skin] = _MUSCLE
    np.copyto(plane.hu, room, where=~within)


def _paint_ribs(plane: _Slice) -> None:
    """Paints ribs and sternum.

    Ribs slope down to the front, so a plane cuts several of them. Their front ends are cartilage.
    """
    if plane.z > _CAGE_TOP_MM:
        return
    cage = _cage(plane.z)
    part = plane.box(cage)
    phase = (part.z + _RIB_SLOPE * (_CAGE_BACK_MM - part.y)) / _RIB_PITCH_MM % 1
    ribs = part.inside(cage) & ~part.inside(cage.grown(-_RIB_MM)) & (phase < _RIB_SHARE)
    core = part.inside(cage.grown(-_CORTEX_MM)) & ~part.inside(cage.grown(_CORTEX_MM - _RIB_MM))
    edge = _CORTEX_MM / _RIB_PITCH_MM
    core &= (phase > edge) & (phase < _RIB_SHARE - edge)
    part.hu[ribs] = _CORTEX
    part.hu[ribs & core] = _MARROW
    part.hu[ribs & (np.abs(part.x) < 70) & (part.y < cage.y - 0.6 * cage.ry)] = _CARTILAGE
    if -60 < plane.z < 85:
        plane.paint_bone(_Oval(0, cage.y - cage.ry + 4, 26 if plane.z > 50 else 17, 7))


def _paint_shoulders(plane: _Slice) -> None:
    for side in (-1, 1):
        if 10 < plane.z < 118:
            for step in np.linspace(-1, 1, 9):
                plane.paint(_Oval(side * (96 + 30 * step), 55 - 17 * step, 11, 11), _MUSCLE)
            for step in np.linspace(-1, 1, 25):
                plane.paint(_Oval(side * (96 + 28 * step), 55 - 16 * step, 3.5, 3.5), _CORTEX)
        plane.paint_ellipsoid(_Ellipsoid(_CORTEX, (side * 120, 12, 130), (21, 21, 24)))
        plane.paint_ellipsoid(_Ellipsoid(_MARROW, (side * 120, 12, 130), (18, 18, 21)))
    for clavicle in _CLAVICLES:
        plane.paint_chain(clavicle)


def _paint_spine(plane: _Slice) -> None:
    y = 47 - 14 * (plane.z / 150) ** 2
    phase = plane.z / _VERTEBRA_PITCH_MM % 1
    vertebra = _Oval(0, y, 18, 15)
    if phase < 0.22:
        plane.paint(vertebra, _DISC)
    elif phase < 0.3 or phase > 0.92:
        plane.paint(vertebra, _CORTEX)
    else:
        plane.paint_bone(vertebra)
    if phase > 0.3:
        plane.paint(_Oval(0, y + 23, 14, 13), _CORTEX)
    if 0.35 < phase < 0.65:
        for side in (-1, 1):
            plane.paint_bone(_Oval(side * 24, y + 25, 17, 5))
    if 0.5 < phase < 0.9:
        plane.paint_bone(_Oval(0, y + 36, 4, 10))
    plane.paint(_Oval(0, y + 23, 9, 8), _CORD)


def _chain(hu: float, points: list[Point], radii: tuple[float, float]) -> _Chain:
    """Places overlapping balls along a polyline, which form a tube; its radius changes from the first to the second."""
    legs = [(start, end, np.hypot.reduce(np.subtract(end, start)) / 1.5) for start, end in pairwise(points)]
    path = np.concatenate([np.linspace(start, end, max(int(steps), 2)) for start, end, steps in legs])
    return _Chain(hu, np.column_stack([path, np.linspace(*radii, len(path))]).astype(np.float32))


def _lung_vessels(rng: np.random.Generator) -> Iterator[_Chain]:
    """Yields vessels that fan out from both hila and become thinner on the way."""
    for side in (-1, 1):
        hilum = np.array([side * 34, 4, -8])
        for _ in range(48):
            towards = rng.normal(size=3) * (0.8, 1, 1.2) + (side * 1.1, 0, 0)
            end = hilum + towards / np.hypot.reduce(towards) * rng.uniform(70, 115)
            bend = (hilum + end) / 2 + rng.normal(size=3) * 7
            points: list[Point] = [(float(x), float(y), float(z)) for x, y, z in (hilum, bend, end)]
            yield _chain(_BLOOD, points, (rng.uniform(3.5, 6), 1.0))


_AORTIC_ARCH = _chain(_BLOOD, [(-8, -18, 48), (4, -2, 62), (18, 14, 62), (30, 28, 48)], (14, 12))
_BRONCHI = tuple(
    _chain(hu, [(-2, 6, 8), end], (8 + wall_mm, 5.5 + wall_mm))
    for hu, wall_mm in ((_MUSCLE, 1.5), (_AIR, 0.0))
    for end in ((-44, 16, -20), (44, 14, -10))
)
_CLAVICLES = tuple(
    _chain(_CORTEX / 2, [(side * 16, -40, 92), (side * 60, -46, 108), (side * 118, -18, 128)], (7, 6))
    for side in (-1, 1)
)
