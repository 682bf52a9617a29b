"""NIfTI-1 and -2 single files, plain or gzipped: a volume in, a mask out on exactly the same grid.

The header is believed only after it was checked, and no more is read or allocated than it says and the limits allow.
Only geometry is copied to a mask: a header's texts may hold patient data.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from gzip import BadGzipFile
from io import BytesIO
from math import inf, isfinite, prod
from pathlib import Path
from typing import BinaryIO, cast

import nibabel
import numpy as np
from isal import igzip, igzip_lib, igzip_threaded
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from inference_service.core.errors import (
    InconsistentGeometry,
    InputCorrupt,
    InputTooLarge,
    NotAVolume,
    UnsupportedFormat,
)
from inference_service.formats.read_limits import ReadLimits, RequireMemory
from inference_service.imaging.geometry import Affine, Volume

NiftiHeader = nibabel.Nifti1Header

_GZIP_MAGIC = b"\x1f\x8b"
# isal's stubs call its exception class an instance.
_GZIP_ERRORS = (EOFError, BadGzipFile, cast("type[Exception]", igzip_lib.error))
_HEADER_KINDS = {348: nibabel.Nifti1Header, 540: nibabel.Nifti2Header}
_SINGLE_FILE_MAGIC = {348: b"n+1", 540: b"n+2"}
# By the spatial code of xyzt_units (metre, millimetre, micron); every other code is taken for millimetres.
_MILLIMETRES = {1: 1000.0, 2: 1.0, 3: 0.001}
_SPATIAL_UNIT_BITS = 0b111
_GEOMETRY_FIELDS = (
    "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z",
    "srow_x", "srow_y", "srow_z", "pixdim", "xyzt_units",
)  # fmt: skip
# Headers may carry extensions, and files a tail; neither is worth more memory or time than this.
_MOST_EXTENSION_BYTES = 16 * 2**20
_MOST_TAIL_BYTES = 64 * 2**20
# Least spacing and most extent that a scan can have: wide of everything real, so that only nonsense is refused.
_LEAST_SPACING_MM, _MOST_EXTENT_MM = 1e-4, 1e5
# Least volume spanned by the axes' unit vectors: below it the grid is flat.
_LEAST_DETERMINANT = 1e-3
# What the qform's single precision may come to.
_MOST_APART_MM = 0.1


def looks_like_nifti(path: Path) -> bool:
    """Whether the file's content, gzipped or not, begins as a NIfTI header does.

    Raises:
        InputCorrupt: It is empty, or its first bytes cannot be unpacked.
    """
    with _open(path) as stream:
        return _header_size(_first_bytes(stream)) is not None


def read_nifti(path: Path, limits: ReadLimits) -> tuple[Volume, NiftiHeader]:
    """Reads a volume.

    Args:
        path: The file; its name does not matter.
        limits: How much the file may take.

    Returns:
        The volume, its values scaled as the header says, and the header, which `write_mask` takes the grid from.

    Raises:
        InputError: The file is not one readable volume; the subclass says why.
    """
    with _open(path) as stream:
        header = _read_header(stream)
        shape = _volume_shape(header, limits.max_voxels)
        affine = _affine(header, shape)
        raw = _read_array(stream, header, shape, limits.require_memory)
    return Volume(_scale(raw, header), affine), header


def geometry_warnings(header: NiftiHeader, volume: Volume) -> tuple[str, ...]:
    """What a reader of the mask should know of a scan's grid: that qform and sform disagree.

    Args:
        header: As it was read.
        volume: On the grid that was taken from it.
    """
    apart_mm = _forms_apart_mm(header, volume)
    if apart_mm <= _MOST_APART_MM:
        return ()
    by = f"by up to {apart_mm:.4g} mm" if isfinite(apart_mm) else "altogether"
    return (f"the header's qform and sform disagree {by}: the sform was taken",)


def _forms_apart_mm(header: NiftiHeader, volume: Volume) -> float:
    """How far apart qform and sform have a corner of the volume; 0 where there is only one of them."""
    if header["sform_code"] <= 0 or header["qform_code"] <= 0:
        return 0.0
    corners = np.vstack([np.indices((2, 2, 2)).reshape(3, -1) * np.reshape(volume.shape, (3, 1)), np.ones(8)])
    with np.errstate(over="ignore", invalid="ignore"):
        try:
            qform = _in_millimetres(_with_qfac(header).get_qform(), header)
        except (HeaderDataError, ValueError):
            return inf
        apart_mm = float(np.linalg.norm(((volume.affine - qform) @ corners)[:3], axis=0).max())
    return apart_mm if isfinite(apart_mm) else inf


def write_mask(path: Path, mask: NDArray[np.unsignedinteger], grid: NiftiHeader) -> None:
    """Writes a mask as `.nii.gz` with the shape, qform, sform and codes of the scan it belongs to.

    Args:
        path: Where to.
        mask: Shape (i, j, k) in the scan's axis order.
        grid: The scan's header.
    """
    header = type(grid)(endianness="<")
    header.set_data_dtype(mask.dtype)
    header.set_data_shape(grid.get_data_shape())
    for field in _GEOMETRY_FIELDS:
        header[field] = grid[field]
    _write(path, mask, header)


def write_volume(path: Path, volume: Volume) -> None:
    """Writes a volume as `.nii.gz`, its affine as the sform and, where it has no shear, the qform."""
    header = grid_header(volume)
    header.set_data_dtype(volume.voxels.dtype)
    _write(path, volume.voxels, header)


def grid_header(volume: Volume) -> NiftiHeader:
    """A header with a volume's shape, its affine as the sform and, where it has no shear, as the qform."""
    header = nibabel.Nifti1Header(endianness="<")
    header.set_data_shape(volume.shape)
    header.set_xyzt_units("mm")
    try:
        header.set_qform(volume.affine, code="scanner", strip_shears=False)
    except HeaderDataError:
        header["qform_code"] = 0
    header.set_sform(volume.affine, code="scanner")
    return header


