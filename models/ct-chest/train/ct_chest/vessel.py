"""The aorta and its branches: contrast medium beside clotted blood, second channels, calcium and stents are no bone."""

import numpy as np

from ct_chest.canvas import Canvas, Field, Point
from ct_chest.fields import between, chance
from ct_chest.labels import BODY
from ct_chest.patient import Patient


def draw_aorta(canvas: Canvas, root: Point, patient: Patient, rng: np.random.Generator) -> None:
    """Paints it from the heart, where `root` is, over the arch and down along the spine."""
    wide = between(rng, 12, 19)
    arch: list[Point] = [root, (14.0, 20.0, 0.0), (10.0, 16.0, 28.0), (-4.0, 4.0, 44.0), (-18.0, -18.0, 42.0)]
    beside_spine = between(rng, -32, -20)
    down: list[Point] = [(beside_spine, -38.0, 20.0), (beside_spine, -40.0, -60.0)]
    down += [(beside_spine * 0.7, -38.0, -150.0), (beside_spine * 0.2, -30.0, -420.0)]
    radii = [wide * each for each in (1.1, 1.1, 1, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6)]
    if not patient.sound:
        of_width, of_way = rng.spawn(2)
        radii = widened([*arch, *down], radii, of_width)
        down = _shifted(down, of_way)
    draw_vessel(canvas, arch, radii[: len(arch)], patient, rng)
    draw_vessel(canvas, [arch[-1], *down], radii[len(arch) - 1 :], patient, rng)


def _shifted(down: list[Point], rng: np.random.Generator) -> list[Point]:
    """The descending aorta's course, shifted to the spine's front near the diaphragm; the spine is drawn over it."""
    upper, chest, diaphragm, pelvis = down
    height = between(rng, -210, -110)
    return [
        upper,
        (chest[0] * between(rng, 0.7, 1.1), chest[1] + between(rng, -4, 14), chest[2]),
        (diaphragm[0] * between(rng, -0.2, 1.2), diaphragm[1] + between(rng, -2, 22), height),
        (pelvis[0] + between(rng, -8, 12), pelvis[1] + between(rng, -4, 20), pelvis[2]),
    ]


def draw_abdominal_branches(canvas: Canvas, dome: Field, patient: Patient, rng: np.random.Generator) -> None:
    """Paints vessels that wind from the spine to one side below the diaphragm, those of spleen, kidneys and bowel.

    Args:
        canvas: Where; of what is body alone.
        dome: Height above the diaphragm, mm, the canvas's shape.
        patient: Whose.
        rng: Where the randomness comes from.
    """
    for _ in range(int(rng.integers(0, 9))):
        point: Point = (between(rng, -25, 15), between(rng, -32, -5), between(rng, -330, -130))
        side, hu = rng.choice((-1, 1)), between(rng, patient.blood, max(patient.aorta * 1.2, patient.blood + 1))
        if chance(rng, 0.1):
            # Calcium in the walls.
            hu += between(rng, 100, 600)
        radius = between(rng, 2, 7)
        for _ in range(int(rng.integers(1, 6))):
            x, y, z = point
            further: Point = (x + side * between(rng, 0, 28), y + between(rng, -12, 16), z + between(rng, -20, 20))
            found = canvas.capsule(point, further, radius, radius * 0.9)
            if found is not None:
                distance, box = found
                canvas.paint(distance, hu, None, box, (canvas.labels[box] == BODY) & (dome[box] < -3))
            point, radius = further, radius * 0.9


def widened(points: list[Point], radii: list[float], rng: np.random.Generator) -> list[float]:
    """The radii of an aorta along `points`, mm: one in four has an aneurysm, which may reach the spine."""
    if not chance(rng, 0.25):
        return radii
    along_mm = np.cumsum([0.0, *np.linalg.norm(np.diff(points, axis=0), axis=1)])
    place_mm, long_mm = between(rng, 0, 300), between(rng, 30, 250)
    factors = 1 + between(rng, 0.2, 0.8) * np.exp(-(((along_mm - place_mm) / long_mm) ** 2))
    return [float(radius) for radius in radii * factors]


