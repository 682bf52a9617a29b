"""Bit-exact decoding of every transfer syntax."""

import re
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
import SimpleITK
from dicom_encoders import (
    COMPRESSED_SYNTAXES,
    ENCODERS,
    JPEG_XL_LOSSY,
    JPEG_XL_RECOMPRESSION,
    encode,
    htj2k,
    jpeg_2000,
    jpeg_lossless,
    set_codestream,
    syntax_id,
)
from dicom_files import (
    NATIVE_SYNTAXES,
    Stack,
    phantom,
    regular_stack,
    save,
    set_stored_values,
    write_enhanced,
    write_series,
)
from numpy.typing import NDArray
from pydicom._uid_dict import UID_dictionary
from pydicom.data import get_testdata_files
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    JPEG2000,
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    JPEGLSTransferSyntaxes,
    RLELossless,
)

from inference_service.core.errors import (
    InputCorrupt,
    InputError,
    UnsupportedTransferSyntax,
)
from inference_service.core.report_warnings import WarningCode
from inference_service.formats.dicom.transfer_syntax import check_transfer_syntax
from inference_service.formats.read_limits import ReadLimits
from inference_service.formats.scan_reader import Scan, read_scan

Read = Callable[..., Scan]

SHAPE = (40, 36, 3)
PHANTOM = phantom(SHAPE)


PYDICOM_FILES = sorted({Path(name) for name in get_testdata_files() if Path(name).parent.name == "test_files"})
BY_NAME = {path.name: path for path in PYDICOM_FILES}
GREY = (
    "693_J2KI.dcm", "CT_small.dcm", "J2K_pixelrep_mismatch.dcm", "JPEG2000.dcm", "JPEGLSNearLossless_08.dcm",
    "JPEGLSNearLossless_16.dcm", "MR_small.dcm", "MR_small_RLE.dcm", "MR_small_bigendian.dcm", "MR_small_expb.dcm",
    "MR_small_implicit.dcm", "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm", "MR_small_padded.dcm",
)  # fmt: skip
# The same image in other encodings.
TWINS = {
    "MR_small.dcm": (
        "MR_small_RLE.dcm", "MR_small_bigendian.dcm", "MR_small_expb.dcm", "MR_small_implicit.dcm",
        "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm", "MR_small_padded.dcm",
    )
}  # fmt: skip


def stored_values(dtype: str, bits: int) -> NDArray[np.integer]:
    """Values from the whole range of a number of bits."""
    least = -(2 ** (bits - 1)) if dtype.startswith("i") else 0
    values = np.linspace(least, least + 2**bits - 1, int(np.prod(SHAPE)))
    return np.random.default_rng(1).permutation(values).astype(dtype).reshape(SHAPE)


@pytest.mark.parametrize("syntax", COMPRESSED_SYNTAXES, ids=syntax_id)
@pytest.mark.parametrize(("dtype", "bits"), [("u1", 8), ("u2", 12), ("u2", 16), ("i2", 12), ("i2", 16)])
def test_lossless_transfer_syntaxes_keep_every_bit(
    tmp_path: Path, read: Read, syntax: str, dtype: str, bits: int
) -> None:
    stored = stored_values(dtype, bits)

    def change(k: int, dataset: Dataset) -> None:
        set_stored_values(dataset, stored[:, :, k].T, bits=bits)
        dataset.RescaleIntercept = 0

    for path in write_series(tmp_path / "in", regular_stack(PHANTOM), change=change):
        encode(path, syntax)
        assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == syntax
    np.testing.assert_array_equal(read(tmp_path / "in").volume.voxels, stored)


@pytest.mark.parametrize(("name", "other"), [(name, other) for name, others in TWINS.items() for other in others])
def test_equal_images_of_pydicom_are_read_alike(tmp_path: Path, read: Read, name: str, other: str) -> None:
    expected = read(BY_NAME[name])
    got = read(BY_NAME[other])
    np.testing.assert_array_equal(got.volume.voxels, expected.volume.voxels, strict=True)
    np.testing.assert_array_equal(got.volume.affine, expected.volume.affine)


