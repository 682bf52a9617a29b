"""What a DICOM file says of its image, as values: how pixels are stored, where planes lie, what to leave out."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from inference_service.core.errors import InputError

Vector = tuple[float, float, float]

# NIfTI-1, which masks are written as, counts an axis in 15 bits.
LONGEST_AXIS = 2**15 - 1


class Reason(StrEnum):
    """Why a file is no part of the volume."""

    NOT_DICOM = "not_dicom"
    NO_IMAGE = "no_image"
    UNREADABLE = "unreadable"
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


@dataclass(frozen=True)
class Layout:
    """How a file's pixels are stored (PS3.3 C.7.6.3).

    Attributes:
        rows: Pixels along a column.
        columns: Pixels along a row.
        bits_allocated: Bits that a pixel takes.
        bits_stored: Bits of them that hold its value.
        high_bit: The uppermost one of these.
        signed: Whether the value is in two's complement.
        padding: First and last stored value that say that there was nothing to see.
    """

    rows: int
    columns: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    padding: tuple[int, int] | None


@dataclass(frozen=True)
class Plane:
    """One frame of an image, and where it lies, in DICOM's own frame: LPS+ mm.

    Attributes:
        frame: Its index within the file.
        position_mm: Of the centre of the first pixel.
        along_row: Unit vector towards which the column index grows.
        along_column: Unit vector towards which the row index grows.
        pixel_mm: Distance of pixels along a row, and along a column: PixelSpacing the other way round.
        slope: What stored values are multiplied by.
        intercept: What is added then.
    """

    frame: int
    position_mm: Vector
    along_row: Vector
    along_column: Vector
    pixel_mm: tuple[float, float]
    slope: float
    intercept: float


@dataclass(frozen=True)
class Image:
    """What a file says of itself.

    Attributes:
        path: The file.
        sop_class_uid: What kind of object it is.
        sop_instance_uid: Its own name.
        series_uid: Its series; empty where it names none.
        frame_of_reference_uid: What its positions refer to; empty where it does not say.
        modality: Such as CT; empty where it does not say.
        transfer_syntax: UID of how it is encoded.
        lossy: Whether its pixels were ever compressed with loss.
        inverted: Whether low values are meant to be shown bright.
        reason: Why it is better left out, if something else is there.
        layout: Of its pixels.
        planes: Its frames; none where it does not say where they lie.
        thickness_mm: Of its slices, which says nothing of their distance; None where it is not given.
        expanded_bytes: What a deflated file expands to; 0 of others.
        study_uid: Its study; empty where it names none.
        acquisition: The number of the acquisition that it comes from; None where it does not say.
    """

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    series_uid: str
    frame_of_reference_uid: str
    modality: str
    transfer_syntax: str
    lossy: bool
    inverted: bool
    reason: Reason | None
    layout: Layout
    planes: tuple[Plane, ...]
    thickness_mm: float | None
    expanded_bytes: int = 0
    study_uid: str = ""
    acquisition: int | None = None


@dataclass(frozen=True)
class Unusable:
    """A file that should hold an image, and does not as it is: of concern only where it belongs to the series meant.

    Attributes:
        series_uid: Its series; empty where nothing is known of it.
        error: What is wrong.
    """

    series_uid: str
    error: InputError
