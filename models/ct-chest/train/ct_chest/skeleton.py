"""Spine, ribs, sternum, clavicles, scapulae and humeri: cortex around marrow. The pelvis has a module of its own."""

from dataclasses import dataclass

import numpy as np

from ct_chest.canvas import Box, Canvas, Field, Mask, Point
from ct_chest.fields import between, chance
from ct_chest.labels import BODY, BONE
from ct_chest.patient import Patient, Surfaces
from ct_chest.trunk import Arm


@dataclass(frozen=True)
class Column:
    """Where the voxels of a box lie in the spine.

    Attributes:
        box: The box; all else has its shape.
        x, y: To the right and to the front of the middle of the vertebral bodies, mm.
        within: Above the middle of the vertebra or the disc beside it, mm.
        number: Which vertebra it is.
        pitch: From one vertebra to the next, mm.
        half: Half the height of a vertebra, mm.
        size: Of the vertebra, 1 at the carina.
        below: How far below the last vertebra, mm.
    """

    box: Box
    x: Field
    y: Field
    within: Field
    number: Field
    pitch: Field
    half: Field
    size: Field
    below: Field


class Skeleton:
    """Paints bones.

    Attributes:
        canvas: Where.
        patient: Whose.
        cortex_mm: Thickness of the compact bone.
    """

    def __init__(self, canvas: Canvas, patient: Patient, rng: np.random.Generator) -> None:
        self.canvas, self.patient, self.rng = canvas, patient, rng
        self.cortex_mm = between(rng, 0.4, 2.6)

    def bone(self, distance: Field, box: Box | None = None, where: Mask | None = None, cortex: float = 1.0) -> None:
        """Paints a bone from the distance to its surface."""
        self.canvas.paint(distance, self.patient.cortex * cortex, BONE, box, where)
        self.canvas.paint(distance + np.float32(self.cortex_mm), self.patient.marrow, None, box, where)

    def capsules(self, points: list[Point], radii: list[float]) -> None:
        """Paints a bone of round cones: cortex first everywhere, so that no joint is closed by it."""
        for grown, hu, label in ((0.0, self.patient.cortex, BONE), (-self.cortex_mm, self.patient.marrow, None)):
            self.canvas.tube(points, radii, hu, label, grown_mm=grown)

    def spine(self) -> None:
        """Vertebrae with discs, canal, arches and processes."""
        box = self.canvas.box((-60, -140, self.patient.sacrum), (60, 0, 420))
        if box is None:
            return
        column = self._column(box)
        self._bodies_and_discs(column)
        self._arches_and_processes(column)

    def _column(self, box: Box) -> Column:
        canvas, rng = self.canvas, self.rng
        bend = np.float32(between(rng, -6, 6))
        z = canvas.z[box]
        x = canvas.x[box] - np.sin(z / np.float32(90)) * bend
        # Kyphosis: the spine's middle lies furthest back at the upper chest.
        kyphosis = np.float32(between(rng, 4, 10)) * np.cos((z - 10) / 85)
        y = canvas.y[box] + 52 + kyphosis - np.clip(z - 120, 0, 80) * 0.35
        pitch = np.clip(24.5 - z * np.float32(0.016), 18, 32)
        phase = (z - between(rng, 0, 24)) / pitch
        number = np.floor(phase)
        size = np.clip(1 - z * np.float32(0.0011), 0.65, 1.25) * np.float32(between(rng, 0.9, 1.1))
        half = pitch / 2 - np.float32(between(rng, 1.5, 4.5))
        # All of it ends where the sacrum begins.
        below = np.float32(self.patient.sacrum) - z
        return Column(box, x, y, (phase - number - np.float32(0.5)) * pitch, number, pitch, half, size, below)

    def _bodies_and_discs(self, column: Column) -> None:
        canvas, rng, box = self.canvas, self.rng, column.box
        x, y, within, half, below = column.x, column.y, np.abs(column.within), column.half, column.below
        body = (np.sqrt((x / 17) ** 2 + (y / 13.5) ** 2) / column.size - 1) * 14 * column.size
        sides = np.maximum(np.maximum(body, -y - 60), below)
        canvas.paint(sides, between(rng, 50, 110), BODY, box)
        if self.patient.sound:
            self.bone(np.maximum(sides, within - half), box)
            return
        self._vertebral_bodies(sides, within, half, box)
        if chance(rng, 0.35):
            # Osteophytes: lips that reach over the discs, here and there around them.
            thick = np.float32(between(rng, 1.5, 3))
            lips = np.maximum(np.abs(body - 1) - thick, np.abs(within - half) - 4)
            here = np.sin(np.arctan2(y, x) * 3 + column.number * 2) > between(rng, -0.5, 0.8)
            self.bone(np.maximum(lips, below), box, here & (y > -10))

    def _arches_and_processes(self, column: Column) -> None:
        rng, box = self.rng, column.box
        x, within, size, below = column.x, column.within, column.size, column.below
        back = -(column.y / size) - 13.5
        ring = np.abs(np.sqrt((x / size / 1.2) ** 2 + (back - 10) ** 2) - 11) - 3.2
        self.bone(np.maximum(ring, np.abs(within - 2) - column.half * 0.75), box, (back > 0) & (below < 0))
        across = np.sqrt((back - 13) ** 2 * 0.8 + (within - 4) ** 2) - np.float32(between(rng, 4, 6))
        self.bone(np.maximum(across, np.abs(x) - 34 * size), box, (np.abs(x) > 11 * size) & (below < 0))
        dip = within + (back - 20) * np.float32(between(rng, 0.2, 0.7))
        dip = np.where(dip < -column.pitch / 2, dip + column.pitch, dip)
        spinous = np.sqrt(x**2 * 2.2 + dip**2 * 0.45) - 4
        spinous = np.maximum(np.maximum(spinous, 19 - back), back - np.float32(between(rng, 40, 52)))
        self.bone(spinous, box, below < 0)
        canal = np.sqrt((x / 1.15) ** 2 + (back - 9) ** 2) / size - np.float32(between(rng, 7, 8.5))
        self.canvas.paint(np.where(back > 0, canal, 9), between(rng, 10, 40), BODY, box, below < 0)

    def _vertebral_bodies(self, column: Field, within: Field, half: Field, box: Box) -> None:
        """Narrower in the middle, and with endplates thicker or thinner than the cortex around them.

        Args:
            column: Distance to the surface of vertebrae and discs.
            within: Height above or below the middle of a vertebra, mm.
            half: Half the height of a vertebra, mm.
            box: Where all three lie.
        """
        waist = np.float32(between(self.rng, 0, 3)) * (1 - np.clip(within / half, 0, 1) ** 2)
        sides, ends = column + waist, within - half
        self.canvas.paint(np.maximum(sides, ends), self.patient.cortex, BONE, box)
        plate = np.float32(self.cortex_mm * between(self.rng, 0.6, 2))
        marrow = np.maximum(sides + np.float32(self.cortex_mm), ends + plate)
        self.canvas.paint(marrow, self.patient.marrow, None, box)

    def ribs(self, surfaces: Surfaces) -> None:
        """Slanting hoops in a shell around the cavity, with cartilage in front."""
        canvas, rng = self.canvas, self.rng
        box = canvas.box((-190, -150, -235), (190, 150, 118))
        if box is None:
            return
        shell = surfaces.cavity[box] - np.float32(between(rng, 5, 7.5))
        angle, z = surfaces.angle[box], canvas.z[box]
        slope = np.float32(between(rng, 24, 42))
        height = z + slope * (angle - np.float32(0.4)) * np.clip((110 - z) / 110, 0.25, 1) - 6 * np.sin(2 * angle)
        pitch = np.float32(between(rng, 24, 30))
        phase = (height - np.float32(between(rng, 0, 27))) / pitch
        number = np.floor(phase)
        within = (phase - number - np.float32(0.5)) * pitch
        thick, tall = between(rng, 3.2, 4.8), between(rng, 5.2, 7.5)
        ring = (np.sqrt((shell / thick) ** 2 + (within / tall) ** 2) - 1) * np.float32(thick)
        # The lower ribs end earlier; cartilage joins the upper ones to the sternum.
        end = np.clip(np.float32(between(rng, 2.2, 2.6)) + (height + 150) * np.float32(0.002), 1.2, 2.7)
        inside = (z > -232) & (number * pitch > -190) & (z < 112) & (angle > 0.25)
        self.bone(ring, box, inside & (angle < end))
        cartilage = inside & (angle >= end) & (number * pitch > -110)
        if chance(rng, 0.25):
            self.bone(ring, box, cartilage & (np.sin(z * 0.9) + np.sin(canvas.x[box] * 0.8) > 0.8))
        else:
            canvas.paint(ring, between(rng, 60, 160), BODY, box, cartilage)

    def sternum(self, surfaces: Surfaces) -> None:
        """Manubrium and body of the sternum, in the cavity's shell."""
        canvas, rng = self.canvas, self.rng
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
        """Clavicles, scapulae and humeri."""
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
        """From the joint to the elbow, within the arm; its shaft is hollow, and filled with fat."""
        head, elbow = (self._near(joint, 8) for joint in (arm.shoulder, arm.elbow))
        neck_x, neck_y, neck_z = (a + 0.25 * (b - a) for a, b in zip(head, elbow, strict=True))
        shaft = [(neck_x, neck_y, neck_z), elbow]
        self.capsules([head, *shaft], [between(self.rng, 20, 25), 11.0, 11.0])
        self.canvas.tube(shaft, [6.0, 6.0], self.patient.fat)

    def _near(self, point: Point, most_mm: float) -> Point:
        x, y, z = (value + between(self.rng, -most_mm, most_mm) for value in point)
        return x, y, z

    def _scapula(self, surfaces: Surfaces, side: int, lift: float) -> None:
        canvas, rng = self.canvas, self.rng
        box = canvas.box((-190, -150, -110), (190, 40, 140))
        if box is None:
            return
        thick = between(rng, 2.0, 3.5)
        offset = surfaces.cavity[box] - np.float32(between(rng, 19, 27))
        z, angle = canvas.z[box], surfaces.angle[box]
        low, high = between(rng, -80, -50) + lift / 2, between(rng, 62, 84)
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