@pytest.mark.parametrize("path", PYDICOM_FILES, ids=lambda path: path.name)
def test_every_file_of_pydicom_is_read_or_refused(tmp_path: Path, read: Read, path: Path) -> None:
    with suppress(InputError):
        assert np.isfinite(read(path).volume.voxels).all()


@pytest.mark.parametrize("name", GREY)
def test_images_of_pydicom_have_the_values_that_pydicom_decodes(tmp_path: Path, read: Read, name: str) -> None:
    dataset = placed(name, tmp_path / "in")
    if dataset.file_meta.TransferSyntaxUID in JPEGLSTransferSyntaxes:
        pytest.importorskip("jpeg_ls", reason="pydicom decodes JPEG-LS by pyjpegls, which has no wheel for this Python")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stored = dataset.pixel_array
    expected = stored * float(dataset.get("RescaleSlope") or 1) + float(dataset.get("RescaleIntercept") or 0)
    padding = stored == dataset.get("PixelPaddingValue")
    got = read(tmp_path / "in").volume.voxels[:, :, 0].T
    np.testing.assert_array_equal(got[~padding], expected[~padding])
    assert padding.mean() < 0.01


def test_these_images_cover_every_transfer_syntax_of_pydicoms_greyscale_images() -> None:
    syntaxes = {pydicom.dcmread(BY_NAME[name], stop_before_pixels=True).file_meta.TransferSyntaxUID for name in GREY}
    assert syntaxes == {
        ImplicitVRLittleEndian,
        ExplicitVRLittleEndian,
        ExplicitVRBigEndian,
        RLELossless,
        JPEGLSLossless,
        JPEGLSNearLossless,
        JPEG2000Lossless,
        JPEG2000,
    }


def placed(name: str, path: Path) -> Dataset:
    """Saves an image of pydicom as a CT slice with a position, which few of them have."""
    dataset = pydicom.dcmread(BY_NAME[name])
    dataset.ImagePositionPatient = [0, 0, 0]
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.PixelSpacing = [1, 1]
    dataset.SliceThickness = 1
    dataset.SOPClassUID = CTImageStorage
    dataset.save_as(path)
    return dataset


def test_twelve_bits_of_lossy_jpeg_are_decoded(tmp_path: Path, read: Read) -> None:
    """Against the reference values that pydicom documents for its file."""
    placed("JPGExtended.dcm", tmp_path / "in")
    scan = read(tmp_path / "in")
    assert (scan.volume.voxels[140, 420, 0], scan.volume.voxels[120, 230, 0]) == (244, 95)
    assert scan.warnings[1].code == WarningCode.LOSSY_COMPRESSION
    assert "compressed with loss" in scan.warnings[1].message


STREAM = htj2k(PHANTOM[:, :, 1].T + 1024, 16)


@pytest.mark.parametrize(
    "frame",
    [
        STREAM[:8] + (2**30).to_bytes(4, "big") * 2 + STREAM[16:],
        STREAM[:42] + b"\x40\0" + STREAM[44:],
        htj2k(PHANTOM[:, :35, 1].T + 1024, 16),
        bytes.fromhex("ffd8ffc3000b08f000f00001000000"),
        STREAM[:30],
        STREAM[:120],
        b"\xff\xd8\xff\xd9",
        bytes(1000),
    ],
    ids=["huge", "components", "smaller", "jpeg", "cut", "cut later", "no frame", "zeros"],
)
def test_a_codestream_that_contradicts_the_header_is_refused(tmp_path: Path, read: Read, frame: bytes) -> None:
    for path in write_series(tmp_path / "in", regular_stack(PHANTOM)):
        set_codestream(path, HTJ2KLossless, frame)
    with pytest.raises(InputCorrupt):
        read(tmp_path / "in")


