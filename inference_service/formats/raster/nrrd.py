"""Reads the header of an NRRD file, attached (`.nrrd`) or detached (`.nhdr`).

Source: "Definition of NRRD File Format", teem.sourceforge.net/nrrd/format.html.
"""

import re
from math import prod
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from inference_service.core.errors import InconsistentGeometry, InputCorrupt, NotAVolume, UnsupportedFormat
from inference_service.core.report_warnings import ReportWarning, WarningCode
from inference_service.formats.raster.header import (
    MAX_HEADER_BYTES,
    Fields,
    RasterHeader,
    parse_numbers,
    read_line,
    volume_shape,
)
from inference_service.formats.stated_unit import StatedUnit
from inference_service.imaging.geometry import LPS_TO_RAS, Affine

_MAGIC = re.compile(rb"NRRD000[1-6]\r?\n")
_MAGIC_BYTES = 10
_TYPES = {
    "i1": ("signed char", "int8", "int8_t"),
    "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
    "i8": ("longlong", "long long", "long long int", "signed long long", "signed long long int", "int64", "int64_t"),
    "u8": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
    "f4": ("float",),
    "f8": ("double",),
}
_TYPE_CODES = {name: code for code, names in _TYPES.items() for name in names}
_BYTE_ORDERS = {"little": "<", "big": ">"}
# Encodings that are read, and whether they are compressed.
_ENCODINGS = {"raw": False, "gzip": True, "gz": True}
_SPACES = {
    "right-anterior-superior": np.eye(3),
    "ras": np.eye(3),
    "left-anterior-superior": np.diag([-1.0, 1.0, 1.0]),
    "las": np.diag([-1.0, 1.0, 1.0]),
    "left-posterior-superior": LPS_TO_RAS,
    "lps": LPS_TO_RAS,
}
_UNIT_NAMES = {
    1.0: ("", "mm", "millimeter", "millimeters", "millimetre", "millimetres"),
    10.0: ("cm", "centimeter", "centimeters", "centimetre", "centimetres"),
    1000.0: ("m", "meter", "meters", "metre", "metres"),
    0.001: ("um", "µm", "micron", "microns", "micrometer", "micrometers", "micrometre", "micrometres"),
}
_UNITS_MM = {name: mm for mm, names in _UNIT_NAMES.items() for name in names}
_VECTOR = re.compile(r"none|\([^()]*\)")
_MAX_DIMENSIONS = 16
# Relative difference of a spacing and the length of a direction that is taken for rounding.
_MAX_SPACING_DIFFERENCE = 0.01


def is_nrrd(start: bytes) -> bool:
    """Returns True if a file that begins with these ten bytes or more is NRRD."""
    return _MAGIC.match(start[:_MAGIC_BYTES]) is not None


def read_header(stream: BinaryIO, max_voxels: int) -> RasterHeader:
    """Reads the header, up to the first byte after it.

    Raises:
        InputError: The header is not that of one readable volume; the subclass says why.
    """
    fields = _read_fields(stream)
    sizes = fields.integers("sizes", count=fields.dimension("dimension", _MAX_DIMENSIONS))
    directions = _directions(fields, sizes)
    spatial = [axis for axis, vector in enumerate(directions) if vector is not None]
    others = prod(size for axis, size in enumerate(sizes) if axis not in spatial)
    if others != 1:
        raise NotAVolume(
            f"expected one 3-D volume, got an image of shape {tuple(sizes)} with {len(spatial)} axes in space"
        )
    shape = volume_shape([sizes[axis] for axis in spatial], max_voxels)
    vectors = np.array([vector for vector in directions if vector is not None])
    _check_spacings(fields, vectors, spatial)
    affine, warnings = _affine(fields, vectors)
    compressed = _is_compressed(fields)
    return RasterHeader(
        _data_type(fields),
        shape,
        affine,
        _unit(fields),
        compressed,
        detached=bool(fields.data_file("data file", "datafile", default="")),
        skipped_bytes=fields.skip("byte skip", "byteskip", least=0 if compressed else -1),
        skipped_lines=fields.skip("line skip", "lineskip", least=0),
        warnings=warnings,
    )


