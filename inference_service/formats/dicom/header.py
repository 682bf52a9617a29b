"""Reads the header of a DICOM file: whether it is an image that can be part of a volume, and how its pixels are stored.

Only the attributes listed here are read: nothing that could identify a patient is ever held.
"""

import re
from dataclasses import replace
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset, FileDataset
from pydicom.tag import BaseTag, Tag
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from inference_service.core.errors import (
    InconsistentGeometry,
    InputCorrupt,
    InputError,
    InputTooLarge,
    UnsupportedFormat,
    UnsupportedTransferSyntax,
)
from inference_service.core.memory_budget import RequireMemory
from inference_service.formats.dicom.attributes import (
    check_length,
    read_integer,
    read_text,
    read_values,
    require_integer,
)
from inference_service.formats.dicom.bounded_file import BoundedFile
from inference_service.formats.dicom.file_check import measure_file, read_file_meta
from inference_service.formats.dicom.frame_attributes import KEYWORDS
from inference_service.formats.dicom.functional_groups import read_frames_geometry, read_stated_length_mm
from inference_service.formats.dicom.instance import (
    MAX_AXIS_VOXELS,
    ExclusionReason,
    Instance,
    PixelDescription,
    UnusableInstance,
)
from inference_service.formats.dicom.pydicom_errors import map_pydicom_errors, suppress_warnings
from inference_service.formats.dicom.transfer_syntax import check_transfer_syntax

NO_PIXELS = "a DICOM file ends before its pixel data: it is truncated, or no more than a header"
"""The sentence about an image without pixels."""

# pydicom makes an object of each sequence item. A frame has about thirty items, and each fragment of its codestream is
# one too. Some instances list their source images, and the coils that received them, which are items within items.
_BYTES_PER_ITEM = 2048
_MAX_ITEMS = 16384
_MAX_ITEMS_PER_FRAME = 256

