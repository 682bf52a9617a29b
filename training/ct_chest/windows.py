"""Draws random windows from examples, as the network sees them."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inference_service.imaging.resampling import resize, resized_shape
from training.ct_chest.feed import CLIP_HU, KINDS, SPACING_MM, WINDOW, normalised, shape_of
from training.ct_chest.pool import Shares
from training.ct_chest.synthetic.fields import between, chance

# Share of windows that are cut to a slab, the odds of each axis, and the slab's thickness in voxels. It stands for a
# scan of a few thin slices, of half a chest, or that ends within an organ.
_CUT = 0.2
_CUT_ALONG = (0.4, 0.1, 0.5)
_CUT_VOXELS = (3, 48)
# Share of windows that are averaged over coarser voxels while the labels stay those of the finer scan, and the size of
# those voxels, mm. The number of coarse voxels is whole, so a thin slab may become coarser than this.
_COARSE = 0.5
_COARSE_PLANE_MM = (2.5, 3.2)
_COARSE_SLICES_MM = (2.5, 6.0)


def draw_window(path: Path, rng: np.random.Generator) -> tuple[NDArray[np.float32], Shares]:
    """Draws a window from an example: the network's input, and the labels' shares of its voxels.

    An example smaller than the window is padded on both ends of each axis, as the engine does.
    """
    with np.load(path) as stored:
        hu = stored["hu"]
        shares = [stored[name] for name in Shares._fields]
    sizes = [min(size, wanted) for size, wanted in zip(hu.shape, WINDOW, strict=True)]
    if chance(rng, _CUT):
        axis = int(rng.choice(3, p=_CUT_ALONG))
        sizes[axis] = min(sizes[axis], int(rng.integers(*_CUT_VOXELS)))
    part = []
    pads = []
    for size, kept, wanted in zip(hu.shape, sizes, WINDOW, strict=True):
        start = int(rng.integers(0, size - kept + 1))
        part.append(slice(start, start + kept))
        pads.append(((wanted - kept) // 2, wanted - kept - (wanted - kept) // 2))
    hu = np.clip(hu[tuple(part)], *CLIP_HU).astype(np.float32)
    if chance(rng, _COARSE):
        hu = _coarsened(hu, rng)
    _vary(hu, rng)
    volume = normalised(np.pad(hu, pads, constant_values=CLIP_HU[0]))
    return volume, Shares(*(np.pad(values[tuple(part)], pads) for values in shares))


def _coarsened(hu: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Averages a scan of any shape over coarser voxels and resamples it to its own grid."""
    plane = between(rng, *_COARSE_PLANE_MM)
    slices = between(rng, *_COARSE_SLICES_MM)
    coarse = resized_shape(shape_of(hu), SPACING_MM, (plane, plane, slices))
    return resize(resize(hu, coarse, KINDS), shape_of(hu), KINDS)


def _vary(hu: NDArray[np.float32], rng: np.random.Generator) -> None:
    """Varies calibration and noise, in place. No flips: left and right must stay."""
    hu *= np.float32(between(rng, 0.96, 1.04))
    hu += np.float32(rng.normal(0, 12))
    if chance(rng, 0.3):
        hu += rng.standard_normal(hu.shape, np.float32) * np.float32(between(rng, 0, 25))
