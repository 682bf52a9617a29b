"""The spine: vertebrae with arches and processes, discs and the canal."""

from dataclasses import dataclass

import numpy as np

from training.ct_chest.labels import BODY, BONE
from training.ct_chest.synthetic.canvas import Box, Field
from training.ct_chest.synthetic.fields import between, chance, child
from training.ct_chest.synthetic.frame import HALF_DEPTH_MM, HALF_WIDTH_MM
from training.ct_chest.synthetic.patient import Patient
from training.ct_chest.synthetic.skeleton import Skeleton

# Distance between vertebrae at the carina, mm, and its decrease for each mm of height.
_PITCH_MM = 24.0
_PITCH_FALLS = 0.035


@dataclass(frozen=True)
class Column:
    """Position of the voxels of a box in the spine.

    Attributes:
        box: The box; all arrays have its shape.
        x, y: Distance to the right and to the front of the centre of the vertebral bodies, mm.
        within: Height above the centre of the nearest vertebra, mm.
        number: Number of that vertebra.
        pitch: Distance between vertebrae, mm.
        half: Half the height of a vertebra, mm.
        size: Size of the vertebra, 1 at the carina.
        beyond: Distance beyond the spine's ends, mm: positive below the last vertebra and within the skull.
    """

    box: Box
    x: Field
    y: Field
    within: Field
    number: Field
    pitch: Field
    half: Field
    size: Field
    beyond: Field


def draw_spine(skeleton: Skeleton) -> None:
    """Paints vertebrae with discs, canal, arches and processes."""
    spine = skeleton.patient.frame.spine
    box = skeleton.canvas.box((-60, -140, spine.sacrum), (60, 0, spine.top))
    if box is None:
        return
    column = _column(skeleton, box)
    _bodies_and_discs(skeleton, column)
    _arches_and_processes(skeleton, column)


def _column(skeleton: Skeleton, box: Box) -> Column:
    canvas = skeleton.canvas
    rng = skeleton.rng
    spine = skeleton.patient.frame.spine
    z = canvas.z[box]
    # Skips numbers that the frame draws today, here and below, so that a seed still gives the same scan.
    rng.random(2)
    middle_x, middle_y = spine.middle(z)
    pitch = np.maximum(_PITCH_MM - z * np.float32(_PITCH_FALLS), 10)
    # The integral of 1 / pitch.
    phase = np.log(_PITCH_MM / pitch) / np.float32(_PITCH_FALLS) - np.float32(between(rng, 0, 1))
    number = np.floor(phase)
    rng.random()
    # Discs are twice as thick in the loins as in the chest.
    half = pitch / 2 - np.float32(between(rng, 1.5, 3.5)) * np.clip(1 - z * np.float32(0.003), 0.8, 1.9)
    within = (phase - number - np.float32(0.5)) * pitch
    beyond = np.maximum(np.float32(spine.sacrum) - z, z - np.float32(spine.top))
    return Column(
        box, canvas.x[box] - middle_x, canvas.y[box] - middle_y, within, number, pitch, half, spine.size_at(z), beyond
    )


def _bodies_and_discs(skeleton: Skeleton, column: Column) -> None:
    canvas = skeleton.canvas
    rng = skeleton.rng
    box = column.box
    x = column.x
    y = column.y
    half = column.half
    beyond = column.beyond
    within = np.abs(column.within)
    outness = np.sqrt((x / HALF_WIDTH_MM) ** 2 + (y / HALF_DEPTH_MM) ** 2) / column.size
    body = ((outness - 1) * 14 * column.size).astype(np.float32)
    sides = np.maximum(body, beyond)
    canvas.paint(sides, between(rng, 50, 110), BODY, box)
    if skeleton.patient.healthy:
        skeleton.bone(np.maximum(sides, within - half), box)
        return
    _vertebral_bodies(skeleton, sides, column)
    if chance(rng, 0.35):
        _osteophytes(skeleton, body, column)