def compress(source: Path, target: Path) -> None:
    """Copies a file, gzipped if it is not yet."""
    with source.open("rb") as file:
        gzipped = file.read(2) == _GZIP_MAGIC
    with source.open("rb") as file, target.open("wb") if gzipped else igzip.open(target, "wb") as stream:
        shutil.copyfileobj(file, stream)


def _write(path: Path, voxels: NDArray[np.generic], header: NiftiHeader) -> None:
    header["vox_offset"] = header.single_vox_offset
    header["scl_slope"], header["scl_inter"] = 1, 0
    little_endian = voxels.astype(voxels.dtype.newbyteorder("<"), copy=False)
    # No name and no time in the gzip header: equal volumes are equal files.
    with path.open("wb") as file, igzip.IGzipFile("", "wb", fileobj=file, mtime=0) as stream:
        header.write_to(stream)
        stream.write(little_endian.ravel(order="F").data)


@contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    with path.open("rb") as file:
        gzipped = file.read(2) == _GZIP_MAGIC
    try:
        with igzip_threaded.open(path, "rb") if gzipped else path.open("rb") as stream:
            yield stream
    except _GZIP_ERRORS as error:
        raise InputCorrupt("the file's gzip stream is truncated or damaged") from error


def _first_bytes(stream: BinaryIO) -> bytes:
    start = stream.read(4)
    if not start:
        raise InputCorrupt("the file is empty")
    return start


def _header_size(start: bytes) -> int | None:
    sizes = (int.from_bytes(start, "little"), int.from_bytes(start, "big"))
    return next((size for size in sizes if size in _HEADER_KINDS), None)


def _read_header(stream: BinaryIO) -> NiftiHeader:
    start = _first_bytes(stream)
    size = _header_size(start)
    if size is None:
        raise UnsupportedFormat("the file is not NIfTI: its first bytes are not those of a NIfTI-1 or NIfTI-2 header")
    rest = stream.read(size - 4)
    if len(rest) < size - 4:
        raise InputCorrupt(f"the file ends inside its header: expected {size} bytes, got {len(rest) + 4}")
    header: NiftiHeader = _HEADER_KINDS[size].from_fileobj(BytesIO(start + rest), check=False)
    if not bytes(header["magic"]).startswith(_SINGLE_FILE_MAGIC[size]):
        raise UnsupportedFormat("only single-file NIfTI (magic n+1 or n+2) is read, not .hdr/.img pairs or Analyze")
    extension = float(header["vox_offset"]) - size
    if not 0 <= extension <= _MOST_EXTENSION_BYTES or len(stream.read(int(extension))) < int(extension):
        raise InputCorrupt(f"the header puts the voxels at byte {header['vox_offset']}, where there are none")
    return header


def _volume_shape(header: NiftiHeader, max_voxels: int) -> tuple[int, int, int]:
    dims = [int(dim) for dim in header["dim"]]
    if not 1 <= dims[0] <= 7 or any(dim < 1 for dim in dims[1 : dims[0] + 1]):
        raise InputCorrupt(f"the header's dimensions make no sense: {dims}")
    shape = dims[1 : dims[0] + 1]
    if len(shape) < 3 or prod(shape[3:]) != 1:
        raise NotAVolume(f"expected one 3-D volume, got an image of shape {tuple(shape)}")
    voxels = prod(shape)
    if voxels > max_voxels:
        raise InputTooLarge(f"the volume has {voxels} voxels; this service takes at most {max_voxels}")
    i, j, k = shape[:3]
    return i, j, k


