"""Draws a patient's measures and CT numbers, and computes the surfaces that the organs are laid out by."""

from dataclasses import dataclass

import numpy as np

from training.ct_chest.synthetic.canvas import Canvas, Field
from training.ct_chest.synthetic.fields import between, chance, child
from training.ct_chest.synthetic.frame import Frame, draw_frame

# Half width, half depth and the centre's y of the thoracic cavity at heights z, mm.
_CAVITY_Z = (-420, -260, -200, -140, -80, -20, 30, 70, 95, 113, 116)
_CAVITY_WIDTH = (122, 126, 131, 134, 132, 125, 112, 86, 58, 22, 1)
_CAVITY_DEPTH = (76, 84, 91, 95, 92, 84, 72, 57, 40, 16, 1)
_CAVITY_Y = (2, 2, 1, 0, 0, -4, -10, -19, -27, -32, -33)
# The same of the muscles' outer surface.
_MUSCLE_Z = (-450, -300, -200, -100, 0, 60, 95, 125, 150, 175, 320)
_MUSCLE_WIDTH = (158, 146, 152, 157, 158, 155, 138, 100, 64, 54, 52)
_MUSCLE_DEPTH = (92, 94, 104, 111, 103, 91, 80, 68, 58, 54, 54)
_MUSCLE_Y = (-2, -2, -2, -3, -6, -14, -20, -24, -22, -18, -8)


@dataclass(frozen=True)
class Patient:
    """Measures and CT numbers of one patient.

    Attributes:
        healthy: Whether bones and arteries are without disease.
        fat_mm: Thickness of the fat under the skin.
        arms_up: Whether the arms lie beside the head, not beside the trunk.
        down: Direction of gravity along y: -1 for a patient on the back, 1 on the belly.
        dome_right, dome_left: Tops of the diaphragm, z in mm.
        dome_depth: Height of the diaphragm's domes, mm.
        frame: Positions of head, spine and hips.
        fat, muscle, blood, liver, marrow, cortex, lung: HU.
        aorta, veins, arteries: HU of the vessels that contrast medium reaches: great arteries, veins on its way to the
            heart, and pulmonary vessels.
        returned: Share of the aorta's contrast medium in the inferior vena cava.
    """

    healthy: bool
    fat_mm: float
    arms_up: bool
    down: int
    dome_right: float
    dome_left: float
    dome_depth: float
    frame: Frame
    fat: float
    muscle: float
    blood: float
    liver: float
    marrow: float
    cortex: float
    lung: float
    aorta: float
    veins: float
    arteries: float
    returned: float

    @property
    def cava(self) -> float:
        """HU of the inferior vena cava and the veins that join it."""
        return self.blood + self.returned * (self.aorta - self.blood)


def draw_patient(rng: np.random.Generator, *, healthy: bool = False) -> Patient:
    """Draws a patient. HU vary more than in reality: domain randomisation.

    Unless the patient is healthy, trabecular bone may be as dense as soft tissue, so that only the cortex shows it. L1
    has 226 HU on average below 30 years of age, and 85 above 90 (S. Jang et al., Radiology 291, 2019).
    """
    blood = between(rng, 28, 62)
    contrast = chance(rng, 0.55)
    level = between(rng, 90, 420 if healthy else 520)
    dome_right = between(rng, -130, -65)
    return Patient(
        healthy=healthy,
        fat_mm=between(rng, 4, 38),
        arms_up=chance(rng, 0.7),
        down=-1 if chance(rng, 0.9) else 1,
        dome_right=dome_right,
        dome_left=dome_right - between(rng, -8, 26),
        dome_depth=between(rng, 40, 110),
        frame=draw_frame(between(rng, -375, -320), child(rng, "frame")),
        fat=between(rng, -125, -75),
        muscle=between(rng, 30, 75),
        blood=blood,
        liver=between(rng, 20, 130),
        marrow=between(rng, 40, 300) if healthy else _marrow(rng),
        cortex=between(rng, 380, 1100),
        lung=between(rng, -910, -700) if chance(rng, 0.85) else between(rng, -700, -520),
        aorta=level * between(rng, 0.6, 1.2) if contrast else blood,
        veins=min(level * between(rng, 0.5, 4), 1800) if contrast else blood,
        arteries=level * between(rng, 0.5, 1.4) if contrast else blood,
        returned=between(child(rng, "contrast medium that returns"), 0, 1),
    )


