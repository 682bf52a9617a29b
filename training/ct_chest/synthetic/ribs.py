"""The ribs, and the cartilage that joins them to the sternum."""

from dataclasses import dataclass

import numpy as np

from training.ct_chest.labels import BODY
from training.ct_chest.synthetic.canvas import Field
from training.ct_chest.synthetic.fields import between, chance, child
from training.ct_chest.synthetic.patient import Surfaces
from training.ct_chest.synthetic.skeleton import Skeleton


@dataclass(frozen=True)
class Build:
    """Shape and density of one patient's ribs.

    Attributes:
        slope, thickness: Factors on the slope and thickness of normal ribs.
        uppermost: Lowest share of the slope that the uppermost ribs have.
        cortex_mm: Thickness of the compact bone.
        marrow: HU.
    """

    slope: float
    thickness: float
    uppermost: float
    cortex_mm: float
    marrow: float


def draw_ribs(skeleton: Skeleton, surfaces: Surfaces) -> None:
    """Paints slanting hoops in a shell around the cavity, with cartilage in front."""
    canvas = skeleton.canvas
    rng = skeleton.rng
    build = _build(skeleton)
    box = canvas.box((-190, -150, -235), (190, 150, 118))
    if box is None:
        return
    shell = surfaces.cavity[box] - np.float32(between(rng, 5, 7.5))
    angle = surfaces.angle[box]
    z = canvas.z[box]
    height = straightened(angle, z, between(rng, 24, 42) * build.slope, build.uppermost)
    pitch = np.float32(between(rng, 24, 30))
    phase = (height - np.float32(between(rng, 0, 27))) / pitch
    number = np.floor(phase)
    within = (phase - number - np.float32(0.5)) * pitch
    thick = between(rng, 3.2, 4.8) * build.thickness
    tall = between(rng, 5.2, 7.5)
    ring = (np.sqrt((shell / thick) ** 2 + (within / tall) ** 2) - 1) * np.float32(thick)
    # The lower ribs end earlier; cartilage joins the upper ones to the sternum.
    end = np.clip(np.float32(between(rng, 2.2, 2.6)) + (height + 150) * np.float32(0.002), 1.2, 2.7)
    inside = (z > -232) & (number * pitch > -190) & (z < 112) & (angle > 0.25)
    skeleton.bone(ring, box, inside & (angle < end), cortex_mm=build.cortex_mm, marrow=build.marrow)
    cartilage = inside & (angle >= end) & (number * pitch > -110)
    if chance(rng, 0.25):
        skeleton.bone(ring, box, cartilage & (np.sin(z * 0.9) + np.sin(canvas.x[box] * 0.8) > 0.8))
    else:
        canvas.paint(ring, between(rng, 60, 160), BODY, box, cartilage)


def _build(skeleton: Skeleton) -> Build:
    """Half of the patients who are not healthy have steeper, thinner ribs with less cortex and mostly darker marrow."""
    plain = Build(1.0, 1.0, 0.25, skeleton.cortex_mm, skeleton.patient.marrow)
    if skeleton.patient.healthy:
        return plain
    rng = child(skeleton.rng, "build of the ribs")
    if chance(rng, 0.5):
        return plain
    return Build(
        slope=between(rng, 1, 2.2),
        thickness=between(rng, 0.65, 1),
        uppermost=between(rng, 0.25, 0.9),
        cortex_mm=plain.cortex_mm * between(rng, 0.4, 1),
        marrow=plain.marrow * between(rng, 0.3, 1.1),
    )


def straightened(angle: Field, z: Field, slope: float, uppermost: float) -> Field:
    """Maps height in a chest with sloping ribs to height in one with level ribs, mm; monotonic in z up to 3 radians.

    Otherwise ribs would fold.

    Args:
        angle: `Surfaces.angle`.
        z: Height, mm, of the same shape.
        slope: Fall of the ribs towards the front, mm a radian; it decreases with height.
        uppermost: Lowest share of the slope that is left.
    """
    # No rib reaches further than 2.7 radians; beyond 3, cartilage lies behind the sternum.
    ramp = max(110.0, 2.6 * slope)
    steep = np.clip((ramp - z) / ramp, uppermost, 1)
    height: Field = z + np.float32(slope) * (angle - np.float32(0.4)) * steep - 6 * np.sin(2 * angle)
    return height