def _osteophytes(skeleton: Skeleton, body: Field, column: Column) -> None:
    """Paints lips that reach over the discs in places; `body` is the distance to discs and vertebrae."""
    rng = skeleton.rng
    x = column.x
    y = column.y
    thick = np.float32(between(rng, 1.5, 3))
    lips = np.maximum(np.abs(body - 1) - thick, np.abs(np.abs(column.within) - column.half) - 4)
    here = np.sin(np.arctan2(y, x) * 3 + column.number * 2) > between(rng, -0.5, 0.8)
    skeleton.bone(np.maximum(lips, column.beyond), column.box, here & (y > -10))


def _arches_and_processes(skeleton: Skeleton, column: Column) -> None:
    rng = skeleton.rng
    box = column.box
    x = column.x
    within = column.within
    size = column.size
    beyond = column.beyond
    back = -(column.y / size) - HALF_DEPTH_MM
    ring = np.abs(np.sqrt((x / size / 1.2) ** 2 + (back - 10) ** 2) - 11) - 3.2
    skeleton.bone(np.maximum(ring, np.abs(within - 2) - column.half * 0.75), box, (back > 0) & (beyond < 0))
    across = np.sqrt((back - 13) ** 2 * 0.8 + (within - 4) ** 2) - np.float32(between(rng, 4, 6))
    skeleton.bone(np.maximum(across, np.abs(x) - 34 * size), box, (np.abs(x) > 11 * size) & (beyond < 0))
    dip = within + (back - 20) * np.float32(between(rng, 0.2, 0.7))
    dip = np.where(dip < -column.pitch / 2, dip + column.pitch, dip)
    spinous = np.sqrt(x**2 * 2.2 + dip**2 * 0.45) - 4
    spinous = np.maximum(np.maximum(spinous, 19 - back), back - np.float32(between(rng, 40, 52)))
    skeleton.bone(spinous, box, beyond < 0)
    canal = np.sqrt((x / 1.15) ** 2 + (back - 9) ** 2) / size - np.float32(between(rng, 7, 8.5))
    skeleton.canvas.paint(np.where(back > 0, canal, 9), between(rng, 10, 40), BODY, box, beyond < 0)


def _vertebral_bodies(skeleton: Skeleton, sides: Field, column: Column) -> None:
    """Paints vertebral bodies with a waist, and endplates thicker or thinner than the cortex around them.

    Args:
        sides: Distance to the surface of vertebrae and discs.
        column: Positions in the spine.
    """
    within = np.abs(column.within)
    half = column.half
    waist = np.float32(between(skeleton.rng, 0, 3)) * (1 - np.clip(within / half, 0, 1) ** 2)
    narrowed = sides + waist
    ends = within - half
    skeleton.canvas.paint(np.maximum(narrowed, ends), skeleton.patient.cortex, BONE, column.box)
    plate = np.float32(skeleton.cortex_mm * between(skeleton.rng, 0.6, 2))
    marrow = np.maximum(narrowed + np.float32(skeleton.cortex_mm), ends + plate)
    hu = trabecular(column, skeleton.patient, child(skeleton.rng, "marrow of vertebrae"))
    skeleton.canvas.paint(marrow, hu, None, column.box)


def trabecular(column: Column, patient: Patient, rng: np.random.Generator) -> Field:
    """HU of the vertebrae's marrow, which varies between vertebrae and rises towards the endplates and to one side."""
    apart = between(rng, 0, 45)
    denser = between(rng, 0, 120)
    hu_per_mm = between(rng, -3, 3)
    number = np.float32(between(rng, 1.5, 4)) * column.number + np.float32(between(rng, 0, 6))
    towards_ends = np.clip(np.abs(column.within) / column.half, 0, 1) ** 3
    hu: Field = patient.marrow + apart * np.sin(number) + denser * towards_ends
    hu += np.float32(hu_per_mm) * np.clip(column.x, -20, 20)
    return np.maximum(hu, np.float32(patient.fat))
