"""Decodes the pixels of an instance, frame by frame.

Values are as stored: rescaling and padding are left to `frame_stack`.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from inference_service.core.errors import InputCorrupt, UnsupportedFormat, UnsupportedTransferSyntax
from inference_service.core.memory_budget import RequireMemory
from inference_service.formats.dicom.bounded_file import BoundedFile
from inference_service.formats.dicom.header import NO_PIXELS
from inference_service.formats.dicom.instance import Instance
from inference_service.formats.dicom.pixels import jpeg_xl
from inference_service.formats.dicom.pixels.encoded_frames import EncodedFrame, encoded_frames
from inference_service.formats.dicom.pixels.stored_bits import take_values
from inference_service.formats.dicom.pydicom_errors import map_pydicom_errors, suppress_warnings
from inference_service.formats.dicom.transfer_syntax import (
    BYTE_FRAMES,
    JPEG_2000,
    JPEG_XL,
    JPEG_XL_LOSSY,
    NATIVE,
    check_transfer_syntax,
    syntax_name,
)

# OpenJPEG's arithmetic is exact up to 24 bits.
_MAX_BITS: Mapping[str, int] = {**dict.fromkeys(JPEG_2000, 24), **dict.fromkeys(JPEG_XL, jpeg_xl.MAX_BITS)}
# Measured: OpenJPEG's coefficients and code-blocks of an image, and libjxl's planes, in bytes for each pixel.
_DECODER_PIXEL_BYTES: Mapping[str, int] = {**dict.fromkeys(JPEG_2000, 32), **dict.fromkeys(JPEG_XL, 16)}
_KEYWORDS = [
    "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored",
    "HighBit", "PixelRepresentation", "PlanarConfiguration", "PixelData", "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths", "FloatPixelData", "DoubleFloatPixelData",
]  # fmt: skip
# Encapsulated pixel data begin with it (PS3.5 A.4).
_ITEM_TAG = b"\xfe\xff\x00\xe0"
_BITS_ALLOCATED = (8, 16, 32)


def check_decodable(instance: Instance) -> None:
    """Checks that there is a decoder for an instance's transfer syntax and bit depth.

    Raises:
        UnsupportedTransferSyntax: There is none; the message names the transfer syntax.
    """
    syntax = instance.transfer_syntax_uid
    check_transfer_syntax(syntax)
    bits_stored = instance.pixels.bits_stored
    max_bits = _MAX_BITS.get(syntax, bits_stored)
    if bits_stored > max_bits:
        raise UnsupportedTransferSyntax(
            f"{syntax_name(syntax)} is decoded up to {max_bits} bits, and the series has {bits_stored}: send it in "
            "another transfer syntax"
        )
    if syntax == JPEG_XL_LOSSY and instance.pixels.signed:
        raise UnsupportedTransferSyntax(
            f"signed pixels in {syntax_name(syntax)} are not decoded: its values are unsigned, and encoders differ in "
            "how they make them from signed ones; send the series in another transfer syntax"
        )


def decoder_bytes(instance: Instance) -> int:
    """Memory that a decoder takes for one frame beside the decoded pixels; 0 where it is little."""
    pixels = instance.pixels.rows * instance.pixels.columns
    return pixels * _DECODER_PIXEL_BYTES.get(instance.transfer_syntax_uid, 0)


def read_frames(instance: Instance, *, require_memory: RequireMemory) -> Iterator[Callable[[], NDArray[np.integer]]]:
    """Reads an instance's frames in their order; the caller decides when and in which thread each one is decoded.

    Args:
        instance: Has passed `check_decodable`.
        require_memory: Called before the file is read; the decoded frames are not included.

    Yields:
        For each frame, a function that returns its stored values, shape (rows, columns), or raises InputCorrupt.

    Raises:
        InputCorrupt: The pixel data are truncated or damaged, or contradict the header.
    """
    # pydicom holds an inflated file twice for a moment.
    require_memory(max(instance.path.stat().st_size, 2 * instance.inflated_bytes))
    frames = _read_encoded(instance)
    for _ in instance.frames:
        with suppress_warnings(), map_pydicom_errors():
            frame = next(frames, None)
        if frame is None:
            raise InputCorrupt(
                f"a DICOM file is truncated: expected {len(instance.frames)} frames, as its header states, got fewer"
            )
        yield partial(_decode, frame, instance)
    with suppress_warnings(), map_pydicom_errors():
        if next(frames, None) is not None:
            raise InputCorrupt(
                f"a DICOM file has more frames than its NumberOfFrames states: expected {len(instance.frames)}"
            )


def _decode(frame: EncodedFrame, instance: Instance) -> NDArray[np.integer]:
    description = instance.pixels
    with map_pydicom_errors():
        pixels = take_values(frame.decode(), frame.bits, description)
    if pixels.shape != (description.rows, description.columns):
        raise InputCorrupt(
            f"a DICOM file's header states {description.rows} × {description.columns} pixels, but its pixel data have "
            "another size"
        )
    return pixels


def _read_encoded(instance: Instance) -> Iterator[EncodedFrame]:
    with BoundedFile(instance.path) as file:
        dataset = pydicom.dcmread(file, force=True, specific_tags=list(_KEYWORDS))
    _check_pixels(dataset, instance)
    yield from encoded_frames(dataset, instance)


def _check_pixels(dataset: Dataset, instance: Instance) -> None:
    """Refuses pixel data of another kind than the header states."""
    syntax = instance.transfer_syntax_uid
    for keyword in ("FloatPixelData", "DoubleFloatPixelData"):
        if keyword in dataset:
            raise UnsupportedFormat(f"a DICOM file has {keyword}: expected PixelData, which are integers")
    if "PixelData" not in dataset:
        raise InputCorrupt(NO_PIXELS)
    is_encapsulated = dataset.PixelData.startswith(_ITEM_TAG)
    if syntax in NATIVE and is_encapsulated and len(dataset.PixelData) > _native_bytes(instance) + 1:
        raise InputCorrupt(
            f"a DICOM file's pixel data are encapsulated, but its transfer syntax is {syntax_name(syntax)}"
        )
    if syntax not in NATIVE and not is_encapsulated:
        raise InputCorrupt(
            f"a DICOM file's pixel data are not encapsulated, but its transfer syntax is {syntax_name(syntax)}"
        )
    if syntax in NATIVE | BYTE_FRAMES and instance.pixels.bits_allocated not in _BITS_ALLOCATED:
        raise UnsupportedFormat(
            f"a DICOM file's BitsAllocated is {instance.pixels.bits_allocated}: expected {_BITS_ALLOCATED} in pixels "
            "that are not compressed"
        )
    if syntax in NATIVE:
        _check_length(dataset, instance)


def _native_bytes(instance: Instance) -> int:
    """Size of an instance's pixels where they are not compressed."""
    description = instance.pixels
    return len(instance.frames) * description.rows * description.columns * description.bits_allocated // 8


def _check_length(dataset: Dataset, instance: Instance) -> None:
    got = len(dataset.PixelData)
    expected = _native_bytes(instance)
    if got < expected:
        raise InputCorrupt(f"a DICOM file is truncated: expected {expected} bytes of pixels, got {got}")
    frame_bytes = expected // len(instance.frames)
    line_bytes = frame_bytes // max(instance.pixels.rows, instance.pixels.columns)
    extra: bytes = dataset.PixelData[expected:]
    # Some writers pad the pixels with zeros. Otherwise, more than a row or column shows that an attribute is wrong.
    is_padding = len(extra) < frame_bytes and not extra.strip(b"\0")
    if len(extra) >= line_bytes and not is_padding:
        raise InputCorrupt(
            f"a DICOM file has {got} bytes of pixels, but {expected} by NumberOfFrames, Rows, Columns and BitsAllocated"
        )
