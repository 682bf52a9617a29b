"""Fat, muscles, arms, neck, head and breasts: the outside of the body, labelled body but for the skull."""

from dataclasses import dataclass

import numpy as np

from training.ct_chest.labels import BODY, BONE
from training.ct_chest.synthetic.canvas import AIR_HU, Canvas, Point
from training.ct_chest.synthetic.fields import between, chance
from training.ct_chest.synthetic.patient import Patient, Surfaces


@dataclass(frozen=True)
class Arm:
    """The soft tissue of an arm: its centre line from the shoulder girdle on, and its radii, mm."""

    points: tuple[Point, ...]
    radii: tuple[float, ...]

    @property
    def shoulder(self) -> Point:
        """The shoulder joint."""
        return self.points[1]

    @property
    def elbow(self) -> Point:
        """The elbow joint."""
        return self.points[2]


def draw_trunk(canvas: Canvas, patient: Patient, surfaces: Surfaces, rng: np.random.Generator) -> list[Arm]:
    """Paints fat, then muscles within it; returns the left and the right arm."""
    arms = [_arm(patient, side, rng) for side in (-1, 1)]
    fat = patient.fat_mm
    for arm in arms:
        canvas.tube(arm.points, arm.radii, patient.fat, BODY, grown_mm=min(fat, 20) * 0.6)
    # More fat in front and on the sides than on the back, or the other way round.
    thickness = np.float32(fat) * (1 + np.float32(between(rng, -0.3, 0.5)) * np.cos(surfaces.angle))
    # Less fat lies around the neck, which ends within the head.
    thickness *= np.clip((180 - canvas.z) / 60, 0.3, 1)
    neck = canvas.z - np.float32(patient.frame.head[2] - 40)
    skin = np.maximum(surfaces.muscle - thickness, neck)
    canvas.paint(skin, patient.fat, BODY)
    if chance(rng, 0.4):
        _breasts(canvas, patient, rng)
    throat = between(rng, 205, 225), between(rng, 8, 11), between(rng, 10, 14)
    if chance(rng, 0.7):
        canvas.paint(np.abs(skin + 1) - 1, 0.0)
    # Muscles come in layers with fat between them.
    marbling = np.float32(patient.muscle) + 12 * np.sin(surfaces.muscle * np.float32(between(rng, 0.2, 0.6)))
    canvas.paint(np.maximum(surfaces.muscle, neck), marbling, BODY)
    for arm in arms:
        canvas.tube(arm.points, arm.radii, patient.muscle, BODY)
    _head(canvas, patient, throat)
    _armpits(canvas, patient, rng)
    return arms


def _arm(patient: Patient, side: int, rng: np.random.Generator) -> Arm:
    if patient.arms_up:
        elbow = (side * between(rng, 110, 220), between(rng, -40, 60), between(rng, 260, 360))
    else:
        elbow = (side * (between(rng, 195, 225) + patient.fat_mm), between(rng, -50, 10), between(rng, -260, -180))
    upper = between(rng, 34, 46)
    shoulder = (side * between(rng, 145, 160), -18.0, between(rng, 75, 95))
    points = [(side * 95.0, -22.0, 70.0), shoulder, elbow]
    radii = [52.0, between(rng, 48, 58), upper]
    if not patient.arms_up:
        hand = (side * between(rng, 60, 220), between(rng, 0, 130), elbow[2] - between(rng, -60, 220))
        points.append(hand)
        radii.append(between(rng, 24, 34))
    return Arm(tuple(points), tuple(radii))


def _armpits(canvas: Canvas, patient: Patient, rng: np.random.Generator) -> None:
    for side in (-1, 1):
        canvas.blob((side * between(rng, 125, 145), -25.0, between(rng, 20, 50)), (18.0, 26.0, 34.0), patient.fat, BODY)


def _breasts(canvas: Canvas, patient: Patient, rng: np.random.Generator) -> None:
    size = between(rng, 35, 70)
    flat = between(rng, 0.4, 0.8)
    y = 85 + patient.fat_mm * 0.6
    for side in (-1, 1):
        centre = (side * between(rng, 75, 105), y, between(rng, -50, -10))
        canvas.blob(centre, (size, size * flat, size), patient.fat, BODY)
        canvas.blob(centre, (size * 0.5, size * flat * 0.6, size * 0.5), between(rng, -60, 50), BODY)


def _head(canvas: Canvas, patient: Patient, throat: tuple[float, float, float]) -> None:
    """Paints soft tissue, skull, brain, pharynx and nasal cavity; jaw and sinuses are left out.

    Args:
        canvas: The canvas to paint on.
        patient: The patient's measures and CT numbers.
        throat: Height of the pharynx's lower end, and its radii below and above, mm.
    """
    x, y, z = patient.frame.head
    canvas.blob((x, y, z), (80.0, 98.0, 118.0), patient.muscle, BODY)
    canvas.blob((x, y, z + 25), (72.0, 90.0, 85.0), patient.cortex, BONE)
    canvas.blob((x, y, z + 25), (66.0, 84.0, 79.0), 35.0, BODY)
    # The pharynx above the larynx is no part of the trachea.
    low, narrow, wide = throat
    high = z - 80
    canvas.tube([(0.0, 12.0, low), (0.0, 15.0, high)], [narrow, wide], AIR_HU, BODY)
    canvas.tube([(0.0, 25.0, high), (0.0, 95.0, high)], [10.0, 14.0], AIR_HU, BODY)
