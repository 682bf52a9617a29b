"""Reads the header of a MetaImage file, with its voxels (`.mha`) or with a file beside it (`.mhd`).

Source: the documentation of MetaIO, and ITK's reader as the oracle of the tests.
"""

import re
from typing import BinaryIO

import numpy as np

from inference_service.core.errors import InconsistentGeometry, InputCorrupt, NotAVolume, UnsupportedFormat
from inference_service.core.report_warnings import ReportWarning, WarningCode
from inference_service.formats.raster.header import (
    MAX_HEADER_BYTES,
    Fields,
    RasterHeader,
    read_line,
    volume_shape,
)
from inference_service.formats.stated_unit import StatedUnit
from inference_service.imaging.geometry import LPS_TO_RAS, Affine

_START = re.compile(rb"\s*\w{1,40}[ \t]*=")
_DIMENSIONS = re.compile(rb"(?:^|\n)[ \t]*NDims[ \t]*=[ \t]*\d")
_START_BYTES = 4096
_TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
_MODALITIES = {"MET_MOD_CT": "CT", "MET_MOD_MR": "MR", "MET_MOD_NM": "NM", "MET_MOD_US": "US"}
_UNITS_MM = {"mm": 1.0, "cm": 10.0, "m": 1000.0, "um": 0.001, "µm": 0.001, "?": 1.0, "": 1.0}
# Difference of the length of a direction from 1 that is taken for rounding.
_MAX_LENGTH_DIFFERENCE = 0.01
_MATRIX = ("TransformMatrix", "Rotation", "Orientation")
_OFFSET = ("Offset", "Position", "Origin")
_MAX_DIMENSIONS = 10


def is_metaimage(start: bytes) -> bool:
    """Returns True if a file that begins with these bytes is MetaImage, which has no signature."""
    return _START.match(start) is not None and _DIMENSIONS.search(start[:_START_BYTES]) is not None


def read_header(stream: BinaryIO, max_voxels: int) -> RasterHeader:
    """Reads the header, up to the first byte after it.

    Raises:
        InputError: The header is not that of one readable volume; the subclass says why.
    """
    fields = _read_fields(stream)
    if fields.text("ObjectType", default="Image").lower() != "image":
        raise NotAVolume("the MetaImage header's ObjectType is not Image")
    dimensions = fields.dimension("NDims", _MAX_DIMENSIONS)
    sizes = fields.integers("DimSize", count=dimensions)
    while len(sizes) > 3 and sizes[-1] == 1:
        sizes = sizes[:-1]
    shape = volume_shape(sizes, max_voxels)
    channels = fields.integers("ElementNumberOfChannels", count=1)[0] if "ElementNumberOfChannels" in fields else 1
    if channels != 1:
        raise NotAVolume(f"expected voxels that are real numbers, got {channels} channels")
    affine, warnings = _affine(fields, dimensions)
    _require_plain_values(fields)
    compressed = _flag(fields, "CompressedData")
    return RasterHeader(
        _data_type(fields),
        shape,
        affine,
        _unit(fields),
        compressed,
        detached=fields.data_file("ElementDataFile").upper() != "LOCAL",
        skipped_bytes=fields.skip("HeaderSize", least=0 if compressed else -1),
        modality=_MODALITIES.get(fields.text("Modality", default=""), ""),
        warnings=warnings,
    )


def _read_fields(stream: BinaryIO) -> Fields:
    room = MAX_HEADER_BYTES
    values: dict[str, str] = {}
    while "ElementDataFile" not in values:
        line = read_line(stream, room)
        room -= len(line) + 1
        name, separator, value = line.partition("=")
        if separator:
            values[name.strip()] = value.strip()
    return Fields(values, "MetaImage")


def _affine(fields: Fields, dimensions: int) -> tuple[Affine, tuple[ReportWarning, ...]]:
    """Voxel index to RAS+ in the header's unit. The directions of the axes are the rows of the matrix, in LPS."""
    warnings = []
    if not any(name in fields for name in _MATRIX):
        message = "the header has no TransformMatrix: its axes were taken for those of LPS"
        warnings.append(ReportWarning(WarningCode.ORIENTATION_MISSING, message))
    if not any(name in fields for name in _OFFSET):
        message = "the header has no Offset: the first voxel was taken for the origin"
        warnings.append(ReportWarning(WarningCode.ORIGIN_MISSING, message))
    identity = " ".join(str(value) for value in np.eye(dimensions).ravel())
    zeros = " ".join(["0"] * dimensions)
    rows = np.reshape(fields.numbers(*_MATRIX, count=dimensions**2, default=identity), (dimensions, dimensions))
    offset = fields.numbers(*_OFFSET, count=dimensions, default=zeros)[:3]
    if "ElementSpacing" not in fields and "ElementSize" not in fields:
        raise InconsistentGeometry("the MetaImage header has no ElementSpacing")
    spacing = fields.numbers("ElementSpacing", "ElementSize", count=dimensions)[:3]
    lengths = np.linalg.norm(rows[:3, :3], axis=1)
    if (np.abs(lengths - 1) > _MAX_LENGTH_DIFFERENCE).any():
        raise InconsistentGeometry(
            f"the directions in the MetaImage header's TransformMatrix have the lengths {lengths.round(4).tolist()}: "
            "expected 1, because ElementSpacing states the distances of voxels"
        )
    affine = np.eye(4)
    affine[:3, :3] = LPS_TO_RAS @ (rows[:3, :3].T * spacing)
    affine[:3, 3] = LPS_TO_RAS @ offset
    return affine, tuple(warnings)


def _unit(fields: Fields) -> StatedUnit:
    name = fields.text("DistanceUnits", default="mm").lower()
    mm = _UNITS_MM.get(name)
    if mm is None:
        raise InconsistentGeometry("the MetaImage header's field 'DistanceUnits' is not mm, cm, m or um")
    return StatedUnit("DistanceUnits", name, (mm, mm, mm))


def _data_type(fields: Fields) -> np.dtype[np.generic]:
    code = _TYPES.get(fields.text("ElementType").upper())
    if code is None:
        raise UnsupportedFormat(
            "the MetaImage header's ElementType is not an integer or floating-point type: save the volume as "
            "MET_SHORT, MET_FLOAT or another one"
        )
    if not _flag(fields, "BinaryData", default=True):
        raise UnsupportedFormat("the MetaImage file has its voxels as text: save them as binary data")
    big = _flag(fields, "BinaryDataByteOrderMSB", "ElementByteOrderMSB")
    return np.dtype((">" if big else "<") + code)


def _flag(fields: Fields, *names: str, default: bool = False) -> bool:
    text = fields.text(*names, default=str(default)).lower()
    if text[:1] not in ("t", "f", "1", "0"):
        raise InputCorrupt(f"the MetaImage header's field {names[0]!r} is neither True nor False")
    return text[0] in "t1"


def _require_plain_values(fields: Fields) -> None:
    """Refuses values that are to be scaled: ITK returns them as they are stored, and MetaIO does not."""
    (slope,) = fields.numbers("ElementToIntensityFunctionSlope", count=1, default="1")
    (offset,) = fields.numbers("ElementToIntensityFunctionOffset", count=1, default="0")
    if (slope, offset) != (1, 0):
        raise UnsupportedFormat(
            "the MetaImage header scales its values by ElementToIntensityFunctionSlope, which readers treat "
            "differently: save the scaled values"
        )
