"""Reads the affine of a NIfTI file from its sform, qform, pixdim and unit, which may contradict each other.

The standard lets a reader choose between sform and qform. Here pixdim decides between forms that differ in scale.
"""

from collections.abc import Collection
from dataclasses import dataclass
from math import inf, isfinite
from typing import Literal

import numpy as np
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from inference_service.contract.task_message import Tolerance
from inference_service.core.errors import InconsistentGeometry
from inference_service.core.report_warnings import ReportWarning, WarningCode
from inference_service.formats.grid_check import MIN_DETERMINANT, require_valid_affine
from inference_service.formats.nifti_header import NiftiHeader, read_quaternion
from inference_service.formats.stated_unit import StatedUnit, convert_to_mm
from inference_service.imaging.geometry import Affine, Shape

# By the spatial code of xyzt_units: metre, millimetre, micron. Any other code is taken for millimetres.
_UNITS = {1: ("metre", 1000.0), 2: ("millimetre", 1.0), 3: ("micron", 0.001)}
_SPATIAL_UNIT_BITS = 0b111
# Distance between qform and sform that is taken for rounding: the qform is stored in single precision.
_MAX_FORM_DISTANCE_MM = 0.1
# Relative difference of a spacing by the sform and by pixdim that is taken for rounding.
_MAX_SCALE_DIFFERENCE = 0.01
# A larger difference is no other spacing of the same scan, but a damaged header.
_MAX_MISTAKEN_SCALE = 9.0


@dataclass(frozen=True)
class NiftiGeometry:
    """The grid of a NIfTI file.

    Attributes:
        affine: Voxel index to RAS+ mm.
        warnings: Warnings for the user of the mask.
    """

    affine: Affine
    warnings: tuple[ReportWarning, ...]


def read_geometry(header: NiftiHeader, shape: Shape, tolerated: Collection[Tolerance] = ()) -> NiftiGeometry:
    """Reads the affine: the sform if it agrees in scale with pixdim, and else the qform.

    Args:
        header: The header. An sform that is not used is replaced by the qform in it.
        shape: The volume's.
        tolerated: Deviations that are not refused.

    Raises:
        InconsistentGeometry: There is neither form, or it is invalid; sform and pixdim contradict each other, and there
            is no qform; or only in another unit than the stated one would the scan be of a usual size.
    """
    form, affine, warnings = _choose_form(header)
    name, unit_mm = _UNITS.get(int(header["xyzt_units"]) & _SPATIAL_UNIT_BITS, _UNITS[2])
    unit = StatedUnit("xyzt_units", name, (unit_mm, unit_mm, unit_mm))
    in_mm, unit_warnings = convert_to_mm(affine, unit, shape, tolerated)
    require_valid_affine(in_mm, shape)
    distance_warnings = _distance_warnings(form, affine, header, shape, unit_mm)
    return NiftiGeometry(in_mm, (*warnings, *unit_warnings, *distance_warnings))


def _choose_form(
    header: NiftiHeader,
) -> tuple[Literal["sform", "qform"], NDArray[np.float64], tuple[ReportWarning, ...]]:
    """The form that is used, its affine in the header's unit, and warnings."""
    sform = header.get_sform(coded=True)[0]
    if sform is None:
        return "qform", _require_qform(header), ()
    pixdim = np.abs(np.asarray(header["pixdim"][1:4], dtype=np.float64))
    difference = _scale_difference(sform, pixdim)
    if not (np.isfinite(pixdim).all() and (pixdim > 0).all()) or difference <= _MAX_SCALE_DIFFERENCE:
        return "sform", sform, ()
    text = f"the header's sform states a spacing of {_format_spacing(sform)}, and pixdim one of {_format(pixdim)}"
    # Writers that set the sform alone leave 1.
    is_default = (pixdim == 1).all()
    has_qform = header["qform_code"] > 0
    if is_default and not has_qform:
        message = f"{text}, its default: the sform was used"
        return "sform", sform, (ReportWarning(WarningCode.PIXDIM_IGNORED, message),)
    if is_default or not has_qform or not difference <= _MAX_MISTAKEN_SCALE:
        raise InconsistentGeometry(f"{text}: expected one spacing, or a qform that agrees with a pixdim other than 1")
    qform = _require_qform(header)
    # The mask states the geometry that was used: readers that prefer the sform would measure it wrongly.
    header["srow_x"], header["srow_y"], header["srow_z"] = qform[:3]
    message = f"{text}, as the qform does: the qform was used, and is the mask's sform too"
    return "qform", qform, (ReportWarning(WarningCode.SFORM_IGNORED, message),)


