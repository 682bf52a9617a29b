"""Reads voxels from a stream into an array, within the limits of memory and up to the end of the stream."""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from gzip import BadGzipFile
from io import BufferedReader, RawIOBase
from math import prod
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from isal import igzip, igzip_lib, igzip_threaded, isal_zlib
from numpy.typing import NDArray

from inference_service.core.errors import InputCorrupt
from inference_service.core.memory_budget import RequireMemory
from inference_service.imaging.geometry import Shape

_GZIP_MAGIC = b"\x1f\x8b"
# isal's type stubs declare its exception class as an instance.
_ERRORS = (EOFError, BadGzipFile, zlib.error, cast("type[Exception]", igzip_lib.error))
_CHUNK_BYTES = 2**20


def is_gzipped(path: Path) -> bool:
    """Returns True if the file begins as gzip does."""
    with path.open("rb") as file:
        return file.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC


@contextmanager
def open_decompressed(path: Path) -> Iterator[BinaryIO]:
    """Opens a file, decompressed if it is gzipped.

    Raises:
        InputCorrupt: The gzip stream is damaged.
    """
    with _mapped_errors(), igzip_threaded.open(path, "rb") if is_gzipped(path) else path.open("rb") as stream:
        yield stream


@contextmanager
def decompressed(file: BinaryIO) -> Iterator[BinaryIO]:
    """The rest of a file, which is a gzip or a zlib stream.

    Raises:
        InputCorrupt: The stream is damaged.
    """
    place = file.tell()
    gzipped = file.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
    file.seek(place)
    stream = igzip.IGzipFile(fileobj=file) if gzipped else BufferedReader(_ZlibStream(file), _CHUNK_BYTES)
    with _mapped_errors(), stream:
        yield cast("BinaryIO", stream)


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
        count = stream.readinto(buffer[got:])  # type: ignore[attr-defined]
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


class _ZlibStream(RawIOBase):
    """The content of a zlib stream."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._decompressor = isal_zlib.decompressobj()
        self._input = b""

    def readable(self) -> bool:
        """Returns True."""
        return True

    def readinto(self, buffer: "memoryview | bytearray", /) -> int:  # type: ignore[override]
        """Decompresses as much as fits into a buffer."""
        while not self._decompressor.eof:
            self._input = self._input or self._file.read(_CHUNK_BYTES)
            if not self._input:
                raise EOFError("the zlib stream is truncated")
            content = self._decompressor.decompress(self._input, len(buffer))
            self._input = self._decompressor.unconsumed_tail
            if content:
                buffer[: len(content)] = content
                return len(content)
        return 0


@contextmanager
def _mapped_errors() -> Iterator[None]:
    try:
        yield
    except _ERRORS as error:
        raise InputCorrupt("the file's gzip stream is truncated or damaged") from error
