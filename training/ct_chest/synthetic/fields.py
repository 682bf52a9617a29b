"""Draws numbers from ranges, and smooth random fields."""

from typing import cast
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from training.ct_chest.synthetic.canvas import Field, Shape, Spacing


def between(rng: np.random.Generator, low: float, high: float) -> float:
    """Draws a number from a uniform distribution."""
    return float(rng.uniform(low, high))


def chance(rng: np.random.Generator, probability: float) -> bool:
    """Draws whether an event of this probability happens."""
    return bool(rng.random() < probability)


def child(rng: np.random.Generator, name: str) -> np.random.Generator:
    """A generator of its own for a named part of a patient, independent of all other draws."""
    of_patient = cast(np.random.SeedSequence, rng.bit_generator.seed_seq)
    key = (*of_patient.spawn_key, crc32(name.encode()))
    return np.random.default_rng(np.random.SeedSequence(of_patient.entropy, spawn_key=key))


def smooth_field(rng: np.random.Generator, shape: Shape, spacing_mm: Spacing, scale_mm: float) -> Field:
    """A random field of mean 0 and about unit standard deviation that changes over `scale_mm`.

    Args:
        rng: The source of randomness.
        shape: Number of voxels along each axis.
        spacing_mm: Size of a voxel.
        scale_mm: Distance between the knots of the cubic B-spline.
    """
    steps = [spacing / scale_mm for spacing in spacing_mm]
    knots = [int(np.ceil(size * step)) + 4 for size, step in zip(shape, steps, strict=True)]
    field = rng.standard_normal(knots).astype(np.float32)
    for axis, size in enumerate(shape):
        field = np.moveaxis(np.tensordot(_basis(size, steps[axis], knots[axis]), field, (1, axis)), 0, axis)
    # The mean standard deviation that three cubic B-splines leave of independent knots.
    return np.ascontiguousarray(field) / np.float32(0.48**1.5)


def _basis(size: int, step: float, knots: int) -> NDArray[np.float32]:
    """Uniform cubic B-splines: rows are voxels, columns are knots."""
    place = np.arange(size) * step
    first = np.floor(place).astype(int)
    t = place - first
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], 1) / 6
    basis = np.zeros((size, knots), np.float32)
    for n in range(4):
        basis[np.arange(size), first + n] = weights[:, n]
    return basis
