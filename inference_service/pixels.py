"""The pixels of DICOM files: stored values, frame by frame, out of every transfer syntax that a decoder is here for."""

import re
from collections.abc import Callable, Iterator, Mapping

import gdcm
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.pixels.decoders.base import get_decoder

from inference_service.codestream import Size, codestream_size
from inference_service.dicom import reading_errors
from inference_service.errors import InputCorrupt, UnsupportedTransferSyntax
from inference_service.image import Image, Layout

Require = Callable[[int], None]

# Decoders write to standard error what they stumble over.
gdcm.Trace.WarningOff()
gdcm.Trace.ErrorOff()

_NATIVE = None
# Which decoder each transfer syntax is left to.
_DECODERS: Mapping[str, str | None] = {
    uid.ImplicitVRLittleEndian: _NATIVE,
    uid.ExplicitVRLittleEndian: _NATIVE,
    uid.DeflatedExplicitVRLittleEndian: _NATIVE,
    uid.ExplicitVRBigEndian: _NATIVE,
    uid.RLELossless: "pylibjpeg",
    uid.JPEGBaseline8Bit: "gdcm",
    uid.JPEGExtended12Bit: "gdcm",
    uid.JPEGLossless: "gdcm",
    uid.JPEGLosslessSV1: "gdcm",
    uid.JPEGLSLossless: "gdcm",
    uid.JPEGLSNearLossless: "gdcm",
    uid.JPEG2000Lossless: "pylibjpeg",
    uid.JPEG2000: "pylibjpeg",
    uid.HTJ2KLossless: "pylibjpeg",
    uid.HTJ2KLosslessRPCL: "pylibjpeg",
    uid.HTJ2K: "pylibjpeg",
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
    extended_12 = syntax == uid.JPEGExtended12Bit and image.layout.bits_stored > 8
    if syntax not in _DECODERS or extended_12:
        known = uid.UID(syntax).name
        name = known if known != syntax else re.sub(r"[^0-9.]", "?", syntax)[:_MOST_NAME_CHARACTERS]
        raise UnsupportedTransferSyntax(f"there is no decoder for {name}{' of 12 bits' if extended_12 else ''}")


def read_frames(image: Image, *, require: Require) -> Iterator[NDArray[np.integer]]:
    """Decodes a file's frames in their order.

    Args:
        image: Checked by `check_decodable`.
        require: Told how many bytes are about to be taken besides the frames.

    Yields:
        Stored values, shape (rows, columns), native byte order.

    Raises:
        InputCorrupt: The pixels are truncated or damaged, or not of the size that the file states.
    """
    require(image.path.stat().st_size)
    decoded = _decode(image)
    for _ in image.planes:
        with reading_errors():
            pixels = next(decoded, None)
        if pixels is None or pixels.shape != (image.layout.rows, image.layout.columns):
            raise InputCorrupt("a DICOM file's pixels are not of the number and size that it states")
        yield pixels


def _decode(image: Image) -> Iterator[NDArray[np.integer]]:
    dataset = pydicom.dcmread(image.path, force=True, specific_tags=list(_TAGS))
    if "PixelData" not in dataset:
        raise InputCorrupt("a DICOM file has no pixels")
    plugin = _DECODERS[image.transfer_syntax]
    # What a file holds as it is, or byte by byte, may have something in the bits that are not the value's.
    whole = plugin is _NATIVE or image.transfer_syntax == uid.RLELossless
    if plugin is _NATIVE:
        _check_length(dataset, image)
    elif not whole:
        _check_sizes(dataset, image)
    frames = get_decoder(image.transfer_syntax).iter_array(
        dataset, raw=True, decoding_plugin=plugin or "", correct_unused_bits=False
    )
    for pixels, _ in frames:
        yield _used_bits(pixels, image.layout) if whole else pixels


def _check_length(dataset: Dataset, image: Image) -> None:
    layout, got = image.layout, len(dataset.PixelData)
    expected = len(image.planes) * layout.rows * layout.columns * layout.bits_allocated // 8
    if got < expected:
        raise InputCorrupt(f"a DICOM file is truncated: expected {expected} bytes of pixels, got {got}")


def _check_sizes(dataset: Dataset, image: Image) -> None:
    """Decoders allocate what the codestream says, so it must say what the file does."""
    expected = Size(image.layout.rows, image.layout.columns, 1)
    for data in generate_frames(dataset.PixelData, number_of_frames=len(image.planes)):
        if codestream_size(data) != expected:
            raise InputCorrupt(
                f"a DICOM file's compressed pixels are not what it states: {expected.rows} × {expected.columns} of one "
                "component"
            )


def _used_bits(pixels: NDArray[np.integer], layout: Layout) -> NDArray[np.integer]:
    """Without the bits above and below the value, where old files keep overlays; the sign bit drawn out."""
    above = layout.bits_allocated - 1 - layout.high_bit
    below = layout.bits_allocated - layout.bits_stored
    return pixels if below == 0 else (pixels << above) >> below
