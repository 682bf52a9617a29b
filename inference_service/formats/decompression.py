"""Opens compressed files as streams: gzip, bzip2, xz and Zstandard, recognised by content, also one within another.

The memory of a decompressor is bounded, whatever window its stream asks for.
"""

import bz2
import lzma
import re
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from gzip import BadGzipFile
from io import BufferedReader, RawIOBase
from pathlib import Path
from typing import BinaryIO, Protocol, cast

from isal import igzip, igzip_lib, igzip_threaded, isal_zlib

from inference_service.core.errors import InputCorrupt, UnsupportedFormat

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MAX_LAYERS = 3
"""The number of compressions that are undone, one within another."""
# The window of `zstd --ultra -22` and `--long`, and twice that of `xz -9`.
_MAX_WINDOW_LOG = 27
_MAX_XZ_BYTES = 2**_MAX_WINDOW_LOG + 2**20
_WINDOW_ERRORS = ("requires too much memory", "memory usage limit exceeded")
_CHUNK_BYTES = 2**20
# Small, because a decompressor copies the rest of its input at the end of each stream, and streams may be tiny.
_INPUT_BYTES = 2**16
MAGIC_BYTES = 10
"""The bytes of a file by which its compression is recognised."""
# isal's type stubs declare its exception class as an instance.
_GZIP_ERRORS = (EOFError, BadGzipFile, zlib.error, cast("type[Exception]", igzip_lib.error))


