"""Reads Analyze 7.5: a header of 348 bytes, with the voxels in another file.

The header does not state the directions of the axes. SPM and nibabel take them to run to the left, to the front and up;
ITK takes the second one to run to the back. One reading mirrors the other, and a mirrored patient has left and right
swapped without a sign of it. So a scan is refused unless the request tolerates SPM's convention.
"""

from collections.abc import Collection, Sequence
from io import BytesIO
from math import prod
from pathlib import Path

import nibabel
import numpy as np

from inference_service.contract.task_message import Tolerance
from inference_service.core.errors import InconsistentGeometry, UnsupportedFormat
from inference_service.core.report_warnings import ReportWarning, WarningCode
from inference_service.formats.data_file import MAX_TRAILING_BYTES, open_data_file
from inference_service.formats.decompression import read_start
from inference_service.formats.grid_check import require_valid_affine
from inference_service.formats.nifti_header import (
    HEADER_START_BYTES,
    NiftiHeader,
    data_type,
    read_scaling,
    volume_shape,
    voxel_offset,
)
from inference_service.formats.read_limits import ReadLimits
from inference_service.formats.voxel_stream import read_voxels
from inference_service.imaging.geometry import Affine, Volume

_ORIENT = 252
_WITHOUT_ORIENTATION = "the header is one of Analyze 7.5, which does not state the directions of the axes"


def read_analyze(
    path: Path, limits: ReadLimits, tolerated: Collection[Tolerance], others: Sequence[Path]
) -> tuple[Volume, ReportWarning]:
    """Reads a volume by SPM's convention: the axes run to the left, to the front and up.

    Args:
        path: The header.
        limits: The largest volume that is read.
        tolerated: Deviations that are not refused.
        others: The other files of the input, among which the voxels are found.

    Returns:
        The volume, and a warning about its orientation.

    Raises:
        InputError: The files are not one readable volume; the subclass says why.
    """
    content = read_start(path, HEADER_START_BYTES)
    if "analyze_orientation" not in tolerated:
        raise InconsistentGeometry(
            f"{_WITHOUT_ORIENTATION}, so left and right may be swapped: convert the scan to NIfTI, or set "
            "options.tolerate to analyze_orientation if they run to the left, to the front and up, as SPM assumes"
        )
    # The fields for shape, data type and voxels have the same places as in NIfTI-1.
    header = NiftiHeader.from_fileobj(BytesIO(content), check=False)
    shape = volume_shape(header, limits.max_voxels)
    affine = _affine(content)
    require_valid_affine(affine, shape)
    dtype = data_type(header)
    if read_scaling(header) is not None:
        raise UnsupportedFormat(
            "the Analyze header scales its values, which SPM does and other readers ignore: convert the scan to NIfTI"
        )
    size_bytes = prod(shape) * dtype.itemsize
    with open_data_file(others, offset_bytes=voxel_offset(header), size_bytes=size_bytes) as stream:
        voxels = read_voxels(stream, dtype, shape, limits.require_memory, max_trailing_bytes=MAX_TRAILING_BYTES)
    message = f"{_WITHOUT_ORIENTATION}: they were taken to run to the left, to the front and up, as SPM assumes"
    return Volume(voxels, affine), ReportWarning(WarningCode.ORIENTATION_MISSING, message)


def _affine(content: bytes) -> Affine:
    """The affine by SPM's convention, with the field of its origin, or else the volume's centre at the origin."""
    if content[_ORIENT]:
        raise InconsistentGeometry(
            f"the Analyze header's field orient is {content[_ORIENT]}: expected 0, for transverse slices"
        )
    header = nibabel.Spm99AnalyzeHeader.from_fileobj(BytesIO(content), check=False)
    spacing = np.asarray(header["pixdim"][1:4], dtype=np.float64)
    if not (spacing > 0).all():
        raise InconsistentGeometry(f"the Analyze header's pixdim is {spacing.tolist()}: expected positive numbers")
    return np.asarray(header.get_origin_affine(), dtype=np.float64)
