"""Where the frames of an instance lie, from its functional groups (PS3.3 C.7.6.16) or, in a single-frame image, from
the image itself (Image Plane module, PS3.3 C.7.6.2).
"""

from math import isfinite

from pydicom.dataset import Dataset

from inference_service.core.errors import InconsistentGeometry, InputCorrupt
from inference_service.formats.dicom.attributes import read_values
from inference_service.formats.dicom.instance import Frame
from inference_service.formats.dicom.value_type import read_value_type

# Rescaled values become float32: a larger slope or intercept would leave its range, and no scanner writes one.
_MAX_RESCALE = 1e20


def read_frames_geometry(dataset: Dataset) -> tuple[Frame, ...]:
    """Where the frames of an instance lie, and how their values are rescaled; empty unless this is stated for all.

    Raises:
        InputCorrupt: The number of frames contradicts the per-frame functional groups, or a rescaling is nonsense.
        InconsistentGeometry: A position, orientation or spacing is not the right number of finite values.
    """
    count = int(dataset.get("NumberOfFrames") or 1)
    per_frame = read_values(dataset, "PerFrameFunctionalGroupsSequence")
    if not per_frame:
        frame = _read_frame(0, [dataset])
        return (frame,) if frame is not None and count == 1 else ()
    if count != len(per_frame):
        raise InputCorrupt(
            f"a DICOM file has {count} frames, but per-frame functional groups of {len(per_frame)}: expected as many"
        )
    shared = read_values(dataset, "SharedFunctionalGroupsSequence")
    frames = (_read_frame(index, [item, *shared, dataset]) for index, item in enumerate(per_frame))
    found = tuple(frame for frame in frames if frame is not None)
    return found if len(found) == count else ()


def read_slice_thickness_mm(dataset: Dataset) -> float | None:
    """SliceThickness of the first frame; None where no valid one is stated."""
    sequences = ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence")
    sources = [item for keyword in sequences for item in read_values(dataset, keyword)[:1]]
    try:
        thickness = _read_numbers([*sources, dataset], "PixelMeasuresSequence", "SliceThickness", 1)
    except (ValueError, InconsistentGeometry):
        # Only the geometry of a single slice depends on it.
        return None
    return thickness[0] if thickness and thickness[0] > 0 else None


def _read_frame(index: int, sources: list[Dataset]) -> Frame | None:
    """One frame, each attribute from the first source that has it; None where one that is required is missing."""
    position = _read_numbers(sources, "PlanePositionSequence", "ImagePositionPatient", 3)
    orientation = _read_numbers(sources, "PlaneOrientationSequence", "ImageOrientationPatient", 6)
    spacing = _read_numbers(sources, "PixelMeasuresSequence", "PixelSpacing", 2)
    if position is None or orientation is None or spacing is None:
        return None
    (slope,) = _read_numbers(sources, "PixelValueTransformationSequence", "RescaleSlope", 1) or (1.0,)
    (intercept,) = _read_numbers(sources, "PixelValueTransformationSequence", "RescaleIntercept", 1) or (0.0,)
    if slope == 0 or max(abs(slope), abs(intercept)) > _MAX_RESCALE:
        raise InputCorrupt(
            f"a DICOM file has the rescale slope {slope:g} and intercept {intercept:g}: expected a slope other than 0, "
            f"and both at most {_MAX_RESCALE:g}"
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
    )


def _read_numbers(sources: list[Dataset], group: str, keyword: str, count: int) -> tuple[float, ...] | None:
    """The values of an attribute, in a functional group or directly, of the first source that has it."""
    for source in sources:
        for container in (*read_values(source, group)[:1], source):
            values = read_values(container, keyword)
            if values:
                numbers = tuple(float(value) for value in values)
                if len(numbers) != count or not all(map(isfinite, numbers)):
                    raise InconsistentGeometry(f"{keyword}: expected {count} finite numbers, got {len(numbers)} values")
                return numbers
    return None
