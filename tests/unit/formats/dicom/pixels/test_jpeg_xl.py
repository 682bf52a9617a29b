"""JPEG XL: only codestreams of one frame of grey values reach the decoder, which gets no boxes around them."""

import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from dicom_encoders import JPEG_XL_LOSSLESS, JPEG_XL_LOSSY, JPEG_XL_RECOMPRESSION, jpeg_xl, set_codestream
from dicom_files import phantom, regular_stack, set_stored_values, write_series
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from inference_service.core.errors import (
    InputCorrupt,
    InputError,
    OutOfMemory,
    UnsupportedFormat,
    UnsupportedTransferSyntax,
)
from inference_service.core.report_warnings import WarningCode
from inference_service.formats.dicom.pixels import encoded_frames
from inference_service.formats.dicom.pixels.codestream import CodestreamHeader
from inference_service.formats.dicom.pixels.jpeg_xl import read_header, unwrap
from inference_service.formats.read_limits import ReadLimits
from inference_service.formats.scan_reader import Scan, read_scan

Read = Callable[..., Scan]

ROWS, COLUMNS = 36, 40
GREY = (phantom((COLUMNS, ROWS, 3))[:, :, 1].T + 1024).astype(np.uint16)
NOISE = np.random.default_rng(3).integers(0, 2**12, (77, 131), dtype=np.uint16)


def write(folder: Path, syntax: str, codestream: bytes, *, dtype: str = "u2", bits: int = 12) -> Path:
    """One series whose slices all have this codestream."""

    def change(k: int, dataset: Dataset) -> None:
        set_stored_values(dataset, np.zeros((ROWS, COLUMNS), dtype), bits=bits)
        dataset.RescaleIntercept = 0

    for path in write_series(folder, regular_stack(phantom((COLUMNS, ROWS, 3))), change=change):
        set_codestream(path, syntax, codestream)
    return folder


def boxes(*contents: tuple[bytes, bytes]) -> bytes:
    """A file of boxes of these kinds and contents."""
    signature = b"\0\0\0\x0cJXL \r\n\x87\n"
    return signature + b"".join(struct.pack(">I", 8 + len(content)) + kind + content for kind, content in contents)


class HeaderBits:
    """Writes the headers of a codestream bit by bit, from the lowest to the highest of each byte."""

    def __init__(self) -> None:
        self.bits: list[int] = []

    def add(self, *fields: tuple[int, int]) -> "HeaderBits":
        """Adds integers, each as (value, number of bits)."""
        for value, count in fields:
            self.bits += [value >> place & 1 for place in range(count)]
        return self

    def align(self) -> "HeaderBits":
        self.bits += [0] * (-len(self.bits) % 8)
        return self

    def to_bytes(self) -> bytes:
        return b"\xff\x0a" + np.packbits(self.bits, bitorder="little").tobytes() + bytes(20)


def plain_headers(
    *, image: tuple[tuple[int, int], ...] = ((0, 1), (0, 1)), frame: tuple[tuple[int, int], ...]
) -> bytes:
    """The headers of a lossless image of 36 × 40 pixels of 12 bits.

    Args:
        image: The first fields of the metadata: whether all others are the default, and whether there are extra ones.
        frame: The fields of the frame header.
    """
    header = HeaderBits().add((0, 1), (0, 2), (ROWS - 1, 9), (0, 3), (0, 2), (COLUMNS - 1, 9), *image)
    # Integers of 12 bits, no extra channels, no XYB.
    header.add((0, 1), (2, 2), (1, 1), (0, 2), (0, 1))
    # Grey, white point D65, linear, relative.
    header.add((0, 1), (0, 1), (1, 2), (1, 2), (0, 1), (2, 2), (6, 4), (1, 2))
    return header.add((0, 2), (1, 1)).align().add(*frame).to_bytes()


# Not default, regular, modular, no flags, no YCbCr, no upsampling, group size, one pass.
FRAME_START = ((0, 1), (0, 2), (1, 1), (0, 2), (0, 1), (0, 2), (1, 2), (0, 2))
# No size of its own, replaces, the last.
FRAME_END = ((0, 1), (0, 2), (1, 1))


@pytest.mark.parametrize("bits", [8, 9, 10, 12, 13, 16])
@pytest.mark.parametrize("effort", [1, 3, 7])
def test_headers_of_lossless_codestreams_are_read(bits: int, effort: int) -> None:
    dtype = np.uint8 if bits == 8 else np.uint16
    for pixels in (NOISE, GREY, np.kron(GREY, np.ones((13, 9), np.uint16)), np.zeros((1, 3000), np.uint16)):
        stored = np.ascontiguousarray(pixels & (2**bits - 1)).astype(dtype)
        for container in (False, True):
            packed = bytes(imagecodecs.jpegxl_encode(stored, effort=effort, bitspersample=bits, usecontainer=container))
            assert read_header(unwrap(packed)) == CodestreamHeader(stored.shape[0], stored.shape[1], 1, bits)
            np.testing.assert_array_equal(imagecodecs.jpegxl_decode(unwrap(packed)), stored)


