"""Compresses DICOM files, for tests, by other means than the service decodes them where there are any."""

from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.encaps import encapsulate
from pydicom.uid import (
    HTJ2K,
    UID,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)


def jpeg_2000(pixels: NDArray[np.integer], bits: int) -> bytes:
    return bytes(imagecodecs.jpeg2k_encode(pixels, level=0, codecformat="J2K", reversible=True, bitspersample=bits))


def jpeg_lossless(pixels: NDArray[np.integer], bits: int) -> bytes:
    return bytes(imagecodecs.ljpeg_encode(unsigned(pixels, bits), bitspersample=bits))


def jpeg_ls(pixels: NDArray[np.integer], bits: int) -> bytes:
    return bytes(imagecodecs.jpegls_encode(unsigned(pixels, bits)))


def htj2k(pixels: NDArray[np.integer], bits: int) -> bytes:
    return bytes(imagecodecs.htj2k_encode(pixels))


def unsigned(pixels: NDArray[np.integer], bits: int) -> NDArray[np.integer]:
    """The stored bits, as codestreams without a sign have them."""
    dtype = np.dtype(f"u{pixels.dtype.itemsize}")
    held: NDArray[np.integer] = np.bitwise_and(pixels.view(dtype), dtype.type(2**bits - 1))
    return held


ENCODERS: dict[str, Callable[[NDArray[np.integer], int], bytes]] = {
    "1.2.840.10008.1.2.4.57": jpeg_lossless,
    JPEGLosslessSV1: jpeg_lossless,
    JPEGLSLossless: jpeg_ls,
    JPEG2000Lossless: jpeg_2000,
    HTJ2KLossless: htj2k,
    HTJ2KLosslessRPCL: htj2k,
    HTJ2K: htj2k,
}
SYNTAXES = [RLELossless, *ENCODERS]


def encode(path: Path, syntax: str) -> None:
    """Compresses a file in place."""
    dataset = pydicom.dcmread(path)
    if syntax == RLELossless:
        dataset.compress(RLELossless, encoding_plugin="pydicom")
        dataset.save_as(path)
    else:
        encapsulated(path, syntax, ENCODERS[syntax](np.ascontiguousarray(dataset.pixel_array), dataset.BitsStored))


def encapsulated(path: Path, syntax: str, frame: bytes) -> None:
    """Puts one compressed frame into a file."""
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
    dataset.save_as(path)