def _affine(header: NiftiHeader, shape: tuple[int, int, int]) -> Affine:
    try:
        affine = header.get_sform(coded=True)[0]
        affine = _with_qfac(header).get_qform(coded=True)[0] if affine is None else affine
    except (HeaderDataError, ValueError) as error:
        raise InconsistentGeometry("the header's qform is not a rotation") from error
    if affine is None:
        raise InconsistentGeometry("neither sform nor qform says where the voxels lie: both codes are 0")
    with np.errstate(over="ignore", invalid="ignore"):
        affine = _in_millimetres(affine, header)
        lengths = np.linalg.norm(affine[:3, :3], axis=0)
        extents_mm = lengths * shape
    if not np.isfinite(affine).all() or (lengths < _LEAST_SPACING_MM).any() or (extents_mm > _MOST_EXTENT_MM).any():
        raise InconsistentGeometry(f"the voxels' spacing makes no sense: {lengths.tolist()} mm")
    if abs(np.linalg.det(affine[:3, :3] / lengths)) < _LEAST_DETERMINANT:
        raise InconsistentGeometry("the affine is singular: its axes lie in one plane")
    return affine


def _in_millimetres(affine: Affine, header: NiftiHeader) -> Affine:
    unit = _MILLIMETRES.get(int(header["xyzt_units"]) & _SPATIAL_UNIT_BITS, 1.0)
    return np.vstack([affine[:3] * unit, [0, 0, 0, 1]]).astype(np.float64)


def _with_qfac(header: NiftiHeader) -> NiftiHeader:
    """The standard reads a qfac of 0 as 1; nibabel refuses it."""
    header = header.copy()
    header["pixdim"][0] = header["pixdim"][0] or 1
    return header


def _read_array(
    stream: BinaryIO, header: NiftiHeader, shape: tuple[int, int, int], require_memory: RequireMemory
) -> NDArray[np.generic]:
    try:
        dtype = header.get_data_dtype()
    except (HeaderDataError, KeyError) as error:
        raise UnsupportedFormat(f"NIfTI data type {int(header['datatype'])} is not known") from error
    if dtype.kind not in "iuf":
        raise NotAVolume(f"expected one real number a voxel, got {header.get_value_label('datatype')}")
    # The voxels as they are; what scaling them takes besides, or looking for those that are not finite.
    besides = 0 if dtype == np.float32 or _scaling(header) is None else 4
    require_memory(prod(shape) * (dtype.itemsize + max(besides, dtype.kind == "f")))
    array = np.empty(shape, dtype=dtype, order="F")
    wanted = memoryview(array.reshape(-1, order="F").view(np.uint8).data)
    got = 0
    while got < len(wanted):
        count = stream.readinto(wanted[got:])  # type: ignore[attr-defined]
        if not count:
            raise InputCorrupt(f"the file is truncated: expected {len(wanted)} bytes of voxels, got {got}")
        got += count
    _check_tail(stream)
    return array


def _check_tail(stream: BinaryIO) -> None:
    """Reads to the end, where gzip's checksum is verified."""
    tail = 0
    while chunk := stream.read(2**20):
        tail += len(chunk)
        if tail > _MOST_TAIL_BYTES:
            raise InputCorrupt("the file goes on long after its last voxel")


def _scaling(header: NiftiHeader) -> tuple[float, float] | None:
    """Slope and intercept; None where values stay as they are."""
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    return None if not np.isfinite(slope) or slope == 0 or (slope, intercept) == (1, 0) else (slope, intercept)


def _scale(raw: NDArray[np.generic], header: NiftiHeader) -> NDArray[np.generic]:
    """Native values scaled as the header says: in `raw`'s memory, which is given up, or in one float32 array more."""
    native = raw if raw.dtype.isnative else raw.byteswap(inplace=True).view(raw.dtype.newbyteorder("="))
    scaling = _scaling(header)
    if scaling is None:
        return native
    slope, intercept = scaling
    if not np.isfinite(intercept):
        raise InputCorrupt("the header's scl_inter is not a number")
    # What leaves the range of float32 becomes infinite, and is counted and replaced with the other infinite voxels.
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = native.astype(np.float32, copy=False)
        scaled *= np.float32(slope)
        scaled += np.float32(intercept)
    return scaled