def _scale_difference(affine: NDArray[np.float64], pixdim: NDArray[np.float64]) -> float:
    """Largest relative difference of pixdim from the distance of voxels, or of the planes of a sheared grid.

    Returns:
        NaN or infinity for an affine that is not one of a grid.

    >>> round(_scale_difference(np.diag([1.5, 1.25, 2.5, 1]), np.array([1.5, 1.25, 2])), 3)
    0.25
    """
    axes = affine[:3, :3]
    with np.errstate(all="ignore"):
        along = np.linalg.norm(axes, axis=0)
        if not np.isfinite(along).all() or not abs(np.linalg.det(axes / along)) >= MIN_DETERMINANT:
            return inf
        across = 1 / np.linalg.norm(np.linalg.inv(axes), axis=1)
        # A ratio and its inverse differ as much.
        ratios = [np.maximum(spacing / pixdim, pixdim / spacing) for spacing in (along, across)]
        return float(np.minimum(*ratios).max()) - 1


def _require_qform(header: NiftiHeader) -> NDArray[np.float64]:
    try:
        affine = _with_qfac(header).get_qform(coded=True)[0]
    except (HeaderDataError, ValueError) as error:
        length = np.linalg.norm(read_quaternion(header))
        raise InconsistentGeometry(
            f"the header's qform is invalid: the quaternion quatern_b, quatern_c, quatern_d has length {length:.6g}, "
            f"expected at most 1; pixdim is {_format(header['pixdim'][:4])}, expected 1, -1 or 0, and three positive "
            "numbers"
        ) from error
    if affine is None:
        raise InconsistentGeometry(
            "the header does not state where voxels lie: sform_code and qform_code are 0; expected one of them"
        )
    return np.asarray(affine, dtype=np.float64)


def _distance_warnings(
    form: Literal["sform", "qform"], affine: NDArray[np.float64], header: NiftiHeader, shape: Shape, unit_mm: float
) -> tuple[ReportWarning, ...]:
    """Warns where the sform was used, and the qform disagrees.

    Args:
        form: The form that was used.
        affine: Its affine, in the header's unit.
        header: The header.
        shape: The volume's.
        unit_mm: The header's unit.
    """
    if form == "qform" or header["qform_code"] <= 0:
        return ()
    distance_mm = _distance(affine, header, shape) * unit_mm
    if distance_mm <= _MAX_FORM_DISTANCE_MM:
        return ()
    extent = f"by up to {distance_mm:.4g} mm" if isfinite(distance_mm) else "and the qform is invalid"
    message = f"the header's qform and sform disagree {extent}: the sform was used"
    return (ReportWarning(WarningCode.QFORM_IGNORED, message),)


def _distance(affine: NDArray[np.float64], header: NiftiHeader, shape: Shape) -> float:
    """Largest distance between a corner of the volume by an affine and by the qform."""
    corners = np.vstack([np.indices((2, 2, 2)).reshape(3, -1) * np.reshape(shape, (3, 1)), np.ones(8)])
    with np.errstate(over="ignore", invalid="ignore"):
        try:
            qform = _with_qfac(header).get_qform()
        except (HeaderDataError, ValueError):
            return inf
        distance = float(np.linalg.norm(((affine - qform) @ corners)[:3], axis=0).max())
    return distance if isfinite(distance) else inf


def _with_qfac(header: NiftiHeader) -> NiftiHeader:
    """A copy with a valid qfac (pixdim[0]): the standard reads 0 as 1, and nibabel refuses it."""
    header = header.copy()
    header["pixdim"][0] = header["pixdim"][0] or 1
    return header


def _format_spacing(affine: NDArray[np.float64]) -> str:
    with np.errstate(over="ignore", invalid="ignore"):
        return _format(np.linalg.norm(affine[:3, :3], axis=0))


def _format(values: NDArray[np.floating]) -> str:
    return ", ".join(f"{value:.6g}" for value in values)
