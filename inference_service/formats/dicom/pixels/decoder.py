"""Decodes the pixels of an instance, frame by frame.

Values are as stored: rescaling and padding are left to `frame_stack`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import imagecodecs
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.pixels.decoders.base import get_decoder

from inference_service.core.errors import (
    InputCorrupt,
    InputTooLarge,
    UnsupportedFormat,
    UnsupportedTransferSyntax,
)
from inference_service.core.memory_budget import RequireMemory
from inference_service.formats.dicom.bounded_file import BoundedFile
from inference_service.formats.dicom.header import NO_PIXELS
from inference_service.formats.dicom.instance import Instance
from inference_service.formats.dicom.pixels import jpeg_2000
from inference_service.formats.dicom.pixels.codestream import is_complete, read_codestream_header
from inference_service.formats.dicom.pixels.offset_table import drop_wrong_offsets
from inference_service.formats.dicom.pixels.stored_bits import take_values
from inference_service.formats.dicom.pydicom_errors import map_pydicom_errors, suppress_warnings
from inference_service.formats.dicom.transfer_syntax import JPEG, JPEG_2000, JPEG_LS, NATIVE, check_transfer_syntax

Decode = Callable[[bytes], NDArray[np.integer]]

_READ_BY_PYDICOM = {*NATIVE, uid.RLELossless}
_MAX_BITS = 32
# OpenJPEG's arithmetic is exact up to this depth.
_MAX_BITS_JPEG_2000 = 24
# OpenJPEG takes ten kilobytes for each tile, and up to one for each packet. Most images have one tile and few packets.
_MAX_TILES = 2**10
_MAX_PACKETS = 2**18
# Measured: OpenJPEG's coefficients and code-blocks of an image, in bytes for each pixel.
_JPEG_2000_PIXEL_BYTES = 32
# Decoders of libjpeg-turbo, CharLS and OpenJPEG.
_DECODERS: Mapping[str, Decode] = {
    **dict.fromkeys(JPEG, imagecodecs.jpeg8_decode),
    **dict.fromkeys(JPEG_LS, imagecodecs.jpegls_decode),
    **dict.fromkeys(JPEG_2000, imagecodecs.jpeg2k_decode),
}
_KEYWORDS = [
    "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored",
    "HighBit", "PixelRepresentation", "PlanarConfiguration", "PixelData", "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths", "FloatPixelData", "DoubleFloatPixelData",
]  # fmt: skip
# Encapsulated pixel data begin with it (PS3.5 A.4).
_ITEM_TAG = b"\xfe\xff\x00\xe0"
_BITS_ALLOCATED = (8, 16, 32)


@dataclass(frozen=True)
class _Frame:
    """A frame before its values are taken from the stored bits.

    Attributes:
        decode: Returns the stored bits of each pixel, shape (rows, columns).
        bits: Number of bits of each pixel that are stored in the file: BitsAllocated, or those of the codestream.
    """

    decode: Callable[[], NDArray[np.integer]]
    bits: int


def check_decodable(instance: Instance) -> None:
    """Checks that there is a decoder for an instance's transfer syntax and bit depth.

    Raises:
        UnsupportedTransferSyntax: There is none; the message names the transfer syntax.
    """
    syntax = instance.transfer_syntax_uid
    check_transfer_syntax(syntax)
    bits_stored = instance.pixels.bits_stored
    if syntax in JPEG_2000 and bits_stored > _MAX_BITS_JPEG_2000:
        raise UnsupportedTransferSyntax(
            f"{uid.UID(syntax).name} is decoded up to {_MAX_BITS_JPEG_2000} bits, and the series has {bits_stored}: "
            "send it in another transfer syntax"
        )


def decoder_bytes(instance: Instance) -> int:
    """Memory that a decoder takes for one frame beside the decoded pixels; 0 where it is little."""
    pixels = instance.pixels.rows * instance.pixels.columns
    return pixels * _JPEG_2000_PIXEL_BYTES if instance.transfer_syntax_uid in JPEG_2000 else 0


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


def _decode(frame: _Frame, instance: Instance) -> NDArray[np.integer]:
    description = instance.pixels
    with map_pydicom_errors():
        pixels = take_values(frame.decode(), frame.bits, description)
    if pixels.shape != (description.rows, description.columns):
        raise InputCorrupt(
            f"a DICOM file's header states {description.rows} × {description.columns} pixels, but its pixel data have "
            "another size"
        )
    return pixels


def _read_encoded(instance: Instance) -> Iterator[_Frame]:
    with BoundedFile(instance.path) as file:
        dataset = pydicom.dcmread(file, force=True, specific_tags=list(_KEYWORDS))
    _check_pixels(dataset, instance)
    description = instance.pixels
    _prepare(dataset, instance)
    syntax = instance.transfer_syntax_uid
    if syntax in _READ_BY_PYDICOM:
        if syntax in NATIVE:
            _check_length(dataset, instance)
        frames = get_decoder(syntax).iter_array(
            dataset, raw=True, correct_unused_bits=False, decoding_plugin="" if syntax in NATIVE else "pydicom"
        )
        for pixels, _ in frames:
            # As the loop goes on, `pixels` becomes the next frame: it must not be bound late.
            yield _Frame(partial(np.asarray, pixels), description.bits_allocated)
        return
    expected = (description.rows, description.columns, 1)
    for encoded in generate_frames(dataset.PixelData, number_of_frames=len(instance.frames)):
        # The decoder gets the very bytes that are checked here, without any boxes around them.
        data = jpeg_2000.unwrap(encoded) if syntax in JPEG_2000 else encoded
        header = read_codestream_header(data)
        # A decoder allocates the size that the codestream states, so that it must be the header's.
        if header is None or (header.rows, header.columns, header.components) != expected:
            raise InputCorrupt(
                f"a DICOM file's header states {expected[0]} × {expected[1]} pixels of one component, but its "
                "codestream states another size, or none"
            )
        if not 1 <= header.bits <= _MAX_BITS:
            raise InputCorrupt(
                f"a DICOM file's codestream states {header.bits} bits for each pixel: expected 1 to {_MAX_BITS}"
            )
        if syntax in JPEG_2000:
            _check_parts(data)
        if not is_complete(data):
            raise InputCorrupt("a DICOM file is truncated: a codestream has no end marker")
        yield _Frame(partial(_DECODERS[syntax], data), header.bits)


def _check_pixels(dataset: Dataset, instance: Instance) -> None:
    """Refuses pixel data of another kind than the header states."""
    syntax = uid.UID(instance.transfer_syntax_uid)
    for keyword in ("FloatPixelData", "DoubleFloatPixelData"):
        if keyword in dataset:
            raise UnsupportedFormat(f"a DICOM file has {keyword}: expected PixelData, which are integers")
    if "PixelData" not in dataset:
        raise InputCorrupt(NO_PIXELS)
    is_encapsulated = dataset.PixelData.startswith(_ITEM_TAG)
    if syntax in NATIVE and is_encapsulated and len(dataset.PixelData) > _native_bytes(instance) + 1:
        raise InputCorrupt(f"a DICOM file's pixel data are encapsulated, but its transfer syntax is {syntax.name}")
    if syntax not in NATIVE and not is_encapsulated:
        raise InputCorrupt(f"a DICOM file's pixel data are not encapsulated, but its transfer syntax is {syntax.name}")
    if syntax in NATIVE and instance.pixels.bits_allocated not in _BITS_ALLOCATED:
        raise UnsupportedFormat(
            f"a DICOM file's BitsAllocated is {instance.pixels.bits_allocated}: expected {_BITS_ALLOCATED} in pixels "
            "that are not compressed"
        )


def _native_bytes(instance: Instance) -> int:
    """Size of an instance's pixels where they are not compressed."""
    description = instance.pixels
    return len(instance.frames) * description.rows * description.columns * description.bits_allocated // 8


