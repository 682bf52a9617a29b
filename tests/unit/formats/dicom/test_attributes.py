"""Numbers are read in whatever value representation they are beyond doubt, and else refused by the element's name."""

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dicom_files import Change, regular_stack, with_attribute, write_series
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.tag import Tag
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from inference_service.core.errors import InputCorrupt, InputError
from inference_service.core.report_warnings import ReportWarning, WarningCode
from inference_service.formats.scan_reader import Scan

Read = Callable[..., Scan]
KEYWORDS = (
    "PixelSpacing", "ImagePositionPatient", "Rows", "AcquisitionNumber", "NumberOfFrames", "BitsStored",
    "RescaleIntercept",
)  # fmt: skip
TAGS = {keyword: struct.pack("<HH", *divmod(Tag(keyword), 2**16)) for keyword in KEYWORDS}
LONG_HEADER = {"UT", "OB", "UN", "UC"}


def rewrite(path: Path, keyword: str, vr: str, value: bytes | Callable[[bytes], bytes]) -> None:
    """Replaces the value representation and value of an element in a file with explicit VR."""
    content = path.read_bytes()
    start = content.index(TAGS[keyword])
    old_vr = content[start + 4 : start + 6]
    assert old_vr.decode() not in LONG_HEADER
    length = int.from_bytes(content[start + 6 : start + 8], "little")
    old = content[start + 8 : start + 8 + length]
    new = value if isinstance(value, bytes) else value(old)
    new += b" " * (len(new) % 2)
    header = vr.encode() + (struct.pack("<HI", 0, len(new)) if vr in LONG_HEADER else struct.pack("<H", len(new)))
    path.write_bytes(content[: start + 4] + header + new + content[start + 8 + length :])


def rewritten(folder: Path, keyword: str, vr: str, value: bytes | Callable[[bytes], bytes]) -> Path:
    changes: dict[str, Change] = {
        "AcquisitionNumber": with_attribute("AcquisitionNumber", 1),
        "NumberOfFrames": with_attribute("NumberOfFrames", 1),
    }
    change = changes.get(keyword, lambda k, dataset: None)
    for path in write_series(folder, regular_stack(), change=change):
        rewrite(path, keyword, vr, value)
    return folder


def check_right(scan: Scan, *warnings: ReportWarning) -> None:
    expected = regular_stack()
    np.testing.assert_array_equal(scan.volume.voxels, expected.voxels)
    np.testing.assert_allclose(np.linalg.norm(scan.volume.affine[:3, :3], axis=0), [0.75, 1.25, 2.5])
    assert scan.warnings == warnings


def commas(old: bytes) -> bytes:
    return old.replace(b".", b",")


SAME: Callable[[bytes], bytes] = bytes
DOUBLES = struct.pack("<2d", 1.25, 0.75)


@pytest.mark.parametrize(
    ("keyword", "vr", "value"),
    [
        ("PixelSpacing", "UT", SAME),
        ("PixelSpacing", "LO", SAME),
        ("PixelSpacing", "OB", SAME),
        ("PixelSpacing", "UN", SAME),
        ("PixelSpacing", "IS", SAME),
        ("PixelSpacing", "FD", DOUBLES),
        ("PixelSpacing", "FL", struct.pack("<2f", 1.25, 0.75)),
        ("PixelSpacing", "DS", b"1.25E+00\\7.5e-1"),
        ("PixelSpacing", "DS", b"  +1.25 \\ .75\0"),
        ("PixelSpacing", "DS", b"1.25\\0.75\\"),
        ("PixelSpacing", "DS", b"1.250000000000000000000\\0.75"),
        ("ImagePositionPatient", "UT", SAME),
        ("ImagePositionPatient", "LO", SAME),
        ("Rows", "IS", b"7"),
        ("Rows", "UL", struct.pack("<I", 7)),
        ("NumberOfFrames", "DS", b"1.0"),
        ("NumberOfFrames", "LO", b"1"),
        ("BitsStored", "SS", SAME),
        ("AcquisitionNumber", "IS", b"12a"),
        ("RescaleIntercept", "FD", struct.pack("<d", -1024)),
    ],
)
def test_numbers_are_read_whatever_their_value_representation(
    tmp_path: Path, read: Read, keyword: str, vr: str, value: bytes | Callable[[bytes], bytes]
) -> None:
    check_right(read(rewritten(tmp_path / "in", keyword, vr, value)))


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("PixelSpacing", b"1,25\\0,75"),
        ("PixelSpacing", b"1,250\\0,75"),
        ("PixelSpacing", b"1,25e0\\,75"),
        ("ImagePositionPatient", commas),
        ("RescaleIntercept", b"-1024,0"),
    ],
)
def test_a_decimal_comma_is_read_as_a_point_with_a_warning(
    tmp_path: Path, read: Read, keyword: str, value: bytes | Callable[[bytes], bytes]
) -> None:
    scan = read(rewritten(tmp_path / "in", keyword, "DS", value))
    message = f"{keyword} has a decimal comma, which was read as a point"
    check_right(scan, ReportWarning(WarningCode.DECIMAL_COMMA, message))


