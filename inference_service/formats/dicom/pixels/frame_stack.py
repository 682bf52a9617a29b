"""Stacks the frames of a series into one array of real values: decoded, rescaled each by its own header, and padding
replaced by a background value.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inference_service.core.errors import InputCorrupt
from inference_service.core.memory_budget import RequireMemory
from inference_service.formats.dicom.instance import Frame, Instance, Slice
from inference_service.formats.dicom.pixels.decoder import decoder_bytes, read_frames
from inference_service.imaging.hounsfield import AIR_HU

# A padding range in CT that includes these values would be tissue: the header contradicts its own scan.
_TISSUE_HU = (-500, 3000)
# Frames in flight for each thread, so that none waits for another.
_FRAMES_AHEAD_PER_THREAD = 2
_INT16 = np.iinfo(np.int16)


@dataclass(frozen=True)
class FrameStack:
    """The voxels of a series.

    Attributes:
        voxels: Shape (columns, rows, slices), Fortran order, int16 where that is exact and float32 elsewhere.
        padding_voxels: Number of voxels that were padding, and got the background value.
    """

    voxels: NDArray[np.generic]
    padding_voxels: int


@dataclass(frozen=True)
class _DecodedFrame:
    """A decoded frame.

    Attributes:
        slice_index: Index of its slice.
        values: Real values, shape (rows, columns).
        padding_pixels: Number of pixels that were padding.
    """

    slice_index: int
    values: NDArray[np.generic]
    padding_pixels: int


def stack_frames(slices: Sequence[Slice], *, require_memory: RequireMemory, threads: int = 1) -> FrameStack:
    """Decodes and stacks the frames of a series.

    Args:
        slices: In order, all of one size and with a decoder.
        require_memory: Called before each large allocation.
        threads: Number of decoding threads; each holds a few frames.

    Raises:
        InputCorrupt: The pixel data of some are truncated or damaged.
    """
    pixels = slices[0].instance.pixels
    shape = (pixels.columns, pixels.rows, len(slices))
    exact = all(_keeps_integers(slice_.frame) for slice_ in slices)
    decoding_bytes = max(decoder_bytes(slice_.instance) for slice_ in slices) * min(threads, len(slices))
    require_memory(prod(shape) * (2 if exact else 4) + decoding_bytes)
    voxels: NDArray[np.generic] = np.empty(shape, dtype=np.int16 if exact else np.float32, order="F")
    padding_voxels = 0
    with ThreadPoolExecutor(threads, "decode") as pool:
        tasks = _decoding_tasks(slices, require_memory, exact=exact)
        for decoded in _run_in_order(pool, tasks, threads * _FRAMES_AHEAD_PER_THREAD):
            values = decoded.values
            if voxels.dtype == np.int16 and (values.min() < _INT16.min or values.max() > _INT16.max):
                require_memory(prod(shape) * 4)
                voxels = voxels.astype(np.float32, order="F")
            voxels[:, :, decoded.slice_index] = values.T
            padding_voxels += decoded.padding_pixels
    return FrameStack(voxels, padding_voxels)


def background_value(instance: Instance) -> float:
    """Value of voxels without information: air in CT, elsewhere the real value of a stored 0."""
    return AIR_HU if instance.modality == "CT" else instance.frames[0].rescale_intercept


def padding_range(instance: Instance, frame: Frame) -> tuple[int, int] | None:
    """Lowest and highest stored value that mark padding; None without padding, or where it would be tissue in CT."""
    stored_range = instance.pixels.padding_range
    if stored_range is None or instance.modality != "CT":
        return stored_range
    low, high = sorted(value * frame.rescale_slope + frame.rescale_intercept for value in stored_range)
    return None if low < _TISSUE_HU[1] and high > _TISSUE_HU[0] else stored_range


def _decoding_tasks(
    slices: Sequence[Slice], require_memory: RequireMemory, *, exact: bool
) -> Iterator[Callable[[], _DecodedFrame]]:
    for instance, slice_of_frame in _by_instance(slices):
        for frame, decode in zip(instance.frames, read_frames(instance, require_memory=require_memory), strict=True):
            slice_index = slice_of_frame.get(frame.index)
            if slice_index is None:
                continue  # the request selects other frames
            yield partial(_decode_and_rescale, decode, Slice(instance, frame), slice_index, exact=exact)


def _run_in_order(
    pool: Executor, tasks: Iterator[Callable[[], _DecodedFrame]], max_waiting: int
) -> Iterator[_DecodedFrame]:
    """Results of tasks in their order, with a limit on the tasks that are in flight."""
    waiting: deque[Future[_DecodedFrame]] = deque()
    for task in tasks:
        waiting.append(pool.submit(task))
        if len(waiting) > max_waiting:
            yield waiting.popleft().result()
    yield from (future.result() for future in waiting)


def _by_instance(slices: Sequence[Slice]) -> Iterable[tuple[Instance, dict[int, int]]]:
    """Each instance, and the slice index of each of its frames that is a slice."""
    found: dict[Path, tuple[Instance, dict[int, int]]] = {}
    for slice_index, slice_ in enumerate(slices):
        _, slice_of_frame = found.setdefault(slice_.instance.path, (slice_.instance, {}))
        slice_of_frame[slice_.frame.index] = slice_index
    return found.values()


def _keeps_integers(frame: Frame) -> bool:
    """Returns True if rescaling turns stored integers into integers."""
    intercept = frame.rescale_intercept
    return frame.rescale_slope in (0, 1) and intercept.is_integer() and abs(intercept) <= _INT16.max


def _decode_and_rescale(
    decode: Callable[[], NDArray[np.integer]], source: Slice, slice_index: int, *, exact: bool
) -> _DecodedFrame:
    stored = decode()
    frame = source.frame
    values: NDArray[np.generic]
    if frame.rescale_slope == 0:
        return _DecodedFrame(slice_index, _empty_values(stored, source.instance, exact=exact), 0)
    if exact:
        # Wide enough for any sum, which may leave the range of int16.
        dtype = np.int64 if stored.dtype.itemsize > 2 else np.int32
        values = stored + dtype(frame.rescale_intercept)
    else:
        values = (stored * frame.rescale_slope + frame.rescale_intercept).astype(np.float32)
    padding = padding_range(source.instance, frame)
    if padding is None:
        return _DecodedFrame(slice_index, values, 0)
    is_padding = (stored >= padding[0]) & (stored <= padding[1])
    values[is_padding] = background_value(source.instance)
    return _DecodedFrame(slice_index, values, int(np.count_nonzero(is_padding)))


def _empty_values(stored: NDArray[np.integer], instance: Instance, *, exact: bool) -> NDArray[np.generic]:
    """Background for a slice with RescaleSlope 0, which scanners write where a slice has no content.

    Raises:
        InputCorrupt: The slice has content.
    """
    if stored.min() != stored.max():
        raise InputCorrupt("RescaleSlope is 0 in a slice whose stored values differ: expected another slope")
    return np.full(stored.shape, background_value(instance), dtype=np.int32 if exact else np.float32)
