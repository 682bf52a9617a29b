"""Takes the frames of an instance out of its pixel data, each with the function that decodes it.

What a frame states of its own size is compared with the header before a decoder allocates it.
"""

import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.pixels.decoders.base import get_decoder

from inference_service.core.errors import InputCorrupt, InputTooLarge
from inference_service.formats.dicom.instance import Instance, PixelDescription
from inference_service.formats.dicom.pixels import jpeg_2000, jpeg_xl
from inference_service.formats.dicom.pixels.codestream import CodestreamHeader, is_complete, read_codestream_header
from inference_service.formats.dicom.pixels.offset_table import drop_wrong_offsets
from inference_service.formats.dicom.transfer_syntax import (
    BYTE_FRAMES,
    DEFLATED_FRAMES,
    JPEG,
    JPEG_2000,
    JPEG_LS,
    JPEG_XL,
    NATIVE,
)

Decode = Callable[[bytes], NDArray[np.integer]]

# Decoders of libjpeg-turbo, CharLS, OpenJPEG and libjxl.
DECODERS: Mapping[str, Decode] = {
    **dict.fromkeys(JPEG, imagecodecs.jpeg8_decode),
    **dict.fromkeys(JPEG_LS, imagecodecs.jpegls_decode),
    **dict.fromkeys(JPEG_2000, imagecodecs.jpeg2k_decode),
    **dict.fromkeys(JPEG_XL, partial(imagecodecs.jpegxl_decode, index=0, numthreads=1)),
}
"""Decoder of a codestream by transfer syntax."""
# In big endian, pairs of bytes may be swapped.
_READ_BY_PYDICOM = {uid.ExplicitVRBigEndian, uid.RLELossless}
_WITH_END_MARKERS = {*JPEG, *JPEG_LS, *JPEG_2000}
_MAX_BITS = 32
# OpenJPEG takes ten kilobytes for each tile, and up to one for each packet. Most images have one tile and few packets.
_MAX_TILES = 2**10
_MAX_PACKETS = 2**18


@dataclass(frozen=True)
class EncodedFrame:
    """A frame before its values are taken from the stored bits.

    Attributes:
        decode: Returns the stored bits of each pixel, shape (rows, columns).
        bits: Number of bits of each pixel that are stored in the file: BitsAllocated, or those of the codestream.
    """

    decode: Callable[[], NDArray[np.integer]]
    bits: int


def encoded_frames(dataset: Dataset, instance: Instance) -> Iterator[EncodedFrame]:
    """The frames of an instance, in their order.

    Args:
        dataset: Has the instance's pixel data, of the kind that its transfer syntax states; native ones are complete.
            Its offset tables may be removed.
        instance: The instance.

    Raises:
        InputCorrupt: A frame contradicts the header, or is truncated.
        InputTooLarge: A codestream has more parts than a decoder has memory for.
        UnsupportedFormat: A codestream is none of a DICOM frame.
    """
    syntax = instance.transfer_syntax_uid
    if syntax not in NATIVE:
        drop_wrong_offsets(dataset, len(instance.frames), with_end_markers=syntax in _WITH_END_MARKERS)
    if syntax in _READ_BY_PYDICOM:
        yield from _frames_of_pydicom(dataset, instance)
        return
    bits_allocated = instance.pixels.bits_allocated
    for data in _frame_data(dataset, instance):
        if syntax in NATIVE | BYTE_FRAMES:
            inflates = syntax == DEFLATED_FRAMES
            yield EncodedFrame(partial(_decode_bytes, data, instance.pixels, inflates=inflates), bits_allocated)
        else:
            yield _codestream_frame(data, instance)


def _frame_data(dataset: Dataset, instance: Instance) -> Iterator[bytes]:
    """The bytes of each frame."""
    pixel_data: bytes = dataset.PixelData
    count = len(instance.frames)
    if instance.transfer_syntax_uid not in NATIVE:
        yield from generate_frames(pixel_data, number_of_frames=count)
        return
    description = instance.pixels
    size = description.rows * description.columns * description.bits_allocated // 8
    for index in range(count):
        yield pixel_data[index * size : (index + 1) * size]


def _frames_of_pydicom(dataset: Dataset, instance: Instance) -> Iterator[EncodedFrame]:
    description = instance.pixels
    # pydicom reads them by the values that `header` read.
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
    syntax = instance.transfer_syntax_uid
    frames = get_decoder(syntax).iter_array(
        dataset, raw=True, correct_unused_bits=False, decoding_plugin="" if syntax in NATIVE else "pydicom"
    )
    for pixels, _ in frames:
        # As the loop goes on, `pixels` becomes the next frame: it must not be bound late.
        yield EncodedFrame(partial(np.asarray, pixels), description.bits_allocated)


def _decode_bytes(data: bytes, description: PixelDescription, *, inflates: bool) -> NDArray[np.integer]:
    """Native pixels, plain or deflated, in little endian."""
    item_bytes = description.bits_allocated // 8
    size = description.rows * description.columns * item_bytes
    # A byte may pad the frame to an even length.
    data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 2) if inflates else data
    if not size <= len(data) <= size + 1:
        relation = "more" if len(data) > size else f"{len(data)}: it is truncated or damaged"
        raise InputCorrupt(f"a DICOM file's frame has {size} bytes by the header, but its pixel data have {relation}")
    dtype = np.dtype(f"<{'i' if description.signed else 'u'}{item_bytes}")
    pixels = np.frombuffer(data, dtype, count=description.rows * description.columns)
    return pixels.reshape(description.rows, description.columns)


def _codestream_frame(encoded: bytes, instance: Instance) -> EncodedFrame:
    syntax = instance.transfer_syntax_uid
    expected = (instance.pixels.rows, instance.pixels.columns, 1)
    # The decoder gets the very bytes that are checked here, without any boxes around them.
    data, header = _read_header(encoded, syntax)
    # A decoder allocates the size that the codestream states, so that it must be the header's.
    if header is None or (header.rows, header.columns, header.components) != expected:
        raise InputCorrupt(
            f"a DICOM file's header states {expected[0]} × {expected[1]} pixels of one component, but its codestream "
            "states another size, or none"
        )
    if not 1 <= header.bits <= _MAX_BITS:
        raise InputCorrupt(
            f"a DICOM file's codestream states {header.bits} bits for each pixel: expected 1 to {_MAX_BITS}"
        )
    if syntax in JPEG_2000:
        _check_parts(data)
    # The decoder of JPEG XL reports missing data.
    if syntax in _WITH_END_MARKERS and not is_complete(data):
        raise InputCorrupt("a DICOM file is truncated: a codestream has no end marker")
    return EncodedFrame(partial(DECODERS[syntax], data), header.bits)


def _read_header(encoded: bytes, syntax: str) -> tuple[bytes, CodestreamHeader | None]:
    """The codestream without boxes around it, and its header."""
    if syntax in JPEG_XL:
        data = jpeg_xl.unwrap(encoded)
        return data, jpeg_xl.read_header(data)
    data = jpeg_2000.unwrap(encoded) if syntax in JPEG_2000 else encoded
    return data, read_codestream_header(data)


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
