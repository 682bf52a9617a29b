"""Large arteries and their diseases: thrombus, false lumina, calcium and stents, none of which is bone."""

import numpy as np

from training.ct_chest.labels import BODY
from training.ct_chest.synthetic.canvas import Canvas, Point
from training.ct_chest.synthetic.fields import between, chance
from training.ct_chest.synthetic.patient import Patient


def draw_artery(
    canvas: Canvas, points: list[Point], radii: list[float], patient: Patient, rng: np.random.Generator
) -> None:
    """Paints a large artery along `points`, with random diseases unless the patient is healthy."""
    if not patient.healthy and chance(rng, 0.2):
        _thrombus(canvas, points, radii, patient, rng)
    canvas.tube(points, radii, patient.aorta, BODY)
    if patient.healthy:
        return
    if chance(rng, 0.2):
        _round_false_lumen(canvas, points, radii, patient, rng)
    elif chance(rng, 0.25):
        draw_dissection(canvas, points, radii, (_false_lumen_hu(patient, rng), patient.blood), rng)
    if chance(rng, 0.4):
        for _ in range(int(rng.integers(1, 20))):
            _calcium(canvas, points, radii, rng)
    if chance(rng, 0.06):
        _stent(canvas, points, radii, rng)


def _thrombus(
    canvas: Canvas, points: list[Point], radii: list[float], patient: Patient, rng: np.random.Generator
) -> None:
    """Paints thrombus around the lumen, or blood in the wall."""
    canvas.tube(points, radii, patient.blood, BODY, grown_mm=between(rng, 2, 12))


def _round_false_lumen(
    canvas: Canvas, points: list[Point], radii: list[float], patient: Patient, rng: np.random.Generator
) -> None:
    share = between(rng, 0.4, 0.8)
    hu = _false_lumen_hu(patient, rng)
    canvas.tube(_aside(points, radii, 1 - share, rng), [radius * share for radius in radii], hu, BODY)


def _false_lumen_hu(patient: Patient, rng: np.random.Generator) -> float:
    """HU between blood without contrast medium and somewhat more of it than in the true lumen."""
    return between(rng, patient.blood, max(patient.aorta * 1.3, patient.blood + 1))


def draw_dissection(
    canvas: Canvas, points: list[Point], radii: list[float], hu: tuple[float, float], rng: np.random.Generator
) -> None:
    """Paints the false lumen of an artery on one side of a flap that winds along it.

    Args:
        canvas: The canvas on which the artery is painted already.
        points: Its centre line, mm.
        radii: Its radii, mm.
        hu: Blood in the false lumen, and the flap.
        rng: The source of randomness.
    """
    angle = between(rng, 0, 2 * np.pi)
    turn = between(rng, -0.6, 0.6)
    off = between(rng, -0.5, 0.5)
    thick = np.float32(between(rng, 0.3, 1.2))
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
    """Shifts a course to one side by a share of its radius."""
    angle = between(rng, 0, 2 * np.pi)
    x = np.cos(angle) * share
    y = np.sin(angle) * share
    return [(p[0] + x * radius, p[1] + y * radius, p[2]) for p, radius in zip(points, radii, strict=True)]


def _calcium(canvas: Canvas, points: list[Point], radii: list[float], rng: np.random.Generator) -> None:
    """Paints a plaque in the wall."""
    n = int(rng.integers(len(points) - 1))
    share = between(rng, 0, 1)
    angle = between(rng, 0, 2 * np.pi)
    x, y, z = (a + share * (b - a) for a, b in zip(points[n], points[n + 1], strict=True))
    size = between(rng, 1, 4)
    place = (x + radii[n] * float(np.cos(angle)), y + radii[n] * float(np.sin(angle)), z)
    canvas.blob(place, (size, size, between(rng, 1, 8)), between(rng, 300, 1300), BODY)


def _stent(canvas: Canvas, points: list[Point], radii: list[float], rng: np.random.Generator) -> None:
    """Paints the zigzag wires of a stent around the lumen."""
    hu = between(rng, 800, 2800)
    thin = between(rng, 0.3, 1.0)
    pitch = between(rng, 0.4, 1.2)
    for _, distance, box in canvas.cones(points, radii):
        wires = np.abs(np.sin(canvas.z[box] * np.float32(pitch) + np.sin(canvas.x[box] * np.float32(0.6)))) > 0.6
        canvas.paint(np.abs(distance) - np.float32(thin), hu, BODY, box, wires)
