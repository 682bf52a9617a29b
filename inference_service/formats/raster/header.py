"""The header of an NRRD or MetaImage file: its fields as text, and the layout of the voxels that it states."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from inference_service.core.errors import InputCorrupt, UnsupportedFormat
from inference_service.core.report_warnings import ReportWarning
from inference_service.formats.grid_check import require_volume
from inference_service.formats.stated_unit import StatedUnit
from inference_service.imaging.geometry import Affine, Shape

MAX_HEADER_BYTES = 2**20
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_MAX_NUMBER_CHARACTERS = 40
_MAX_SKIP = 2**32


@dataclass(frozen=True)
class RasterHeader:
    """The layout and the grid of the voxels.

    Attributes:
        dtype: Data type of the stored voxels, with their byte order.
        shape: Number of voxels along each axis; the first axis is stored fastest.
        affine: Voxel index to RAS+ in the header's unit of length.
        unit: The unit.
        compressed: Whether the voxels are one zlib or gzip stream.
        detached: Whether they are in a file of their own.
        skipped_bytes: Bytes before the first voxel, in the decompressed data; -1 if the voxels are the file's last.
        skipped_lines: Lines before these bytes, in the file.
        modality: Modality as in DICOM; empty where the header does not state one.
        warnings: Warnings for the user of the mask.
    """

    dtype: np.dtype[np.generic]
    shape: Shape
    affine: Affine
    unit: StatedUnit
    compressed: bool
    detached: bool
    skipped_bytes: int = 0
    skipped_lines: int = 0
    modality: str = ""
    warnings: tuple[ReportWarning, ...] = ()


class Fields:
    """The fields of a header. An error names a field and never quotes its text, which may identify a patient.

    Args:
        values: The text of each field, by its name.
        format_name: The name of the format, for error messages.
    """

    def __init__(self, values: Mapping[str, str], format_name: str) -> None:
        self._values = values
        self._format = format_name

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def text(self, *names: str, default: str | None = None) -> str:
        """Returns the first of some fields that the header has, or the default.

        Raises:
            InputCorrupt: The header has none of them, and there is no default.
        """
        for name in names:
            if name in self._values:
                return self._values[name]
        if default is None:
            raise InputCorrupt(f"the {self._format} header has no field {names[0]!r}")
        return default

    def integers(self, *names: str, count: int | None = None) -> list[int]:
        """Returns a field that is a list of whole numbers.

        Raises:
            InputCorrupt: The header has no such field, or it is something else.
        """
        numbers = self.numbers(*names, count=count)
        if any(number != int(number) for number in numbers):
            raise InputCorrupt(f"the {self._format} header's field {names[0]!r} has a number that is not whole")
        return [int(number) for number in numbers]

    def numbers(self, *names: str, count: int | None = None, default: str | None = None) -> list[float]:
        """Returns a field that is a list of finite numbers.

        Raises:
            InputCorrupt: The header has no such field, or it is something else.
        """
        values = parse_numbers(self.text(*names, default=default).replace(",", " ").split())
        if values is None or (count is not None and len(values) != count):
            expected = "finite numbers" if count is None else f"{count} finite numbers"
            raise InputCorrupt(f"the {self._format} header's field {names[0]!r} is not a list of {expected}")
        return values

    def dimension(self, name: str, most: int) -> int:
        """Returns the number of axes.

        Raises:
            InputCorrupt: It is missing, below 1 or above `most`.
        """
        (dimension,) = self.integers(name, count=1)
        if not 1 <= dimension <= most:
            raise InputCorrupt(f"the {self._format} header states {dimension} dimensions: expected 1 to {most}")
        return dimension

    def skip(self, *names: str, least: int) -> int:
        """Returns the number of bytes or lines to skip; 0 where the header does not state it.

        Raises:
            InputCorrupt: It is below `least`, or absurdly large.
        """
        skipped = int(self.numbers(*names, count=1, default="0")[0])
        if not least <= skipped <= _MAX_SKIP:
            raise InputCorrupt(
                f"the {self._format} header's field {names[0]!r} is {skipped}: expected at least {least}"
            )
        return skipped

    def data_file(self, *names: str, default: str | None = None) -> str:
        """Returns the name of the data file.

        Raises:
            InputCorrupt: The header names none, and there is no default.
            UnsupportedFormat: It names several.
        """
        name = self.text(*names, default=default)
        if name.upper().startswith("LIST") or "%" in name:
            raise UnsupportedFormat(f"the {self._format} header names several data files: save the volume in one")
        return name


def parse_numbers(words: list[str]) -> list[float] | None:
    """Returns numbers in decimal notation, or None if a word is none or is not finite."""
    if not all(len(word) <= _MAX_NUMBER_CHARACTERS and _NUMBER.fullmatch(word) for word in words):
        return None
    numbers = [float(word) for word in words]
    return numbers if np.isfinite(numbers).all() else None


def read_line(stream: BinaryIO, room: int) -> str:
    """Reads a line of a header, without its end.

    Args:
        stream: The file.
        room: Most bytes of the line.

    Raises:
        InputCorrupt: The line is longer, or the file ends before it.
    """
    line = stream.readline(max(room, 1))
    if not line.endswith(b"\n"):
        raise InputCorrupt(f"the file's header does not end within {MAX_HEADER_BYTES} bytes, or is truncated")
    return line.decode("latin-1").rstrip("\r\n")


def volume_shape(sizes: list[int], max_voxels: int) -> Shape:
    """Returns the shape of the one volume of which these are the axes.

    Raises:
        InputCorrupt: An axis has no voxel.
        NotAVolume: There are not three axes.
        InputTooLarge: There are more than `max_voxels`.
    """
    if any(size < 1 for size in sizes):
        raise InputCorrupt(f"the header states an image of {sizes} voxels: expected at least 1 along each axis")
    return require_volume(sizes, max_voxels)
