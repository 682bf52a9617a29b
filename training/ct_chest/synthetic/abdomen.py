"""Organs below the diaphragm, and stomach and bowel with their gas, which is labelled body, not lung."""

import numpy as np

from training.ct_chest.labels import BODY
from training.ct_chest.synthetic.canvas import AIR_HU, Canvas, Field, Point
from training.ct_chest.synthetic.fields import between, chance, child, smooth_field
from training.ct_chest.synthetic.patient import Patient, Surfaces
from training.ct_chest.synthetic.vessel import draw_abdominal_branches


def draw_abdomen(
    canvas: Canvas, patient: Patient, surfaces: Surfaces, rng: np.random.Generator, *, gassy: bool = False
) -> None:
    """Paints the contents of the abdomen; `gassy` adds bowel with gas behind the front wall."""
    inside = np.maximum(np.maximum(surfaces.dome, surfaces.muscle + between(rng, 12, 22)), surfaces.cavity - 12)
    canvas.paint(inside, patient.fat + between(rng, 0, 60), BODY)
    box = canvas.box((-190, -150, -460), (190, 150, -20))
    if box is None:
        return
    within = inside[box] + np.float32(between(rng, 2, 5)) < 0
    canvas.paint(np.maximum(surfaces.dome[box], -surfaces.dome[box] - 4), patient.muscle, BODY, box, within)
    _muscles(canvas, patient, surfaces, child(rng, "muscles"))
    _organs(canvas, patient, inside, rng)
    _stomach(canvas, patient, inside, rng)
    for _ in range(int(rng.integers(4, 16))):
        _loop(canvas, patient, inside, rng)
    for _ in range(int(rng.integers(1, 4)) if gassy else 0):
        _transverse_colon(canvas, patient, inside, rng)
    draw_abdominal_branches(canvas, inside, patient, child(rng, "abdominal branches"))


def _muscles(canvas: Canvas, patient: Patient, surfaces: Surfaces, rng: np.random.Generator) -> None:
    """Psoas and erector spinae beside the spine, iliacus and glutei around the hip bones."""
    psoas = between(rng, 8, 24)
    erector = between(rng, 14, 28)
    iliacus = between(rng, 12, 22)
    gluteus = between(rng, 22, 38)
    hu = patient.muscle + between(rng, -40, 0)
    spine = patient.frame.spine
    hip_x, hip_y, hip_z = patient.frame.hip
    top = spine.sacrum
    wide = hip_x / 78
    within = (surfaces.muscle < 0) & (canvas.labels == BODY)
    for side in (-1, 1):
        for points, radii in (
            (
                [spine.beside(-190, 1.6, 6), spine.beside(top + 40, 1.3, 18), (hip_x - 14, hip_y + 30, hip_z + 20)],
                (5.0, psoas, psoas * 0.8),
            ),
            (
                [spine.beside(-40, 2.5, 18), spine.beside(-240, 2.4, 20), spine.beside(top - 30, 2.5, 20)],
                (erector * 0.6, erector, erector),
            ),
            ([(62.0 * wide, -15.0, top), (hip_x, hip_y + 20, hip_z + 10)], (iliacus * 0.7, iliacus)),
            (
                [(66.0 * wide, -52.0, top + 5), (108.0 * wide, -15.0, top - 65), (hip_x + 14, hip_y - 42, hip_z - 35)],
                (gluteus * 0.7, gluteus, gluteus),
            ),
            ([(38.0, -84.0, top - 45), (hip_x, -72.0, hip_z - 55)], (gluteus * 0.8, gluteus)),
        ):
            canvas.tube([(side * x, y, z) for x, y, z in points], radii, hu, where=within)


def _fill(
    canvas: Canvas, inside: Field, centre: Point, radii: Point, hu: float, turn: float = 0.0, margin_mm: float = 3.0
) -> None:
    found = canvas.ellipsoid(centre, radii, turn)
    if found is not None:
        distance, box = found
        canvas.paint(np.maximum(distance, inside[box] + margin_mm), hu, BODY, box)


def _organs(canvas: Canvas, patient: Patient, inside: Field, rng: np.random.Generator) -> None:
    right = patient.dome_right
    left = patient.dome_left
    radii = (between(rng, 88, 105), between(rng, 82, 100), between(rng, 75, 100))
    liver = patient.liver * 0.8 + patient.cava * 0.2
    _fill(canvas, inside, (between(rng, 52, 68), between(rng, 2, 14), right - radii[2] + 12), radii, liver)
    _fill(canvas, inside, (between(rng, -12, 20), 42.0, right - 62), (72.0, 45.0, 42.0), liver)
    spleen = patient.liver * 0.5 + patient.aorta * 0.5
    _fill(canvas, inside, (-102.0, -44.0, left - between(rng, 45, 75)), (32.0, 44.0, between(rng, 40, 65)), spleen)
    for side in (-1, 1):
        centre = (side * 62.0, -52.0, between(rng, -270, -225))
        _fill(canvas, inside, centre, (28.0, 26.0, 56.0), patient.aorta * 0.8 + 10)
    for _ in range(5):
        centre = (between(rng, -70, 70), between(rng, -30, 40), between(rng, -320, -190))
        _fill(canvas, inside, centre, (between(rng, 15, 45), 14.0, 16.0), between(rng, 20, 110))