@pytest.mark.parametrize("distance", [0.3, 1, 8])
@pytest.mark.parametrize("speed", [0, 4])
@pytest.mark.parametrize("pixels", [NOISE, GREY, np.kron(GREY, np.ones((13, 9), np.uint16))])
def test_headers_of_lossy_codestreams_are_read(pixels: NDArray[np.uint16], distance: float, speed: int) -> None:
    packed = bytes(imagecodecs.jpegxl_encode(pixels, distance=distance, decodingspeed=speed, bitspersample=12))
    assert read_header(unwrap(packed)) == CodestreamHeader(pixels.shape[0], pixels.shape[1], 1, 12)


def test_a_codestream_may_be_split_into_boxes() -> None:
    packed = jpeg_xl(GREY, 12)
    whole = boxes((b"ftyp", b"jxl "), (b"jxlc", packed), (b"Exif", bytes(9)))
    parts = boxes((b"jxlp", b"\0\0\0\0" + packed[:30]), (b"brob", b"x"), (b"jxlp", b"\x80\0\0\1" + packed[30:]))
    endless = boxes() + b"\0\0\0\0jxlc" + packed
    wide = boxes() + b"\0\0\0\1jxlc" + struct.pack(">Q", 16 + len(packed)) + packed
    assert {unwrap(each) for each in (packed, whole, parts, endless, wide)} == {packed}
    assert unwrap(boxes() + b"\0\0\0\2jxlc") == b""


def test_pixels_are_read_from_boxes(tmp_path: Path, read: Read) -> None:
    packed = boxes((b"ftyp", b"jxl "), (b"jxlc", jpeg_xl(GREY, 12)))
    scan = read(write(tmp_path / "in", JPEG_XL_LOSSLESS, packed))
    np.testing.assert_array_equal(scan.volume.voxels[:, :, 1].T, GREY)


def test_the_headers_of_these_tests_are_read() -> None:
    expected = CodestreamHeader(ROWS, COLUMNS, 1, 12)
    assert read_header(plain_headers(frame=FRAME_START + FRAME_END)) == expected
    assert read_header(plain_headers(frame=((1, 1),))) == expected
    # Three passes, two downsamplings.
    passes = (*FRAME_START[:-1], (2, 2), (2, 2), (0, 4), (0, 4), (3, 2), (1, 3), (0, 2))
    assert read_header(plain_headers(frame=passes + FRAME_END)) == expected


