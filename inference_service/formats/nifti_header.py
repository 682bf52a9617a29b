"""Reads and checks the header of a NIfTI-1 or NIfTI-2 file: shape, data type and scaling; see also `nifti_geometry`.

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
_SINGLE_FILE_MAGIC = {348: b"n+1", 540: b"n+2"}
_SIZE_BYTES = 4
_MAX_EXTENSION_BYTES = 16 * 2**20
# The length of a quaternion above 1 that is taken for rounding. The rotation is by 180° then, to within half a degree.
_MAX_QUATERNION_EXCESS = 1e-5


def is_nifti(start: bytes) -> bool:
    """Returns True if the first four bytes of a file are those of a NIfTI header."""
    return _header_size(start) is not None


def read_start(stream: BinaryIO) -> bytes:
    """Reads the first four bytes, which `is_nifti` and `read_header` take.

    Raises:
        InputCorrupt: The file is empty.
    """
    start = stream.read(_SIZE_BYTES)
    if not start:
        raise InputCorrupt("the file is empty")
    return start


def read_header(stream: BinaryIO) -> NiftiHeader:
    """Reads the header and skips its extensions, up to the first voxel.

    Raises:
        UnsupportedFormat: The file is not NIfTI, or not a single file.
        InputCorrupt: The file is truncated, or the header states an impossible offset of the voxels.
    """
    start = read_start(stream)
    size = _header_size(start)
    if size is None:
        raise UnsupportedFormat("the file is not NIfTI: its first bytes are not those of a NIfTI-1 or NIfTI-2 header")
    rest = stream.read(size - _SIZE_BYTES)
    if len(rest) < size - _SIZE_BYTES:
        raise InputCorrupt(f"the file is truncated: expected a header of {size} bytes, got {len(rest) + _SIZE_BYTES}")
    header: NiftiHeader = _HEADER_CLASSES[size].from_fileobj(BytesIO(start + rest), check=False)
    if not bytes(header["magic"]).startswith(_SINGLE_FILE_MAGIC[size]):
        raise UnsupportedFormat(
            "the file is one of a .hdr/.img pair or Analyze: expected a single NIfTI file (magic n+1 or n+2)"
        )
    _round_quaternion(header)
    extension = float(header["vox_offset"]) - size
    if not 0 <= extension <= _MAX_EXTENSION_BYTES or len(stream.read(int(extension))) < int(extension):
        raise InputCorrupt(
            f"the header states that voxels begin at byte {header['vox_offset']}: expected at least {size}, at most "
            f"{size + _MAX_EXTENSION_BYTES}, and a longer file"
        )
    return header


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
    sizes = (int.from_bytes(start, "little"), int.from_bytes(start, "big"))
    return next((size for size in sizes if size in _HEADER_CLASSES), None)
