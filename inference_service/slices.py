"""Slices into one array of real values: decoded one by one, each rescaled as it says, padding made background."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inference_service.image import Image, Layout, Plane
from inference_service.pixels import Require, read_frames
from inference_service.series import Slice

AIR_HU = -1024
_INT16 = np.iinfo(np.int16)


@dataclass(frozen=True)
class Stacked:
    """The voxels of a series.

    Attributes:
        voxels: Shape (columns, rows, slices), Fortran order, int16 where that is exact and float32 elsewhere.
        padded_voxels: How many of them were padding, and got the background value.
    """

    voxels: NDArray[np.generic]
    padded_voxels: int


def stack_slices(slices: Sequence[Slice], *, require: Require) -> Stacked:
    """Reads the pixels of slices.

    Args:
        slices: In order, all of one size; their files can be decoded.
        require: Told how many bytes are about to be taken.

    Raises:
        InputCorrupt: Some are truncated or damaged.
    """
    layout = slices[0].image.layout
    shape = (layout.columns, layout.rows, len(slices))
    exact = all(_is_whole(piece.plane) for piece in slices)
    require(prod(shape) * (2 if exact else 4))
    voxels: NDArray[np.generic] = np.empty(shape, dtype=np.int16 if exact else np.float32, order="F")
    padded = 0
    for image, places in _by_file(slices):
        for plane, stored in zip(image.planes, read_frames(image, require=require), strict=True):
            if plane.frame not in places:
                continue
            values, count = _real(stored, plane, image, exact=exact)
            if voxels.dtype == np.int16 and (values.min() < _INT16.min or values.max() > _INT16.max):
                require(prod(shape) * 4)
                voxels = voxels.astype(np.float32, order="F")
            voxels[:, :, places[plane.frame]] = values.T
            padded += count
    return Stacked(voxels, padded)


def background(image: Image) -> float:
    """What a pixel holds where there is nothing to see: air in CT, elsewhere what a stored 0 stands for."""
    return AIR_HU if image.modality == "CT" else image.planes[0].intercept


def _by_file(slices: Sequence[Slice]) -> Iterable[tuple[Image, dict[int, int]]]:
    """Each file, and which of its frames is which slice."""
    found: dict[Path, tuple[Image, dict[int, int]]] = {}
    for k, piece in enumerate(slices):
        found.setdefault(piece.image.path, (piece.image, {}))[1][piece.plane.frame] = k
    return found.values()


def _is_whole(plane: Plane) -> bool:
    """Whether stored integers stay integers."""
    return plane.slope == 1 and plane.intercept.is_integer() and abs(plane.intercept) <= _INT16.max


def _real(stored: NDArray[np.integer], plane: Plane, image: Image, *, exact: bool) -> tuple[NDArray[np.generic], int]:
    """Real values of a frame, and how many of them are padding."""
    values: NDArray[np.generic]
    if exact:
        values = stored + np.int64(plane.intercept) if stored.dtype.itemsize > 2 else stored + np.int32(plane.intercept)
    else:
        # What leaves the range of float32 becomes infinite, and is counted and replaced with others of that kind.
        with np.errstate(over="ignore"):
            values = (stored * plane.slope + plane.intercept).astype(np.float32)
    where = _padded(stored, image.layout)
    if where is None:
        return values, 0
    values[where] = background(image)
    return values, int(np.count_nonzero(where))


def _padded(stored: NDArray[np.integer], layout: Layout) -> NDArray[np.bool_] | None:
    if layout.padding is None:
        return None
    first, last = layout.padding
    return (stored >= first) & (stored <= last)