def _prepare(dataset: Dataset, instance: Instance) -> None:
    """Removes wrong offset tables, and sets the attributes of pixels to the values that `header` read."""
    description = instance.pixels
    dataset.add_new("NumberOfFrames", "IS", len(instance.frames))
    for keyword, value in (
        ("Rows", description.rows),
        ("Columns", description.columns),
        ("SamplesPerPixel", 1),
        ("BitsAllocated", description.bits_allocated),
        ("BitsStored", description.bits_stored),
        ("HighBit", description.high_bit),
        ("PixelRepresentation", int(description.signed)),
    ):
        dataset.add_new(keyword, "US", value)
    if instance.transfer_syntax_uid not in NATIVE:
        drop_wrong_offsets(dataset, len(instance.frames))


def _check_parts(codestream: bytes) -> None:
    """Refuses a JPEG 2000 codestream with more tiles or packets than a decoder has memory for."""
    for count, limit, parts in (
        (jpeg_2000.count_tiles, _MAX_TILES, "tiles"),
        (jpeg_2000.count_packets, _MAX_PACKETS, "packets"),
    ):
        found = count(codestream)
        if not found:
            raise InputCorrupt("a DICOM file's JPEG 2000 codestream has an invalid header")
        if found > limit:
            raise InputTooLarge(
                f"a DICOM file's codestream states {found} {parts}; this service decodes at most {limit}"
            )


def _check_length(dataset: Dataset, instance: Instance) -> None:
    got = len(dataset.PixelData)
    expected = _native_bytes(instance)
    if got < expected:
        raise InputCorrupt(f"a DICOM file is truncated: expected {expected} bytes of pixels, got {got}")
