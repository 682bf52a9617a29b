"""DICOM files: what one says of the image in it and of where its planes lie. Pixels are left to `pixels`, and which
files make a volume to `series`.

Only the elements named here are read, so that nothing that could name a patient is ever held.
"""

import errno
import logging
import re
import warnings
import zlib
from collections.abc import Iterator, MutableSequence
from contextlib import contextmanager
from dataclasses import replace
from math import isfinite
from pathlib import Path
from traceback import extract_tb
from typing import Any

import pydicom
from pydicom.datadict import dictionary_has_tag, dictionary_keyword, dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileDataset
from pydicom.tag import BaseTag, Tag
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from inference_service.core.errors import InconsistentGeometry, InputCorrupt, InputTooLarge, ServiceError
from inference_service.formats.dicom.image import LONGEST_AXIS, Image, Layout, Plane, Reason, Unusable
from inference_service.formats.read_limits import RequireMemory

# Its messages quote the values that they complain about.
logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE

_PREAMBLE_BYTES = 128
# A file without preamble begins with the group of the file's own or of the image's identification, in the order of
# its tags; then comes a value representation or, where it is implicit, a short length.
_FIRST_GROUPS = (b"\x02\x00", b"\x08\x00", b"\x00\x08")
_CHUNK_BYTES = 2**20

# pydicom makes an object of each value and each item. What is read here is short, but for sequences; a frame has some
# thirty items, and its codestream may come in pieces, which are items too.
_MOST_VALUE_BYTES = 4096
_ITEMS = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")
_BYTES_OF_AN_ITEM = 2048
# Some list what they were made of, and the coils that received it, which are items of items.
_MOST_ITEMS, _MOST_ITEMS_A_FRAME = 16384, 256

# pydicom raises OSErrors of its own, without a number; the other one comes of seeking to where no file has a place.
_ERRNOS_OF_CONTENT = {None, errno.EINVAL}

# Storage classes that always have pixels: CT, MR and PET, legacy and enhanced, but for spectra.
_IMAGES = re.compile(r"1\.2\.840\.10008\.5\.1\.4\.1\.1\.(2|4|128|130)(\.\d+)*")
_SPECTRA = "1.2.840.10008.5.1.4.1.1.4.2"
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_DIRECTORY = "1.2.840.10008.1.3.10"
# Made of images, not images of a patient: RT image and dose, parametric map, segmentation, label map.
_NOT_SCANS = {f"1.2.840.10008.5.1.4.1.1.{end}" for end in ("481.1", "481.2", "30", "66.4", "66.7")}
_GREY = {"MONOCHROME1", "MONOCHROME2", ""}
_TAGS = [
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "AcquisitionNumber",
    "FrameOfReferenceUID", "Modality", "ImageType",
    "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored",
    "HighBit", "PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit", "LossyImageCompression",
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "RescaleSlope",
    "RescaleIntercept", "ModalityLUTSequence", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
]  # fmt: skip


# Stored values become float32: so large a slope would lead out of its range, and no scanner has one.
_MOST_RESCALED = 1e20

# What the values of ImageType say, by PS3.3 C.7.6.1.1.2, C.8.2.1.1.1 and the habits of scanners.
_IMAGE_TYPES = (
    (Reason.LOCALIZER, {"LOCALIZER", "SCOUT", "TOPOGRAM"}),
    (Reason.SECONDARY_CAPTURE, {"SCREEN SAVE", "SCREENSHOT"}),
    (Reason.PROJECTION, {"PROJECTION IMAGE", "MIP", "MINIP", "MAX_IP", "MIN_IP", "VOLUME RENDER", "VRT", "CSA 3D"}),
    (Reason.MOSAIC, {"MOSAIC"}),
    (Reason.REFORMAT, {"REFORMATTED", "MPR", "MPR_CURVED", "CURVED_MPR"}),
)


def looks_like_dicom(path: Path) -> bool:
    """Whether the file's content begins as DICOM does, with or without the preamble."""
    with path.open("rb") as file:
        start = file.read(_PREAMBLE_BYTES + 4)
    if start[_PREAMBLE_BYTES:] == b"DICM":
        return True
    explicit = re.fullmatch(rb"[A-Z]{2}", start[4:6]) is not None
    implicit = start[5:8] == b"\0\0\0"
    return len(start) > 8 and start[:2] in _FIRST_GROUPS and b"\0" in start[2:4] and (explicit or implicit)