def test_a_multi_frame_instance_may_be_compressed(tmp_path: Path, read: Read) -> None:
    stack: Stack = regular_stack()
    path = write_enhanced(tmp_path / "in", stack)
    encode(path, RLELossless)
    np.testing.assert_array_equal(read(path).volume.voxels, stack.voxels)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_number_of_threads_does_not_matter(tmp_path: Path, threads: int) -> None:
    stack = regular_stack(phantom((40, 36, 17)))
    for path in write_series(tmp_path / "in", stack):
        encode(path, JPEG2000Lossless)
    scan = read_scan(tmp_path / "in", tmp_path, ReadLimits(10**6), threads=threads)
    np.testing.assert_array_equal(scan.volume.voxels, stack.voxels, strict=True)


def test_a_file_with_fewer_frames_than_it_states_is_refused(tmp_path: Path, read: Read) -> None:
    dataset = pydicom.dcmread(write_enhanced(tmp_path / "in", regular_stack()))
    dataset.compress(RLELossless, encoding_plugin="pydicom")
    dataset.PixelData = encapsulate(list(generate_frames(dataset.PixelData, number_of_frames=6))[:5])
    dataset.save_as(tmp_path / "in")
    with pytest.raises(InputCorrupt):
        read(tmp_path / "in")


@pytest.mark.parametrize("has_table", [True, False])
def test_a_file_with_more_frames_than_it_states_is_refused(tmp_path: Path, read: Read, has_table: bool) -> None:
    path = write_enhanced(tmp_path / "in", regular_stack())
    dataset = pydicom.dcmread(path)
    frames = [jpeg_2000(pixels, 16) for pixels in dataset.pixel_array]
    dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless
    dataset.PixelData = encapsulate([*frames, frames[0]], has_bot=has_table)
    dataset["PixelData"].is_undefined_length = True
    save(dataset, path)
    with pytest.raises(InputCorrupt, match="more frames than its NumberOfFrames"):
        read(path)


@pytest.mark.parametrize(
    "attributes",
    [{"Rows": 5}, {"Columns": 8}, {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}],
    ids=lambda attributes: next(iter(attributes)),
)
@pytest.mark.parametrize("syntax", NATIVE_SYNTAXES, ids=syntax_id)
def test_more_native_pixels_than_the_header_states_are_refused(
    tmp_path: Path, read: Read, syntax: str, attributes: dict[str, int]
) -> None:
    def change(k: int, dataset: Dataset) -> None:
        for keyword, value in attributes.items():
            setattr(dataset, keyword, value)

    write_series(tmp_path / "in", regular_stack(), syntax=syntax, change=change)
    with pytest.raises(InputCorrupt, match=r"126 bytes of pixels, but \d+ by NumberOfFrames, Rows, Columns"):
        read(tmp_path / "in")


@pytest.mark.parametrize("padding", [b"\1", bytes(2), bytes(100)], ids=len)
def test_padding_after_native_pixels_is_ignored(tmp_path: Path, read: Read, padding: bytes) -> None:
    def change(k: int, dataset: Dataset) -> None:
        dataset.PixelData += padding

    stack = regular_stack()
    write_series(tmp_path / "in", stack, change=change)
    np.testing.assert_array_equal(read(tmp_path / "in").volume.voxels, stack.voxels)


@pytest.mark.parametrize("kept", [0.5, 0.9])
@pytest.mark.parametrize("syntax", COMPRESSED_SYNTAXES, ids=syntax_id)
def test_a_truncated_file_is_refused(tmp_path: Path, read: Read, syntax: str, kept: float) -> None:
    paths = write_series(tmp_path / "in", regular_stack(PHANTOM))
    for path in paths:
        encode(path, syntax)
    content = paths[1].read_bytes()
    pixels = content.index(b"\xe0\x7f\x10\x00") + 12
    paths[1].write_bytes(content[: pixels + int(kept * (len(content) - pixels))])
    with pytest.raises(InputCorrupt):
        read(tmp_path / "in")


PIXELS = np.ascontiguousarray(phantom(SHAPE)[:, :, 1].T)


