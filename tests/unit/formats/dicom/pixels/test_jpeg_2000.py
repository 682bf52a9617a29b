"""The parts that a JPEG 2000 codestream states are counted before a decoder allocates memory for them."""

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dicom_encoders import htj2k, jpeg_2000, set_codestream
from dicom_files import phantom, regular_stack, write_series
from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import JPEG2000Lossless

from inference_service.core.errors import InputCorrupt, InputTooLarge, OutOfMemory
from inference_service.formats.dicom.pixels import encoded_frames
from inference_service.formats.dicom.pixels.jpeg_2000 import START, count_packets, count_tiles, unwrap
from inference_service.formats.read_limits import ReadLimits
from inference_service.formats.scan_reader import Scan, read_scan

Read = Callable[..., Scan]
COMMENT = 0xFF64


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">HH", marker, len(content) + 2) + content


def coding_style(levels: int = 5, layers: int = 1, precincts: bytes = b"") -> bytes:
    return segment(0xFF52, struct.pack(">BBHBBBBBB", bool(precincts), 0, layers, 0, levels, 4, 4, 0, 1) + precincts)


def component_style(levels: int, precincts: bytes = b"") -> bytes:
    return segment(0xFF53, struct.pack(">BBBBBBB", 0, bool(precincts), levels, 4, 4, 0, 1) + precincts)


def codestream(
    rows: int = 40,
    columns: int = 36,
    *,
    tile: int = 2**15,
    offset: int = 0,
    style: bytes | None = None,
    main_header: bytes = b"",
    tile_header: bytes = b"",
) -> bytes:
    """A codestream of one component whose tile has no data."""
    sizes = struct.pack(">8I", columns + offset, rows + offset, offset, offset, tile, tile, 0, 0)
    size = segment(0xFF51, b"\0\0" + sizes + b"\0\1" + bytes([15, 1, 1]))
    quantisation = segment(0xFF5C, b"\x40" + bytes([16 << 3] * 97))
    head = b"\xff\x4f" + size + (coding_style() if style is None else style) + quantisation + main_header
    body = tile_header + b"\xff\x93" + bytes(100)
    return head + segment(0xFF90, struct.pack(">HIBB", 0, 12 + len(body), 0, 1)) + body + b"\xff\xd9"


@pytest.mark.parametrize(
    ("given", "tiles"),
    [
        ({}, 1),
        ({"tile": 1}, 36 * 40),
        ({"tile": 20}, 2 * 2),
        ({"tile": 36}, 2),
        ({"tile": 40, "offset": 20}, 4),
        ({"rows": 2**31, "columns": 2**31, "tile": 1}, 2**62),
        ({"tile": 0}, 0),
        ({"rows": 0}, 0),
    ],
)
def test_tiles_are_counted(given: dict[str, int], tiles: int) -> None:
    assert count_tiles(codestream(**given)) == tiles  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "packets"),
    [
        ({}, 2 * 6),
        ({"style": coding_style(0)}, 2),
        ({"style": coding_style(layers=99)}, 100 * 6),
        ({"tile": 20}, 4 * 2 * 6),
        # The finest resolution has 10 × 9 precincts of 4 × 4 pixels.
        ({"style": coding_style(1, precincts=b"\xff\x22")}, 2 * 2 * 90),
        ({"style": coding_style(1, precincts=b"\x11\xff")}, 2 * 2 * 90),
        ({"main_header": component_style(1, b"\xff\x22")}, 2 * 2 * 90),
        ({"tile_header": coding_style(1, 9, b"\xff\x22")}, 10 * 2 * 90),
        ({"main_header": segment(COMMENT, coding_style(layers=9))}, 2 * 6),
        ({"style": b""}, 0),
        ({"style": coding_style(33)}, 0),
        ({"style": coding_style(2, precincts=b"\xff\xff")}, 0),
        ({"style": segment(0xFF52, b"\0\0\0")}, 0),
    ],
)
def test_packets_are_counted(given: dict[str, bytes], packets: int) -> None:
    assert count_packets(codestream(**given)) == packets  # type: ignore[arg-type]


def test_a_coding_style_behind_an_unknown_marker_is_found() -> None:
    """OpenJPEG ignores the length of an unknown segment, and reads the markers in it."""
    hidden = segment(0xFF30, coding_style(layers=999))
    assert count_packets(codestream(main_header=hidden)) == 1000 * 6


def test_every_coding_style_of_a_tile_part_is_found() -> None:
    first = codestream()
    second = codestream(tile_header=coding_style(layers=999))
    joined = first[:-2] + second[second.index(b"\xff\x90") :]
    assert count_packets(joined) == 1000 * 6


@given(st.binary(max_size=100), st.integers(0, 60))
def test_any_content_is_counted(content: bytes, kept: int) -> None:
    for data in (content, START + content, codestream()[:kept] + content):
        if count_tiles(data) <= 1024:
            count_packets(data)


def test_real_codestreams_have_few_parts() -> None:
    pixels = np.arange(512 * 300, dtype=np.uint16).reshape(512, 300)
    for data in (jpeg_2000(pixels, 16), htj2k(pixels, 16)):
        assert count_tiles(data) == 1
        assert 0 < count_packets(data) < 100
        assert unwrap(b"box" * 100 + data) == data


@pytest.mark.parametrize(
    ("frame", "parts"),
    [
        (codestream(tile=1), "1440 tiles"),
        (codestream(style=coding_style(5, 2**16 - 1, b"\x33" * 6)), "packets"),
        (codestream(tile_header=coding_style(5, 2**16 - 1, b"\x33" * 6)), "packets"),
        (codestream(main_header=component_style(5, b"\x11" * 6), style=coding_style(layers=2000)), "packets"),
    ],
)
def test_a_frame_of_too_many_parts_is_refused_before_it_is_decoded(
    tmp_path: Path, read: Read, monkeypatch: pytest.MonkeyPatch, frame: bytes, parts: str
) -> None:
    for path in write_series(tmp_path / "in", regular_stack(phantom((36, 40, 5)))):
        set_codestream(path, JPEG2000Lossless, frame)

    def fail(_: bytes) -> None:
        raise AssertionError("it was decoded")

    monkeypatch.setitem(vars(encoded_frames)["DECODERS"], JPEG2000Lossless, fail)
    with pytest.raises(InputTooLarge, match=rf"states \d* ?{parts}; this service decodes at most"):
        read(tmp_path / "in")


def test_the_memory_of_the_decoder_is_required(tmp_path: Path) -> None:
    for path in write_series(tmp_path / "in", regular_stack(phantom((36, 40, 5)))):
        set_codestream(path, JPEG2000Lossless, codestream())
    required: list[int] = []

    def require(size_bytes: int) -> None:
        required.append(size_bytes)
        if size_bytes > 2 * 32 * 36 * 40:
            raise OutOfMemory

    with pytest.raises(OutOfMemory):
        read_scan(tmp_path / "in", tmp_path, ReadLimits(10**6, require_memory=require), threads=2)
    assert required[-1] == 36 * 40 * (2 * 5 + 2 * 32)


def test_a_codestream_without_coding_style_is_refused(tmp_path: Path, read: Read) -> None:
    for path in write_series(tmp_path / "in", regular_stack(phantom((36, 40, 5)))):
        set_codestream(path, JPEG2000Lossless, codestream(style=b""))
    with pytest.raises(InputCorrupt, match="invalid header"):
        read(tmp_path / "in")
