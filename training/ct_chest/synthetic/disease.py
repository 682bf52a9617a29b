"""Diseases of the lung: nodules, consolidation and effusion."""

import numpy as np

from training.ct_chest.labels import BODY, LUNG_LEFT, LUNG_RIGHT
from training.ct_chest.synthetic.canvas import Point
from training.ct_chest.synthetic.fields import between, chance, smooth_field
from training.ct_chest.synthetic.lungs import Chest


def draw_disease(chest: Chest, rng: np.random.Generator) -> None:
    """Paints none, one or several of them; nodules and consolidation are labelled lung, effusion body."""
    if chance(rng, 0.35):
        for _ in range(int(rng.integers(1, 8))):
            _nodule(chest, rng)
    if chance(rng, 0.3):
        _consolidation(chest, rng)
    if chance(rng, 0.22):
        _effusion(chest, rng)


def _place(rng: np.random.Generator) -> Point:
    side = 1 if chance(rng, 0.5) else -1
    return (side * between(rng, 40, 115), between(rng, -70, 60), between(rng, -150, 80))


def _nodule(chest: Chest, rng: np.random.Generator) -> None:
    radius = between(rng, 2.5, 16)
    found = chest.canvas.ellipsoid(_place(rng), (radius, radius * between(rng, 0.7, 1), radius))
    if found is None:
        return
    distance, box = found
    hu = between(rng, -20, 90) if chance(rng, 0.75) else between(rng, -600, -200)
    chest.canvas.paint(distance, hu, None, box, chest.lungs[box] < 0)


def _consolidation(chest: Chest, rng: np.random.Generator) -> None:
    """Paints clouds of fluid-filled lung, from ground glass to solid, with air left in the bronchi."""
    rough = smooth_field(rng, chest.shape, chest.spacing_mm, between(rng, 12, 40))
    for _ in range(int(rng.integers(1, 4))):
        radius = between(rng, 20, 60)
        found = chest.canvas.ellipsoid(_place(rng), (radius, radius, radius * 1.2))
        if found is None:
            continue
        distance, box = found
        cloud = distance + np.float32(radius * 0.35) * rough[box]
        i, j, k = cloud.shape
        air = np.clip(smooth_field(rng, (i, j, k), chest.spacing_mm, 8) - 1, 0, 1) * 500
        hu = np.float32(between(rng, -650, 70)) - air
        chest.canvas.paint(cloud, hu, None, box, chest.lungs[box] < 0)


def _effusion(chest: Chest, rng: np.random.Generator) -> None:
    """Paints a crescent of fluid between lung and chest wall, at the lowest point."""
    canvas = chest.canvas
    height = canvas.y * np.float32(-chest.patient.down)
    for side in (-1, 1):
        if not chance(rng, 0.6):
            continue
        level = between(rng, -85, -15)
        # Higher along the wall than in the middle, and towards the feet.
        surface = height - np.float32(level) - np.clip(22 + chest.surfaces.cavity, 0, 22) + (canvas.z + 60) * 0.15
        lung = LUNG_RIGHT if side > 0 else LUNG_LEFT
        where = (canvas.labels == lung) & (canvas.x * side > 0)
        canvas.paint(surface, between(rng, -5, 45), BODY, where=where)