@pytest.mark.parametrize(
    ("keyword", "vr", "value", "message"),
    [
        ("PixelSpacing", "DS", b"1.25", "PixelSpacing: expected 2 finite numbers, got 1 values"),
        ("PixelSpacing", "DS", b"1.25\\0.75\\2.5", "PixelSpacing: expected 2 finite numbers, got 3 values"),
        ("PixelSpacing", "DS", b"1,25,0,75", "PixelSpacing has an invalid value of value representation DS"),
        ("PixelSpacing", "DS", b"1.25 mm\\0.75", "PixelSpacing has an invalid value"),
        ("PixelSpacing", "DS", b"1.25\\\\0.75", "PixelSpacing has an invalid value"),
        ("PixelSpacing", "DS", b"nan\\0.75", "PixelSpacing has an invalid value .*expected finite numbers"),
        ("PixelSpacing", "DS", b"1e999\\0.75", "PixelSpacing has an invalid value"),
        ("PixelSpacing", "OB", DOUBLES, "PixelSpacing has an invalid value of value representation OB"),
        ("PixelSpacing", "FD", DOUBLES[:-1] + b"\0" * 3, "PixelSpacing has an invalid value"),
        ("ImagePositionPatient", "DS", b"1,234.5\\0\\0", "ImagePositionPatient has an invalid value"),
        ("Rows", "LO", b"seven", "Rows has an invalid value"),
        ("Rows", "DS", b"7.5", "Rows has an invalid value: expected one integer"),
        ("NumberOfFrames", "IS", b"one", "NumberOfFrames has an invalid value"),
        ("BitsStored", "US", b"", "has no BitsStored"),
        ("RescaleIntercept", "DS", b"-1,024", "RescaleIntercept has a comma that may separate decimals or thousands"),
    ],
)
def test_a_value_in_doubt_is_refused_by_name(
    tmp_path: Path, read: Read, keyword: str, vr: str, value: bytes, message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read(rewritten(tmp_path / "in", keyword, vr, value))
    assert "truncated" not in caught.value.message


@pytest.mark.parametrize("keyword", ["Rows", "BitsStored", "BitsAllocated", "PixelSpacing"])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_a_file_that_ends_before_its_pixels_is_called_truncated(
    tmp_path: Path, read: Read, keyword: str, syntax: str
) -> None:
    for path in write_series(tmp_path / "in", regular_stack(), syntax=syntax):
        whole = path.read_bytes()
        path.write_bytes(whole[: whole.index(struct.pack("<HH", *divmod(Tag(keyword), 2**16))) + 6])
    with pytest.raises(InputCorrupt, match="truncated"):
        read(tmp_path / "in")


def test_an_intact_file_without_an_attribute_is_not_called_truncated(tmp_path: Path, read: Read) -> None:
    def change(k: int, dataset: Dataset) -> None:
        del dataset.Rows

    write_series(tmp_path / "in", regular_stack(), change=change)
    with pytest.raises(InputCorrupt, match="has no Rows") as caught:
        read(tmp_path / "in")
    assert "truncated" not in caught.value.message


def with_float_pixels(dataset: Dataset) -> None:
    dataset.FloatPixelData = bytes(4 * 63)
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 32, 32, 31
    del dataset.PixelData


def with_packed_bits(dataset: Dataset) -> None:
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 12, 12, 11


def with_encapsulated_pixels(dataset: Dataset) -> None:
    dataset.PixelData = encapsulate([dataset.PixelData])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_float_pixels, "has FloatPixelData: expected PixelData"),
        (with_packed_bits, r"BitsAllocated is 12: expected \(8, 16, 32\)"),
        (with_encapsulated_pixels, "pixel data are encapsulated, but its transfer syntax is Explicit VR Little Endian"),
    ],
)
def test_pixels_of_another_kind_are_named(
    tmp_path: Path, read: Read, change: Callable[[Dataset], None], message: str
) -> None:
    write_series(tmp_path / "in", regular_stack(), change=lambda k, dataset: change(dataset))
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path / "in")
    assert "truncated" not in caught.value.message


def test_native_pixels_in_a_compressed_transfer_syntax_are_named(tmp_path: Path, read: Read) -> None:
    for path in write_series(tmp_path / "in", regular_stack()):
        replaced = path.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.5\0")
        path.write_bytes(replaced)
    with pytest.raises(InputCorrupt, match="pixel data are not encapsulated, but its transfer syntax is RLE Lossless"):
        read(tmp_path / "in")
