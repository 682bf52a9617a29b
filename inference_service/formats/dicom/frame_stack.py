"""Slices into one array of real values: decoded one by one, each rescaled as it says, padding made background."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inference_service.formats.dicom.image import Image, Plane
from inference_service.formats.dicom.pixel_data import read_frames
from inference_service.formats.dicom.series_geometry import Slice
from inference_service.formats.read_limits import RequireMemory

AIR_HU = -1024
# Padding that would be what a patient is made of is no padding, but a header that does not know its own scan.
_TISSUE_HU = (-500, 3000)
# For each thread, so that none waits for another.
_FRAMES_AHEAD = 2
# Which slice it is, its real values, how many of them are padding.
_Frame = tuple[int, NDArray[np.generic], int]
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


def stack_slices(slices: Sequence[Slice], *, require_memory: RequireMemory, threads: int = 1) -> Stacked:
    """Reads the pixels of slices.

    Args:
        slices: In order, all of one size; their files can be decoded.
        require_memory: Told how many bytes are about to be taken.
        threads: Decode at a time; each holds a few frames.

    Raises:
        InputCorrupt: Some are truncated or damaged.
    """
    layout = slices[0].image.layout
    shape = (layout.columns, layout.rows, len(slices))
    exact = all(_is_whole(piece.plane) for piece in slices)
    require_memory(prod(shape) * (2 if exact else 4))
    voxels: NDArray[np.generic] = np.empty(shape, dtype=np.int16 if exact else np.float32, order="F")
    padded = 0
    with ThreadPoolExecutor(threads, "decode") as pool:
        for k, values, count in _in_order(pool, _tasks(slices, require_memory, exact=exact), threads * _FRAMES_AHEAD):
            if voxels.dtype == np.int16 and (values.min() < _INT16.min or values.max() > _INT16.max):
                require_memory(prod(shape) * 4)
                voxels = voxels.astype(np.float32, order="F")
            voxels[:, :, k] = values.T
            padded += count
    return Stacked(voxels, padded)


def _tasks(slices: Sequence[Slice], require_memory: RequireMemory, *, exact: bool) -> Iterator[Callable[[], _Frame]]:
    for image, places in _by_file(slices):
        for plane, decode in zip(image.planes, read_frames(image, require_memory=require_memory), strict=True):
            yield partial(_real, decode, plane, image, places[plane.frame], exact=exact)


def _in_order(pool: Executor, tasks: Iterator[Callable[[], _Frame]], ahead: int) -> Iterator[_Frame]:
    """Results of tasks in their order, so many of them under way at most."""
    waiting: deque[Future[_Frame]] = deque()
    for task in tasks:
        waiting.append(pool.submit(task))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    yield from (future.result() for future in waiting)


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


def _real(decode: Callable[[], NDArray[np.integer]], plane: Plane, image: Image, k: int, *, exact: bool) -> _Frame:
    stored = decode()
    values: NDArray[np.generic]
    if exact:
        values = stored + np.int64(plane.intercept) if stored.dtype.itemsize > 2 else stored + np.int32(plane.intercept)
    else:
        values = (stored * plane.slope + plane.intercept).astype(np.float32)
    padding = padding_of(image, plane)
    if padding is None:
        return k, values, 0
    where = (stored >= padding[0]) & (stored <= padding[1])
    values[where] = background(image)
    return k, values, int(np.count_nonzero(where))


def padding_of(image: Image, plane: Plane) -> tuple[int, int] | None:
    """First and last stored value that are padding; None where there is none, or where tissue would be in CT."""
    padding = image.layout.padding
    if padding is None or image.modality != "CT":
        return padding
    low, high = sorted(end * plane.slope + plane.intercept for end in padding)
    return None if low < _TISSUE_HU[1] and high > _TISSUE_HU[0] else padding