def read_image(path: Path, *, max_bytes: int, require_memory: RequireMemory) -> Image | Unusable | Reason:
    """Reads what a file says of its image.

    Args:
        path: A file that looks like DICOM.
        max_bytes: A deflated file that expands to more is refused.
        require_memory: Told how many bytes are about to be taken, where that is more than the header's.

    Returns:
        The image, or why there is none that could be a part of a volume.

    Raises:
        InputTooLarge: It expands to more.
    """
    series_uid = ""
    try:
        expanded_bytes, items = _survey(path, max_bytes)
        if expanded_bytes:
            # It is there twice for a moment.
            require_memory(2 * expanded_bytes)
        require_memory(items * _BYTES_OF_AN_ITEM)
        with quietly(), reading_errors():
            dataset = pydicom.dcmread(path, force=True, stop_before_pixels=True, specific_tags=list(_TAGS))
            series_uid = _text(dataset, "SeriesInstanceUID")
            for tag in list(dataset.keys()):
                _check_length(dataset, tag)
            found = _image(path, dataset, items)
    except (InputCorrupt, InconsistentGeometry) as error:
        return Unusable(series_uid, error)
    return replace(found, expanded_bytes=expanded_bytes) if isinstance(found, Image) else found


def is_long(dataset: Dataset, tag: BaseTag) -> bool:
    """Whether an element that was not converted yet, and is no sequence, is longer than what is read here ever is."""
    # pydicom names only one of its two kinds of element here.
    element: object = dataset.get_item(tag)
    if not isinstance(element, RawDataElement) or element.length <= _MOST_VALUE_BYTES:
        return False
    kind = element.VR
    if kind in (None, "UN") and dictionary_has_tag(tag):
        kind = dictionary_VR(tag)
    return kind != "SQ"


def _check_length(dataset: Dataset, tag: BaseTag) -> None:
    """Before a value is converted, which takes a hundred times its memory."""
    if is_long(dataset, tag):
        raise InputCorrupt(f"a DICOM file's {dictionary_keyword(tag)} is longer than {_MOST_VALUE_BYTES} bytes")


def _check_items(dataset: Dataset, items: int) -> None:
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames > LONGEST_AXIS:
        raise InputTooLarge(f"a DICOM file has {frames} frames; this service takes at most {LONGEST_AXIS}")
    if items > _MOST_ITEMS + _MOST_ITEMS_A_FRAME * frames:
        raise InputCorrupt(f"a DICOM file has {items} items of sequences, and {frames} frames: that is no image")


def _image(path: Path, dataset: FileDataset, items: int) -> Image | Reason:
    meta = dataset.file_meta
    sop_class = _text(dataset, "SOPClassUID") or _text(meta, "MediaStorageSOPClassUID")
    if sop_class == _DIRECTORY or sop_class in _NOT_SCANS or _is_no_image(sop_class, dataset):
        return Reason.NO_IMAGE
    if "Rows" not in dataset:
        raise InputCorrupt("a DICOM file says that it holds an image, and ends before it")
    # Reports and structure sets, which are none, may have many.
    _check_items(dataset, items)
    photometric = _text(dataset, "PhotometricInterpretation")
    if int(dataset.get("SamplesPerPixel") or 1) != 1 or photometric not in _GREY:
        return Reason.COLOUR
    if "ModalityLUTSequence" in dataset:
        return Reason.LOOKUP_TABLE
    return Image(
        path=path,
        sop_class_uid=sop_class,
        sop_instance_uid=_text(dataset, "SOPInstanceUID") or _text(meta, "MediaStorageSOPInstanceUID"),
        series_uid=_text(dataset, "SeriesInstanceUID"),
        frame_of_reference_uid=_text(dataset, "FrameOfReferenceUID"),
        modality=_known_modality(_text(dataset, "Modality")),
        transfer_syntax=_transfer_syntax(dataset),
        lossy=_text(dataset, "LossyImageCompression") == "01",
        inverted=photometric == "MONOCHROME1",
        reason=_reason(dataset, sop_class),
        layout=_layout(dataset),
        planes=_planes(dataset),
        thickness_mm=_thickness_mm(dataset),
        study_uid=_text(dataset, "StudyInstanceUID"),
        acquisition=_acquisition(dataset),
    )


