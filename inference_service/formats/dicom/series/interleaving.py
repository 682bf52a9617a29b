"""Finds the slices of several acquisitions that lie between each other on one even grid."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from inference_service.core.errors import InconsistentGeometry
from inference_service.formats.dicom.frame_attributes import CLOCK_TIMES, KEYWORDS, TIME_OFFSETS
from inference_service.formats.dicom.instance import Slice

# Fewer slices show no pattern.
_MIN_SLICES = 4
# Share of neighbours that differ where acquisitions alternate one by one, two by two, or three by three.
_MIN_CHANGES = 1 / 3
_MAX_ACQUISITIONS = 4
# Time to the next slice of the same acquisition, at most, as a share of the time to the neighbour.
_MAX_TIME_RATIO = 0.25
# Reconstruction in parallel gives neighbours times that differ by less.
_MIN_TIME_STEP_S = 1.0
# MR acquires every other slice first, so that neighbours do not disturb each other; CT and PET acquire in order.
_VARIES_IN_MR = CLOCK_TIMES | {"AcquisitionNumber", "FrameAcquisitionNumber"}
# Scanners may scale each slice by itself.
_VARIES = {"RescaleSlope", "RescaleIntercept"}


def check_not_interleaved(slices: Sequence[Slice]) -> None:
    """Refuses a series whose neighbouring slices are of different acquisitions.

    Args:
        slices: In order.

    Raises:
        InconsistentGeometry: An attribute alternates; the message names it.
    """
    if len(slices) < _MIN_SLICES:
        return
    frames = [dict(slice_.frame.attributes) for slice_ in slices]
    is_mr = slices[0].instance.modality == "MR"
    exempt = _VARIES | (_VARIES_IN_MR if is_mr else set())
    # In MR, each slice may have a time of its own after the trigger.
    times = CLOCK_TIMES | (set() if is_mr else TIME_OFFSETS)
    for keyword in KEYWORDS:
        if keyword in exempt:
            continue
        values = [frame.get(keyword) for frame in frames]
        counts = _alternating_times(values, keyword) if keyword in times else _alternating_terms(values)
        if counts:
            listed = ", ".join(map(str, sorted(counts, reverse=True)))
            raise InconsistentGeometry(
                f"slices of {len(counts)} acquisitions are interleaved: {keyword} alternates between neighbouring "
                f"slices, in groups of {listed}; send one acquisition"
            )


def _alternating_terms(values: Sequence[float | None]) -> list[int] | None:
    """Sizes of groups of equal values, if values return after others in between, and often.

    >>> _alternating_terms([1, 2, 1, 2, 1, None]), _alternating_terms([1, 1, 1, 2, 2, 2])
    ([3, 2, 1], None)
    """
    counts = Counter(values)
    changes = sum(one != other for one, other in pairwise(values))
    if changes < len(counts) or changes < _MIN_CHANGES * (len(values) - 1):
        return None
    return list(counts.values())


def _alternating_times(values: Sequence[float | None], keyword: str) -> list[int] | None:
    """Sizes of groups, if each time is much closer to that of a slice two to four further on than to its neighbour's.

    >>> _alternating_times([0.0, 30.0, 0.5, 30.5, 1.0, 31.0], "AcquisitionTime")
    [3, 3]
    """
    if None in values:
        return _alternating_terms([0.0 if value is None else 1.0 for value in values])
    times = np.array(values, dtype=np.float64)
    step = np.abs(np.diff(times)).mean()
    if step == 0 or (keyword in CLOCK_TIMES and step < _MIN_TIME_STEP_S):
        return None
    for count in range(2, _MAX_ACQUISITIONS + 1):
        if len(times) >= 2 * count and np.abs(times[count:] - times[:-count]).mean() <= _MAX_TIME_RATIO * step:
            return [len(times[first::count]) for first in range(count)]
    return None