class _Decompressor(Protocol):
    """The interface that the decompressors of bzip2, xz and Zstandard share."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, /, max_length: int = -1) -> bytes: ...


@dataclass(frozen=True)
class Compression:
    """A format of compressed streams.

    Attributes:
        name: Its name in error messages.
        begins: Matches the first bytes of a stream.
        decompressor: Makes a decompressor for one stream; None for gzip.
        large_window: Whether a decompressor may take the memory of the largest window.
    """

    name: str
    begins: re.Pattern[bytes]
    decompressor: Callable[[], _Decompressor] | None
    large_window: bool = False


def _xz_decompressor() -> _Decompressor:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MAX_XZ_BYTES)


def _zstd_decompressor() -> _Decompressor:
    return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _MAX_WINDOW_LOG})


GZIP = Compression("gzip", re.compile(rb"\x1f\x8b"), None)
# The digits of π begin a block, and those of its root an empty stream.
_BZIP2 = Compression("bzip2", re.compile(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)"), bz2.BZ2Decompressor)
_XZ = Compression("xz", re.compile(rb"\xfd7zXZ\0"), _xz_decompressor, large_window=True)
# A frame, or one that decoders skip, with which parallel compressors begin.
_ZSTD = Compression(
    "Zstandard", re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"), _zstd_decompressor, large_window=True
)
_COMPRESSIONS = (GZIP, _BZIP2, _XZ, _ZSTD)


def is_compressed(start: bytes) -> bool:
    """Returns True if a file that begins with these `MAGIC_BYTES` is compressed."""
    return _find(start) is not None


def _find(start: bytes) -> Compression | None:
    return next((each for each in _COMPRESSIONS if each.begins.match(start)), None)


def find_layers(path: Path) -> list[Compression]:
    """Returns the compressions of a file, the outermost first: none, or at most `MAX_LAYERS`.

    Of those that take much memory, only the outermost is undone.

    Raises:
        InputCorrupt: The first bytes cannot be decompressed.
    """
    layers: list[Compression] = []
    while len(layers) < MAX_LAYERS:
        with _opened(path, layers, threads=0) as stream:
            found = _find(stream.read(MAGIC_BYTES))
        if found is None or (found.large_window and any(layer.large_window for layer in layers)):
            break
        layers.append(found)
    return layers


def read_start(path: Path, size: int) -> bytes:
    """Returns the first bytes of a file's decompressed content.

    Raises:
        InputCorrupt: They cannot be decompressed.
    """
    with path.open("rb") as file:
        start = file.read(max(size, MAGIC_BYTES))
    if not is_compressed(start):
        return start[:size]
    with _opened(path, find_layers(path), threads=0) as stream:
        return stream.read(size)


@contextmanager
def open_decompressed(path: Path) -> Iterator[BinaryIO]:
    """Opens a file's decompressed content, to be read forwards.

    Raises:
        InputCorrupt: A compressed stream is damaged.
        UnsupportedFormat: It needs more memory than is allowed.
    """
    with _opened(path, find_layers(path), threads=1) as stream:
        yield stream


@contextmanager
def decompressed(file: BinaryIO) -> Iterator[BinaryIO]:
    """The rest of a file, which is a gzip or a zlib stream.

    Raises:
        InputCorrupt: The stream is damaged.
    """
    place = file.tell()
    gzipped = GZIP.begins.match(file.read(2)) is not None
    file.seek(place)
    stream = igzip.IGzipFile(fileobj=file) if gzipped else BufferedReader(_ZlibStream(file), _CHUNK_BYTES)
    with _mapped_gzip_errors(), stream:
        yield cast("BinaryIO", stream)


@contextmanager
def _opened(path: Path, layers: Sequence[Compression], *, threads: int) -> Iterator[BinaryIO]:
    """Opens a file without some layers of compression; with a thread, gzip is decompressed ahead."""
    with _mapped_gzip_errors(), ExitStack() as stack:
        stream: BinaryIO = stack.enter_context(path.open("rb"))
        for depth, layer in enumerate(layers):
            if layer.decompressor is not None:
                stream = BufferedReader(_Stream(stream, layer), _CHUNK_BYTES)
            else:
                stream = cast("BinaryIO", igzip_threaded.open(stream, "rb", threads=0 if depth else threads))
            stack.enter_context(stream)
        yield stream


class _Stream(RawIOBase):
    """The content of a file of one or more compressed streams, with zeros between and after them."""

    def __init__(self, file: BinaryIO, compression: Compression) -> None:
        self._file = file
        self._name = compression.name
        self._new = cast("Callable[[], _Decompressor]", compression.decompressor)
        self._decompressor = self._new()
        self._input = b""

    def readable(self) -> bool:
        """Returns True."""
        return True

    def readinto(self, buffer: "memoryview | bytearray", /) -> int:  # type: ignore[override]
        """Decompresses as much as fits into a buffer."""
        while not self._decompressor.eof or self._begin_next():
            if self._decompressor.needs_input and not self._input:
                self._input = self._file.read(_INPUT_BYTES)
                if not self._input:
                    raise InputCorrupt(f"the file's {self._name} stream is truncated")
            content = self._decompress(len(buffer))
            self._input = b""
            if content:
                buffer[: len(content)] = content
                return len(content)
        return 0

    def _begin_next(self) -> bool:
        """Goes on to the next stream; returns False at the end of the file."""
        rest = self._decompressor.unused_data.lstrip(b"\0")
        while not rest:
            chunk = self._file.read(_INPUT_BYTES)
            if not chunk:
                return False
            rest = chunk.lstrip(b"\0")
        self._decompressor = self._new()
        self._input = rest
        return True

    def _decompress(self, size: int) -> bytes:
        try:
            return self._decompressor.decompress(self._input, max_length=size)
        except (OSError, EOFError, ValueError, lzma.LZMAError, zstd.ZstdError) as error:
            if any(text in str(error).lower() for text in _WINDOW_ERRORS):
                raise UnsupportedFormat(
                    f"the file's {self._name} stream has a window of more than {2**_MAX_WINDOW_LOG} bytes: compress it "
                    "with a smaller one"
                ) from error
            raise InputCorrupt(f"the file's {self._name} stream is truncated or damaged") from error


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
def _mapped_gzip_errors() -> Iterator[None]:
    try:
        yield
    except _GZIP_ERRORS as error:
        raise InputCorrupt("the file's gzip stream is truncated or damaged") from error
