"""Reads voxels from a stream into an array, within the limits of memory and up to the end of the stream."""

from math import prod
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from inference_service.core.errors import InputCorrupt
from inference_service.core.memory_budget import RequireMemory
from inference_service.imaging.geometry import Shape

_CHUNK_BYTES = 2**20


def read_voxels(
    stream: BinaryIO,
    dtype: np.dtype[np.generic],
    shape: Shape,
    require_memory: RequireMemory,
    *,
    scaled: bool = False,
    max_trailing_bytes: int,
) -> NDArray[np.generic]:
    """Reads stored voxels and verifies the end of the stream, where gzip has its checksum.

    Args:
        stream: A stream whose next byte is the first of the voxels.
        dtype: Their data type and byte order.
        shape: Shape (i, j, k); the first axis is stored fastest.
        require_memory: Called before the allocation.
        scaled: Whether the caller makes a scaled copy.
        max_trailing_bytes: Most bytes after the last voxel.

    Returns:
        The voxels, in the machine's byte order.

    Raises:
        InputCorrupt: The stream is too short or too long.
    """
    # A scaled copy in float32, or a mask of finite voxels, is held besides.
    scaled_bytes = 4 if scaled and dtype != np.float32 else 0
    require_memory(prod(shape) * (dtype.itemsize + max(scaled_bytes, dtype.kind == "f")))
    array = np.empty(shape, dtype=dtype, order="F")
    buffer = memoryview(array.reshape(-1, order="F").view(np.uint8).data)
    got = 0
    while got < len(buffer):
        # A gzip stream decompresses as much as is asked for into an array of its own.
        count = stream.readinto(buffer[got : got + _CHUNK_BYTES])  # type: ignore[attr-defined]
        if not count:
            raise InputCorrupt(f"the file is truncated: expected {len(buffer)} bytes of voxels, got {got}")
        got += count
    _read_to_end(stream, max_trailing_bytes)
    return array if array.dtype.isnative else array.byteswap(inplace=True).view(array.dtype.newbyteorder("="))


def _read_to_end(stream: BinaryIO, most: int) -> None:
    trailing_bytes = 0
    while chunk := stream.read(_CHUNK_BYTES):
        trailing_bytes += len(chunk)
        if trailing_bytes > most:
            raise InputCorrupt(f"the file has more than {most} bytes after its last voxel")
