"""Simulates the scanner: pose, field of view, slices, blur, noise and padding."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from training.ct_chest.labels import BACKGROUND, BODY, BONE
from training.ct_chest.synthetic.canvas import Canvas, Field, Mask, Shape, Spacing
from training.ct_chest.synthetic.fields import between, chance, child, smooth_field

PADDINGS_HU = (-1024, -2000, -3024)

# Share of scans, range of the lower end and range of the upper end along z, mm: full chest, chest and abdomen, bases,
# apices and neck, abdomen, a slab.
_RANGES = (
    (0.46, (-270, -150), (75, 150)),
    (0.12, (-540, -330), (90, 170)),
    (0.14, (-420, -200), (-95, -30)),
    (0.14, (-60, 40), (120, 330)),
    (0.07, (-480, -400), (-200, -120)),
    (0.07, (-160, -80), (-40, 60)),
)
# The same for scans of the abdomen, most of which show the lung bases at their top.
_ABDOMINAL_RANGES = (
    (0.5, (-540, -300), (-190, -100)),
    (0.3, (-560, -400), (-150, -60)),
    (0.2, (-330, -220), (-120, -40)),
)


@dataclass(frozen=True)
class Grid:
    """Position of a scan's voxels in the patient.

    Attributes:
        shape: Number of voxels along each axis.
        spacing_mm: Size of a voxel.
        centre_mm: Centre of the scan in the patient.
    """

    shape: Shape
    spacing_mm: Spacing
    centre_mm: tuple[float, float, float]


def draw_spacing(rng: np.random.Generator) -> Spacing:
    """Draws a spacing: most are finer than the network's, some as coarse as those of resampled scans.

    The finest planes come with thick slices, and the thinnest slices with coarse planes: both at once would take twenty
    times as long, and is averaged to the same voxels.
    """
    kind = rng.choice(4, p=(0.15, 0.03, 0.03, 0.79))
    if kind == 0:
        plane = between(rng, 1.5, 3)
        return plane, plane, float(rng.choice((plane, 3.0, 5.0)))
    if kind == 1:
        plane = between(rng, 0.6, 1.0)
        return plane, plane, between(rng, 3, 5)
    plane = between(rng, 1.25, 2)
    if kind == 2:
        return plane, plane, between(rng, 0.7, 1.4)
    return plane, plane, between(rng, 1.4, 3) if chance(rng, 0.7) else between(rng, 3, 5)


def draw_grid(rng: np.random.Generator, spacing_mm: Spacing, *, abdominal: bool = False) -> Grid:
    """Draws the part of the patient that is scanned."""
    ranges = _ABDOMINAL_RANGES if abdominal else _RANGES
    _, bottoms, tops = ranges[int(rng.choice(len(ranges), p=[share for share, _, _ in ranges]))]
    bottom = between(rng, *bottoms)
    top = between(rng, *tops)
    if chance(rng, 0.3):
        width = between(rng, 170, 300)
        depth = between(rng, 160, 260)
        x = between(rng, -35, 35)
        y = between(rng, -25, 25)
    else:
        width = between(rng, 310, 500)
        depth = width if chance(rng, 0.7) else between(rng, 250, 400)
        x = between(rng, -15, 15)
        y = between(rng, -35, 15)
    extent = (width, depth, top - bottom)
    i, j, k = (max(16, round(size / step)) for size, step in zip(extent, spacing_mm, strict=True))
    return Grid((i, j, k), spacing_mm, (x, y, (top + bottom) / 2))


def draw_canvas(rng: np.random.Generator, grid: Grid) -> Canvas:
    """Lays the grid through a posed, scaled and elastically deformed patient."""
    axes = (
        (np.arange(size, dtype=np.float32) - np.float32((size - 1) / 2)) * np.float32(step)
        for size, step in zip(grid.shape, grid.spacing_mm, strict=True)
    )
    points = np.stack(np.meshgrid(*axes, indexing="ij"))
    scale = between(rng, 0.82, 1.16)
    scales = np.diag([1 / (scale * between(rng, 0.92, 1.08)) for _ in range(3)])
    tilt = rng.normal(0, (0.06, 0.05, 0.08))
    if chance(rng, 0.1):
        tilt = tilt * 3
    pose = (scales @ _rotation(tilt)).astype(np.float32)
    points = np.tensordot(pose, points, 1)
    for axis in range(3):
        points[axis] += np.float32(grid.centre_mm[axis])
        for scale_mm, most in ((90, 7.0), (45, 2.2)):
            field = smooth_field(rng, grid.shape, grid.spacing_mm, scale_mm)
            points[axis] += np.float32(between(rng, 0.3, most)) * field
    edge_mm = between(rng, 0.35, 1.4) * float(np.cbrt(np.prod(grid.spacing_mm)))
    return Canvas(points[0], points[1], points[2], grid.spacing_mm, edge_mm)


def _rotation(angles: NDArray[np.float64]) -> NDArray[np.float64]:
    cx, cy, cz = np.cos(angles)
    sx, sy, sz = np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    turned: NDArray[np.float64] = about_z @ about_y @ about_x
    return turned


def expose(canvas: Canvas, grid: Grid, rng: np.random.Generator, *, healthy: bool) -> None:
    """Turns the painted HU into those that a scanner would measure, in place."""
    _tissue_texture(canvas, grid, rng, healthy=healthy)
    _metal(canvas, rng)
    slice_mm = between(rng, 0.7, 5)
    if slice_mm > grid.spacing_mm[2]:
        canvas.hu[:] = ndimage.gaussian_filter1d(canvas.hu, 0.35 * slice_mm / grid.spacing_mm[2], axis=2)
    if chance(rng, 0.4):
        sigma = between(rng, 0.2, 0.7)
        canvas.hu[:] = ndimage.gaussian_filter(canvas.hu, (sigma, sigma, 0))
    _noise(canvas, grid, rng)
    if chance(rng, 0.35):
        soft = ndimage.gaussian_filter(canvas.hu, (1, 1, 0))
        canvas.hu += np.float32(between(rng, 0.2, 1.2)) * (canvas.hu - soft)
    canvas.hu *= np.float32(between(rng, 0.985, 1.015))
    canvas.hu += np.float32(rng.normal(0, 8))
    np.clip(canvas.hu, -1024, 3071, out=canvas.hu)
    if chance(rng, 0.5):
        _pad(canvas, grid, rng)


def _tissue_texture(canvas: Canvas, grid: Grid, rng: np.random.Generator, *, healthy: bool) -> None:
    body = canvas.labels == BODY
    cloud = smooth_field(rng, grid.shape, grid.spacing_mm, between(rng, 12, 50))
    canvas.hu += np.float32(between(rng, 2, 22)) * cloud * (body & (canvas.hu > -200))
    if not healthy:
        _unmixed(canvas, grid, cloud, rng)


def _unmixed(canvas: Canvas, grid: Grid, cloud: Field, rng: np.random.Generator) -> None:
    """Varies HU where contrast medium and blood have not mixed, and in trabecular bone."""
    body = canvas.labels == BODY
    contrast = np.clip(canvas.hu - 100, 0, 600) * body
    streams = smooth_field(rng, grid.shape, grid.spacing_mm, between(rng, 4, 12)) if chance(rng, 0.4) else cloud
    canvas.hu += np.float32(between(rng, 0, 0.3)) * np.clip(streams, -2, 2) * contrast
    sponge = smooth_field(rng, grid.shape, grid.spacing_mm, between(rng, 4, 15))
    canvas.hu += np.float32(between(rng, 0, 60)) * sponge * (canvas.labels == BONE)


def _metal(canvas: Canvas, rng: np.random.Generator) -> None:
    """Paints metal into one scan in eight: a pacemaker, a port, clips or a line."""
    if not chance(rng, 0.12):
        return
    inside = np.argwhere(canvas.labels == BODY)
    for _ in range(int(rng.integers(1, 4))):
        i, j, k = inside[int(rng.integers(len(inside)))] if len(inside) else (0, 0, 0)
        size = int(rng.integers(1, 4))
        part = (slice(i, i + size), slice(j, j + size), slice(k, k + size))
        canvas.hu[part] = 3000


def _noise(canvas: Canvas, grid: Grid, rng: np.random.Generator) -> None:
    noise = rng.standard_normal(grid.shape, np.float32)
    sigma = between(rng, 0, 0.9)
    if sigma > 0.25:
        noise = ndimage.gaussian_filter(noise, (sigma, sigma, sigma * between(rng, 0, 0.8)))
        noise /= noise.std()
    level = np.full(grid.shape[2], between(rng, 3, 28) if chance(rng, 0.75) else between(rng, 28, 75), np.float32)
    if chance(rng, 0.25):
        # Streaks: the fewest photons pass across the shoulders.
        across = ndimage.uniform_filter1d(rng.standard_normal(grid.shape, np.float32), 25, axis=0) * 5
        weight = np.clip((canvas.z - 60) / 40, 0, 1) * np.float32(between(rng, 10, 70))
        canvas.hu += across * weight * (canvas.hu > -900)
    canvas.hu += noise * level


def _pad(canvas: Canvas, grid: Grid, rng: np.random.Generator) -> None:
    """Pads outside a round field of view, and in a gap within it in some scans; padding is labelled background."""
    padding = PADDINGS_HU[int(rng.integers(len(PADDINGS_HU)))]
    outside = outside_round_view(grid.shape, grid.spacing_mm, between(rng, 0.86, 1.02))
    of_gaps = child(rng, "gaps in the field of view")
    if chance(of_gaps, 0.15):
        outside |= _gap(grid, of_gaps)
    canvas.hu[outside] = padding
    canvas.labels[outside] = BACKGROUND


def _gap(grid: Grid, rng: np.random.Generator) -> Mask:
    """A strip of padding across the plane, shape (i, j), with the patient on both sides."""
    gap = np.zeros(grid.shape[:2], np.bool_)
    axis = int(rng.integers(2))
    wide = round(between(rng, 10, 60) / grid.spacing_mm[axis])
    first = int(between(rng, 0.05, 0.95) * grid.shape[axis])
    np.moveaxis(gap, axis, 0)[first : first + wide] = True
    return gap


def outside_round_view(shape: Shape, spacing_mm: Spacing, share: float) -> Mask:
    """The plane outside a round field of view, shape (i, j); its width is a share of the plane's longer side."""
    x, y = (
        (np.arange(size, dtype=np.float32) - (size - 1) / 2) * np.float32(step)
        for size, step in zip(shape[:2], spacing_mm[:2], strict=True)
    )
    radius = max(shape[0] * spacing_mm[0], shape[1] * spacing_mm[1]) / 2 * share
    outside: Mask = x[:, np.newaxis] ** 2 + y[np.newaxis] ** 2 > radius**2
    return outside


def rounded(hu: Field) -> NDArray[np.int16]:
    """Rounds HU to the integers that scanners store."""
    return np.rint(hu).astype(np.int16)
