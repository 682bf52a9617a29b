"""Finds the slices of several acquisitions that lie between each other on one even grid."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from inference_service.core.errors import InconsistentGeometry
from inference_service.core.report_warnings import ReportWarning, WarningCode
from inference_service.formats.dicom.frame_attributes import (
    CLOCK_TIMES,
    KEYWORDS,
    TIME_OFFSETS,
    AttributeValue,
)
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
# Scanners may scale each slice by itself; `find_value_type` compares the types of values.
_VARIES = {"RescaleSlope", "RescaleIntercept", "RescaleType", "Units"}
# Within one acquisition these never change and change back.
_CONSTANT = {
    "TemporalPositionIdentifier", "TemporalPositionIndex", "NominalPercentageOfRespiratoryPhase", "StackID",
    "EchoNumbers", "EchoTime", "EffectiveEchoTime", "FlipAngle", "DiffusionBValue", "DiffusionGradientOrientation",
    "SequenceName", "ComplexImageComponent", "KVP", "FilterType", "MonoenergeticEnergyEquivalent", "ConvolutionKernel",
    "ReconstructionAlgorithm", "ContrastBolusAgent", "SeriesNumber", "SeriesDescription", "ProtocolName",
}  # fmt: skip
# These may, as where a scanner chooses the best phase for each part of the heart; but rarely.
_NEARLY_CONSTANT = (
    "AcquisitionNumber", "FrameAcquisitionNumber", "NominalPercentageOfCardiacPhase", "ImageType", "FrameType",
    "ScanOptions",
)  # fmt: skip
# Scanners may state the measured value of each slice, which differs from the others by less than this share.
_MEASURED = {"EchoTime", "EffectiveEchoTime", "FlipAngle", "InversionTime", "KVP", "SliceThickness"}
_MAX_NOISE = 0.01
_ACQUISITION_TIMES = ("AcquisitionTime", "AcquisitionDateTime", "FrameAcquisitionDateTime")
# A pause between two acquisitions: longer than this, and than this many times the usual step between slices.
_MIN_PAUSE_S = 10.0
_MIN_PAUSE_STEPS = 10
# Deviation of the stated from the true spacing that is rounding.
_MAX_SPACING_DIFFERENCE = 0.05


def check_not_interleaved(slices: Sequence[Slice], spacing_mm: float) -> None:
    """Refuses a series whose neighbouring slices are of different acquisitions.

    Args:
        slices: In order.
        spacing_mm: Usual distance of slices.

    Raises:
        InconsistentGeometry: An attribute alternates, or changes and changes back; the message names it.
    """
    if len(slices) < _MIN_SLICES:
        return
    _check_attributes(slices, spacing_mm)
    for count in range(2, _MAX_ACQUISITIONS + 1):
        if _are_numbered_alike(slices, count):
            raise InconsistentGeometry(
                f"slices of {count} acquisitions are interleaved: each InstanceNumber is that of {count} neighbouring "
                "slices; send one acquisition"
            )


def _check_attributes(slices: Sequence[Slice], spacing_mm: float) -> None:
    """Refuses slices of which an attribute alternates, or changes and changes back."""
    frames = [dict(slice_.frame.attributes) for slice_ in slices]
    is_mr = slices[0].instance.modality == "MR"
    for keyword in KEYWORDS:
        values = [frame.get(keyword) for frame in frames]
        if keyword in _MEASURED:
            values = _without_noise(values)
        if keyword in _VARIES or values.count(values[0]) == len(values):
            continue
        if is_mr and keyword in TIME_OFFSETS:
            # Each slice may have a time of its own after the trigger.
            counts = _repeating_terms(values)
        elif keyword in CLOCK_TIMES | TIME_OFFSETS:
            counts = _alternating_times(values, keyword)
        else:
            counts = _alternating_terms(values)
        if counts and is_mr and keyword in _VARIES_IN_MR and not _are_stated_apart(slices, spacing_mm, len(counts)):
            continue
        if counts:
            raise InconsistentGeometry(
                f"slices of {len(counts)} acquisitions are interleaved: {keyword} alternates between neighbouring "
                f"slices, in groups of {_list(counts)}; send one acquisition"
            )
        stated = [value for value in values if value is not None]
        if keyword in _CONSTANT and _returns(stated):
            raise InconsistentGeometry(
                f"slices of several acquisitions lie between each other: {keyword} changes and changes back along the "
                f"stack, in groups of {_list(list(Counter(stated).values()))}; send one acquisition"
            )


def acquisition_warnings(slices: Sequence[Slice]) -> list[ReportWarning]:
    """Warns of acquisitions that lie between each other: the patient may have moved between them.

    Args:
        slices: In order.
    """
    frames = [dict(slice_.frame.attributes) for slice_ in slices]
    terms = _NEARLY_CONSTANT if slices[0].instance.modality == "MR" else (*_NEARLY_CONSTANT, *sorted(TIME_OFFSETS))
    for keyword in (*terms, *_ACQUISITION_TIMES):
        values: Sequence[object] = [frame.get(keyword) for frame in frames]
        if keyword in _ACQUISITION_TIMES:
            values = split_by_pauses(values, min_pause_s=_MIN_PAUSE_S, min_steps=_MIN_PAUSE_STEPS)
        values = [value for value in values if value is not None]
        if _returns(values):
            message = f"slices of {len(set(values))} acquisitions seem to lie between each other, as {keyword} shows"
            return [ReportWarning(WarningCode.ALTERNATING_ACQUISITIONS, message)]
    return []


def _list(counts: Sequence[int]) -> str:
    return ", ".join(map(str, sorted(counts, reverse=True)))


def _returns(values: Sequence[object]) -> bool:
    """Returns True if a value comes again after others.

    >>> _returns([1, 1, 2, 1]), _returns([1, 1, 2, 2])
    (True, False)
    """
    changes = sum(one != other for one, other in pairwise(values))
    return 0 < len(set(values)) <= changes


def _without_noise(values: Sequence[AttributeValue | None]) -> list[AttributeValue | None]:
    """The values, and the lowest of numbers that hardly differ in place of all of them.

    >>> _without_noise([120.0, 119.9, 80.0, None])
    [119.9, 119.9, 80.0, None]
    """
    lowest: dict[AttributeValue | None, AttributeValue] = {}
    before = None
    for number in sorted({value for value in values if isinstance(value, float)}):
        is_noise = before is not None and number - before <= _MAX_NOISE * abs(number)
        lowest[number] = lowest[before] if is_noise else number
        before = number
    return [lowest.get(value, value) for value in values]


def _alternating_terms(values: Sequence[AttributeValue | None]) -> list[int] | None:
    """Sizes of groups of equal values, if values return after others in between, and often.

    >>> _alternating_terms([1, 2, 1, 2, 1, None]), _alternating_terms([1, 1, 1, 2, 2, 2])
    ([3, 2, 1], None)
    """
    changes = sum(one != other for one, other in pairwise(values))
    if not _returns(values) or changes < _MIN_CHANGES * (len(values) - 1):
        return None
    return list(Counter(values).values())


def _repeating_terms(values: Sequence[AttributeValue | None]) -> list[int] | None:
    """Sizes of groups, if the same two to four values repeat along the whole stack.

    >>> _repeating_terms([0.0, 600.0, 0.0, 600.0, 0.0]), _repeating_terms([0.0, 600.0, 1.0, 601.0])
    ([3, 2], None)
    """
    for count in range(2, _MAX_ACQUISITIONS + 1):
        if len(values) >= 2 * count and all(one == other for one, other in zip(values, values[count:], strict=False)):
            return list(Counter(values).values())
    return None


def _alternating_times(values: Sequence[AttributeValue | None], keyword: str) -> list[int] | None:
    """Sizes of groups, if each time is much closer to that of a slice two to four further on than to its neighbour's.

    >>> _alternating_times([0.0, 30.0, 0.5, 30.5, 1.0, 31.0], "AcquisitionTime")
    [3, 3]
    """
    stated = _numbers(values)
    if stated is None:
        return _alternating_terms([1.0 if isinstance(value, float) else 0.0 for value in values])
    step = np.abs(np.diff(stated)).mean()
    if step == 0 or (keyword in CLOCK_TIMES and step < _MIN_TIME_STEP_S):
        return None
    for count in range(2, _MAX_ACQUISITIONS + 1):
        if len(stated) >= 2 * count and np.abs(stated[count:] - stated[:-count]).mean() <= _MAX_TIME_RATIO * step:
            return [len(stated[first::count]) for first in range(count)]
    return None


def _numbers(values: Sequence[object]) -> NDArray[np.float64] | None:
    """The values as an array; None unless all are numbers."""
    numbers = [value for value in values if isinstance(value, float)]
    return np.array(numbers) if len(numbers) == len(values) else None


def split_by_pauses(values: Sequence[object], *, min_pause_s: float, min_steps: float) -> list[int | None]:
    """Number of each slice's acquisition, from 0, by the pauses between times; None for all unless all have a time.

    Args:
        values: A time of each slice, in seconds.
        min_pause_s: Shortest pause.
        min_steps: Shortest pause, as a multiple of the usual step between the times of slices.

    >>> split_by_pauses([0.0, 1.0, 90.0, 91.0, 2.0, 3.0], min_pause_s=10, min_steps=10)
    [0, 0, 1, 1, 0, 0]
    """
    times = _numbers(values)
    if times is None:
        return [None] * len(values)
    order = np.argsort(times, kind="stable")
    steps_s = np.diff(times[order])
    numbers = np.zeros(len(times), dtype=int)
    if len(steps_s):
        numbers[order[1:]] = np.cumsum(steps_s > max(min_pause_s, min_steps * float(np.median(steps_s))))
    return [int(number) for number in numbers]


def _are_stated_apart(slices: Sequence[Slice], spacing_mm: float, count: int) -> bool:
    """Returns True if MR slices that alternate in time state that they are of several acquisitions.

    One acquisition may take every other slice first. But it states the distance of all its slices, and numbers each
    instance once.

    Args:
        slices: In order.
        spacing_mm: Usual distance of slices.
        count: Number of acquisitions that seem to alternate one by one.
    """
    stated_mm = [slice_.instance.spacing_between_mm or 0.0 for slice_ in slices]
    is_spacing_stated = np.allclose(stated_mm, count * spacing_mm, rtol=_MAX_SPACING_DIFFERENCE, atol=0)
    return is_spacing_stated or _are_numbered_alike(slices, count)


def _are_numbered_alike(slices: Sequence[Slice], count: int) -> bool:
    """Returns True if slices alternate between acquisitions that have the same InstanceNumbers, each once."""
    numbers = [[slice_.instance.number for slice_ in slices[first::count]] for first in range(count)]
    numbered_alike = all(set(group) == set(numbers[0]) for group in numbers)
    return numbered_alike and None not in numbers[0] and len(set(numbers[0])) == len(numbers[0]) > 1
