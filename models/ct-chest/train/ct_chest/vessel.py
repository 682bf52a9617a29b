"""The aorta and its branches: contrast medium beside thrombus, false lumina, calcium and stents are no bone."""

import numpy as np

from ct_chest.canvas import Canvas, Field, Point
from ct_chest.fields import between, chance, child
from ct_chest.labels import BODY
from ct_chest.patient import Patient


def draw_aorta(canvas: Canvas, root: Point, patient: Patient, rng: np.random.Generator) -> None:
    """Paints it from the heart, where `root` is, over the arch and down along the spine, with the iliac arteries."""
    wide = between(rng, 12, 19)
    arch: list[Point] = [root, (14.0, 20.0, 0.0), (10.0, 16.0, 28.0), (-4.0, 4.0, 44.0), (-18.0, -18.0, 42.0)]
    of_arch, of_descent = ([wide * share for share in shares] for shares in ((1.1, 1.1, 1, 0.9), _DESCENT))
    down = along_spine(patient, of_descent, child(rng, "course of the aorta"))
    if not patient.sound:
        radii = widened([*arch[:-1], *down], [*of_arch, *of_descent], child(rng, "width of the aorta"))
        of_arch, of_descent = radii[: len(of_arch)], radii[len(of_arch) :]
        down = along_spine(patient, of_descent, child(rng, "course of the aorta"))
    draw_vessel(canvas, arch, [*of_arch, of_descent[0]], patient, rng)
    draw_vessel(canvas, [arch[-1], *down], [of_descent[0], *of_descent], patient, rng)
    for side in (-1, 1):
        _iliac(canvas, side, down[-1], patient, child(rng, f"iliac vessels {side}"))


# Of the descending aorta's width, that of the root being 1.1.
_DESCENT = tuple(np.linspace(0.85, 0.6, 8))


def along_spine(patient: Patient, radii: list[float], rng: np.random.Generator) -> list[Point]:
    """The descending aorta's course, a point for each radius, mm: left of the spine, then in front of it, to L4.

    It touches the spine, or fat lies between; that of one who is not sound may be tortuous.
    """
    heights = np.linspace(20, patient.sacrum + between(rng, 25, 60), len(radii))
    to_the_left = (between(rng, 0.9, 1.5), between(rng, 0, 0.9), between(rng, -0.1, 0.3))
    angles = np.interp(-heights, (-20, between(rng, 110, 190), -heights[-1]), to_the_left)
    gaps = np.full(len(radii), between(rng, 0, 5))
    if not patient.sound and chance(rng, 0.4):
        angles += rng.normal(0, 0.25, len(radii))
        gaps += rng.uniform(0, 12, len(radii))
    return [
        patient.spine.beside(z, -angle, gap + radius)
        for z, angle, gap, radius in zip(heights.tolist(), angles.tolist(), gaps.tolist(), radii, strict=True)
    ]


def _iliac(canvas: Canvas, side: int, bifurcation: Point, patient: Patient, rng: np.random.Generator) -> None:
    """An iliac artery and the vein behind it, from where the aorta divides to the groin."""
    x, y, z = bifurcation
    top = patient.sacrum
    points: list[Point] = [
        (x + side * 4.0, y, z),
        (side * between(rng, 28, 42), y - between(rng, 4, 12), top - between(rng, 10, 40)),
        (side * between(rng, 56, 68), between(rng, 34, 50), top - between(rng, 85, 105)),
        (side * between(rng, 66, 84), between(rng, 54, 72), top - 170.0),
    ]
    radius = between(rng, 4, 7)
    beside: list[Point] = [(16.0 - side * 2, y - 4, z), *((x - side * 7, y - 7, z - 4) for x, y, z in points[1:])]
    canvas.tube(beside, [8.0, 6.5, 6.0, 6.0], patient.veins * 0.3 + patient.blood * 0.7, BODY)
    draw_vessel(canvas, points, [radius, radius, radius * 0.8, radius * 0.7], patient, rng)


