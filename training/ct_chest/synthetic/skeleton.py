"""Sternum, clavicles, scapulae and humeri, each cortex around marrow; spine, ribs and pelvis have their own modules."""

import numpy as np

from training.ct_chest.labels import BONE
from training.ct_chest.synthetic.canvas import Box, Canvas, Field, Mask, Point
from training.ct_chest.synthetic.fields import between
from training.ct_chest.synthetic.patient import Patient, Surfaces
from training.ct_chest.synthetic.trunk import Arm


class Skeleton:
    """Paints bones.

    Attributes:
        canvas: The canvas to paint on.
        patient: The patient's measures and CT numbers.
        cortex_mm: Thickness of the compact bone.
    """

    def __init__(self, canvas: Canvas, patient: Patient, rng: np.random.Generator) -> None:
        self.canvas = canvas
        self.patient = patient
        self.rng = rng
        self.cortex_mm = between(rng, 0.4, 2.6)

    def bone(
        self,
        distance: Field,
        box: Box | None = None,
        where: Mask | None = None,
        *,
        cortex_mm: float | None = None,
        marrow: float | None = None,
    ) -> None:
        """Paints a bone from the distance to its surface; cortex and marrow default to the patient's."""
        cortex_mm = self.cortex_mm if cortex_mm is None else cortex_mm
        marrow = self.patient.marrow if marrow is None else marrow
        self.canvas.paint(distance, self.patient.cortex, BONE, box, where)
        self.canvas.paint(distance + np.float32(cortex_mm), marrow, None, box, where)

    def capsules(self, points: list[Point], radii: list[float]) -> None:
        """Paints a bone of round cones, all cortex before the marrow, so that no cortex divides it at joints."""
        for grown, hu, label in ((0.0, self.patient.cortex, BONE), (-self.cortex_mm, self.patient.marrow, None)):
            self.canvas.tube(points, radii, hu, label, grown_mm=grown)

    def sternum(self, surfaces: Surfaces) -> None:
        """Paints manubrium and body of the sternum in the front wall of the cavity."""
        canvas = self.canvas
        rng = self.rng
        box = canvas.box((-45, 0, -120), (45, 150, 90))
        if box is None:
            return
        shell = np.abs(surfaces.cavity[box] - np.float32(between(rng, 7, 11))) - np.float32(between(rng, 4.5, 6.5))
        z = canvas.z[box]
        half = np.where(z > 30, np.clip(24 + (z - 30) * 0.15, 0, 32), 17) * np.float32(between(rng, 0.8, 1.15))
        ends = np.maximum(z - between(rng, 58, 76), between(rng, -95, -65) - z)
        distance = np.maximum(np.maximum(shell, np.abs(canvas.x[box]) - half), np.maximum(ends, 2 - np.abs(z - 30)))
        self.bone(distance, box, canvas.y[box] > 0)

    def shoulders(self, surfaces: Surfaces, arms: list[Arm]) -> None:
        """Paints clavicles, scapulae and humeri."""
        rng = self.rng
        lift = between(rng, 20, 45) if self.patient.arms_up else between(rng, 0, 20)
        for side in (-1, 1):
            points = [
                (side * 22.0, between(rng, 30, 42), between(rng, 66, 76)),
                (side * 65.0, between(rng, 22, 38), between(rng, 84, 94) + lift / 3),
                (side * 105.0, between(rng, -5, 12), between(rng, 96, 106) + lift / 2),
                (side * 140.0, between(rng, -25, -5), between(rng, 102, 112) + lift / 2),
            ]
            radius = between(rng, 4.8, 6.5)
            self.capsules(points, [radius * 1.4, radius, radius, radius * 1.1])
            self._scapula(surfaces, side, lift)
        for arm in arms:
            self._humerus(arm)

    def _humerus(self, arm: Arm) -> None:
        """Paints a humerus from the shoulder to the elbow, within the arm; fat fills its shaft."""
        head, elbow = (self._near(joint, 8) for joint in (arm.shoulder, arm.elbow))
        neck_x, neck_y, neck_z = (a + 0.25 * (b - a) for a, b in zip(head, elbow, strict=True))
        shaft = [(neck_x, neck_y, neck_z), elbow]
        self.capsules([head, *shaft], [between(self.rng, 20, 25), 11.0, 11.0])
        self.canvas.tube(shaft, [6.0, 6.0], self.patient.fat)

    def _near(self, point: Point, most_mm: float) -> Point:
        x, y, z = (value + between(self.rng, -most_mm, most_mm) for value in point)
        return x, y, z

    def _scapula(self, surfaces: Surfaces, side: int, lift: float) -> None:
        canvas = self.canvas
        rng = self.rng
        box = canvas.box((-190, -150, -110), (190, 40, 140))
        if box is None:
            return
        thick = between(rng, 2.0, 3.5)
        offset = surfaces.cavity[box] - np.float32(between(rng, 19, 27))
        z = canvas.z[box]
        angle = surfaces.angle[box]
        low = between(rng, -80, -50) + lift / 2
        high = between(rng, 62, 84)
        share = (z - low) / (high - low)
        outer = np.float32(between(rng, 1.2, 1.6)) + share * np.float32(0.35) + np.float32(lift) / 150
        inner = np.float32(between(rng, 0.75, 0.95)) + np.float32(lift) / 150 + (1 - share) * np.float32(0.25)
        ends = np.maximum(np.maximum(low - z, z - high), np.maximum(angle - outer, inner - angle) * 90)
        ours = canvas.x[box] * side > 0
        ridge = np.abs(z - (low + (high - low) * 0.8) - (angle - inner) * 14) - 3
        ridge = np.maximum(np.maximum(ridge, -offset), np.maximum(offset - between(rng, 12, 22), ends))
        rim = np.maximum(np.abs(offset) - thick * 2, np.abs((angle - outer) * 90 + 6) - 5)
        plate = np.maximum(np.minimum(np.abs(offset) - thick, rim), ends)
        self.bone(np.minimum(plate, ridge), box, ours)
        shoulder = (side * between(rng, 128, 140), between(rng, -45, -25), high)
        self.capsules([shoulder, (shoulder[0] + side * 10, shoulder[1] + 5, high + 8)], [13.0, 11.0])
        tip = (side * between(rng, 148, 165), between(rng, -40, -15), high + between(rng, 24, 36))
        self.capsules([(side * 118.0, -62.0, high - 4), tip], [6.0, 8.0])