@pytest.mark.parametrize(
    "codestream",
    [
        imagecodecs.jpegxl_encode(np.zeros((ROWS, COLUMNS, 3), np.uint8)),
        imagecodecs.jpegxl_encode(np.zeros((ROWS, COLUMNS, 2), np.uint8)),
        imagecodecs.jpegxl_encode(np.zeros((4, ROWS, COLUMNS), np.uint16), photometric="gray"),
        imagecodecs.jpegxl_encode(np.zeros((4, ROWS, COLUMNS), np.uint16), photometric="gray", planar=True),
        imagecodecs.jpegxl_encode(np.zeros((ROWS, COLUMNS), np.float32)),
        plain_headers(image=((0, 1), (1, 1), (5, 3), (0, 3)), frame=FRAME_START + FRAME_END),
        plain_headers(image=((0, 1), (1, 1), (0, 3), (4, 3)), frame=FRAME_START + FRAME_END),
        # The frame has a size of its own, of 2**30 × 2**30 pixels.
        plain_headers(frame=(*FRAME_START, (1, 1), (0, 10), (0, 10), *((3, 2), (2**30 - 1, 30)) * 2, (0, 2), (1, 1))),
        plain_headers(frame=(*FRAME_START, (0, 1), (0, 2), (0, 1))),
        plain_headers(frame=(*FRAME_START, (0, 1), (1, 2), (0, 2), (1, 1))),
        plain_headers(frame=((0, 1), (2, 2), *FRAME_START[2:], *FRAME_END)),
        # Splines.
        plain_headers(frame=((0, 1), (0, 2), (1, 1), (1, 2), (15, 4), *FRAME_START[4:], *FRAME_END)),
    ],
    ids=[
        "colours", "alpha", "animation", "planes", "floats", "rotation", "animation of no frame", "own size",
        "not the last", "blended", "reference", "splines",
    ],
)  # fmt: skip
def test_other_images_are_refused_before_they_are_decoded(
    tmp_path: Path, read: Read, codestream: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(data: bytes) -> NDArray[np.integer]:
        raise AssertionError("decoded")

    monkeypatch.setitem(vars(encoded_frames)["DECODERS"], JPEG_XL_LOSSLESS, fail)
    with pytest.raises(UnsupportedFormat, match="expected one frame of grey values"):
        read(write(tmp_path / "in", JPEG_XL_LOSSLESS, bytes(codestream)))


def test_another_size_is_refused_before_it_is_decoded(tmp_path: Path, read: Read) -> None:
    large = HeaderBits().add((0, 1), (3, 2), (2**30 - 1, 30), (1, 3)).to_bytes()
    with pytest.raises(InputError, match="codestream"):
        read(write(tmp_path / "in", JPEG_XL_LOSSLESS, large))
    with pytest.raises(InputCorrupt, match="another size"):
        read(write(tmp_path / "in", JPEG_XL_LOSSLESS, jpeg_xl(GREY[:-1], 12)))


@pytest.mark.parametrize("syntax", [JPEG_XL_LOSSLESS, JPEG_XL_LOSSY])
def test_a_truncated_codestream_is_refused(tmp_path: Path, read: Read, syntax: str) -> None:
    packed = jpeg_xl(NOISE[:ROWS, :COLUMNS], 12)
    assert read(write(tmp_path / "in", syntax, packed)).volume.voxels.max() > 4000
    for share in (0.99, 0.7, 0.2, 0.004):
        with pytest.raises(InputCorrupt):
            read(write(tmp_path / "in", syntax, packed[: int(share * len(packed))]))


def test_lossy_values_are_near_the_original(tmp_path: Path, read: Read) -> None:
    smooth = np.add.outer(np.arange(ROWS) * 50, np.arange(COLUMNS) * 40).astype(np.uint16)
    packed = bytes(imagecodecs.jpegxl_encode(smooth, distance=0.5, bitspersample=12))
    scan = read(write(tmp_path / "in", JPEG_XL_LOSSY, packed))
    np.testing.assert_allclose(scan.volume.voxels[:, :, 1].T.astype(np.int32), smooth, atol=40)


def test_a_recompressed_jpeg_is_near_the_jpeg(tmp_path: Path, read: Read) -> None:
    """libjxl rounds coefficients otherwise than a JPEG decoder."""
    jpeg = imagecodecs.jpeg8_encode(np.ascontiguousarray(GREY // 16, dtype=np.uint8), level=95)
    packed = bytes(imagecodecs.jpegxl_encode_jpeg(jpeg))
    scan = read(write(tmp_path / "in", JPEG_XL_RECOMPRESSION, packed, dtype="u1", bits=8))
    np.testing.assert_allclose(scan.volume.voxels[:, :, 1].T.astype(np.int32), imagecodecs.jpeg8_decode(jpeg), atol=2)
    assert WarningCode.LOSSY_COMPRESSION in {warning.code for warning in scan.warnings}


def test_signed_pixels_are_refused_where_encoders_differ(tmp_path: Path, read: Read) -> None:
    folder = write(tmp_path / "in", JPEG_XL_LOSSY, jpeg_xl(GREY, 12), dtype="i2")
    with pytest.raises(UnsupportedTransferSyntax, match="signed pixels in JPEG XL are not decoded"):
        read(folder)


def test_more_than_16_bits_are_refused(tmp_path: Path, read: Read) -> None:
    folder = write(tmp_path / "in", JPEG_XL_LOSSLESS, jpeg_xl(GREY, 12), dtype="u4", bits=20)
    with pytest.raises(UnsupportedTransferSyntax, match="JPEG XL Lossless is decoded up to 16 bits, and the series"):
        read(folder)


def test_the_decoders_memory_is_required(tmp_path: Path) -> None:
    """Per thread, beside the voxels and the file."""
    folder = write(tmp_path / "in", JPEG_XL_LOSSLESS, jpeg_xl(GREY, 12))
    required: list[int] = []
    read_scan(folder, tmp_path, ReadLimits(10**7, 10**8, required.append))
    assert max(required) >= ROWS * COLUMNS * (3 * 2 + 16)

    def refuse(size: int) -> None:
        if size > ROWS * COLUMNS * 16:
            raise OutOfMemory("too much")

    with pytest.raises(OutOfMemory):
        read_scan(folder, tmp_path, ReadLimits(10**7, 10**8, refuse))


@given(st.binary(max_size=60), st.integers(0, 60))
def test_any_header_is_read_or_refused(data: bytes, kept: int) -> None:
    packed = plain_headers(frame=FRAME_START + FRAME_END)
    with suppress(InputError):
        read_header(b"\xff\x0a" + data)
    with suppress(InputError):
        read_header(packed[:kept] + data)
    assert len(unwrap(boxes() + data)) <= len(data)
