"""Decodes the pixels of an instance, frame by frame, from every transfer syntax that there is a decoder for.

Values are as stored: rescaling and padding are left to `frame_stack`.
"""

import re
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
from inference_service.formats.dicom import jpeg_2000
from inference_service.formats.dicom.bounded_file import BoundedFile
from inference_service.formats.dicom.codestream import is_complete, read_codestream_header
from inference_service.formats.dicom.instance import Instance, PixelDescription
from inference_service.formats.dicom.offset_table import drop_wrong_offsets
from inference_service.formats.dicom.pydicom_errors import map_pydicom_errors, suppress_warnings

Decode = Callable[[bytes], NDArray[np.integer]]

# Native pixels, and run-length encoding of bytes: read by pydicom itself.
_NATIVE = {
    uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.DeflatedExplicitVRLittleEndian, uid.ExplicitVRBigEndian,
}  # fmt: skip
_READ_BY_PYDICOM = {*_NATIVE, uid.RLELossless}
_JPEG_2000 = {uid.JPEG2000Lossless, uid.JPEG2000, uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K}
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
    **dict.fromkeys(
        (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1), imagecodecs.jpeg8_decode
    ),
    **dict.fromkeys((uid.JPEGLSLossless, uid.JPEGLSNearLossless), imagecodecs.jpegls_decode),
    **dict.fromkeys(_JPEG_2000, imagecodecs.jpeg2k_decode),
}
NO_PIXELS = "a DICOM file ends before its pixel data: it is truncated, or no more than a header"
"""The sentence about an image without pixels."""
LOSSY_TRANSFER_SYNTAXES = {uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLSNearLossless}
"""Transfer syntaxes that always lose information, whatever LossyImageCompression says."""
_KEYWORDS = [
    "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored",
    "HighBit", "PixelRepresentation", "PlanarConfiguration", "PixelData", "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths", "FloatPixelData", "DoubleFloatPixelData",
]  # fmt: skip
_MAX_UID_CHARACTERS = 64
# With which encapsulated pixel data begin (PS3.5 A.4).
_ITEM_TAG = b"\xfe\xff\x00\xe0"
_BITS_ALLOCATED = (8, 16, 32)
# Transfer syntaxes that pydicom has no names for: newer ones, and private ones of scanners and archives.
_SYNTAX_NAMES = {
    "1.2.840.10008.1.2.4.110": "JPEG XL Lossless",
    "1.2.840.10008.1.2.4.111": "JPEG XL JPEG Recompression",
    "1.2.840.10008.1.2.4.112": "JPEG XL",
    "1.2.840.10008.1.2.8.1": "Deflated Image Frame Compression",
    "1.2.840.113619.5.2": "GE Implicit VR Big Endian (private)",
    "1.3.46.670589.33.1.4.1": "Philips CT Explicit VR Little Endian (private)",
}


@dataclass(frozen=True)
class _Frame:
    """A frame before its values are taken from the stored bits.

    Attributes:
        decode: Returns the stored bits of each pixel, shape (rows, columns).
        bits: Number of bits of each pixel that are stored in the file: BitsAllocated, or those of the codestream.
    """

    decode: Callable[[], NDArray[np.integer]]
    bits: int


def check_transfer_syntax(syntax: str) -> None:
    """Raises UnsupportedTransferSyntax, with the name of the transfer syntax, if there is no decoder for it."""
    if syntax in _READ_BY_PYDICOM or syntax in _DECODERS:
        return
    name = _SYNTAX_NAMES.get(syntax, uid.UID(syntax).name)
    if name == syntax:
        # A UID that nobody knows may be any text.
        name = re.sub(r"[^0-9.]", "?", syntax)[:_MAX_UID_CHARACTERS]
    raise UnsupportedTransferSyntax(
        f"there is no decoder for the transfer syntax {name}: send the series in another one, such as Explicit VR "
        "Little Endian"
    )


def check_decodable(instance: Instance) -> None:
    """Checks that there is a decoder for an instance's transfer syntax and bit depth.

    Raises:
        UnsupportedTransferSyntax: There is none; the message names the transfer syntax.
    """
    syntax = instance.transfer_syntax_uid
    check_transfer_syntax(syntax)
    bits_stored = instance.pixels.bits_stored
    if syntax in _JPEG_2000 and bits_stored > _MAX_BITS_JPEG_2000:
        raise UnsupportedTransferSyntax(
            f"{uid.UID(syntax).name} is decoded up to {_MAX_BITS_JPEG_2000} bits, and the series has {bits_stored}: "
            "send it in another transfer syntax"
        )