JPEGS = [
    (JPEGLosslessSV1, jpeg_lossless((PIXELS + 1024).astype(np.uint16), 16), 16),
    (JPEGBaseline8Bit, bytes(imagecodecs.jpeg8_encode(((PIXELS + 1024) // 8).astype(np.uint8), level=95)), 8),
]


@pytest.mark.parametrize("share", [0.97, 0.9, 0.5, 0.3])
@pytest.mark.parametrize(("syntax", "frame", "bits"), JPEGS, ids=["lossless", "baseline"])
def test_a_truncated_jpeg_is_refused(
    tmp_path: Path, read: Read, syntax: str, frame: bytes, bits: int, share: float
) -> None:
    stored = np.zeros(PIXELS.shape, np.dtype(f"u{bits // 8}"))

    def change(k: int, dataset: Dataset) -> None:
        set_stored_values(dataset, stored, bits=bits)

    for path in write_series(tmp_path / "in", regular_stack(phantom(SHAPE)), change=change):
        set_codestream(path, syntax, frame)
    assert read(tmp_path / "in").volume.shape == SHAPE
    for path in write_series(tmp_path / "in", regular_stack(phantom(SHAPE)), change=change):
        set_codestream(path, syntax, frame[: int(share * len(frame))])
    with pytest.raises(InputCorrupt):
        read(tmp_path / "in")


def test_jpeg_2000_beyond_24_bits_is_refused(tmp_path: Path, read: Read) -> None:
    def change(k: int, dataset: Dataset) -> None:
        set_stored_values(dataset, np.zeros((36, 40), np.uint32), bits=32)

    for path in write_series(tmp_path / "in", regular_stack(phantom(SHAPE)), change=change):
        set_codestream(path, JPEG2000Lossless, jpeg_2000(np.zeros((36, 40), np.uint16), 16))
    with pytest.raises(UnsupportedTransferSyntax, match="decoded up to 24 bits, and the series has 32"):
        read(tmp_path / "in")


def test_zeros_after_a_jpeg_2000_codestream_are_ignored(tmp_path: Path, read: Read) -> None:
    for path in write_series(tmp_path / "in", regular_stack(phantom(SHAPE))):
        set_codestream(path, JPEG2000Lossless, jpeg_2000((PIXELS + 1024).astype(np.uint16), 16) + bytes(200))
    np.testing.assert_array_equal(read(tmp_path / "in").volume.voxels[:, :, 0].T, PIXELS)


def test_a_jpeg_2000_codestream_without_end_marker_is_refused(tmp_path: Path, read: Read) -> None:
    """Cut, and filled with zeros to where it ended."""
    (path, *_) = write_series(tmp_path / "in", regular_stack(phantom(SHAPE)))
    frame = jpeg_2000((PIXELS + 1024).astype(np.uint16), 16)
    set_codestream(path, JPEG2000Lossless, frame[: len(frame) * 6 // 10] + b"\0" * (len(frame) * 4 // 10))
    with pytest.raises(InputCorrupt, match="truncated"):
        read(tmp_path / "in")


def stored_words(values: NDArray[np.integer], *, bits: int, overlay: bool) -> NDArray[np.uint16]:
    """Two's complement in the lowest bits of 16, with a pattern in all others as of overlays."""
    words: NDArray[np.uint16] = (values & (2**bits - 1)).astype(np.uint16)
    if overlay:
        words[:, 4:] |= np.uint16(0xFFFF & ~(2**bits - 1))
    return words


def write_words(
    folder: Path, words: NDArray[np.uint16], syntax: str, *, bits: int, signed: bool, codestream_bits: int = 16
) -> None:
    """One series, each slice of which holds these words."""

    def change(k: int, dataset: Dataset) -> None:
        set_stored_values(dataset, words, bits=bits)
        dataset.PixelRepresentation = int(signed)
        dataset.RescaleIntercept = 0

    for path in write_series(folder, regular_stack(PHANTOM), change=change):
        if syntax == RLELossless:
            encode(path, syntax)
        elif syntax != ExplicitVRLittleEndian:
            set_codestream(path, syntax, ENCODERS[syntax](words, codestream_bits))


@pytest.mark.parametrize("overlay", [False, True])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [10, 12, 15])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, *COMPRESSED_SYNTAXES], ids=syntax_id)
def test_bits_above_the_value_mean_nothing(
    tmp_path: Path, read: Read, syntax: str, bits: int, signed: bool, overlay: bool
) -> None:
    values = stored_values("i2" if signed else "u2", bits)[:, :, 1].T.astype(np.int32)
    write_words(tmp_path / "in", stored_words(values, bits=bits, overlay=overlay), syntax, bits=bits, signed=signed)
    np.testing.assert_array_equal(read(tmp_path / "in").volume.voxels[:, :, 1].T, values)


@pytest.mark.parametrize("overlay", [False, True])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless, JPEGLSLossless, JPEGLosslessSV1])
def test_values_are_those_that_simpleitk_reads(
    tmp_path: Path, read: Read, syntax: str, signed: bool, overlay: bool
) -> None:
    """SimpleITK keeps the bits above the value in JPEG 2000 alone."""
    values = stored_values("i2" if signed else "u2", 12)[:, :, 1].T.astype(np.int32)
    write_words(tmp_path / "in", stored_words(values, bits=12, overlay=overlay), syntax, bits=12, signed=signed)
    path = next(iter((tmp_path / "in").iterdir()))
    expected = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))[0]
    np.testing.assert_array_equal(read(tmp_path / "in").volume.voxels[:, :, 0].T, expected)


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLosslessSV1])
def test_values_have_the_sign_of_a_codestream_with_fewer_bits(tmp_path: Path, read: Read, syntax: str) -> None:
    """As pydicom decodes JPEG 2000."""
    values = stored_values("i2", 13)[:, :, 1].T.astype(np.int32)
    words = stored_words(values, bits=13, overlay=False)
    write_words(tmp_path / "in", words, syntax, bits=16, signed=True, codestream_bits=13)
    np.testing.assert_array_equal(read(tmp_path / "in").volume.voxels[:, :, 1].T, values)