def _marrow(rng: np.random.Generator) -> float:
    return between(rng, 0, 150) if chance(rng, 0.5) else between(rng, 100, 320)


def rounded_distance(u: Field, v: Field, square: float) -> Field:
    """Distance from the centre, in half axes: 1 on an ellipse for `square` 0, on a rounded box for `square` 1."""
    u2 = u * u
    v2 = v * v
    both = u2 + v2
    boxed = np.sqrt(np.sqrt(both * both - 2 * u2 * v2))
    out: Field = np.float32(1 - square) * np.sqrt(both) + np.float32(square) * boxed
    return out


class Surfaces:
    """Distance to the body's large surfaces, mm, negative inside, each of the canvas's shape.

    Attributes:
        cavity: The inside of the ribs.
        muscle: The outside of the muscles.
        dome: Height above the diaphragm: negative in the abdomen.
        angle: Radians around the cavity's centre: 0 at the back, pi in front, on both sides.
    """

    def __init__(self, canvas: Canvas, patient: Patient, rng: np.random.Generator) -> None:
        z = canvas.z
        x = canvas.x
        width = _profile(z, _CAVITY_Z, _CAVITY_WIDTH, rng)
        depth = _profile(z, _CAVITY_Z, _CAVITY_DEPTH, rng)
        y = canvas.y - _profile(z, _CAVITY_Z, _CAVITY_Y)
        self.cavity = _radial(x, y, rounded_distance(x / width, y / depth, between(rng, 0, 0.5)))
        self.cavity = np.maximum(self.cavity, z - 113)
        self.angle = np.arctan2(np.abs(x), -y)
        width = _profile(z, _MUSCLE_Z, _MUSCLE_WIDTH, rng)
        depth = _profile(z, _MUSCLE_Z, _MUSCLE_DEPTH, rng)
        y = canvas.y - _profile(z, _MUSCLE_Z, _MUSCLE_Y)
        self.muscle = _radial(x, y, rounded_distance(x / width, y / depth, between(rng, 0.1, 0.7)))
        self.muscle = np.minimum(self.muscle, np.where(z < 118, self.cavity - between(rng, 15, 20), np.float32(1e3)))
        self.dome = self._diaphragm(canvas, patient, rng)

    @staticmethod
    def _diaphragm(canvas: Canvas, patient: Patient, rng: np.random.Generator) -> Field:
        tops = (patient.dome_right, patient.dome_left)
        heights = []
        for side, top in zip((1, -1), tops, strict=True):
            across = (canvas.x - side * between(rng, 50, 66)) / between(rng, 68, 88)
            along = (canvas.y - between(rng, 5, 32)) / between(rng, 84, 112)
            squared = across * across + along * along
            # Flat on top and steep at the wall, or the other way round.
            bend = np.float32(between(rng, 0, 0.6))
            heights.append(np.float32(top) - np.float32(patient.dome_depth) * squared * (1 - bend + bend * squared))
        # Between the domes the heart lies on the central tendon.
        across = canvas.x / between(rng, 60, 85)
        along = (canvas.y - 20) / between(rng, 60, 85)
        middle = np.float32(min(tops) - between(rng, 0, 22)) - 60 * (across * across + along * along)
        return canvas.z - np.maximum(np.maximum(heights[0], heights[1]), middle)


def _profile(
    z: Field, heights: tuple[int, ...], values: tuple[int, ...], rng: np.random.Generator | None = None
) -> Field:
    """Interpolates a measure along z; `rng` varies it a little for each patient."""
    scaled = np.array(values, np.float64)
    if rng is not None:
        wave = np.interp(np.arange(len(values)), np.linspace(0, len(values) - 1, 4), rng.normal(0, 0.05, 4))
        scaled *= 1 + wave
    # Look-up table of one value a millimetre: np.interp on every voxel takes ten times as long.
    low = heights[0]
    high = heights[-1]
    table = np.interp(np.arange(low, high + 1), heights, scaled).astype(np.float32)
    place = np.clip(z - np.float32(low), 0, np.float32(high - low - 0.01))
    first = place.astype(np.int32)
    share: Field = place - first.astype(np.float32)
    measure: Field = table[first] * (1 - share) + table[first + 1] * share
    return measure


def _radial(x: Field, y: Field, outness: Field) -> Field:
    share = np.float32(1) - np.reciprocal(np.maximum(outness, np.float32(1e-3)))
    distance: Field = np.sqrt(x * x + y * y) * share
    return distance
