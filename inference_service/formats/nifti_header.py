"""Reads and checks the header of NIfTI-1 or NIfTI-2: shape, data type and scaling; see also `nifti_geometry`.

No field is believed before it is checked, and nothing is allocated by what a header states.
"""

from io import BytesIO
from math import prod
from typing import BinaryIO

import nibabel
import numpy as np
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from inference_service.core.errors import InputCorrupt, NotAVolume, UnsupportedFormat
from inference_service.formats.grid_check import require_volume
from inference_service.imaging.geometry import Shape

NiftiHeader = nibabel.Nifti1Header
"""NIfTI-2 headers are a subclass."""

# By sizeof_hdr, the first field: 348 in NIfTI-1, 540 in NIfTI-2.
_HEADER_CLASSES = {348: nibabel.Nifti1Header, 540: nibabel.Nifti2Header}
_SINGLE_FILE_MAGIC = (b"n+1", b"n+2")
_PAIR_MAGIC = (b"ni1", b"ni2")
_MAGIC_PLACES = {348: slice(344, 347), 540: slice(4, 7)}
_SIZE_BYTES = 4
_ANALYZE_BYTES = 348
_ANALYZE_DIMENSIONS = slice(40, 42)
HEADER_START_BYTES = _ANALYZE_BYTES + 1
"""The bytes of a file that `is_nifti` and `is_analyze` look at: all of an Analyze header, and one after it."""
_MAX_EXTENSION_BYTES = 16 * 2**20
# The length of a quaternion above 1 that is taken for rounding. The rotation is by 180° then, to within half a degree.
_MAX_QUATERNION_EXCESS = 1e-5


def is_nifti(start: bytes) -> bool:
    """Returns True if the first `HEADER_START_BYTES` of a file are those of a NIfTI header."""
    return _header_size(start) is not None and not is_analyze(start)


def is_analyze(start: bytes) -> bool:
    """Returns True if the first `HEADER_START_BYTES` of a file are an Analyze 7.5 header, which has no magic."""
    if _header_size(start) != _ANALYZE_BYTES or len(start) != _ANALYZE_BYTES:
        return False
    little = int.from_bytes(start[:_SIZE_BYTES], "little") == _ANALYZE_BYTES
    axes = int.from_bytes(start[_ANALYZE_DIMENSIONS], "little" if little else "big", signed=True)
    return not start[_MAGIC_PLACES[_ANALYZE_BYTES]].startswith((*_SINGLE_FILE_MAGIC, *_PAIR_MAGIC)) and 1 <= axes <= 7


def is_pair(header: NiftiHeader) -> bool:
    """Returns True if the header's voxels are in another file."""
    return bytes(header["magic"]).startswith(_PAIR_MAGIC)


def read_header(stream: BinaryIO) -> NiftiHeader:
    """Reads the header, and in a single file its extensions, up to the first voxel.

    Raises:
        UnsupportedFormat: The file is not NIfTI.
        InputCorrupt: The file is truncated, or the header states an impossible offset of the voxels.
    """
    start = stream.read(_SIZE_BYTES)
    if not start:
        raise InputCorrupt("the file is empty")
    size = _header_size(start)
    if size is None:
        raise UnsupportedFormat("the file is not NIfTI: its first bytes are not those of a NIfTI-1 or NIfTI-2 header")
    rest = stream.read(size - _SIZE_BYTES)
    if len(rest) < size - _SIZE_BYTES:
        raise InputCorrupt(f"the file is truncated: expected a header of {size} bytes, got {len(rest) + _SIZE_BYTES}")
    magic = (start + rest)[_MAGIC_PLACES[size]]
    if magic not in (*_SINGLE_FILE_MAGIC, *_PAIR_MAGIC):
        raise UnsupportedFormat(
            "the file begins like NIfTI without its magic: expected n+1 or n+2 in a single file, ni1 or ni2 in the "
            "header of a .hdr/.img pair; or a header of Analyze 7.5, which is a file of 348 bytes"
        )
    header: NiftiHeader = _HEADER_CLASSES[size].from_fileobj(BytesIO(start + rest), check=False)
    _round_quaternion(header)
    if magic in _SINGLE_FILE_MAGIC:
        extension = voxel_offset(header, least=size) - size
        if len(stream.read(extension)) < extension:
            raise InputCorrupt("the file ends before its first voxel")
    return header