def decoder_bytes(instance: Instance) -> int:
    """Memory that a decoder takes for one frame beside the decoded pixels; 0 where it is little."""
    pixels = instance.pixels.rows * instance.pixels.columns
    return pixels * _JPEG_2000_PIXEL_BYTES if instance.transfer_syntax_uid in _JPEG_2000 else 0


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
        pixels = _take_values(frame.decode(), frame.bits, description)
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
        if syntax in _NATIVE:
            _check_length(dataset, instance)
        frames = get_decoder(syntax).iter_array(
            dataset, raw=True, correct_unused_bits=False, decoding_plugin="" if syntax in _NATIVE else "pydicom"
        )
        for pixels, _ in frames:
            # As the loop goes on, `pixels` becomes the next frame: it must not be bound late.
            yield _Frame(partial(np.asarray, pixels), description.bits_allocated)
        return
    expected = (description.rows, description.columns, 1)
    for encoded in generate_frames(dataset.PixelData, number_of_frames=len(instance.frames)):
        # The decoder gets the very bytes that are checked here, without any boxes around them.
        data = jpeg_2000.unwrap(encoded) if syntax in _JPEG_2000 else encoded
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
        if syntax in _JPEG_2000:
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
    if syntax in _NATIVE and is_encapsulated and len(dataset.PixelData) > _native_bytes(instance) + 1:
        raise InputCorrupt(f"a DICOM file's pixel data are encapsulated, but its transfer syntax is {syntax.name}")
    if syntax not in _NATIVE and not is_encapsulated:
        raise InputCorrupt(f"a DICOM file's pixel data are not encapsulated, but its transfer syntax is {syntax.name}")
    if syntax in _NATIVE and instance.pixels.bits_allocated not in _BITS_ALLOCATED:
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
    if instance.transfer_syntax_uid not in _NATIVE:
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


def _take_values(words: NDArray[np.integer], bits: int, description: PixelDescription) -> NDArray[np.integer]:
    """Takes the values from stored bits: clears those above the value, and extends its sign (PS3.5 8.1.1).

    The bits above may hold overlays. Padding values stay as they are: the stored bits need not be able to hold them.

    Args:
        words: The stored bits, in integers whose own sign does not matter: a codestream may contradict
            PixelRepresentation, and JPEG has no sign.
        bits: Number of bits that are stored in the file.
        description: The header.

    Raises:
        InputCorrupt: HighBit contradicts BitsStored, and bits that would be cleared are in use.
    """
    value_bits = min(bits, description.bits_stored)
    has_sign = np.issubdtype(words.dtype, np.signedinteger)
    if value_bits == bits and has_sign == description.signed:
        return words
    words = _extend(words, bits, signed=description.signed)
    values = _extend(words, value_bits, signed=description.signed)
    if description.padding_range is not None:
        lowest, highest = description.padding_range
        is_padding = (words >= lowest) & (words <= highest)
        values[is_padding] = words[is_padding]
    if description.high_bit != description.bits_stored - 1:
        _check_place(words, values, description)
    return values


def _extend(words: NDArray[np.integer], bits: int, *, signed: bool) -> NDArray[np.integer]:
    """The lowest bits of integers, as signed or unsigned numbers of the same size."""
    dtype = np.dtype(f"{'i' if signed else 'u'}{words.dtype.itemsize}")
    unused_bits = max(0, 8 * dtype.itemsize - bits)
    native = words.astype(words.dtype.newbyteorder("="), copy=False).view(dtype)
    return (native << unused_bits) >> unused_bits


def _check_place(words: NDArray[np.integer], values: NDArray[np.integer], description: PixelDescription) -> None:
    """Refuses pixels that may hold their values up to HighBit, where that is not the highest of the lowest BitsStored.

    Old editions of the standard allow it. Most headers of this kind are wrong, and the values are in the lowest bits.
    """
    low_bits = 2 ** (description.high_bit + 1 - description.bits_stored) - 1
    fits = (words == values) | (words == values & (2**description.bits_stored - 1))
    if not fits.all() or (words.any() and not (words & low_bits).any()):
        raise InputCorrupt(
            f"a DICOM file's HighBit is {description.high_bit} with a BitsStored of {description.bits_stored}: "
            f"expected {description.bits_stored - 1}, and its pixels do not show which bits hold the value"
        )
