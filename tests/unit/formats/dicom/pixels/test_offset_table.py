"""Frames are told apart whatever the offset tables state."""

import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_encoders import (
    DEFLATED_FRAMES,
    ENCODERS,
    JPEG_XL_LOSSLESS,
    UNCOMPRESSED_FRAMES,
    encode,
    save_encoded,
)
from dicom_files import phantom, regular_stack, write_enhanced, write_series
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import UID, JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless, RLELossless

from inference_service.core.errors import InputCorrupt
from inference_service.formats.scan_reader import Scan

Read = Callable[..., Scan]
STACK = regular_stack(phantom((20, 18, 6)))
# Their codestreams have end markers, so that frames are told apart without a table.
MARKED_SYNTAXES = [JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless]
UNMARKED_SYNTAXES = [JPEG_XL_LOSSLESS, UNCOMPRESSED_FRAMES, DEFLATED_FRAMES]
SYNTAXES = [*MARKED_SYNTAXES, *UNMARKED_SYNTAXES]


def item(content: bytes) -> bytes:
    return b"\xfe\xff\x00\xe0" + struct.pack("<I", len(content)) + content


def halves(codestream: bytes) -> list[bytes]:
    padded = codestream + b"\0" * (len(codestream) % 2)
    cut = len(padded) // 4 * 2
    return [padded[:cut], padded[cut:]]


def starts(fragments: Sequence[bytes]) -> list[int]:
    return [sum(len(item(each)) for each in fragments[:index]) for index in range(len(fragments))]


def set_fragments(path: Path, fragments: Sequence[bytes], offsets: Sequence[int], extended: Sequence[int] = ()) -> None:
    dataset = pydicom.dcmread(path)
    dataset.PixelData = b"".join(map(item, [struct.pack(f"<{len(offsets)}I", *offsets), *fragments]))
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    if extended:
        dataset.ExtendedOffsetTable = struct.pack(f"<{len(extended)}Q", *extended)
        dataset.ExtendedOffsetTableLengths = struct.pack(f"<{len(extended)}Q", *map(len, fragments))
    save_encoded(dataset, path)


def check_right(scan: Scan) -> None:
    np.testing.assert_array_equal(scan.volume.voxels, STACK.voxels)
    assert scan.warnings == ()


@pytest.mark.parametrize("syntax", [*SYNTAXES, RLELossless])
@pytest.mark.parametrize(
    "table", [starts, lambda fragments: [], lambda fragments: [0], lambda fragments: [0, 4, 99, 7]]
)
def test_a_frame_in_two_fragments_is_read(
    tmp_path: Path, read: Read, syntax: str, table: Callable[[Sequence[bytes]], list[int]]
) -> None:
    for path in write_series(tmp_path / "in", STACK):
        encode(path, syntax)
        (codestream,) = generate_frames(pydicom.dcmread(path).PixelData, number_of_frames=1)
        fragments = halves(codestream)
        set_fragments(path, fragments, table(fragments))
    check_right(read(tmp_path / "in"))


def write_multi_frame(path: Path, syntax: str) -> list[bytes]:
    """Writes the series as one compressed instance; returns the codestream of each frame."""
    dataset: Dataset = pydicom.dcmread(write_enhanced(path, STACK))
    codestreams = [ENCODERS[syntax](np.ascontiguousarray(frame), 16) for frame in dataset.pixel_array]
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    dataset.PixelData = encapsulate(codestreams)
    dataset["PixelData"].VR = "OB"
    save_encoded(dataset, path)
    return codestreams


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_frames_in_two_fragments_are_told_apart_by_the_table(tmp_path: Path, read: Read, syntax: str) -> None:
    fragments = [half for codestream in write_multi_frame(tmp_path / "in", syntax) for half in halves(codestream)]
    set_fragments(tmp_path / "in", fragments, starts(fragments)[::2])
    check_right(read(tmp_path / "in"))


@pytest.mark.parametrize("syntax", [*UNMARKED_SYNTAXES, RLELossless])
def test_frames_that_cannot_be_told_apart_are_refused(tmp_path: Path, read: Read, syntax: str) -> None:
    codestreams = [b"x" * 40] * 6 if syntax == RLELossless else write_multi_frame(tmp_path / "in", syntax)
    fragments = [half for codestream in codestreams for half in halves(codestream)]
    if syntax == RLELossless:
        encode(write_enhanced(tmp_path / "in", STACK), syntax)
    for offsets in (starts(fragments), []):
        set_fragments(tmp_path / "in", fragments, offsets)
        with pytest.raises(InputCorrupt, match="12 fragments of pixel data for 6 frames, and no valid offset table"):
            read(tmp_path / "in")


@pytest.mark.parametrize("syntax", MARKED_SYNTAXES)
def test_offsets_of_each_fragment_are_no_frames(tmp_path: Path, read: Read, syntax: str) -> None:
    fragments = [half for codestream in write_multi_frame(tmp_path / "in", syntax) for half in halves(codestream)]
    for offsets in (starts(fragments), starts(fragments)[::2], [], [each + 2 for each in starts(fragments)[::2]]):
        set_fragments(tmp_path / "in", fragments, offsets)
        check_right(read(tmp_path / "in"))


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_wrong_offsets_of_one_fragment_a_frame_are_ignored(tmp_path: Path, read: Read, syntax: str) -> None:
    fragments = [each + b"\0" * (len(each) % 2) for each in write_multi_frame(tmp_path / "in", syntax)]
    right = starts(fragments)
    for offsets, extended in ((right, []), ([0] * 6, []), (right[:3], []), ([], right), ([], [0] * 6), (right, right)):
        set_fragments(tmp_path / "in", fragments, offsets, extended)
        check_right(read(tmp_path / "in"))
