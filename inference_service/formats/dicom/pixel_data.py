"""The pixels of DICOM files: stored values, frame by frame, out of every transfer syntax that a decoder is here for."""

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import imagecodecs
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.pixels.decoders.base import get_decoder

from inference_service.core.errors import InputCorrupt, UnsupportedTransferSyntax
from inference_service.formats.dicom.codestream import Size, codestream_size, is_ended
from inference_service.formats.dicom.header import quietly, reading_errors
from inference_service.formats.dicom.image import Image, Layout
from inference_service.formats.read_limits import RequireMemory

Decode = Callable[[bytes], NDArray[np.integer]]

# Pixels as they are, or packed byte by byte, which pydicom reads by itself.
_PLAIN = {
    uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.DeflatedExplicitVRLittleEndian, uid.ExplicitVRBigEndian,
}  # fmt: skip
_BYTEWISE = {*_PLAIN, uid.RLELossless}
_JPEG_2000 = {uid.JPEG2000Lossless, uid.JPEG2000, uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K}
# OpenJPEG's own arithmetic is exact so far.
_MOST_BITS_OF_JPEG_2000 = 24
# libjpeg-turbo, CharLS and OpenJPEG.
_DECODERS: Mapping[str, Decode] = {
    **dict.fromkeys(
        (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1), imagecodecs.jpeg8_decode
    ),
    **dict.fromkeys((uid.JPEGLSLossless, uid.JPEGLSNearLossless), imagecodecs.jpegls_decode),
    **dict.fromkeys(_JPEG_2000, imagecodecs.jpeg2k_decode),
}
# Lossy by themselves, whatever their files say.
LOSSY = {uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLSNearLossless}
_TAGS = [
    "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored",
    "HighBit", "PixelRepresentation", "PlanarConfiguration", "PixelData", "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
]  # fmt: skip
_MOST_NAME_CHARACTERS = 64


def check_decodable(image: Image) -> None:
    """Makes sure that there is a decoder.

    Raises:
        UnsupportedTransferSyntax: There is none; the message says for what.
    """
    syntax = image.transfer_syntax
    if syntax not in _BYTEWISE and syntax not in _DECODERS:
        known = uid.UID(syntax).name
        name = known if known != syntax else re.sub(r"[^0-9.]", "?", syntax)[:_MOST_NAME_CHARACTERS]
        raise UnsupportedTransferSyntax(f"there is no decoder for {name}")
    if syntax in _JPEG_2000 and image.layout.bits_stored > _MOST_BITS_OF_JPEG_2000:
        raise UnsupportedTransferSyntax(
            f"there is no decoder for {uid.UID(syntax).name} of {image.layout.bits_stored} bits, "
            f"but of up to {_MOST_BITS_OF_JPEG_2000}"
        )


def read_frames(image: Image, *, require_memory: RequireMemory) -> Iterator[Callable[[], NDArray[np.integer]]]:
    """Reads a file's frames in their order, and leaves it to the caller when and in which thread they are decoded.

    Args:
        image: Checked by `check_decodable`.
        require_memory: Told how many bytes are about to be taken besides the frames.

    Yields:
        What gives stored values, shape (rows, columns), or raises InputCorrupt.

    Raises:
        InputCorrupt: The pixels are truncated or damaged, or not of the size that the file states.
    """
    # A deflated file is there twice for a moment.
    require_memory(max(image.path.stat().st_size, 2 * image.expanded_bytes))
    frames = _frames(image)
    for _ in image.planes:
        with quietly(), reading_errors():
            frame = next(frames, None)
        if frame is None:
            raise InputCorrupt("a DICOM file has fewer frames than it states")
        yield partial(_decode, frame, image)


def _decode(frame: bytes | NDArray[np.integer], image: Image) -> NDArray[np.integer]:
    layout = image.layout
    with reading_errors():
        if isinstance(frame, bytes):
            pixels = _with_sign(_DECODERS[image.transfer_syntax](frame), layout)
        else:
            pixels = _used_bits(frame, layout)
    if pixels.shape != (layout.rows, layout.columns):
        raise InputCorrupt("a DICOM file's pixels are not of the size that it states")
    return pixels


def _frames(image: Image) -> Iterator[bytes | NDArray[np.integer]]:
    """Codestreams, or pixels where there are none."""
    dataset = pydicom.dcmread(image.path, force=True, specific_tags=list(_TAGS))
    if "PixelData" not in dataset:
        raise InputCorrupt("a DICOM file has no pixels")
    layout, syntax = image.layout, image.transfer_syntax
    if syntax in _BYTEWISE:
        if syntax in _PLAIN:
            _check_length(dataset, image)
        frames = get_decoder(syntax).iter_array(
            dataset, raw=True, correct_unused_bits=False, decoding_plugin="" if syntax in _PLAIN else "pydicom"
        )
        yield from (pixels for pixels, _ in frames)
        return
    for data in generate_frames(dataset.PixelData, number_of_frames=len(image.planes)):
        # Decoders allocate what the codestream says, so it must say what the file does.
        if codestream_size(data) != Size(layout.rows, layout.columns, 1):
            raise InputCorrupt(
                "a DICOM file's compressed pixels are not what it states: "
                f"{layout.rows} × {layout.columns} of one component"
            )
        if not is_ended(data):
            raise InputCorrupt("a DICOM file's compressed pixels are truncated")
        yield data


def _check_length(dataset: Dataset, image: Image) -> None:
    layout, got = image.layout, len(dataset.PixelData)
    expected = len(image.planes) * layout.rows * layout.columns * layout.bits_allocated // 8
    if got < expected:
        raise InputCorrupt(f"a DICOM file is truncated: expected {expected} bytes of pixels, got {got}")


def _used_bits(pixels: NDArray[np.integer], layout: Layout) -> NDArray[np.integer]:
    """Without the bits above and below the value, where old files keep overlays; the sign bit drawn out.

    Padding is left as it is.
    """
    above = layout.bits_allocated - 1 - layout.high_bit
    below = layout.bits_allocated - layout.bits_stored
    if below == 0:
        return pixels
    used = (pixels << above) >> below
    if layout.padding is not None:
        # Padding may be a value that the bits stored could not hold.
        where = (pixels >= layout.padding[0]) & (pixels <= layout.padding[1])
        used[where] = pixels[where]
    return used


def _with_sign(pixels: NDArray[np.integer], layout: Layout) -> NDArray[np.integer]:
    """What a decoder made of bits that may have a sign of which their codestream does not know, or the other way."""
    if np.issubdtype(pixels.dtype, np.signedinteger) == layout.signed:
        return pixels
    unused = 32 - layout.bits_stored
    return (pixels.astype(np.int32 if layout.signed else np.uint32) << unused) >> unused
