"""The courses of the great vessels: the aorta and its branches, the inferior vena cava and the iliac vessels."""

import numpy as np
from numpy.typing import NDArray

from training.ct_chest.labels import BODY
from training.ct_chest.synthetic.artery import draw_artery
from training.ct_chest.synthetic.canvas import Canvas, Field, Point
from training.ct_chest.synthetic.fields import between, chance, child
from training.ct_chest.synthetic.patient import Patient

# Radii along the aorta, as shares of its nominal radius: along the arch from the root on, and along the descent.
_ARCH = (1.1, 1.1, 1.0, 0.9)
_DESCENT = tuple(np.linspace(0.85, 0.6, 8).tolist())


def draw_aorta(canvas: Canvas, root: Point, patient: Patient, rng: np.random.Generator) -> None:
    """Paints the aorta from its `root` at the heart over the arch and down along the spine, and the iliac arteries.

    Vena cava, pulmonary trunk and trachea are drawn later and dent the arch; nothing dents the rest.
    """
    radius_mm = between(rng, 12, 19)
    arch: list[Point] = [root, (14.0, 20.0, 0.0), (10.0, 16.0, 28.0), (-4.0, 4.0, 44.0), (-18.0, -18.0, 42.0)]
    radii = [radius_mm * share for share in (*_ARCH, *_DESCENT)]
    if not patient.healthy:
        radii = widened(radii, child(rng, "aneurysm"))
    of_descent = radii[len(_ARCH) :]
    down = along_spine(patient, of_descent, between(rng, 0, 5), child(rng, "course of the aorta"))
    draw_artery(canvas, arch, [*radii[: len(_ARCH)], of_descent[0]], patient, rng)
    draw_artery(canvas, [arch[-1], *down], [of_descent[0], *of_descent], patient, rng)
    for side in (-1, 1):
        of_iliac = child(rng, f"iliac artery {side}")
        draw_artery(canvas, *_iliac(side, down[-1], patient, of_iliac), patient, of_iliac)


def along_spine(patient: Patient, radii: list[float], gap_mm: float, rng: np.random.Generator) -> list[Point]:
    """The course of the descending aorta, a point for each radius, mm: left of the spine, then in front of it, to L4.

    `gap_mm` of fat lies between aorta and spine. Unless the patient is healthy, the course may be tortuous.
    """
    spine = patient.frame.spine
    heights = np.linspace(20, spine.sacrum + between(rng, 25, 60), len(radii))
    to_the_left = (between(rng, 0.9, 1.5), between(rng, 0, 0.9), between(rng, -0.1, 0.3))
    angles = np.interp(-heights, (-20, between(rng, 110, 190), -heights[-1]), to_the_left)
    gaps = np.full(len(radii), gap_mm)
    if not patient.healthy and chance(rng, 0.4):
        angles, gaps = _tortuous(angles, gaps, rng)
    return [
        spine.beside(z, -angle, gap + radius)
        for z, angle, gap, radius in zip(heights.tolist(), angles.tolist(), gaps.tolist(), radii, strict=True)
    ]


def _tortuous(
    angles: NDArray[np.float64], gaps: NDArray[np.float64], rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return angles + rng.normal(0, 0.25, angles.shape), gaps + rng.uniform(0, 12, gaps.shape)


def _iliac(
    side: int, bifurcation: Point, patient: Patient, rng: np.random.Generator
) -> tuple[list[Point], list[float]]:
    """Course and radii of an iliac artery, mm: from the aorta's bifurcation past the hip joint to the groin."""
    x, y, z = bifurcation
    hip_x, hip_y, hip_z = patient.frame.hip
    radius = between(rng, 4, 7)
    points: list[Point] = [
        (x + side * 4.0, y, z),
        (side * between(rng, 28, 38), y - between(rng, 4, 10), patient.frame.spine.sacrum - between(rng, 15, 35)),
        (side * (hip_x - between(rng, 42, 48)), hip_y + 15, hip_z + 25),
        (side * (hip_x - between(rng, 24, 30)), hip_y + 40, hip_z + 24),
        (side * (hip_x - between(rng, 8, 18)), hip_y + between(rng, 54, 62), hip_z - 12),
        (side * (hip_x - between(rng, 4, 12)), hip_y + between(rng, 50, 62), hip_z - 70),
    ]
    return points, [radius, radius, radius * 0.9, radius * 0.9, radius * 0.8, radius * 0.7]


def draw_vena_cava(canvas: Canvas, heart_z: float, patient: Patient) -> None:
    """Paints the inferior vena cava from the heart down, right of the spine's front, and the iliac veins."""
    spine = patient.frame.spine
    hip_x, hip_y, hip_z = patient.frame.hip
    confluence = spine.beside(spine.sacrum + 25, 0.6, 12)
    cava = [(26.0, -10.0, heart_z), spine.beside(-150, 0.8, 16), spine.beside(-240, 0.75, 14), confluence]
    canvas.tube(cava, [11.0, 11.0, 10.0, 9.0], patient.cava, BODY)
    for side in (-1, 1):
        course: list[Point] = [
            confluence,
            (side * 30.0, confluence[1] - 16, spine.sacrum - 35),
            (side * (hip_x - 52), hip_y + 6, hip_z + 28),
            (side * (hip_x - 34), hip_y + 42, hip_z + 20),
            (side * (hip_x - 26), hip_y + 56, hip_z - 16),
        ]
        canvas.tube(course, [7.0, 6.5, 6.0, 6.0, 6.0], patient.cava, BODY)


def draw_abdominal_branches(canvas: Canvas, inside: Field, patient: Patient, rng: np.random.Generator) -> None:
    """Paints vessels that wind from the front of the spine to one side, as those of spleen, kidneys and bowel.

    Args:
        canvas: The canvas to paint on; gas is left as it is.
        inside: Distance to the surface of the abdominal cavity, mm, the canvas's shape.
        patient: The patient's measures and CT numbers.
        rng: The source of randomness.
    """
    where = (inside < -3) & (canvas.hu > -200)
    for _ in range(int(rng.integers(0, 9))):
        points = [patient.frame.spine.beside(between(rng, -330, -130), between(rng, -1.2, 1.2), between(rng, 4, 24))]
        side = int(rng.choice((-1, 1)))
        hu = between(rng, patient.blood, max(patient.aorta * 1.2, patient.blood + 1))
        if chance(rng, 0.1):
            # As bright as calcium, on purpose brighter than a wall with plaques.
            hu += between(rng, 100, 600)
        for _ in range(int(rng.integers(1, 6))):
            x, y, z = points[-1]
            points.append((x + side * between(rng, 0, 28), y + between(rng, -12, 16), z + between(rng, -20, 20)))
        radii = between(rng, 2, 7) * 0.9 ** np.arange(len(points))
        canvas.tube(points, radii.tolist(), hu, where=where)


def widened(radii: list[float], rng: np.random.Generator) -> list[float]:
    """The radii of an aorta, mm, widened in one patient of four: an aneurysm of one point or of most of the course."""
    if not chance(rng, 0.25):
        return radii
    place = between(rng, 0, len(radii) - 1)
    reach = between(rng, 0.7, 5)
    factors = 1 + between(rng, 0.2, 0.8) * np.exp(-(((np.arange(len(radii)) - place) / reach) ** 2))
    return [float(radius) for radius in radii * factors]