@pytest.mark.parametrize("bits", [0, 77])
def test_a_codestream_of_an_impossible_depth_is_refused(tmp_path: Path, read: Read, bits: int) -> None:
    stream = bytearray(jpeg_2000((PHANTOM[:, :, 1].T + 1024).astype(np.uint16), 16))
    stream[42] = (bits - 1) & 0x7F
    for path in write_series(tmp_path / "in", regular_stack(PHANTOM)):
        set_codestream(path, JPEG2000Lossless, bytes(stream))
    with pytest.raises(InputCorrupt, match="bits for each pixel"):
        read(tmp_path / "in")


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless, JPEG2000Lossless, JPEGLosslessSV1])
@pytest.mark.parametrize("signed", [False, True])
def test_a_wrong_high_bit_is_ignored_where_values_lie_in_the_lowest_bits(
    tmp_path: Path, read: Read, signed: bool, syntax: str
) -> None:
    values = stored_values("i2" if signed else "u2", 12)[:, :, 1].T.astype(np.int32)
    write_words(tmp_path / "in", values.astype(np.uint16), syntax, bits=12, signed=signed)
    for path in (tmp_path / "in").iterdir():
        dataset = pydicom.dcmread(path)
        dataset.HighBit = 15
        dataset.save_as(path)
    scan = read(tmp_path / "in")
    np.testing.assert_array_equal(scan.volume.voxels[:, :, 1].T, values)
    (warning,) = (each for each in scan.warnings if each.code == WarningCode.HIGH_BIT_IGNORED)
    assert "HighBit contradicts BitsStored in 3 of the series' 3 images" in warning.message


