"""Targets that read one frame of pixels: the header of its codestream, and the decoder of each transfer syntax."""

from contextlib import suppress
from functools import cache

import imagecodecs
import numpy as np
from dicom_encoders import (
    DEFLATED_FRAMES,
    JPEG_XL_LOSSLESS,
    JPEG_XL_LOSSY,
    JPEG_XL_RECOMPRESSION,
    UNCOMPRESSED_FRAMES,
    encode,
    save_encoded,
)
from dicom_files import phantom, regular_stack, write_series
from pydicom import dcmread, uid
from pydicom.encaps import encapsulate, generate_frames

from fuzz.target import Target, scratch_folder
from inference_service.core.errors import InputCorrupt, InputError
from inference_service.formats.dicom.instance import Frame, Instance, PixelDescription
from inference_service.formats.dicom.pixels import jpeg_xl
from inference_service.formats.dicom.pixels.codestream import CodestreamHeader, read_codestream_header
from inference_service.formats.dicom.pixels.decoder import check_decodable, read_frames

_SYNTAXES = (
    uid.RLELossless,
    uid.JPEGBaseline8Bit,
    uid.JPEGLosslessSV1,
    uid.JPEGLSLossless,
    uid.JPEG2000Lossless,
    uid.HTJ2KLossless,
    JPEG_XL_LOSSLESS,
    JPEG_XL_LOSSY,
    JPEG_XL_RECOMPRESSION,
    UNCOMPRESSED_FRAMES,
    DEFLATED_FRAMES,
)
# The first of these sizes that the codestream does not contradict.
_DEFAULT = CodestreamHeader(rows=6, columns=5, components=1, bits=16)
_MAX_PIXELS = 4096
_PIXEL_DATA_TAG = b"\xe0\x7f\x10\x00"
_ITEM_TAG = b"\xfe\xff\x00\xe0"
_END_OF_ITEMS = b"\xfe\xff\xdd\xe0\0\0\0\0"
_FRAME = Frame(0, (0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 1), 1, 0)


@cache
def _header(syntax: str) -> bytes:
    """A DICOM file up to its pixel data."""
    folder = scratch_folder() / f"header-{syntax}"
    (path, *_) = write_series(folder, regular_stack(phantom((5, 6, 1))))
    dataset = dcmread(path)
    dataset.file_meta.TransferSyntaxUID = uid.UID(syntax)
    dataset.PixelData = encapsulate([b"\0\0"])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    save_encoded(dataset, path)
    content = path.read_bytes()
    return content[: content.rindex(_PIXEL_DATA_TAG) + 12]


def _decode(data: bytes) -> None:
    """Decodes a frame. The first two bytes choose the transfer syntax and the format of the pixels."""
    syntax = _SYNTAXES[data[0] % len(_SYNTAXES)] if data else _SYNTAXES[0]
    form = data[1] if len(data) > 1 else 0
    codestream = data[2:]
    stated = _stated_header(codestream)
    # A small image has the size that its codestream states, so that the decoder is reached.
    small = stated is not None and 0 < stated.rows * stated.columns <= _MAX_PIXELS
    size = stated if stated is not None and small else _DEFAULT
    bits = 8 if form & 1 else 16
    path = scratch_folder() / "frame"
    items = _item(b"") + _item(codestream) + _END_OF_ITEMS
    path.write_bytes(_with_size(_header(syntax), size, bits) + items)
    description = PixelDescription(size.rows, size.columns, bits, bits, bits - 1, bool(form & 2), None)
    instance = Instance(path, "", "1.2", "1.2", "", "CT", syntax, False, False, None, description, (_FRAME,), None)
    check_decodable(instance)
    for decode in read_frames(instance, require_memory=lambda _: None):
        pixels = decode()
        assert pixels.shape == (size.rows, size.columns)
        assert np.issubdtype(pixels.dtype, np.integer)


def _stated_header(codestream: bytes) -> CodestreamHeader | None:
    """The header of a codestream of any kind; None where it is invalid."""
    with suppress(InputError):
        return jpeg_xl.read_header(jpeg_xl.unwrap(codestream)) or read_codestream_header(codestream)
    return None


def _item(content: bytes) -> bytes:
    """An item of encapsulated pixel data (PS3.5 A.4)."""
    return _ITEM_TAG + len(content).to_bytes(4, "little") + content


def _with_size(header: bytes, size: CodestreamHeader, bits: int) -> bytes:
    for element, value in ((0x10, size.rows), (0x11, size.columns), (0x100, bits), (0x101, bits), (0x102, bits - 1)):
        start = header.index(b"\x28\0" + element.to_bytes(2, "little") + b"US\x02\0") + 8
        header = header[:start] + (value & 0xFFFF).to_bytes(2, "little") + header[start + 2 :]
    return header


def _decode_seeds() -> list[bytes]:
    pixels = np.arange(30, dtype=np.uint8).reshape(6, 5)
    jpeg = imagecodecs.jpeg8_encode(pixels, level=95)
    lossy = imagecodecs.jpegxl_encode(pixels, distance=1.0, usecontainer=True)
    encoded = {
        uid.JPEGBaseline8Bit: jpeg,
        JPEG_XL_LOSSY: lossy,
        JPEG_XL_RECOMPRESSION: imagecodecs.jpegxl_encode_jpeg(jpeg),
    }
    seeds = []
    for number, syntax in enumerate(_SYNTAXES):
        if syntax in encoded:
            seeds.append(bytes([number, 1]) + bytes(encoded[syntax]))
            continue
        (path, *_) = write_series(scratch_folder() / f"seed-{syntax}", regular_stack(phantom((5, 6, 1))))
        encode(path, syntax)
        seeds.append(bytes([number, 0]) + next(generate_frames(dcmread(path).PixelData, number_of_frames=1)))
    return seeds


def _measure(data: bytes) -> None:
    headers = (read_codestream_header(data), jpeg_xl.read_header(jpeg_xl.unwrap(data)))
    if headers == (None, None):
        raise InputCorrupt("no codestream")


TARGETS = (
    Target("codestream", _measure, lambda: [seed[2:] for seed in _decode_seeds()]),
    Target("frame", _decode, _decode_seeds),
)
