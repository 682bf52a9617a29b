"""The values that are read from the header of a DICOM instance: its pixels' format, its frames' positions, its UIDs."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from inference_service.core.errors import InputError
from inference_service.core.report_warnings import ReportWarning
from inference_service.formats.dicom.frame_attributes import Attributes

Vector = tuple[float, float, float]

# A mask is written as NIfTI-1, which stores the size of an axis in a signed 16-bit integer.
MAX_AXIS_VOXELS = 2**15 - 1


UNKNOWN_TERM = "?"
"""Stands for a text that is no known term: it may identify a patient."""


class ExclusionReason(StrEnum):
    """The reason why a file is no part of the volume."""

    NOT_DICOM = "not_dicom"
    NO_IMAGE = "no_image"
    UNREADABLE = "unreadable"
    DUPLICATE = "duplicate"
    DAMAGED_COPY = "damaged_copy"
    LOCALIZER = "localizer"
    SECONDARY_CAPTURE = "secondary_capture"
    PROJECTION = "projection"
    REFORMAT = "reformat"
    MOSAIC = "mosaic"
    COLOUR = "colour"
    LOOKUP_TABLE = "lookup_table"
    NO_POSITION = "no_position"
    SINGLE_IMAGE = "single_image"
    OTHER_SERIES = "other_series"
    NOT_SELECTED = "not_selected"


@dataclass(frozen=True)
class PixelDescription:
    """The format of an instance's stored pixels (Image Pixel module, PS3.3 C.7.6.3).

    Attributes:
        rows: Number of pixels along a column.
        columns: Number of pixels along a row.
        bits_allocated: Bits that each pixel occupies.
        bits_stored: Bits that hold the value.
        high_bit: Index of the highest bit of the value.
        signed: Whether values are two's complement integers (PixelRepresentation is 1).
        padding_range: Lowest and highest stored value that mark padding (PS3.3 C.7.5.1.1.2); None where there is none.
    """

    rows: int
    columns: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    padding_range: tuple[int, int] | None


@dataclass(frozen=True)
class ValueType:
    """The quantity that the values of a frame measure.

    Attributes:
        attribute: Keyword of the attribute that states it, such as RescaleType.
        term: Its term, such as HU; `UNKNOWN_TERM` for any other text.
    """

    attribute: str
    term: str


@dataclass(frozen=True)
class Frame:
    """A frame of an instance and its place in the patient, in DICOM's coordinates: LPS+ mm (PS3.3 C.7.6.2.1.1).

    Attributes:
        index: Index of the frame within the instance, from 0.
        position_mm: Centre of the first pixel (ImagePositionPatient).
        row_direction: Unit vector along a row, in which the column index grows.
        column_direction: Unit vector along a column, in which the row index grows.
        pixel_spacing_mm: Distance between pixels along a row, then along a column: PixelSpacing in reverse order.
        rescale_slope: Factor from stored to real values (PS3.3 C.11.1).
        rescale_intercept: Added to the product.
        value_type: The quantity that the values measure; None where it is not stated.
        attributes: Attributes that tell acquisitions apart; see `frame_attributes`.
    """

    index: int
    position_mm: Vector
    row_direction: Vector
    column_direction: Vector
    pixel_spacing_mm: tuple[float, float]
    rescale_slope: float
    rescale_intercept: float
    value_type: ValueType | None = None
    attributes: Attributes = ()


@dataclass(frozen=True)
class Instance:
    """The header of an image instance: one file of a series.

    Attributes:
        path: The file.
        sop_class_uid: SOPClassUID, such as that of CT Image Storage.
        sop_instance_uid: SOPInstanceUID, which identifies the instance; empty where it is not stated.
        series_uid: SeriesInstanceUID; empty where it is not stated.
        frame_of_reference_uid: Coordinate system of the frames' positions; empty where it is not stated.
        modality: Modality, such as CT; empty where it is not stated.
        transfer_syntax_uid: Encoding of the file and of its pixels.
        lossy: Whether the pixels were ever compressed with loss.
        monochrome1: Whether low values are meant to be displayed bright.
        exclusion_reason: Reason to leave the instance out if the input has a better series; None for a slice.
        pixels: The format of the stored pixels.
        frames: The frames; empty where the header does not state their place in the patient.
        slice_thickness_mm: SliceThickness, which is not the distance of slices; None where it is not stated.
        inflated_bytes: Size of a deflated file once it is inflated; 0 for other files.
        study_uid: StudyInstanceUID; empty where it is not stated.
        number: InstanceNumber; None where it is not stated.
        spacing_between_mm: SpacingBetweenSlices, which may be wrong; None where it is not stated.
        assumptions: Warnings about assumptions by which the header was read.
    """

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    series_uid: str
    frame_of_reference_uid: str
    modality: str
    transfer_syntax_uid: str
    lossy: bool
    monochrome1: bool
    exclusion_reason: ExclusionReason | None
    pixels: PixelDescription
    frames: tuple[Frame, ...]
    slice_thickness_mm: float | None
    inflated_bytes: int = 0
    study_uid: str = ""
    number: int | None = None
    spacing_between_mm: float | None = None
    assumptions: tuple[ReportWarning, ...] = ()


@dataclass(frozen=True)
class UnusableInstance:
    """An image instance with an invalid header, which matters only if it belongs to the series that is read.

    Attributes:
        series_uid: SeriesInstanceUID; empty where it is unknown.
        sop_instance_uid: SOPInstanceUID; empty where it is unknown.
        error: Why the instance cannot be used.
        reason: Reason to leave it out if it is of another series.
    """

    series_uid: str
    sop_instance_uid: str
    error: InputError
    reason: ExclusionReason = ExclusionReason.UNREADABLE


@dataclass(frozen=True)
class Slice:
    """A frame of a series, with the instance that contains it."""

    instance: Instance
    frame: Frame
