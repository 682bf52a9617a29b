"""Uneven slice spacing and missing slices: found by the gaps between slices, and refused unless they are tolerated.

SliceThickness and SpacingBetweenSlices say nothing about gaps: only positions count.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from inference_service.core.errors import InconsistentGeometry, MissingSlices
from inference_service.core.report_warnings import ReportWarning, WarningCode

# Distance of a slice from its place in an even stack, in mm and in spacings: below these, a rounding error.
_MAX_DEVIATION_MM = 0.1
_MAX_DEVIATION = 0.1
# Slices of two acquisitions are interleaved, and none are missing, where gaps this much wider than the narrowest one
# alternate with others this often (as a share of all gaps) ...
_WIDE_GAP_RATIO = 2.5
_MAX_ALTERNATIONS = 0.5
# ... or where one gap is this much narrower than usual.
_NARROW_GAP_RATIO = 0.1
# This many adjoining wide gaps, and no others, are a second spacing and not missing slices.
_MIN_GAPS_OF_SECOND_SPACING = 3
# A wider gap is never interpolated: the volume in it would be made up.
_MAX_GAP_MM = 10.0
# Ratio of spacing to thickness above which slices leave out about as much of the patient as they show.
_MAX_SPACING_IN_THICKNESSES = 1.9


def is_uneven(heights_mm: NDArray[np.float64], spacing_mm: float) -> bool:
    """Returns True if the spacing of the slices varies by more than rounding.

    Args:
        heights_mm: Shape (slices,): distance of each slice from the first one, ascending.
        spacing_mm: Mean spacing.

    >>> is_uneven(np.array([0.0, 2.0, 4.1]), 2.05), is_uneven(np.array([0.0, 2.0, 6.0]), 3.0)
    (False, True)
    """
    deviation_mm = np.abs(heights_mm - np.arange(len(heights_mm)) * spacing_mm).max()
    return bool(deviation_mm > min(_MAX_DEVIATION_MM, _MAX_DEVIATION * spacing_mm))


def usual_spacing_mm(gaps_mm: NDArray[np.float64]) -> float:
    """Spacing of slices with none missing between them: the narrowest that more than one in ten gaps has.

    Args:
        gaps_mm: Shape (slices - 1,): distance between neighbouring slices.

    >>> usual_spacing_mm(np.array([2.0, 4.0, 2.1]))
    2.05
    """
    return float(np.median(gaps_mm[gaps_mm < 1.5 * np.quantile(gaps_mm, 0.1, method="higher")]))


def uneven_spacing_warning(gaps_mm: NDArray[np.float64], usual_mm: float, *, tolerated: bool) -> ReportWarning:
    """Refuses uneven spacing unless the request tolerates it and the slices can be interpolated.

    Args:
        gaps_mm: Shape (slices - 1,): distance between neighbouring slices.
        usual_mm: The usual one of these distances.
        tolerated: Whether the request tolerates uneven spacing.

    Returns:
        The warning that spacing is uneven.

    Raises:
        MissingSlices: The gaps are multiples of the usual spacing.
        InconsistentGeometry: The gaps are no such multiples, or slices of two acquisitions are interleaved.
    """
    _check_not_interleaved(gaps_mm, usual_mm)
    missing = _count_missing(gaps_mm, usual_mm)
    widest = int(gaps_mm.argmax())
    where = f"between slices {widest + 1} and {widest + 2} of {len(gaps_mm) + 1} lie {gaps_mm[widest]:.4g} mm"
    if missing:
        text = f"{missing} slice{'s are' if missing > 1 else ' is'} missing: {where}, elsewhere {usual_mm:.4g} mm"
    else:
        text = f"slices are {gaps_mm.min():.4g} to {gaps_mm.max():.4g} mm apart: {where}"
    max_gap_mm = max(_MAX_GAP_MM, 1.5 * usual_mm)
    error = MissingSlices if missing else InconsistentGeometry
    if gaps_mm[widest] > max_gap_mm:
        raise error(f"{text}; gaps of more than {max_gap_mm:.4g} mm are never interpolated")
    if not tolerated:
        raise error(f"{text}; to have them interpolated, set options.tolerate to uneven_spacing")
    message = f"{text}; the scan was interpolated to evenly spaced slices, and the mask lies on those"
    return ReportWarning(WarningCode.SLICES_INTERPOLATED, message)


def sparse_slices_warnings(spacing_mm: float, thicknesses_mm: Sequence[float | None]) -> list[ReportWarning]:
    """Warns of slices so far apart that positions cannot show whether some are missing.

    Args:
        spacing_mm: Mean spacing.
        thicknesses_mm: SliceThickness of each slice.
    """
    stated_mm = [thickness for thickness in thicknesses_mm if thickness is not None]
    thickest_mm = max(stated_mm, default=_MAX_GAP_MM / _MAX_SPACING_IN_THICKNESSES)
    if spacing_mm <= min(_MAX_GAP_MM, _MAX_SPACING_IN_THICKNESSES * thickest_mm):
        return []
    thickness = f" and state a thickness of {thickest_mm:.4g} mm" if stated_mm else ""
    message = f"slices are {spacing_mm:.4g} mm apart{thickness}: it cannot be seen whether any are missing"
    return [ReportWarning(WarningCode.SPARSE_SLICES, message)]


def _check_not_interleaved(gaps_mm: NDArray[np.float64], usual_mm: float) -> None:
    is_wide = gaps_mm > _WIDE_GAP_RATIO * gaps_mm.min()
    alternations = np.count_nonzero(np.diff(is_wide))
    if alternations > _MAX_ALTERNATIONS * len(is_wide) or gaps_mm.min() < _NARROW_GAP_RATIO * usual_mm:
        raise InconsistentGeometry(
            f"slices of two acquisitions seem to be interleaved, at gaps of {gaps_mm.min():.4g} to {gaps_mm.max():.4g} "
            "mm: send one acquisition"
        )


def _count_missing(gaps_mm: NDArray[np.float64], usual_mm: float) -> int:
    """Number of missing slices; 0 where some gaps are no multiples of the usual spacing, or a second spacing."""
    steps = np.rint(gaps_mm / usual_mm)
    is_multiple = np.abs(gaps_mm - steps * usual_mm) <= steps * _MAX_DEVIATION * usual_mm
    is_wide = steps > 1
    stretches = np.count_nonzero(np.diff(is_wide, prepend=False) & is_wide)
    has_second_spacing = stretches == 1 and np.count_nonzero(is_wide) >= _MIN_GAPS_OF_SECOND_SPACING
    return int(steps.sum()) - len(gaps_mm) if is_multiple.all() and not has_second_spacing else 0