def _read_fields(stream: BinaryIO) -> Fields:
    room = MAX_HEADER_BYTES - len(read_line(stream, _MAGIC_BYTES))
    values: dict[str, str] = {}
    while True:
        try:
            line = read_line(stream, room)
        except InputCorrupt:
            # A detached header may end without an empty line, and its last line without a line end.
            if values.get("data file", values.get("datafile")) is None or stream.read(1):
                raise
            return Fields(values, "NRRD")
        room -= len(line) + 1
        if not line:
            return Fields(values, "NRRD")
        name, separator, value = line.partition(": ")
        # Comments and the writer's own pairs, `key:=value`, do not describe the voxels.
        if not line.startswith("#") and separator and ":=" not in name:
            values[name.strip().lower()] = value.strip()


def _directions(fields: Fields, sizes: list[int]) -> list[list[float] | None]:
    """The direction of each axis times its spacing; None for an axis that is not in space."""
    if "space directions" not in fields:
        raise InconsistentGeometry(
            "the header does not state where voxels lie: it has no `space directions`; expected them and a `space`"
        )
    vectors = _VECTOR.findall(fields.text("space directions"))
    if len(vectors) != len(sizes):
        raise InputCorrupt(
            f"the NRRD header's field 'space directions' has {len(vectors)} vectors for {len(sizes)} axes"
        )
    return [None if vector == "none" else _vector(vector, "space directions") for vector in vectors]


def _vector(text: str, field: str) -> list[float]:
    numbers = parse_numbers(text.strip("()").replace(",", " ").split())
    if numbers is None or len(numbers) != 3:
        raise InconsistentGeometry(f"the NRRD header's field {field!r} has a vector that is not three finite numbers")
    return numbers


def _affine(fields: Fields, directions: NDArray[np.float64]) -> tuple[Affine, tuple[ReportWarning, ...]]:
    to_ras = _SPACES.get(fields.text("space", default="").lower())
    if to_ras is None:
        raise InconsistentGeometry(
            "the header does not state where voxels lie: expected a `space` of right-anterior-superior, "
            "left-anterior-superior or left-posterior-superior"
        )
    affine = np.eye(4)
    affine[:3, :3] = to_ras @ directions.T
    if "space origin" not in fields:
        message = "the header has no `space origin`: the first voxel was taken for the origin"
        return affine, (ReportWarning(WarningCode.ORIGIN_MISSING, message),)
    affine[:3, 3] = to_ras @ _vector(fields.text("space origin"), "space origin")
    return affine, ()


def _unit(fields: Fields) -> StatedUnit:
    names = [unit.strip().lower() for unit in re.findall(r'"([^"]*)"', fields.text("space units", default=""))]
    known = [_UNITS_MM[name] for name in names or ["mm"] * 3 if name in _UNITS_MM]
    if len(known) != 3:
        raise InconsistentGeometry("the NRRD header's field 'space units' has units that are not mm, cm, m or um")
    return StatedUnit("space units", ", ".join(dict.fromkeys(names)), (known[0], known[1], known[2]))


def _check_spacings(fields: Fields, directions: NDArray[np.float64], spatial: list[int]) -> None:
    """Refuses spacings that contradict the directions, whose lengths are spacings too."""
    words = fields.text("spacings", default="").split()
    for axis, length in zip(spatial, np.linalg.norm(directions, axis=1), strict=True):
        stated = parse_numbers(words[axis : axis + 1])
        # The others are `nan`, as is usual beside directions.
        if stated and abs(stated[0] - length) > _MAX_SPACING_DIFFERENCE * length:
            raise InconsistentGeometry(
                f"the NRRD header's spacings state {stated[0]:g} for an axis whose `space directions` has the length "
                f"{length:g}: expected one of the two fields"
            )


def _data_type(fields: Fields) -> np.dtype[np.generic]:
    code = _TYPE_CODES.get(fields.text("type").lower())
    if code is None:
        raise UnsupportedFormat("the NRRD header's `type` is not one of the integer and floating-point types")
    if code.endswith("1"):
        return np.dtype(code)
    order = _BYTE_ORDERS.get(fields.text("endian").lower())
    if order is None:
        raise InputCorrupt("the NRRD header's field 'endian' is neither little nor big")
    return np.dtype(order + code)


def _is_compressed(fields: Fields) -> bool:
    compressed = _ENCODINGS.get(fields.text("encoding").lower())
    if compressed is None:
        raise UnsupportedFormat("the NRRD header's `encoding` is neither raw nor gzip: save it as one of them")
    return compressed