def draw_abdominal_branches(canvas: Canvas, inside: Field, patient: Patient, rng: np.random.Generator) -> None:
    """Paints vessels that wind from the spine's front to one side, as those of spleen, kidneys and bowel do.

    Args:
        canvas: Where; of what is body alone.
        inside: Distance to the surface of the abdominal cavity, mm, the canvas's shape.
        patient: Whose.
        rng: Where the randomness comes from.
    """
    where = (canvas.labels == BODY) & (inside < -3)
    for _ in range(int(rng.integers(0, 9))):
        points = [patient.spine.beside(between(rng, -330, -130), between(rng, -1.2, 1.2), between(rng, 4, 24))]
        side, hu = int(rng.choice((-1, 1))), between(rng, patient.blood, max(patient.aorta * 1.2, patient.blood + 1))
        if chance(rng, 0.1):
            # Calcium in the walls.
            hu += between(rng, 100, 600)
        for _ in range(int(rng.integers(1, 6))):
            x, y, z = points[-1]
            points.append((x + side * between(rng, 0, 28), y + between(rng, -12, 16), z + between(rng, -20, 20)))
        radii = between(rng, 2, 7) * 0.9 ** np.arange(len(points))
        canvas.tube(points, radii.tolist(), hu, where=where)


def widened(points: list[Point], radii: list[float], rng: np.random.Generator) -> list[float]:
    """The radii of an aorta along `points`, mm: one in four has an aneurysm."""
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
        # Thrombus, or blood in the wall, around the lumen.
        canvas.tube(points, radii, patient.blood, BODY, grown_mm=between(rng, 2, 12))
    canvas.tube(points, radii, patient.aorta, BODY)
    if patient.sound:
        return
    if chance(rng, 0.2):
        share = between(rng, 0.4, 0.8)
        hu = _false_lumen_hu(patient, rng)
        canvas.tube(_aside(points, radii, 1 - share, rng), [radius * share for radius in radii], hu, BODY)
    elif chance(rng, 0.25):
        draw_dissection(canvas, points, radii, (_false_lumen_hu(patient, rng), patient.blood), rng)
    if chance(rng, 0.4):
        for _ in range(int(rng.integers(1, 20))):
            _calcium(canvas, points, radii, rng)
    if chance(rng, 0.06):
        _stent(canvas, points, radii, rng)


def _false_lumen_hu(patient: Patient, rng: np.random.Generator) -> float:
    """From blood without contrast medium to somewhat more of it than in the true lumen."""
    return between(rng, patient.blood, max(patient.aorta * 1.3, patient.blood + 1))


def draw_dissection(
    canvas: Canvas, points: list[Point], radii: list[float], hu: tuple[float, float], rng: np.random.Generator
) -> None:
    """Paints the false lumen of an artery, on one side of a flap that winds along it.

    Args:
        canvas: Where the artery was painted.
        points: Its middle, mm.
        radii: Its radii, mm.
        hu: Of the blood in the false lumen, and of the flap.
        rng: Where the randomness comes from.
    """
    angle, turn = between(rng, 0, 2 * np.pi), between(rng, -0.6, 0.6)
    off, thick = between(rng, -0.5, 0.5), np.float32(between(rng, 0.3, 1.2))
    for n, distance, box in canvas.cones(points, radii):
        along = np.array(points[n + 1]) - points[n]
        turned = angle + n * turn
        across = np.cross(along, (np.cos(turned), np.sin(turned), 0.3))
        across /= np.linalg.norm(across)
        side = np.full(distance.shape, np.float32(off * radii[n]))
        for axis, start, part in zip((canvas.x, canvas.y, canvas.z), points[n], across, strict=True):
            side += np.float32(part) * (axis[box] - np.float32(start))
        canvas.paint(np.maximum(distance, side), hu[0], BODY, box)
        canvas.paint(np.maximum(distance, np.abs(side) - thick), hu[1], BODY, box)


def _aside(points: list[Point], radii: list[float], share: float, rng: np.random.Generator) -> list[Point]:
    """The same course, shifted to one side by a share of its radius."""
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
    """Wires around the lumen, zigzag."""
    hu, thin, pitch = between(rng, 800, 2800), between(rng, 0.3, 1.0), between(rng, 0.4, 1.2)
    for _, distance, box in canvas.cones(points, radii):
        wires = np.abs(np.sin(canvas.z[box] * np.float32(pitch) + np.sin(canvas.x[box] * np.float32(0.6)))) > 0.6
        canvas.paint(np.abs(distance) - np.float32(thin), hu, BODY, box, wires)