def _stomach(canvas: Canvas, patient: Patient, inside: Field, rng: np.random.Generator) -> None:
    size = between(rng, 0.5, 1.25)
    centre = (between(rng, -75, -45), between(rng, -5, 35), patient.dome_left - between(rng, 22, 48) * size - 6)
    radii = (between(rng, 30, 48) * size, between(rng, 32, 52) * size, between(rng, 28, 60) * size)
    _hollow(canvas, patient, inside, centre, radii, rng, gas=between(rng, -0.8, 0.9))


def _loop(canvas: Canvas, patient: Patient, inside: Field, rng: np.random.Generator) -> None:
    """Paints a loop of bowel; one in three lies below the diaphragm, as the colon's flexures do."""
    if chance(rng, 0.35):
        side = -1 if chance(rng, 0.75) else 1
        top = patient.dome_left if side < 0 else patient.dome_right
        centre = (side * between(rng, 55, 115), between(rng, -35, 60), top - between(rng, 25, 90))
    else:
        centre = (between(rng, -110, 110), between(rng, -15, 85), between(rng, -420, -150))
    thick = between(rng, 10, 30)
    radii = (between(rng, 1, 3) * thick, thick, between(rng, 1, 3) * thick)
    if chance(rng, 0.4):
        _faeces(canvas, patient, inside, centre, radii, rng)
    else:
        _hollow(canvas, patient, inside, centre, radii, rng, gas=between(rng, -1.2, 1.2))


def _transverse_colon(canvas: Canvas, patient: Patient, inside: Field, rng: np.random.Generator) -> None:
    """Paints haustra side by side behind the front wall, where gas collects."""
    x = between(rng, -120, 60)
    y = between(rng, 30, 80)
    z = patient.dome_left - between(rng, 20, 160)
    for _ in range(int(rng.integers(2, 8))):
        size = between(rng, 10, 28)
        radii = (size * between(rng, 0.8, 1.5), size, size * between(rng, 0.8, 1.5))
        _hollow(canvas, patient, inside, (x, y, z), radii, rng, gas=between(rng, -1.2, 0.6))
        x += size * 1.4
        y += between(rng, -8, 8)
        z += between(rng, -14, 14)


def _hollow(
    canvas: Canvas,
    patient: Patient,
    inside: Field,
    centre: Point,
    radii: Point,
    rng: np.random.Generator,
    *,
    gas: float,
) -> None:
    """Paints wall, contents and gas above them; `gas` is the level of the contents in half depths, 1 for no gas."""
    turn = between(rng, -0.7, 0.7)
    _fill(canvas, inside, centre, radii, between(rng, 30, 90), turn)
    wall = between(rng, 1.5, 4)
    inner = (radii[0] - wall, radii[1] - wall, radii[2] - wall)
    holds = between(rng, -20, 60) if chance(rng, 0.8) else between(rng, 100, 500)
    found = canvas.ellipsoid(centre, inner, turn)
    if found is None:
        return
    distance, box = found
    distance = np.maximum(distance, inside[box] + between(rng, 3, 6))
    canvas.paint(distance, holds, BODY, box)
    level = (canvas.y[box] - centre[1]) * np.float32(patient.down) + np.float32(gas * radii[1])
    canvas.paint(np.maximum(distance, level), AIR_HU + between(rng, 0, 60), BODY, box)


def _faeces(
    canvas: Canvas, patient: Patient, inside: Field, centre: Point, radii: Point, rng: np.random.Generator
) -> None:
    """Paints stool, whose gas gives it the CT number of lung; its label is body."""
    turn = between(rng, -0.7, 0.7)
    _fill(canvas, inside, centre, radii, between(rng, 20, 70), turn)
    found = canvas.ellipsoid(centre, (radii[0] - 2, radii[1] - 2, radii[2] - 2), turn)
    if found is None:
        return
    distance, box = found
    i, j, k = distance.shape
    mottle = np.clip(
        smooth_field(rng, (i, j, k), canvas.spacing_mm, between(rng, 5, 12)) * between(rng, 100, 350), -700, 300
    )
    hu = np.clip(between(rng, -600, 0) + mottle, -1000, 120).astype(np.float32)
    canvas.paint(np.maximum(distance, inside[box] + 4), hu, BODY, box)