# SOP classes that always have pixels: CT, MR and PET, single-frame and enhanced; but for MR spectroscopy.
_IMAGE_STORAGE = re.compile(r"1\.2\.840\.10008\.5\.1\.4\.1\.1\.(2|4|128|130)(\.\d+)*")
_MR_SPECTROSCOPY = "1.2.840.10008.5.1.4.1.1.4.2"
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"
# Derived from images of a patient: RT image, RT dose, parametric map, segmentation, label map segmentation.
_DERIVED_OBJECTS = {f"1.2.840.10008.5.1.4.1.1.{suffix}" for suffix in ("481.1", "481.2", "30", "66.4", "66.7")}
_GREYSCALE = {"MONOCHROME1", "MONOCHROME2", ""}
_KEYWORDS = [
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "InstanceNumber",
    "FrameOfReferenceUID", "Modality", "ImageType",
    "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored",
    "HighBit", "PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit", "LossyImageCompression",
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "SpacingBetweenSlices",
    "FrameIncrementPointer", "RescaleSlope", "RescaleIntercept", "RescaleType", "Units",
    "RealWorldValueMappingSequence", "ModalityLUTSequence", "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]  # fmt: skip
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData", "PixelDataProviderURL")
# Longer values are not read where only their presence matters.
_DEFERRED_BYTES = 1024
# As pydicom's own type of tags, which it need not convert for each file.
_TAGS: list[BaseTag] = [Tag(keyword) for keyword in (*_KEYWORDS, *KEYWORDS)]
# Values of ImageType by which an image is no slice: PS3.3 C.7.6.1.1.2 and C.8.2.1.1.1, and the usage of scanners.
_IMAGE_TYPES = (
    (ExclusionReason.LOCALIZER, {"LOCALIZER", "SCOUT", "TOPOGRAM"}),
    (ExclusionReason.SECONDARY_CAPTURE, {"SCREEN SAVE", "SCREENSHOT"}),
    (
        ExclusionReason.PROJECTION,
        {"PROJECTION IMAGE", "MIP", "MINIP", "MAX_IP", "MIN_IP", "VOLUME RENDER", "VRT", "CSA 3D"},
    ),
    (ExclusionReason.MOSAIC, {"MOSAIC"}),
    (ExclusionReason.REFORMAT, {"REFORMATTED", "MPR", "MPR_CURVED", "CURVED_MPR"}),
)


def read_instance(
    path: Path, *, max_bytes: int, require_memory: RequireMemory
) -> Instance | UnusableInstance | ExclusionReason:
    """Reads the header of a file.

    Args:
        path: A file that looks like DICOM.
        max_bytes: Limit on the inflated size of a deflated file.
        require_memory: Called before the header is parsed.

    Returns:
        The instance, or why it can be no part of a volume.

    Raises:
        InputTooLarge: The file inflates to more than `max_bytes`, or has too many frames.
    """
    series_uid = sop_instance_uid = ""
    try:
        size = measure_file(path, max_bytes)
        if size.inflated_bytes:
            # pydicom holds the inflated file twice for a moment.
            require_memory(2 * size.inflated_bytes)
        require_memory(size.items * _BYTES_PER_ITEM)
        with suppress_warnings(), map_pydicom_errors(), BoundedFile(path) as file:
            dataset = pydicom.dcmread(file, force=True, stop_before_pixels=True, specific_tags=_TAGS)
            series_uid = read_text(dataset, "SeriesInstanceUID")
            sop_instance_uid = read_text(dataset, "SOPInstanceUID")
            for tag in list(dataset.keys()):
                check_length(dataset, tag)
            found = _read_instance(path, dataset, size.items)
    except (InputCorrupt, InconsistentGeometry) as error:
        return UnusableInstance(series_uid, sop_instance_uid, _find_cause(path, error))
    return replace(found, inflated_bytes=size.inflated_bytes) if isinstance(found, Instance) else found


def _find_cause(path: Path, error: InputError) -> InputError:
    """Returns the cause of an invalid header: an unknown encoding, or a truncated file; else the error itself."""
    try:
        with suppress_warnings(), map_pydicom_errors():
            meta = read_file_meta(path)
            if meta is not None:
                check_transfer_syntax(read_text(meta, "TransferSyntaxUID") or ExplicitVRLittleEndian)
            with BoundedFile(path) as file:
                dataset = pydicom.dcmread(file, force=True, specific_tags=list(_PIXELS), defer_size=_DEFERRED_BYTES)
    except UnsupportedTransferSyntax as cause:
        return cause
    except InputCorrupt:
        return error
    return error if any(keyword in dataset for keyword in _PIXELS) else InputCorrupt(NO_PIXELS)


def _read_instance(path: Path, dataset: FileDataset, items: int) -> Instance | UnusableInstance | ExclusionReason:
    if not len(dataset):
        raise InputCorrupt("a DICOM file is truncated or damaged: it has no data set")
    meta = dataset.file_meta
    sop_class_uid = read_text(dataset, "SOPClassUID") or read_text(meta, "MediaStorageSOPClassUID")
    if _has_no_image(sop_class_uid, dataset):
        return ExclusionReason.NO_IMAGE
    require_integer(dataset, "Rows")
    # After the check for an image: reports and structure sets may have many items.
    _check_items(dataset, items)
    photometric = read_text(dataset, "PhotometricInterpretation")
    if (read_integer(dataset, "SamplesPerPixel") or 1) != 1 or photometric not in _GREYSCALE:
        return ExclusionReason.COLOUR
    geometry = read_frames_geometry(dataset)
    exclusion_reason = _exclusion_reason(dataset, sop_class_uid)
    if read_values(dataset, "ModalityLUTSequence"):
        if exclusion_reason or not geometry.frames:
            return ExclusionReason.LOOKUP_TABLE
        error = UnsupportedFormat(
            "the values of a slice get their meaning from a lookup table (ModalityLUTSequence): expected RescaleSlope "
            "and RescaleIntercept"
        )
        uids = (read_text(dataset, "SeriesInstanceUID"), read_text(dataset, "SOPInstanceUID"))
        return UnusableInstance(*uids, error, ExclusionReason.LOOKUP_TABLE)
    return Instance(
        path=path,
        sop_class_uid=sop_class_uid,
        sop_instance_uid=read_text(dataset, "SOPInstanceUID") or read_text(meta, "MediaStorageSOPInstanceUID"),
        series_uid=read_text(dataset, "SeriesInstanceUID"),
        frame_of_reference_uid=read_text(dataset, "FrameOfReferenceUID"),
        modality=_safe_modality(read_text(dataset, "Modality")),
        transfer_syntax_uid=_transfer_syntax_uid(dataset),
        lossy=read_text(dataset, "LossyImageCompression") == "01",
        monochrome1=photometric == "MONOCHROME1",
        exclusion_reason=exclusion_reason,
        pixels=_pixel_description(dataset),
        frames=geometry.frames,
        assumptions=geometry.assumptions,
        slice_thickness_mm=read_stated_length_mm(dataset, "SliceThickness"),
        study_uid=read_text(dataset, "StudyInstanceUID"),
        number=_read_number(dataset),
        spacing_between_mm=read_stated_length_mm(dataset, "SpacingBetweenSlices"),
    )


def _has_no_image(sop_class_uid: str, dataset: Dataset) -> bool:
    """Returns True for a directory, a derived object, a report or a spectrum, which are not images of a patient."""
    if sop_class_uid == _MEDIA_DIRECTORY or sop_class_uid in _DERIVED_OBJECTS:
        return True
    always_has_pixels = _IMAGE_STORAGE.fullmatch(sop_class_uid) is not None and sop_class_uid != _MR_SPECTROSCOPY
    return not always_has_pixels and ("Rows" not in dataset or "BitsAllocated" not in dataset)


def _check_items(dataset: Dataset, items: int) -> None:
    frames = read_integer(dataset, "NumberOfFrames") or 1
    if frames > MAX_AXIS_VOXELS:
        raise InputTooLarge(f"a DICOM file has {frames} frames; this service takes at most {MAX_AXIS_VOXELS}")
    max_items = _MAX_ITEMS + _MAX_ITEMS_PER_FRAME * frames
    if items > max_items:
        raise InputCorrupt(
            f"a DICOM file has {items} items of sequences; with {frames} frames, at most {max_items} are read"
        )


def _exclusion_reason(dataset: Dataset, sop_class_uid: str) -> ExclusionReason | None:
    if sop_class_uid.startswith(_SECONDARY_CAPTURE):
        return ExclusionReason.SECONDARY_CAPTURE
    values = [str(value).upper() for value in read_values(dataset, "ImageType")]
    # Scanners join several words in one value, as in CSA MIP.
    words = {*values, *" ".join(values).split()}
    return next((reason for reason, names in _IMAGE_TYPES if words & names), None)


def _transfer_syntax_uid(dataset: FileDataset) -> str:
    """The transfer syntax that the file states, or else the one that it was read as."""
    stated = read_text(dataset.file_meta, "TransferSyntaxUID")
    if stated:
        return stated
    implicit, little_endian = dataset.original_encoding
    if implicit:
        return str(ImplicitVRLittleEndian)
    return str(ExplicitVRLittleEndian if little_endian else ExplicitVRBigEndian)


def _pixel_description(dataset: Dataset) -> PixelDescription:
    bits_stored = require_integer(dataset, "BitsStored")
    high_bit = read_integer(dataset, "HighBit")
    signed = read_integer(dataset, "PixelRepresentation") == 1
    pixels = PixelDescription(
        rows=require_integer(dataset, "Rows"),
        columns=require_integer(dataset, "Columns"),
        bits_allocated=require_integer(dataset, "BitsAllocated"),
        bits_stored=bits_stored,
        high_bit=bits_stored - 1 if high_bit is None else high_bit,
        signed=signed,
        padding_range=_padding_range(dataset, bits_stored, signed=signed),
    )
    valid_bits = 1 <= bits_stored <= pixels.high_bit + 1 <= pixels.bits_allocated <= 32
    if not valid_bits or pixels.rows < 1 or pixels.columns < 1:
        raise InputCorrupt(
            f"a DICOM file's pixels cannot be read: {pixels.rows} × {pixels.columns} pixels, {bits_stored} bits stored "
            f"of {pixels.bits_allocated} allocated, high bit {pixels.high_bit}; expected at least 1 × 1 pixels, and "
            "BitsStored ≤ HighBit + 1 ≤ BitsAllocated ≤ 32"
        )
    return pixels


def _padding_range(dataset: Dataset, bits: int, *, signed: bool) -> tuple[int, int] | None:
    """Lowest and highest stored value that mark padding (PS3.3 C.7.5.1.1.2).

    Either limit may be encoded with the wrong sign: 63536 and -2000 are the same 16 bits.
    """
    limits = [read_integer(dataset, keyword) for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit")]
    if limits[0] is None:
        return None
    values = [limit for limit in limits if limit is not None]
    half = 2 ** max(bits - 1, 15)
    wrapped = [(value + half) % (2 * half) - half if signed else value % (2 * half) for value in values]
    return min(wrapped), max(wrapped)


def _read_number(dataset: Dataset) -> int | None:
    """InstanceNumber; None where no valid one is stated, as no geometry depends on it."""
    try:
        return read_integer(dataset, "InstanceNumber")
    except InputCorrupt:
        return None


def _safe_modality(text: str) -> str:
    """A modality of up to three letters, as those of images are; "?" for any other text, which may be a name."""
    return text if re.fullmatch(r"[A-Z]{0,3}", text) else "?"
