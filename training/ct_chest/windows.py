"""Windows cut from examples at random, as the network sees them."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inference_service.imaging.resampling import resize, resized_shape
from training.ct_chest.feed import CLIP_HU, KINDS, SPACING_MM, WINDOW, normalised, shape_of
from training.ct_chest.pool import Shares
from training.ct_chest.synthetic.fields import between, chance

# How often a window is cut to a slab, of slices or of a side, and to how many voxels: scans of a few thin slices, of
# half a chest, or that end within an organ.
_CUT = 0.2
_CUT_ALONG = (0.4, 0.1, 0.5)
_CUT_VOXELS = (3, 48)
# How often a window is seen as a coarser scan shows it, with the labels of the finer one, and how coarse, mm: in the
# plane and across slices. A slab of a few voxels may become coarser: their number is whole.
_COARSE = 0.5
_COARSE_PLANE_MM = (2.5, 3.2)
_COARSE_SLICES_MM = (2.5, 6.0)


def draw_window(path: Path, rng: np.random.Generator) -> tuple[NDArray[np.float32], Shares]:
    """A window at random from one example, as the network sees it, with what its voxels are made of.

    Where the example is smaller it is padded as the engine pads it: at the end of each axis and the beginning.
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
    """What is left of a scan, any shape, that is averaged over coarser voxels and brought back."""
    plane = between(rng, *_COARSE_PLANE_MM)
    slices = between(rng, *_COARSE_SLICES_MM)
    coarse = resized_shape(shape_of(hu), SPACING_MM, (plane, plane, slices))
    return resize(resize(hu, coarse, KINDS), shape_of(hu), KINDS)


def _vary(hu: NDArray[np.float32], rng: np.random.Generator) -> None:
    """Calibration and noise that differ each time that an example is seen. No flips: sides must stay."""
    hu *= np.float32(between(rng, 0.96, 1.04))
    hu += np.float32(rng.normal(0, 12))
    if chance(rng, 0.3):
        hu += rng.standard_normal(hu.shape, np.float32) * np.float32(between(rng, 0, 25))
