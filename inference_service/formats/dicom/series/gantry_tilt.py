"""Finds a tilted gantry by the slices' positions, and refuses the series unless the request tolerates the tilt.

In a tilted stack, the line through the slices' first pixels is not at right angles to the slices.
"""

from math import atan2, degrees

import numpy as np
from numpy.typing import NDArray

from inference_service.core.errors import GantryTilt, InconsistentGeometry
from inference_service.core.report_warnings import ReportWarning, WarningCode

# Distance of a slice from the straight line through the first and the last one: below this, a rounding error.
_MAX_DEVIATION_MM = 0.1
# Shift across the whole stack, and tilt: below these, rounding errors.
_MAX_ROUNDING_SHIFT_MM = 0.1
_MAX_ROUNDING_TILT_DEGREES = 0.05


def is_tilted(offsets_mm: NDArray[np.float64], pixel_spacing_mm: float) -> bool:
    """Returns True if slices are shifted sideways by more than rounding, or by half a pixel across the stack.

    Args:
        offsets_mm: Shape (slices, 3): offset of each slice from the first one along a row, along a column and along
            the normal of the planes.
        pixel_spacing_mm: The smaller pixel spacing.

    Raises:
        InconsistentGeometry: The slices do not lie along one straight line.

    >>> is_tilted(np.array([[0.0, 0.0, 0.0], [0.0, 0.5, 2.5]]), 0.75)
    True
    """
    if len(offsets_mm) == 1:
        return False
    share = offsets_mm[:, 2:] / offsets_mm[-1, 2]
    deviation_mm = np.linalg.norm(offsets_mm[:, :2] - share * offsets_mm[-1, :2], axis=1).max()
    if deviation_mm > _MAX_DEVIATION_MM:
        raise InconsistentGeometry(
            f"slices do not lie along one line: one is {deviation_mm:.4g} mm beside it, and at most "
            f"{_MAX_DEVIATION_MM:g} mm are rounding"
        )
    shift_mm = _shift_mm(offsets_mm)
    return shift_mm > _MAX_ROUNDING_SHIFT_MM and (
        tilt_degrees(offsets_mm) > _MAX_ROUNDING_TILT_DEGREES or shift_mm > pixel_spacing_mm / 2
    )


def tilt_degrees(offsets_mm: NDArray[np.float64]) -> float:
    """Angle between the stack and the normal of its planes.

    >>> round(tilt_degrees(np.array([[0.0, 0.0, 0.0], [0.0, 0.5, 2.5]])), 2)
    11.31
    """
    return degrees(atan2(_shift_mm(offsets_mm), float(offsets_mm[-1, 2])))


def tilt_warning(offsets_mm: NDArray[np.float64], *, tolerated: bool) -> ReportWarning:
    """Refuses a tilted stack unless the request tolerates a gantry tilt.

    Args:
        offsets_mm: Shape (slices, 3): offset of each slice from the first, as `is_tilted` takes them. Call this only
            for a stack that it found tilted.
        tolerated: Whether the request tolerates a gantry tilt.

    Returns:
        The warning that the stack is tilted.

    Raises:
        GantryTilt: The request does not tolerate a gantry tilt.
    """
    text = (
        f"the stack of slices is tilted by {tilt_degrees(offsets_mm):.3g}°: across it, they drift by "
        f"{_shift_mm(offsets_mm):.4g} mm"
    )
    if not tolerated:
        raise GantryTilt(f"{text}; to have them aligned, set options.tolerate to gantry_tilt")
    message = (
        f"{text}; for the network they were aligned by shifts of whole pixels, and the mask was shifted back onto the "
        "sheared grid: viewers that cannot show such a grid, such as those built on ITK, need a DICOM segmentation"
    )
    return ReportWarning(WarningCode.GANTRY_TILT_ALIGNED, message)


def _shift_mm(offsets_mm: NDArray[np.float64]) -> float:
    """Distance by which the last slice is shifted sideways against the first one."""
    return float(np.linalg.norm(offsets_mm[-1, :2]))