@contextmanager
def reading_errors() -> Iterator[None]:
    """Maps what pydicom and its decoders raise.

    They raise whatever a damaged file leads them into, from AttributeError to ZeroDivisionError, and no list of it
    would be complete: this is the one place that catches everything. Their texts quote values: only their kind is kept.

    Raises:
        InputCorrupt: For all of it but our own errors, want of memory, and faults of the file system.
    """
    try:
        yield
    except (ServiceError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno not in _ERRNOS_OF_CONTENT:
            raise
        where = extract_tb(error.__traceback__)[-1]
        cause = ValueError(f"{type(error).__name__} in {where.name}, line {where.lineno}")
        raise InputCorrupt("a DICOM file is truncated or damaged") from cause


@contextmanager
def quietly() -> Iterator[None]:
    """Nothing is said of values that pydicom does not like. In one thread at a time: filters belong to the process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _transfer_syntax(dataset: FileDataset) -> str:
    """UID of a file's transfer syntax; for one that does not say, what it was read as."""
    stated = _text(dataset.file_meta, "TransferSyntaxUID")
    if stated:
        return stated
    implicit, little_endian = dataset.original_encoding
    if implicit:
        return str(ImplicitVRLittleEndian)
    return str(ExplicitVRLittleEndian if little_endian else ExplicitVRBigEndian)


def _is_no_image(sop_class: str, dataset: Dataset) -> bool:
    """Whether a whole file is not expected to have pixels: reports, presentations, spectra."""
    of_images = _IMAGES.fullmatch(sop_class) is not None and sop_class != _SPECTRA
    return not of_images and ("Rows" not in dataset or "BitsAllocated" not in dataset)


def _survey(path: Path, max_bytes: int) -> tuple[int, int]:
    """What a deflated file expands to, 0 of others, and how many items of sequences a file has.

    Piece by piece, as pydicom expands and parses at once, without a limit.
    """
    with quietly(), reading_errors(), path.open("rb") as file:
        start = _deflated_from(path)
        file.seek(start)
        inflate, left, items, tail = zlib.decompressobj(-zlib.MAX_WBITS), max_bytes, 0, b""
        while chunk := file.read(_CHUNK_BYTES):
            while chunk:
                piece = inflate.decompress(chunk, _CHUNK_BYTES) if start else chunk
                chunk = inflate.unconsumed_tail
                left -= len(piece)
                if start and left < 0:
                    raise InputTooLarge(f"deflated DICOM expands to more than the {max_bytes} bytes that are left")
                items += sum((tail + piece).count(item) for item in _ITEMS)
                tail = (tail + piece)[-3:]
        return (max_bytes - left if start else 0), items


def _deflated_from(path: Path) -> int:
    """Where in a file the part begins that is deflated; 0 where none is."""
    with path.open("rb") as file:
        if file.read(_PREAMBLE_BYTES + 4)[_PREAMBLE_BYTES:] != b"DICM":
            return 0
    meta = pydicom.filereader.read_file_meta_info(path)
    if _text(meta, "TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return 0
    return _PREAMBLE_BYTES + 4 + 12 + int(meta.FileMetaInformationGroupLength)


def _reason(dataset: Dataset, sop_class: str) -> Reason | None:
    if sop_class.startswith(_SECONDARY_CAPTURE):
        return Reason.SECONDARY_CAPTURE
    values = [str(value).upper() for value in _values(dataset, "ImageType")]
    kinds = {*values, *" ".join(values).split()}
    return next((reason for reason, names in _IMAGE_TYPES if kinds & names), None)


def _layout(dataset: Dataset) -> Layout:
    allocated, stored = int(dataset.BitsAllocated), int(dataset.BitsStored)
    signed = int(dataset.get("PixelRepresentation") or 0) == 1
    layout = Layout(
        rows=int(dataset.Rows),
        columns=int(dataset.Columns),
        bits_allocated=allocated,
        bits_stored=stored,
        high_bit=stored - 1 if dataset.get("HighBit") is None else int(dataset.HighBit),
        signed=signed,
        padding=_padding(dataset, stored, signed=signed),
    )
    sensible = 1 <= stored <= layout.high_bit + 1 <= allocated <= 32
    if not sensible or layout.rows < 1 or layout.columns < 1:
        raise InputCorrupt(
            f"a DICOM file's pixels make no sense: {layout.rows} × {layout.columns}, {stored} of {allocated} bits "
            f"stored up to bit {layout.high_bit}"
        )
    return layout


def _padding(dataset: Dataset, bits: int, *, signed: bool) -> tuple[int, int] | None:
    """The range of stored values that are padding; either end may be written as the other kind of 16 bits."""
    ends = [dataset.get(name) for name in ("PixelPaddingValue", "PixelPaddingRangeLimit")]
    values = [int(end) for end in ends if isinstance(end, int)]
    if ends[0] is None or not values:
        return None
    half = 2 ** max(bits - 1, 15)
    wrapped = [(value + half) % (2 * half) - half if signed else value % (2 * half) for value in values]
    return min(wrapped), max(wrapped)


def _planes(dataset: Dataset) -> tuple[Plane, ...]:
    count = int(dataset.get("NumberOfFrames") or 1)
    items = _values(dataset, "PerFrameFunctionalGroupsSequence")
    if not items:
        plane = _plane(0, [dataset])
        return (plane,) if plane is not None and count == 1 else ()
    if count != len(items):
        raise InputCorrupt(f"a DICOM file has {count} frames, and says of {len(items)} where they lie")
    shared = _values(dataset, "SharedFunctionalGroupsSequence")
    planes = (_plane(frame, [item, *shared, dataset]) for frame, item in enumerate(items))
    found = tuple(plane for plane in planes if plane is not None)
    return found if len(found) == count else ()


def _plane(frame: int, sources: list[Dataset]) -> Plane | None:
    """One frame's geometry, by the first of the sources that has each part of it; None where there is none."""
    position = _numbers(sources, "PlanePositionSequence", "ImagePositionPatient", 3)
    orientation = _numbers(sources, "PlaneOrientationSequence", "ImageOrientationPatient", 6)
    spacing = _numbers(sources, "PixelMeasuresSequence", "PixelSpacing", 2)
    if position is None or orientation is None or spacing is None:
        return None
    slope = _numbers(sources, "PixelValueTransformationSequence", "RescaleSlope", 1) or (1.0,)
    intercept = _numbers(sources, "PixelValueTransformationSequence", "RescaleIntercept", 1) or (0.0,)
    if slope[0] == 0 or max(abs(slope[0]), abs(intercept[0])) > _MOST_RESCALED:
        raise InputCorrupt(f"a DICOM file's rescale slope is {slope[0]:g}, and its intercept {intercept[0]:g}")
    return Plane(
        frame=frame,
        position_mm=(position[0], position[1], position[2]),
        along_row=(orientation[0], orientation[1], orientation[2]),
        along_column=(orientation[3], orientation[4], orientation[5]),
        pixel_mm=(spacing[1], spacing[0]),
        slope=slope[0],
        intercept=intercept[0],
    )


def _numbers(sources: list[Dataset], group: str, name: str, count: int) -> tuple[float, ...] | None:
    """So many finite numbers, from a functional group or directly."""
    for source in sources:
        for place in (*_values(source, group)[:1], source):
            values = _values(place, name)
            if values:
                numbers = tuple(float(value) for value in values)
                if len(numbers) != count or not all(map(isfinite, numbers)):
                    raise InconsistentGeometry(f"{name}: expected {count} finite numbers, got {len(numbers)} values")
                return numbers
    return None


def _acquisition(dataset: Dataset) -> int | None:
    value = dataset.get("AcquisitionNumber")
    return int(value) if isinstance(value, int) else None


def _thickness_mm(dataset: Dataset) -> float | None:
    groups = ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence")
    sources = [item for name in groups for item in _values(dataset, name)[:1]]
    try:
        found = _numbers([*sources, dataset], "PixelMeasuresSequence", "SliceThickness", 1)
    except (ValueError, InconsistentGeometry):
        # Only a lone slice rests on it.
        return None
    return found[0] if found and found[0] > 0 else None


def _values(dataset: Dataset, name: str) -> list[Any]:
    """All values of an element; none where it is missing or empty."""
    if name in dataset:
        _check_length(dataset, Tag(name))
    value = dataset.get(name)
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, list | MutableSequence) else [value]


def _known_modality(text: str) -> str:
    """A modality of two or three letters, as all of images are; anything else could be a name, and is not passed on."""
    return text if re.fullmatch(r"[A-Z]{0,3}", text) else "?"


def _text(dataset: Dataset, name: str) -> str:
    return "".join(str(value) for value in _values(dataset, name)[:1]).strip(" \0")
