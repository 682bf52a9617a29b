"""Reads the position, orientation, spacing and rescaling of an instance's frames.

They are in functional groups (PS3.3 C.7.6.16) or, in a single-frame image, in the Image Plane module (PS3.3 C.7.6.2).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from pydicom.dataset import Dataset

from inference_service.core.errors import InconsistentGeometry, InputCorrupt
from inference_service.core.report_warnings import ReportWarning, WarningCode
from inference_service.formats.dicom.attributes import (
    has_ambiguous_comma,
    has_decimal_comma,
    holders,
    read_integer,
    read_numbers,
    read_text,
    read_values,
)
from inference_service.formats.dicom.frame_attributes import read_attributes
from inference_service.formats.dicom.instance import Frame
from inference_service.formats.dicom.value_type import check_real_world_mapping, read_value_type

# Values of 16 bits stay below 1e15: larger ones are no measurement, and overflow in networks. No scanner writes such.
_MAX_RESCALE = 1e10
# FrameIncrementPointer of frames that follow each other in time: FrameTime and FrameTimeVector.
_TIME_POINTERS = {"(0018,1063)", "(0018,1065)"}
_CONVERTED = ("UnassignedPerFrameConvertedAttributesSequence", "UnassignedSharedConvertedAttributesSequence")
# A comma in a length in millimetres cannot separate thousands.
_MAY_BE_THOUSANDS = {"RescaleSlope", "RescaleIntercept"}


@dataclass(frozen=True)
class FramesGeometry:
    """The frames of an instance.

    Attributes:
        frames: The frames; empty unless the header states the place of all.
        assumptions: Warnings about values that the header does not state exactly.
    """

    frames: tuple[Frame, ...]
    assumptions: tuple[ReportWarning, ...] = ()


def read_frames_geometry(dataset: Dataset) -> FramesGeometry:
    """Reads the place of an instance's frames, and the rescaling of their values.

    Raises:
        InputCorrupt: The number of frames contradicts the per-frame functional groups, or a rescaling is nonsense.
        InconsistentGeometry: A position, orientation or spacing is not the right number of finite values.
    """
    count = read_integer(dataset, "NumberOfFrames") or 1
    per_frame = read_values(dataset, "PerFrameFunctionalGroupsSequence")
    if per_frame and count != len(per_frame):
        raise InputCorrupt(
            f"a DICOM file has {count} frames, but per-frame functional groups of {len(per_frame)}: expected as many"
        )
    shared = read_values(dataset, "SharedFunctionalGroupsSequence")
    common = [*shared, *_converted(shared), dataset]
    assumptions: set[ReportWarning] = set()
    if per_frame:
        found = [
            _read_frame(index, [item, *_converted([item]), *common], assumptions)
            for index, item in enumerate(per_frame)
        ]
    else:
        found = [_read_frame(0, common, assumptions)] * count
    frames = tuple(frame for frame in found if frame is not None)
    if len(frames) < count:
        return FramesGeometry(())
    if count > 1 and not any(map(_states_position, per_frame)):
        frames = _stack(frames, common, assumptions)
    return FramesGeometry(frames, tuple(sorted(assumptions)))


def read_stated_length_mm(dataset: Dataset, keyword: str) -> float | None:
    """SliceThickness or SpacingBetweenSlices of the first frame; None where no valid one is stated."""
    sequences = ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence")
    groups = [item for sequence in sequences for item in read_values(dataset, sequence)[:1]]
    try:
        length = _read_numbers([*groups, *_converted(groups), dataset], "PixelMeasuresSequence", keyword, 1, set())
    except (InputCorrupt, InconsistentGeometry):
        # Only the geometry of a single slice depends on it.
        return None
    return length[0] if length and length[0] > 0 else None


def _converted(groups: Sequence[Dataset]) -> list[Dataset]:
    """Attributes for which the converter of Legacy Converted Enhanced images found no functional group."""
    return [
        item
        for group in groups
        for sequence in _CONVERTED
        if sequence in group
        for item in read_values(group, sequence)
    ]


def _states_position(item: Dataset) -> bool:
    sources = [item, *_converted([item])]
    return any(read_numbers(holder, "ImagePositionPatient") for holder in holders(sources, "PlanePositionSequence"))


def _stack(frames: Sequence[Frame], common: list[Dataset], assumptions: set[ReportWarning]) -> tuple[Frame, ...]:
    """Frames of which the position of the first alone is stated, stacked along the normal of their planes.

    Returns none where their distance is not stated.
    """
    if any(read_text(source, "FrameIncrementPointer") in _TIME_POINTERS for source in common):
        raise InconsistentGeometry(
            "the frames of a multi-frame image follow each other in time, as FrameIncrementPointer states, and all "
            "have one position: expected frames of one moment"
        )
    spacing_mm = _read_numbers(common, "PixelMeasuresSequence", "SpacingBetweenSlices", 1, assumptions)
    if spacing_mm is None:
        return ()
    if spacing_mm[0] == 0:
        raise InconsistentGeometry(
            "SpacingBetweenSlices of a multi-frame image is 0: expected the distance of its frames"
        )
    first = frames[0]
    step_mm = spacing_mm[0] * np.cross(first.row_direction, first.column_direction)
    message = (
        "a multi-frame image states the position of its first frame alone: the others were placed along the normal of "
        f"its plane, {spacing_mm[0]:g} mm apart as SpacingBetweenSlices states"
    )
    assumptions.add(ReportWarning(WarningCode.FRAME_POSITIONS_DERIVED, message))
    positions_mm = np.array(first.position_mm) + np.outer(np.arange(len(frames)), step_mm)
    return tuple(
        replace(frame, index=index, position_mm=(float(x), float(y), float(z)))
        for index, (frame, (x, y, z)) in enumerate(zip(frames, positions_mm, strict=True))
    )


def _read_frame(index: int, sources: list[Dataset], assumptions: set[ReportWarning]) -> Frame | None:
    """One frame, each attribute from the first source that has it; None where one that is required is missing."""
    position = _read_numbers(sources, "PlanePositionSequence", "ImagePositionPatient", 3, assumptions)
    orientation = _read_numbers(sources, "PlaneOrientationSequence", "ImageOrientationPatient", 6, assumptions)
    spacing = _read_numbers(sources, "PixelMeasuresSequence", "PixelSpacing", 2, assumptions)
    if position is None or orientation is None or spacing is None:
        return None
    group = "PixelValueTransformationSequence"
    (slope,) = _read_numbers(sources, group, "RescaleSlope", 1, assumptions) or (1.0,)
    (intercept,) = _read_numbers(sources, group, "RescaleIntercept", 1, assumptions) or (0.0,)
    check_real_world_mapping(sources, slope, intercept)
    if max(abs(slope), abs(intercept)) > _MAX_RESCALE:
        raise InputCorrupt(
            f"a DICOM file has the rescale slope {slope:g} and intercept {intercept:g}: expected at most "
            f"{_MAX_RESCALE:g} of both"
        )
    return Frame(
        index=index,
        position_mm=(position[0], position[1], position[2]),
        row_direction=(orientation[0], orientation[1], orientation[2]),
        column_direction=(orientation[3], orientation[4], orientation[5]),
        pixel_spacing_mm=(spacing[1], spacing[0]),
        rescale_slope=slope,
        rescale_intercept=intercept,
        value_type=read_value_type(sources),
        attributes=read_attributes(sources),
    )


def _read_numbers(
    sources: list[Dataset], group: str, keyword: str, count: int, assumptions: set[ReportWarning]
) -> tuple[float, ...] | None:
    """The values of an attribute, in a functional group or directly, of the first source that has it."""
    for holder in holders(sources, group):
        numbers = read_numbers(holder, keyword)
        if not numbers:
            continue
        if len(numbers) != count:
            raise InconsistentGeometry(f"{keyword}: expected {count} finite numbers, got {len(numbers)} values")
        if keyword in _MAY_BE_THOUSANDS and has_ambiguous_comma(holder, keyword):
            raise InputCorrupt(f"{keyword} has a comma that may separate decimals or thousands: expected a point")
        if has_decimal_comma(holder, keyword):
            message = f"{keyword} has a decimal comma, which was read as a point"
            assumptions.add(ReportWarning(WarningCode.DECIMAL_COMMA, message))
        return numbers
    return None
