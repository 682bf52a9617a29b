"""Decoding, bit for bit, out of every transfer syntax."""

import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_encoders import SYNTAXES, encapsulated, encode, htj2k
from dicom_files import Stack, phantom, set_stored, straight, write, write_enhanced
from numpy.typing import NDArray
from pydicom.data import get_testdata_files
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    JPEG2000,
    UID,
    CTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from inference_service.core.errors import InputCorrupt, InputError
from inference_service.formats.read_limits import ReadLimits
from inference_service.formats.scan_reader import Scan, read_scan

SHAPE = (40, 36, 3)
PHANTOM = phantom(SHAPE)


PYDICOM_FILES = sorted({Path(name) for name in get_testdata_files() if Path(name).parent.name == "test_files"})
BY_NAME = {path.name: path for path in PYDICOM_FILES}
GREY = (
    "693_J2KI.dcm", "CT_small.dcm", "J2K_pixelrep_mismatch.dcm", "JPEG2000.dcm", "JPEGLSNearLossless_08.dcm",
    "JPEGLSNearLossless_16.dcm", "MR_small.dcm", "MR_small_RLE.dcm", "MR_small_bigendian.dcm", "MR_small_expb.dcm",
    "MR_small_implicit.dcm", "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm", "MR_small_padded.dcm",
)  # fmt: skip
# The same image in other words.
TWINS = {
    "MR_small.dcm": (
        "MR_small_RLE.dcm", "MR_small_bigendian.dcm", "MR_small_expb.dcm", "MR_small_implicit.dcm",
        "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm", "MR_small_padded.dcm",
    )
}  # fmt: skip


def read(path: Path, folder: Path) -> Scan:
    return read_scan(path, folder, ReadLimits(10**7))


def stored_values(dtype: str, bits: int) -> NDArray[np.integer]:
    """All over the range of so many bits."""
    least = -(2 ** (bits - 1)) if dtype.startswith("i") else 0
    values = np.linspace(least, least + 2**bits - 1, int(np.prod(SHAPE)))
    return np.random.default_rng(1).permutation(values).astype(dtype).reshape(SHAPE)


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda syntax: UID(syntax).keyword)
@pytest.mark.parametrize(("dtype", "bits"), [("u1", 8), ("u2", 12), ("u2", 16), ("i2", 12), ("i2", 16)])
def test_lossless_syntaxes_give_back_every_bit(tmp_path: Path, syntax: str, dtype: str, bits: int) -> None:
    stored = stored_values(dtype, bits)

    def change(k: int, dataset: Dataset) -> None:
        set_stored(dataset, stored[:, :, k].T, bits=bits)
        dataset.RescaleIntercept = 0

    for path in write(tmp_path / "in", straight(PHANTOM), change=change):
        encode(path, syntax)
        assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == syntax
    np.testing.assert_array_equal(read(tmp_path / "in", tmp_path).volume.voxels, stored)


@pytest.mark.parametrize(("name", "other"), [(name, other) for name, others in TWINS.items() for other in others])
def test_pydicoms_own_twins_are_equal(tmp_path: Path, name: str, other: str) -> None:
    expected, got = read(BY_NAME[name], tmp_path), read(BY_NAME[other], tmp_path)
    np.testing.assert_array_equal(got.volume.voxels, expected.volume.voxels, strict=True)
    np.testing.assert_array_equal(got.volume.affine, expected.volume.affine)


@pytest.mark.parametrize("path", PYDICOM_FILES, ids=lambda path: path.name)
def test_each_of_pydicoms_files_is_read_or_refused(tmp_path: Path, path: Path) -> None:
    with suppress(InputError):
        assert np.isfinite(read(path, tmp_path).volume.voxels).all()


