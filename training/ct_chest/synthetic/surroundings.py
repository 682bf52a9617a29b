"""Table, mattress, clothes, blankets and cables around the patient, all labelled background."""

import numpy as np

from training.ct_chest.labels import BACKGROUND
from training.ct_chest.synthetic.canvas import Canvas, Field
from training.ct_chest.synthetic.fields import between, chance, child, smooth_field
from training.ct_chest.synthetic.patient import Patient, Surfaces


def draw_surroundings(canvas: Canvas, patient: Patient, surfaces: Surfaces, rng: np.random.Generator) -> None:
    """Paints the surroundings; they come first, so that the patient covers them."""
    skin = surfaces.muscle - np.float32(patient.fat_mm)
    if chance(rng, 0.7):
        waves = smooth_field(rng, canvas.shape, canvas.spacing_mm, between(rng, 20, 60)) * np.float32(
            between(rng, 1, 7)
        )
        for _ in range(int(rng.integers(1, 4))):
            layer = np.abs(skin - between(rng, 1, 22) - waves) - np.float32(between(rng, 0.3, 2.0))
            canvas.paint(layer, between(rng, -950, -150), BACKGROUND)
    of_blankets = child(rng, "blankets")
    if chance(of_blankets, 0.3):
        _blanket(canvas, patient, skin, of_blankets)
    if chance(rng, 0.9):
        _table(canvas, patient, rng)
    for _ in range(int(rng.integers(0, 4))):
        _cable(canvas, patient, rng)


def _blanket(canvas: Canvas, patient: Patient, skin: Field, rng: np.random.Generator) -> None:
    """Paints cloth that hangs in folds, and in some scans bedding of low density between cloth and skin."""
    folds = smooth_field(rng, canvas.shape, canvas.spacing_mm, between(rng, 40, 120)) * np.float32(between(rng, 5, 25))
    away = skin - np.float32(between(rng, 8, 70)) - folds
    above = canvas.y * np.float32(-patient.down) > between(rng, -90, 40)
    if chance(rng, 0.4):
        canvas.paint(np.maximum(away, -skin), between(rng, -995, -880), BACKGROUND, where=above)
    for _ in range(int(rng.integers(1, 3))):
        cloth = np.abs(away + np.float32(between(rng, 0, 12))) - np.float32(between(rng, 0.4, 2.5))
        canvas.paint(cloth, between(rng, -900, -50), BACKGROUND, where=above)


def _table(canvas: Canvas, patient: Patient, rng: np.random.Generator) -> None:
    curve = np.float32(between(rng, 0, 0.0009))
    depth = 112 + patient.fat_mm * between(rng, 0.8, 1.3)
    below = -patient.down if patient.down > 0 else 1
    top = canvas.y * np.float32(below) - curve * canvas.x**2 + np.float32(depth)
    half = between(rng, 190, 270)
    ends = np.abs(canvas.x) - half
    mattress = between(rng, 0, 45)
    foam = np.maximum(np.maximum(top, -top - mattress), ends)
    canvas.paint(foam, between(rng, -985, -780), BACKGROUND)
    canvas.paint(np.maximum(np.abs(top) - 1, ends), between(rng, -700, 0), BACKGROUND)
    plate = top + np.float32(mattress)
    thick = between(rng, 15, 70)
    board = np.maximum(np.maximum(plate, -plate - thick), ends)
    canvas.paint(board, between(rng, -300, 300), BACKGROUND)
    shell = between(rng, 1.5, 5)
    canvas.paint(board + np.float32(shell), between(rng, -985, -750), BACKGROUND)


def _cable(canvas: Canvas, patient: Patient, rng: np.random.Generator) -> None:
    x = between(rng, -200, 200)
    y = between(rng, 100, 150) + patient.fat_mm
    end = (x + between(rng, -80, 80), y + between(rng, -20, 20), between(rng, -300, 200))
    radius = between(rng, 1, 4)
    canvas.tube([(x, y, between(rng, -300, 200)), end], [radius, radius], between(rng, 0, 2500), BACKGROUND)
