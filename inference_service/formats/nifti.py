"""Reads NIfTI-1 and NIfTI-2, in one file or in a pair of two, and writes masks and scans on exactly the scan's grid.

Only geometry is copied from a scan's header to a written one: its texts may identify a patient.
"""

import shutil
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import cast

import nibabel
import numpy as np
from isal import igzip
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from inference_service.contract.task_message import Tolerance
from inference_service.core.errors import InputCorrupt, UnsupportedFormat
from inference_service.core.report_warnings import ReportWarning
from inference_service.formats.data_file import MAX_TRAILING_BYTES, open_data_file
from inference_service.formats.decompression import GZIP, find_layers, open_decompressed, read_start
from inference_service.formats.nifti_geometry import read_geometry
from inference_service.formats.nifti_header import (
    HEADER_START_BYTES,
    NiftiHeader,
    data_type,
    is_nifti,
    is_pair,
    read_header,
    read_scaling,
    volume_shape,
    voxel_offset,
)
from inference_service.formats.read_limits import ReadLimits
from inference_service.formats.voxel_stream import read_voxels
from inference_service.imaging.geometry import Volume

_GEOMETRY_FIELDS = (
    "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z",
    "srow_x", "srow_y", "srow_z", "pixdim", "xyzt_units",
)  # fmt: skip
# Bytes after the last voxel that are read to reach gzip's checksum.
_MAX_TRAILING_BYTES = 64 * 2**20


def find_headers(files: Sequence[Path], accepts: Callable[[bytes], bool] = is_nifti) -> list[Path]:
    """Returns the files that begin with a header of NIfTI, or Analyze; one that cannot be decompressed has none."""
    found = []
    for path in files:
        with suppress(InputCorrupt, UnsupportedFormat):
            if accepts(read_start(path, HEADER_START_BYTES)):
                found.append(path)
    return found


@dataclass(frozen=True)
class NiftiVolume:
    """A volume that was read from a file.

    Attributes:
        volume: The volume, with values scaled by slope and intercept.
        header: The header, from which `write_mask` takes the grid.
        warnings: Warnings about the geometry.
        files: Number of its files.
    """

    volume: Volume
    header: NiftiHeader
    warnings: tuple[ReportWarning, ...]
    files: int


def read_nifti(
    path: Path, limits: ReadLimits, tolerated: Collection[Tolerance] = (), others: Sequence[Path] = ()
) -> NiftiVolume:
    """Reads a volume.

    Args:
        path: The file that begins with the header; its name does not matter.
        limits: The largest file that is read.
        tolerated: Deviations that are not refused.
        others: The other files of the input, among which the voxels of a pair are found.

    Raises:
        InputError: The file is not one readable volume; the subclass says why.
    """
    with ExitStack() as stack:
        stream = stack.enter_context(open_decompressed(path))
        header = read_header(stream)
        shape = volume_shape(header, limits.max_voxels)
        geometry = read_geometry(header, shape, tolerated)
        scaling = read_scaling(header)
        dtype = data_type(header)
        pair = is_pair(header)
        if pair:
            size_bytes = prod(shape) * dtype.itemsize
            data = open_data_file(others, offset_bytes=voxel_offset(header), size_bytes=size_bytes)
            stream = stack.enter_context(data)
        stored = read_voxels(
            stream,
            dtype,
            shape,
            limits.require_memory,
            scaled=scaling is not None,
            max_trailing_bytes=MAX_TRAILING_BYTES if pair else _MAX_TRAILING_BYTES,
        )
    return NiftiVolume(Volume(_scale(stored, scaling), geometry.affine), header, geometry.warnings, files=1 + pair)


def write_mask(path: Path, mask: NDArray[np.unsignedinteger], grid: NiftiHeader) -> None:
    """Writes a mask as `.nii.gz` with the shape, qform, sform and codes of the scan it belongs to.

    Args:
        path: The file to write.
        mask: Shape (i, j, k) in the scan's axis order.
        grid: The scan's header.
    """
    _write_on_grid(path, mask, grid, mask.dtype)