@pytest.mark.parametrize("shift", [2, 4])
@pytest.mark.parametrize("factor", [45, 3])
def test_values_above_the_lowest_bits_are_refused(tmp_path: Path, read: Read, shift: int, factor: int) -> None:
    def change(k: int, dataset: Dataset) -> None:
        set_stored_values(dataset, ((np.arange(63).reshape(7, 9) * factor) << shift).astype(np.uint16), bits=12)
        dataset.HighBit = 11 + shift

    write_series(tmp_path / "in", regular_stack(), change=change)
    with pytest.raises(InputCorrupt, match=f"HighBit is {11 + shift} with a BitsStored of 12: expected 11"):
        read(tmp_path / "in")


@pytest.mark.parametrize(
    ("syntax", "name"),
    [
        ("1.2.840.10008.1.2.4.100", "MPEG2"),
        ("1.2.840.10008.1.2.4.95", "JPIP Referenced Deflate"),
        ("1.2.840.113619.5.2", r"GE Implicit VR Big Endian \(private\)"),
        ("1.2.3.4", r"1\.2\.3\.4"),
        ("1.2.x<y>", r"1\.2\."),
    ],
)
def test_an_unsupported_transfer_syntax_is_named(tmp_path: Path, read: Read, syntax: str, name: str) -> None:
    for path in write_series(tmp_path / "in", regular_stack()):
        content = path.read_bytes()
        written = b"1.2.840.10008.1.2.1\0"
        head, _, tail = content.partition(b"\x02\x00\x10\x00UI" + len(written).to_bytes(2, "little") + written)
        padded = syntax.encode() + b"\0" * (len(syntax) % 2)
        element = b"\x02\x00\x10\x00UI" + len(padded).to_bytes(2, "little") + padded
        grown = bytearray(head + element + tail)
        length = int.from_bytes(grown[140:144], "little") + len(padded) - len(written)
        grown[140:144] = length.to_bytes(4, "little")
        path.write_bytes(grown)
    with pytest.raises(UnsupportedTransferSyntax, match=name):
        read(tmp_path / "in")


TRANSFER_SYNTAXES = [syntax for syntax, entry in UID_dictionary.items() if entry[1] == "Transfer Syntax"]


def test_every_other_transfer_syntax_of_the_standard_is_refused_by_name() -> None:
    read = [*NATIVE_SYNTAXES, DeflatedExplicitVRLittleEndian, *COMPRESSED_SYNTAXES]
    lossy = [JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless, JPEG2000, JPEG_XL_RECOMPRESSION, JPEG_XL_LOSSY]
    for syntax in {*read, *lossy}:
        check_transfer_syntax(syntax)
    others = set(TRANSFER_SYNTAXES) - {*read, *lossy}
    assert len(others) > 30
    for syntax in others:
        with pytest.raises(UnsupportedTransferSyntax, match=re.escape(UID(syntax).name)):
            check_transfer_syntax(syntax)


@pytest.mark.parametrize("shape", [(1, 1), (31, 37)])
@pytest.mark.parametrize("dtype", ["u1", "i2"])
@pytest.mark.parametrize("syntax", COMPRESSED_SYNTAXES, ids=syntax_id)
def test_odd_sizes_are_read(tmp_path: Path, read: Read, syntax: str, dtype: str, shape: tuple[int, int]) -> None:
    bits = 8 * np.dtype(dtype).itemsize
    stored = stored_values(dtype, bits)[: shape[1], : shape[0]]

    def change(k: int, dataset: Dataset) -> None:
        set_stored_values(dataset, np.ascontiguousarray(stored[:, :, k].T), bits=bits)
        dataset.RescaleIntercept = 0

    for path in write_series(tmp_path / "in", regular_stack(PHANTOM), change=change):
        encode(path, syntax)
    np.testing.assert_array_equal(read(tmp_path / "in").volume.voxels, stored)


@pytest.mark.parametrize("syntax", [*NATIVE_SYNTAXES, DeflatedExplicitVRLittleEndian])
def test_every_native_transfer_syntax_is_read(tmp_path: Path, read: Read, syntax: str) -> None:
    stack = regular_stack()
    write_series(tmp_path / "in", stack, syntax=syntax)
    np.testing.assert_array_equal(read(tmp_path / "in").volume.voxels, stack.voxels, strict=True)
