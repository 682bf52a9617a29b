"""Draws a synthetic CT of the trunk with its labels from a seed.

Domain randomisation after B. Billot et al., "SynthSeg", Medical Image Analysis 86 (2023) 102789: shapes, CT numbers,
pose, resolution and noise vary more than in reality, so that a real scan looks like one more variation. Unlike there,
the shapes come from no person's anatomy.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.ct_chest.synthetic.abdomen import draw_abdomen
from training.ct_chest.synthetic.canvas import Spacing
from training.ct_chest.synthetic.disease import draw_disease
from training.ct_chest.synthetic.lungs import Chest
from training.ct_chest.synthetic.patient import Surfaces, draw_patient
from training.ct_chest.synthetic.pelvis import draw_pelvis
from training.ct_chest.synthetic.ribs import draw_ribs
from training.ct_chest.synthetic.scanner import draw_canvas, draw_grid, expose, rounded
from training.ct_chest.synthetic.skeleton import Skeleton
from training.ct_chest.synthetic.spine import draw_spine
from training.ct_chest.synthetic.surroundings import draw_surroundings
from training.ct_chest.synthetic.trunk import draw_trunk


@dataclass(frozen=True)
class Example:
    """A scan and its labels.

    Attributes:
        hu: Shape (i, j, k), int16; axes run to the right, the front and the head (RAS).
        labels: The same shape, uint8; the values are those of `training.ct_chest.labels`.
        spacing_mm: Size of a voxel.
    """

    hu: NDArray[np.int16]
    labels: NDArray[np.uint8]
    spacing_mm: Spacing


def make_example(seed: int, spacing_mm: Spacing, *, abdominal: bool = False, healthy: bool = False) -> Example:
    """Draws an example; the same arguments give the same voxels.

    Args:
        seed: Seed of all random draws.
        spacing_mm: Size of a voxel.
        abdominal: Scan the abdomen, with much gas and at most the lung bases; otherwise any part of the trunk.
        healthy: Draw no disease of bones and arteries; otherwise thin, steep or porous bones, osteophytes, aneurysms,
            dissections, thrombus, calcium and stents occur.
    """
    rng = np.random.default_rng(seed)
    patient = draw_patient(rng, healthy=healthy)
    grid = draw_grid(rng, spacing_mm, abdominal=abdominal)
    canvas = draw_canvas(rng, grid)
    surfaces = Surfaces(canvas, patient, rng)
    draw_surroundings(canvas, patient, surfaces, rng)
    arms = draw_trunk(canvas, patient, surfaces, rng)
    draw_abdomen(canvas, patient, surfaces, rng, gassy=abdominal)
    chest = Chest(canvas, patient, surfaces, rng)
    chest.mediastinum()
    skeleton = Skeleton(canvas, patient, rng)
    draw_ribs(skeleton, surfaces)
    skeleton.sternum(surfaces)
    skeleton.shoulders(surfaces, arms)
    chest.parenchyma()
    chest.vessels()
    draw_disease(chest, rng)
    chest.heart()
    chest.thyroid()
    draw_spine(skeleton)
    draw_pelvis(skeleton)
    chest.airways()
    expose(canvas, grid, rng, healthy=healthy)
    return Example(rounded(canvas.hu), canvas.labels, spacing_mm)