@pytest.mark.parametrize("name", GREY)
def test_pydicoms_own_images_have_the_values_that_pydicom_decodes(tmp_path: Path, name: str) -> None:
    dataset = placed(name, tmp_path / "in")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stored = dataset.pixel_array
    expected = stored * float(dataset.get("RescaleSlope") or 1) + float(dataset.get("RescaleIntercept") or 0)
    padding = stored == dataset.get("PixelPaddingValue")
    got = read(tmp_path / "in", tmp_path).volume.voxels[:, :, 0].T
    np.testing.assert_array_equal(got[~padding], expected[~padding])
    assert padding.mean() < 0.01


def test_those_images_are_of_every_syntax_that_pydicom_has_a_grey_one_of() -> None:
    syntaxes = {pydicom.dcmread(BY_NAME[name], stop_before_pixels=True).file_meta.TransferSyntaxUID for name in GREY}
    assert syntaxes == {
        ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless,
        JPEGLSLossless, JPEGLSNearLossless, JPEG2000Lossless, JPEG2000,
    }  # fmt: skip


def placed(name: str, path: Path) -> Dataset:
    """Saves one of pydicom's images as a slice of a CT somewhere: few of them say where they lie."""
    dataset = pydicom.dcmread(BY_NAME[name])
    dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [0, 0, 0], [1, 0, 0, 0, 1, 0]
    dataset.PixelSpacing, dataset.SliceThickness, dataset.SOPClassUID = [1, 1], 1, CTImageStorage
    dataset.save_as(path)
    return dataset


def test_twelve_bits_of_lossy_jpeg_are_decoded(tmp_path: Path) -> None:
    """Against pydicom's own reference values of its file, which pydicom itself needs another library for."""
    placed("JPGExtended.dcm", tmp_path / "in")
    scan = read(tmp_path / "in", tmp_path)
    assert (scan.volume.voxels[140, 420, 0], scan.volume.voxels[120, 230, 0]) == (244, 95)
    assert "compressed with loss" in scan.warnings[1]


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
def test_a_codestream_that_is_not_the_files_image_is_refused(tmp_path: Path, frame: bytes) -> None:
    for path in write(tmp_path / "in", straight(PHANTOM)):
        encapsulated(path, HTJ2KLossless, frame)
    with pytest.raises(InputCorrupt):
        read(tmp_path / "in", tmp_path)


def test_a_multi_frame_object_may_be_compressed(tmp_path: Path) -> None:
    stack: Stack = straight()
    path = write_enhanced(tmp_path / "in", stack)
    encode(path, RLELossless)
    np.testing.assert_array_equal(read(path, tmp_path).volume.voxels, stack.voxels)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_any_number_of_threads_gives_the_same(tmp_path: Path, threads: int) -> None:
    stack = straight(phantom((40, 36, 17)))
    for path in write(tmp_path / "in", stack):
        encode(path, JPEG2000Lossless)
    scan = read_scan(tmp_path / "in", tmp_path, ReadLimits(10**6), threads=threads)
    np.testing.assert_array_equal(scan.volume.voxels, stack.voxels, strict=True)


def test_a_file_with_fewer_frames_than_it_states_is_refused(tmp_path: Path) -> None:
    dataset = pydicom.dcmread(write_enhanced(tmp_path / "in", straight()))
    dataset.compress(RLELossless, encoding_plugin="pydicom")
    dataset.PixelData = encapsulate(list(generate_frames(dataset.PixelData, number_of_frames=6))[:5])
    dataset.save_as(tmp_path / "in")
    with pytest.raises(InputCorrupt):
        read(tmp_path / "in", tmp_path)


@pytest.mark.parametrize("kept", [0.5, 0.9])
@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda syntax: UID(syntax).keyword)
def test_a_truncated_file_is_refused(tmp_path: Path, syntax: str, kept: float) -> None:
    paths = write(tmp_path / "in", straight(PHANTOM))
    for path in paths:
        encode(path, syntax)
    content = paths[1].read_bytes()
    pixels = content.index(b"\xe0\x7f\x10\x00") + 12
    paths[1].write_bytes(content[: pixels + int(kept * (len(content) - pixels))])
    with pytest.raises(InputCorrupt):
        read(tmp_path / "in", tmp_path)
