"""Positions of the spine, the head and the hips of a patient, on which the layout of all else depends."""

from dataclasses import dataclass

import numpy as np

from training.ct_chest.synthetic.canvas import Field, Point
from training.ct_chest.synthetic.fields import between

# Half axes of a vertebral body of size 1.
HALF_WIDTH_MM = 17.0
HALF_DEPTH_MM = 13.5


@dataclass(frozen=True)
class Spine:
    """The course of the spine, from the skull's base to the sacrum.

    Attributes:
        bend_mm: Amplitude of its bend to either side.
        kyphosis_mm: Amplitude of its sway, to the back at the carina and to the front in the loins.
        size: Factor on the size of the vertebrae.
        top, sacrum: Heights of its upper end and of the sacrum's upper edge, z in mm.
    """

    bend_mm: float
    kyphosis_mm: float
    size: float
    top: float
    sacrum: float

    def middle(self, z: Field) -> tuple[Field, Field]:
        """Centre of the vertebral bodies at heights `z`, mm: x and y, of the same shape.

        A straight one without kyphosis lies at x = 0, y = -52 at the carina, where z is 0.
        """
        x: Field = np.sin(z / np.float32(90)) * np.float32(self.bend_mm)
        y: Field = np.clip(z - 120, 0, 80) * np.float32(0.35) - 52
        y -= np.float32(self.kyphosis_mm) * np.cos((z - 10) / 85)
        return x, y

    def size_at(self, z: Field) -> Field:
        """Size of the vertebrae at heights `z`; `size` at the carina."""
        size: Field = np.clip(1 - z * np.float32(0.0011), 0.65, 1.25) * np.float32(self.size)
        return size

    def beside(self, z: float, angle: float, away_mm: float) -> Point:
        """A point outside of the vertebral bodies, mm.

        Args:
            z: Its height, mm.
            angle: Parameter of a body's ellipse, radians: 0 in front, pi/2 to the right.
            away_mm: Added to the half axes of that ellipse: the distance from the body, within 1 mm.

        Returns:
            At z = 0 of a straight spine of size 1 without kyphosis, (0, -28.5, 0) for angle 0 and 10 mm.
        """
        height = np.array(z, np.float32)
        x, y = self.middle(height)
        size = self.size_at(height)
        out_x = HALF_WIDTH_MM * size + away_mm
        out_y = HALF_DEPTH_MM * size + away_mm
        return float(x + out_x * np.sin(angle)), float(y + out_y * np.cos(angle)), z


@dataclass(frozen=True)
class Frame:
    """Landmarks that a patient is built around.

    Attributes:
        head: Centre of the head, mm.
        spine: The course of the spine.
        hip: Centre of the right hip joint, mm; the left one mirrors it.
    """

    head: Point
    spine: Spine
    hip: Point


def draw_frame(sacrum: float, rng: np.random.Generator) -> Frame:
    """Draws a frame; `sacrum` is the height of the sacrum's upper edge, z in mm."""
    head: Point = (0.0, between(rng, -15, 20), between(rng, 315, 345))
    spine = Spine(
        bend_mm=between(rng, -6, 6),
        kyphosis_mm=between(rng, 4, 10),
        size=between(rng, 0.9, 1.1),
        # The skull's base lies 60 mm below the head's middle, a little less where the spine meets it.
        top=head[2] - 54,
        sacrum=sacrum,
    )
    return Frame(head, spine, (between(rng, 66, 90), between(rng, 0, 14), sacrum - between(rng, 85, 105)))