def write_scan(path: Path, voxels: NDArray[np.generic], grid: NiftiHeader) -> None:
    """Writes a scan as `.nii.gz` with its own geometry: as int16 where that is exact, and as float32 elsewhere.

    Args:
        path: The file to write.
        voxels: Shape (i, j, k), finite values.
        grid: The scan's header.
    """
    exact = all(_is_int16(plane) for plane in _planes(voxels))
    _write_on_grid(path, voxels, grid, np.dtype(np.int16 if exact else np.float32))


def write_volume(path: Path, volume: Volume) -> None:
    """Writes a volume as `.nii.gz`; the header is made from its shape, affine and data type."""
    header = grid_header(volume)
    header.set_data_dtype(volume.voxels.dtype)
    _write(path, volume.voxels, header)


def grid_header(volume: Volume) -> NiftiHeader:
    """A header with a volume's shape and spacing, and its affine as the sform, and as the qform unless it has shear."""
    header = nibabel.Nifti1Header(endianness="<")
    header.set_data_shape(volume.shape)
    header.set_xyzt_units("mm")
    header.set_zooms(volume.spacing_mm)
    try:
        header.set_qform(volume.affine, code="scanner", strip_shears=False)
    except HeaderDataError:
        header["qform_code"] = 0
    header.set_sform(volume.affine, code="scanner")
    return header


def compress(source: Path, target: Path) -> None:
    """Copies a file, gzipped unless it already is."""
    gzipped = find_layers(source)[:1] == [GZIP]
    with source.open("rb") as file, target.open("wb") if gzipped else igzip.open(target, "wb") as stream:
        shutil.copyfileobj(file, stream)


def _write_on_grid(path: Path, voxels: NDArray[np.generic], grid: NiftiHeader, dtype: np.dtype[np.generic]) -> None:
    header = type(grid)(endianness="<")
    header.set_data_dtype(dtype)
    header.set_data_shape(grid.get_data_shape())
    for field in _GEOMETRY_FIELDS:
        header[field] = grid[field]
    _write(path, voxels, header)


def _planes(voxels: NDArray[np.generic]) -> NDArray[np.generic]:
    """The planes across the third axis, by which no copy of a whole volume is held."""
    return np.moveaxis(voxels, 2, 0)


def _is_int16(plane: NDArray[np.generic]) -> bool:
    values = cast("NDArray[np.float32]", plane)
    if np.can_cast(values.dtype, np.int16):
        return True
    limits = np.iinfo(np.int16)
    if values.min() < limits.min or values.max() > limits.max:
        return False
    return values.dtype.kind != "f" or np.array_equal(values, np.rint(values))


def _write(path: Path, voxels: NDArray[np.generic], header: NiftiHeader) -> None:
    header["vox_offset"] = header.single_vox_offset
    header["scl_slope"] = 1
    header["scl_inter"] = 0
    dtype = header.get_data_dtype()
    # No name and no time in the gzip header, so that equal volumes give equal files.
    with path.open("wb") as file, igzip.IGzipFile("", "wb", fileobj=file, mtime=0) as stream:
        header.write_to(stream)
        for plane in _planes(voxels):
            stream.write(plane.astype(dtype, copy=False).ravel(order="F").data)


def _scale(stored: NDArray[np.generic], scaling: tuple[float, float] | None) -> NDArray[np.generic]:
    """Values scaled by slope and intercept.

    The memory of `stored` is reused: at most one float32 array is allocated besides.
    """
    if scaling is None:
        return stored
    slope, intercept = scaling
    # Values beyond the range of float32 become infinite, and are replaced and counted with other infinite voxels.
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = stored.astype(np.float32, copy=False)
        scaled *= np.float32(slope)
        scaled += np.float32(intercept)
    return scaled