def draw_vessel(
    canvas: Canvas, points: list[Point], radii: list[float], patient: Patient, rng: np.random.Generator
) -> None:
    """Paints a large artery along `points`, with what may ail it where the patient is not sound."""
    if not patient.sound and chance(rng, 0.2):
        # A clot, or blood in the wall, around what is left of the channel.
        canvas.tube(points, radii, patient.blood, BODY, grown_mm=between(rng, 2, 12))
    canvas.tube(points, radii, patient.aorta, BODY)
    if patient.sound:
        return
    if chance(rng, 0.2):
        share = between(rng, 0.4, 0.8)
        hu = _second_channel_hu(patient, rng)
        canvas.tube(_aside(points, radii, 1 - share, rng), [radius * share for radius in radii], hu, BODY)
    elif chance(rng, 0.25):
        draw_dissection(canvas, points, radii, (_second_channel_hu(patient, rng), patient.blood), rng)
    if chance(rng, 0.4):
        for _ in range(int(rng.integers(1, 20))):
            _calcium(canvas, points, radii, rng)
    if chance(rng, 0.06):
        _stent(canvas, points, radii, rng)


def _second_channel_hu(patient: Patient, rng: np.random.Generator) -> float:
    """From blood without contrast medium to somewhat more of it than in the first channel."""
    return between(rng, patient.blood, max(patient.aorta * 1.3, patient.blood + 1))


def draw_dissection(
    canvas: Canvas, points: list[Point], radii: list[float], hu: tuple[float, float], rng: np.random.Generator
) -> None:
    """Paints the false channel of an artery, on one side of a flap that winds along it.

    Args:
        canvas: Where the artery was painted.
        points: Its middle, mm.
        radii: Its radii, mm.
        hu: Of the blood in the false channel, and of the flap.
        rng: Where the randomness comes from.
    """
    angle, turn = between(rng, 0, 2 * np.pi), between(rng, -0.6, 0.6)
    off, thick = between(rng, -0.5, 0.5), np.float32(between(rng, 0.3, 1.2))
    for n in range(len(points) - 1):
        found = canvas.capsule(points[n], points[n + 1], radii[n], radii[n + 1])
        if found is None:
            continue
        distance, box = found
        along = np.array(points[n + 1]) - points[n]
        across = np.cross(along, (np.cos(angle), np.sin(angle), 0.3))
        across /= np.linalg.norm(across)
        side = np.full(distance.shape, np.float32(off * radii[n]))
        for axis, start, part in zip((canvas.x, canvas.y, canvas.z), points[n], across, strict=True):
            side += np.float32(part) * (axis[box] - np.float32(start))
        canvas.paint(np.maximum(distance, side), hu[0], BODY, box)
        canvas.paint(np.maximum(distance, np.abs(side) - thick), hu[1], BODY, box)
        angle += turn


def _aside(points: list[Point], radii: list[float], share: float, rng: np.random.Generator) -> list[Point]:
    """The same way, shifted to one side by a share of its radius."""
    angle = between(rng, 0, 2 * np.pi)
    x, y = np.cos(angle) * share, np.sin(angle) * share
    return [(p[0] + x * radius, p[1] + y * radius, p[2]) for p, radius in zip(points, radii, strict=True)]


def _calcium(canvas: Canvas, points: list[Point], radii: list[float], rng: np.random.Generator) -> None:
    """A plaque in the wall."""
    n = int(rng.integers(len(points) - 1))
    share, angle = between(rng, 0, 1), between(rng, 0, 2 * np.pi)
    x, y, z = (a + share * (b - a) for a, b in zip(points[n], points[n + 1], strict=True))
    size = between(rng, 1, 4)
    place = (x + radii[n] * float(np.cos(angle)), y + radii[n] * float(np.sin(angle)), z)
    canvas.blob(place, (size, size, between(rng, 1, 8)), between(rng, 300, 1300), BODY)


def _stent(canvas: Canvas, points: list[Point], radii: list[float], rng: np.random.Generator) -> None:
    """Wires around the channel, zigzag."""
    hu, thin, pitch = between(rng, 800, 2800), between(rng, 0.3, 1.0), between(rng, 0.4, 1.2)
    for n in range(len(points) - 1):
        found = canvas.capsule(points[n], points[n + 1], radii[n], radii[n + 1])
        if found is None:
            continue
        distance, box = found
        wires = np.abs(np.sin(canvas.z[box] * np.float32(pitch) + np.sin(canvas.x[box] * np.float32(0.6)))) > 0.6
        canvas.paint(np.abs(distance) - np.float32(thin), hu, BODY, box, wires)
