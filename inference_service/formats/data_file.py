"""Finds the file with the voxels for a header in a file of its own: by content and size, never by name."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from inference_service.core.errors import InputCorrupt, UnsupportedFormat
from inference_service.formats.decompression import GZIP, MAGIC_BYTES, is_compressed, open_decompressed

MAX_TRAILING_BYTES = 4096
"""Most bytes after the last voxel. More is a sign that the header states too few voxels or too small a type."""
# The last field of a gzip stream: the size of its content, modulo 2³² (RFC 1952).
_STATED_SIZE_BYTES = 4


def choose_data_file(fitting: Sequence[Path], others: Sequence[Path], *, size_bytes: int | None = None) -> Path:
    """Returns the one data file that fits a header.

    Args:
        fitting: The files that fit it.
        others: All files beside the header.
        size_bytes: Size by which one of several files that fit is chosen; None where it is unknown.

    Raises:
        UnsupportedFormat: There is no file beside the header.
        InputCorrupt: None of them fits, or several do.
    """
    exact = [path for path in fitting if path.stat().st_size == size_bytes]
    for found in (fitting, exact):
        if len(found) == 1:
            return found[0]
    if not others:
        raise UnsupportedFormat(
            "the header's voxels are in another file, which is missing: send both in one zip or folder, or save the "
            "volume in one file"
        )
    raise InputCorrupt(
        f"expected one data file that fits the header, got {len(fitting)} among {len(others)} other file(s)"
    )


@contextmanager
def open_data_file(others: Sequence[Path], *, offset_bytes: int, size_bytes: int) -> Iterator[BinaryIO]:
    """Opens the data file of a header, decompressed if it is compressed, at the first voxel.

    Args:
        others: All files beside the header.
        offset_bytes: Place of the first voxel.
        size_bytes: Size of the voxels.

    Raises:
        UnsupportedFormat: There is no file beside the header.
        InputCorrupt: None of them fits, or several do, or the file is damaged.
    """
    with open_decompressed(_find(others, offset_bytes + size_bytes)) as stream:
        if len(stream.read(offset_bytes)) < offset_bytes:
            raise InputCorrupt("the data file ends before its first voxel")
        yield stream


def _find(others: Sequence[Path], size_bytes: int) -> Path:
    compressed = {path for path in others if is_compressed(_start(path))}
    # The size that a gzip stream states is a hint alone, and wrong for several streams: the voxels are counted later.
    fitting = [
        path
        for path in others
        if (_states(path, size_bytes) if path in compressed else _fits(path.stat().st_size, size_bytes))
    ]
    fitting = fitting or (list(compressed) if len(compressed) == 1 else [])
    return choose_data_file(fitting, others, size_bytes=size_bytes)


def _fits(size_bytes: int, expected_bytes: int) -> bool:
    return expected_bytes <= size_bytes <= expected_bytes + MAX_TRAILING_BYTES


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAGIC_BYTES)


def _states(path: Path, size_bytes: int) -> bool:
    """Returns True for a gzipped file that states this size of its content."""
    if not GZIP.begins.match(_start(path)):
        return False
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _STATED_SIZE_BYTES))
        stated_bytes = int.from_bytes(file.read(_STATED_SIZE_BYTES), "little")
    return _fits(stated_bytes, size_bytes % 2**32)
