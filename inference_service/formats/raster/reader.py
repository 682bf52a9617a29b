"""Reads NRRD and MetaImage: a file with header and voxels, or a header and a data file, whose names do not matter."""

from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from io import SEEK_END
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from inference_service.contract.task_message import Tolerance
from inference_service.core.errors import InputCorrupt
from inference_service.core.report_warnings import ReportWarning
from inference_service.formats.data_file import MAX_TRAILING_BYTES, choose_data_file
from inference_service.formats.decompression import decompressed
from inference_service.formats.grid_check import require_valid_affine
from inference_service.formats.raster import metaimage, nrrd
from inference_service.formats.raster.header import RasterHeader
from inference_service.formats.read_limits import ReadLimits
from inference_service.formats.stated_unit import convert_to_mm
from inference_service.formats.voxel_stream import read_voxels
from inference_service.imaging.geometry import Volume

START_BYTES = 4096
"""The bytes of a file by which its format is recognised."""
_MAX_LINE_BYTES = 2**20
_CHUNK_BYTES = 2**20
# The magic of gzip, and the headers of zlib at each of its levels.
_COMPRESSED = (b"\x1f\x8b", b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda")


@dataclass(frozen=True)
class RasterFormat:
    """A format with a text header.

    Attributes:
        accepts: Returns True if the first bytes of a file are those of the format's header.
        read_header: Reads the header of a volume of at most so many voxels.
    """

    accepts: Callable[[bytes], bool]
    read_header: Callable[[BinaryIO, int], RasterHeader]


@dataclass(frozen=True)
class RasterVolume:
    """A volume that was read.

    Attributes:
        volume: The volume.
        header: Its header.
        warnings: Warnings for the user of the mask.
    """

    volume: Volume
    header: RasterHeader
    warnings: tuple[ReportWarning, ...]


NRRD = RasterFormat(nrrd.is_nrrd, nrrd.read_header)
METAIMAGE = RasterFormat(metaimage.is_metaimage, metaimage.read_header)


def find_headers(files: Sequence[Path], form: RasterFormat) -> list[Path]:
    """Returns the files that begin with a header of the format."""
    return [path for path in files if form.accepts(_start(path))]


def read_raster(
    header_file: Path,
    others: Sequence[Path],
    form: RasterFormat,
    limits: ReadLimits,
    tolerated: Collection[Tolerance] = (),
) -> RasterVolume:
    """Reads a volume.

    Args:
        header_file: The file that begins with the header.
        others: The other files of the input, among which the data file of a detached header is found.
        form: The format.
        limits: The largest volume that is read.
        tolerated: Deviations that are not refused.

    Raises:
        InputError: The files are not one readable volume; the subclass says why.
    """
    with header_file.open("rb") as file:
        header = form.read_header(file, limits.max_voxels)
        affine, warnings = convert_to_mm(header.affine, header.unit, header.shape, tolerated)
        require_valid_affine(affine, header.shape)
        if header.detached:
            with _data_file(header, others).open("rb") as data_file:
                voxels = _read(data_file, header, limits)
        else:
            voxels = _read(file, header, limits)
    return RasterVolume(Volume(voxels, affine), header, (*header.warnings, *warnings))


def _data_file(header: RasterHeader, others: Sequence[Path]) -> Path:
    """Finds the data file of a detached header among the other files: by its size, or as the only one."""
    if header.compressed:
        return choose_data_file([path for path in others if _start(path).startswith(_COMPRESSED)], others)
    size = prod(header.shape) * header.dtype.itemsize
    least = size + max(header.skipped_bytes, 0)
    fitting = [path for path in others if least <= path.stat().st_size <= least + MAX_TRAILING_BYTES]
    if header.skipped_bytes < 0 or header.skipped_lines:
        fitting = [path for path in others if path.stat().st_size >= size]
    return choose_data_file(fitting, others, size_bytes=least)


def _read(file: BinaryIO, header: RasterHeader, limits: ReadLimits) -> NDArray[np.generic]:
    """Reads the voxels from a file whose next byte is the first after the header, or of the data file."""
    for _ in range(header.skipped_lines):
        if not file.readline(_MAX_LINE_BYTES).endswith(b"\n"):
            raise InputCorrupt("the file ends within the lines that its header says to skip")
    if header.skipped_bytes < 0:
        _seek_last_voxels(file, header)
    with decompressed(file) if header.compressed else nullcontext(file) as stream:
        _skip(stream, header.skipped_bytes)
        return read_voxels(
            stream, header.dtype, header.shape, limits.require_memory, max_trailing_bytes=MAX_TRAILING_BYTES
        )


def _seek_last_voxels(file: BinaryIO, header: RasterHeader) -> None:
    begin = file.tell()
    size = prod(header.shape) * header.dtype.itemsize
    if file.seek(0, SEEK_END) - size < begin:
        raise InputCorrupt(f"the file is truncated: expected {size} bytes of voxels at its end")
    file.seek(-size, SEEK_END)


def _skip(stream: BinaryIO, count: int) -> None:
    while count > 0:
        skipped = len(stream.read(min(count, _CHUNK_BYTES)))
        if not skipped:
            raise InputCorrupt("the file ends within the bytes that its header says to skip")
        count -= skipped


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(START_BYTES)
