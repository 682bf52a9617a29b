"""Refuses a series whose instances do not belong together: other sizes, orientations, studies, duplicates, phases."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from inference_service.core.errors import InconsistentGeometry, InputCorrupt, NotAVolume
from inference_service.core.report_warnings import ReportWarning, WarningCode
from inference_service.formats.dicom.instance import Frame, Instance, Slice, ValueType

# Headers are decimal numbers of few digits: slices of one series differ by up to this much.
_MAX_COSINE_DIFFERENCE = 1e-3
_MAX_RELATIVE_PIXEL_SPACING_DIFFERENCE = 1e-3

MIN_SPACING_MM = 1e-3
"""Slices and pixels that are closer lie at the same place."""


def check_positions(instances: Sequence[Instance]) -> None:
    """Refuses a series in which the place of some images is not stated."""
    without = sum(not instance.frames for instance in instances)
    if without == len(instances):
        raise NotAVolume(
            "the images do not state where in the patient they lie: expected ImagePositionPatient, "
            "ImageOrientationPatient and PixelSpacing, and in a multi-frame image those of each frame in functional "
            "groups, or SpacingBetweenSlices"
        )
    if without:
        raise InconsistentGeometry(
            f"{without} of the series' {len(instances)} images do not state where in the patient they lie"
        )


def check_identifiers(instances: Sequence[Instance]) -> None:
    """Refuses a series of several modalities or studies, or with two instances of one SOPInstanceUID."""
    modalities = sorted({instance.modality for instance in instances})
    if len(modalities) > 1:
        listed = ", ".join(modality or "none" for modality in modalities)
        raise InconsistentGeometry(f"the series' images differ in modality: {listed}; expected one")
    studies = {instance.study_uid for instance in instances}
    if len(studies) > 1:
        unknown = ", of which one is not stated" if "" in studies else ""
        raise InconsistentGeometry(f"the series' images belong to {len(studies)} studies{unknown}; expected one")
    uids = [instance.sop_instance_uid for instance in instances if instance.sop_instance_uid]
    repeated = len(uids) - len(set(uids))
    if repeated:
        raise InconsistentGeometry(
            f"{repeated} of the series' {len(instances)} images have the SOPInstanceUID of another one, with another "
            "header or other pixels; send each once"
        )


def check_rescaling(slices: Sequence[Slice]) -> list[ReportWarning]:
    """Refuses a series that states RescaleSlope or RescaleIntercept for some of its slices, and not for others.

    In CT both are required (PS3.3 C.8.2.1). Elsewhere they may be missing where the others state their defaults.

    Returns:
        A warning for CT that states them for no slice.

    Raises:
        InputCorrupt: Slices contradict each other.
    """
    warnings = []
    is_ct = slices[0].instance.modality == "CT"
    for keyword, default in (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0)):
        stated = [dict(slice_.frame.attributes).get(keyword) for slice_ in slices]
        missing = stated.count(None)
        if missing == len(slices) and is_ct:
            message = f"no slice states {keyword}: it was taken for {default:g}, as in stored values that are HU"
            warnings.append(ReportWarning(WarningCode.RESCALE_MISSING, message))
        elif 0 < missing < len(slices) and (is_ct or set(stated) != {None, default}):
            raise InputCorrupt(
                f"{missing} of the series' {len(slices)} slices do not state {keyword}, and the others do: "
                "their values cannot be compared"
            )
    return warnings


def find_value_type(slices: Sequence[Slice]) -> ValueType | None:
    """Returns the type of a series' values; None where no slice states it.

    Slices that are HU, of an unspecified type or without a type are one volume.

    Raises:
        InconsistentGeometry: The values of slices are of different types.
    """
    types = Counter(slice_.frame.value_type for slice_ in slices)
    terms = {value_type.term if value_type else "" for value_type in types}
    if len(terms) > 1 and not terms <= {"", "US", "HU"}:
        counts = ", ".join(
            f"{count} {f'{each.attribute} {each.term}' if each else 'without a type'}" for each, count in types.items()
        )
        raise InconsistentGeometry(f"the series' slices differ in what their values measure: {counts}; expected one")
    return types.most_common(1)[0][0] if len(terms) == 1 else next(filter(None, types), None)


def check_uniform(slices: Sequence[Slice]) -> None:
    """Refuses slices that differ in size, pixel spacing, orientation or frame of reference."""
    first = slices[0]
    for number, slice_ in enumerate(slices, 1):
        size = (slice_.instance.pixels.rows, slice_.instance.pixels.columns)
        first_size = (first.instance.pixels.rows, first.instance.pixels.columns)
        if size != first_size:
            raise InconsistentGeometry(
                f"slices differ in size: {first_size[0]} × {first_size[1]} and {size[0]} × {size[1]} pixels"
            )
        spacing_mm = slice_.frame.pixel_spacing_mm
        first_spacing_mm = first.frame.pixel_spacing_mm
        if not np.allclose(spacing_mm, first_spacing_mm, rtol=_MAX_RELATIVE_PIXEL_SPACING_DIFFERENCE, atol=0):
            raise InconsistentGeometry(
                f"slices differ in pixel spacing: {format_mm(first_spacing_mm)} and {format_mm(spacing_mm)} mm"
            )
        difference = np.abs(direction_cosines(slice_.frame) - direction_cosines(first.frame)).max()
        if difference > _MAX_COSINE_DIFFERENCE:
            raise InconsistentGeometry(
                f"slices differ in orientation: a direction cosine of image {number} by {difference:.4g}, and at most "
                f"{_MAX_COSINE_DIFFERENCE:g} is rounding"
            )
        if slice_.instance.frame_of_reference_uid != first.instance.frame_of_reference_uid:
            raise InconsistentGeometry(
                "slices state different frames of reference, or some state none, so that their positions cannot be "
                "compared: expected one FrameOfReferenceUID"
            )


def check_one_slice_per_position(heights_mm: NDArray[np.float64]) -> None:
    """Refuses slices that share a position, as those of several phases do.

    Args:
        heights_mm: Shape (slices,), ascending.
    """
    starts = np.flatnonzero(np.diff(heights_mm, prepend=-np.inf) >= MIN_SPACING_MM)
    counts = np.diff(starts, append=len(heights_mm))
    if counts.max() == 1:
        return
    if counts.min() == counts.max():
        raise NotAVolume(
            f"the series is {counts[0]} volumes, such as phases or echoes: each of its {len(counts)} positions has "
            f"{counts[0]} slices; send one volume"
        )
    raise InconsistentGeometry(
        f"{np.count_nonzero(counts > 1)} of {len(counts)} slice positions have more than one slice; send each slice "
        "once"
    )


def direction_cosines(frame: Frame) -> NDArray[np.float64]:
    """Directions along a row and along a column; shape (2, 3), LPS+."""
    return np.array([frame.row_direction, frame.column_direction])


def format_mm(values: Sequence[float]) -> str:
    """Formats lengths for an error message.

    >>> format_mm((0.75, 1.25))
    '0.75 × 1.25'
    """
    return " × ".join(f"{value:.6g}" for value in values)