def voxel_offset(header: NiftiHeader, *, least: int = 0) -> int:
    """Returns the place of the first voxel in the file that holds the voxels.

    Raises:
        InputCorrupt: It is before `least`, or impossible.
    """
    offset = float(header["vox_offset"])
    if not least <= offset <= least + _MAX_EXTENSION_BYTES:
        raise InputCorrupt(
            f"the header states that voxels begin at byte {offset:g}: expected at least {least}, and at most "
            f"{least + _MAX_EXTENSION_BYTES}"
        )
    return int(offset)


def volume_shape(header: NiftiHeader, max_voxels: int) -> Shape:
    """Shape of the one volume that a file holds.

    Raises:
        InputCorrupt: The dimensions are invalid.
        NotAVolume: The file holds a plane or a series of volumes.
        InputTooLarge: There are more than `max_voxels`.
    """
    dims = [int(dim) for dim in header["dim"]]
    if not 1 <= dims[0] <= 7 or any(dim < 1 for dim in dims[1 : dims[0] + 1]):
        raise InputCorrupt(f"the header's field dim is invalid: {dims}; expected 1 to 7 axes of at least 1 voxel")
    sizes = dims[1 : dims[0] + 1]
    return require_volume(sizes[:3] if prod(sizes[3:]) == 1 else sizes, max_voxels)


def data_type(header: NiftiHeader) -> np.dtype[np.generic]:
    """Data type of stored voxels.

    Raises:
        UnsupportedFormat: NIfTI does not define it.
        NotAVolume: Voxels are no real numbers, but colours or complex ones.
    """
    try:
        dtype: np.dtype[np.generic] = header.get_data_dtype()
    except (HeaderDataError, KeyError) as error:
        raise UnsupportedFormat(f"the header's data type {int(header['datatype'])} is not one of NIfTI's") from error
    if dtype.kind not in "iuf":
        raise NotAVolume(f"expected voxels that are real numbers, got {header.get_value_label('datatype')}")
    return dtype


def read_scaling(header: NiftiHeader) -> tuple[float, float] | None:
    """Slope and intercept; None where values stay as they are.

    Raises:
        InputCorrupt: The intercept is not a number.
    """
    slope = float(header["scl_slope"])
    intercept = float(header["scl_inter"])
    if not np.isfinite(slope) or slope == 0 or (slope, intercept) == (1, 0):
        return None
    if not np.isfinite(intercept):
        raise InputCorrupt(f"the header's scl_inter is {intercept}: expected a finite number")
    return slope, intercept


def read_quaternion(header: NiftiHeader) -> NDArray[np.float64]:
    """The three components of the qform's quaternion that are stored."""
    return np.array([header[f"quatern_{axis}"] for axis in "bcd"], dtype=np.float64)


def _round_quaternion(header: NiftiHeader) -> None:
    """Shortens a quaternion that rounding made longer than 1, as of a rotation by 180°; masks get the shorter one."""
    quaternion = read_quaternion(header)
    with np.errstate(over="ignore", invalid="ignore"):
        length = np.linalg.norm(quaternion)
    if 1 < length <= 1 + _MAX_QUATERNION_EXCESS:
        header["quatern_b"], header["quatern_c"], header["quatern_d"] = quaternion / length


def _header_size(start: bytes) -> int | None:
    first = start[:_SIZE_BYTES]
    sizes = (int.from_bytes(first, "little"), int.from_bytes(first, "big"))
    return next((size for size in sizes if size in _HEADER_CLASSES), None)
