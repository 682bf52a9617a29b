"""Compresses DICOM files for tests, where possible with other libraries than the service decodes them with."""

import zlib
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    HTJ2K,
    UID,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

# pydicom has no names for most of them.
JPEG_XL_LOSSLESS = UID("1.2.840.10008.1.2.4.110")
JPEG_XL_RECOMPRESSION = UID("1.2.840.10008.1.2.4.111")
JPEG_XL_LOSSY = UID("1.2.840.10008.1.2.4.112")
UNCOMPRESSED_FRAMES = UID("1.2.840.10008.1.2.1.98")
DEFLATED_FRAMES = UID("1.2.840.10008.1.2.8.1")


def jpeg_2000(pixels: NDArray[np.integer], bits: int) -> bytes:
    return bytes(imagecodecs.jpeg2k_encode(pixels, level=0, codecformat="J2K", reversible=True, bitspersample=bits))


def jpeg_lossless(pixels: NDArray[np.integer], bits: int) -> bytes:
    return bytes(imagecodecs.ljpeg_encode(as_unsigned(pixels, bits), bitspersample=bits))


def jpeg_ls(pixels: NDArray[np.integer], bits: int) -> bytes:
    return bytes(imagecodecs.jpegls_encode(as_unsigned(pixels, bits)))


def htj2k(pixels: NDArray[np.integer], bits: int) -> bytes:
    return bytes(imagecodecs.htj2k_encode(pixels))


def jpeg_xl(pixels: NDArray[np.integer], bits: int) -> bytes:
    return bytes(imagecodecs.jpegxl_encode(as_unsigned(pixels, bits), bitspersample=bits))


def uncompressed(pixels: NDArray[np.integer], bits: int) -> bytes:
    return pixels.tobytes()


def deflated(pixels: NDArray[np.integer], bits: int) -> bytes:
    return zlib.compress(pixels.tobytes(), wbits=-zlib.MAX_WBITS)


def as_unsigned(pixels: NDArray[np.integer], bits: int) -> NDArray[np.integer]:
    """The stored bits as unsigned values: JPEG and JPEG-LS codestreams have no sign."""
    dtype = np.dtype(f"u{pixels.dtype.itemsize}")
    unsigned: NDArray[np.integer] = np.bitwise_and(pixels.view(dtype), dtype.type(2**bits - 1))
    return unsigned


ENCODERS: dict[str, Callable[[NDArray[np.integer], int], bytes]] = {
    JPEGLossless: jpeg_lossless,
    JPEGLosslessSV1: jpeg_lossless,
    JPEGLSLossless: jpeg_ls,
    JPEG2000Lossless: jpeg_2000,
    HTJ2KLossless: htj2k,
    HTJ2KLosslessRPCL: htj2k,
    HTJ2K: htj2k,
    JPEG_XL_LOSSLESS: jpeg_xl,
    UNCOMPRESSED_FRAMES: uncompressed,
    DEFLATED_FRAMES: deflated,
}
COMPRESSED_SYNTAXES = [RLELossless, *ENCODERS]


def encode(path: Path, syntax: str) -> None:
    """Compresses a file in place."""
    dataset = pydicom.dcmread(path)
    if syntax == RLELossless:
        dataset.compress(RLELossless, encoding_plugin="pydicom", generate_instance_uid=False)
        dataset.save_as(path)
    else:
        set_codestream(path, syntax, ENCODERS[syntax](np.ascontiguousarray(dataset.pixel_array), dataset.BitsStored))


def set_codestream(path: Path, syntax: str, codestream: bytes) -> None:
    """Replaces the pixel data of a file by one codestream."""
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    dataset.PixelData = encapsulate([codestream])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    save_encoded(dataset, path)


def save_encoded(dataset: Dataset, path: Path) -> None:
    """Writes a data set with encapsulated pixels, also in a transfer syntax that pydicom does not know."""
    pydicom.dcmwrite(path, dataset, implicit_vr=False, little_endian=True, force_encoding=True)


def syntax_id(syntax: str) -> str:
    """Names a transfer syntax in the name of a test."""
    return UID(syntax).keyword or syntax
