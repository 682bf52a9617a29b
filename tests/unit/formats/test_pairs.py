"""Pairs of a header and a file with its voxels: NIfTI, held against nibabel and SimpleITK, and Analyze."""

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal

import nibabel
import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from inference_service.contract.input_options import InputOptions
from inference_service.core.errors import (
    InconsistentGeometry,
    InputCorrupt,
    InputTooLarge,
    NotAVolume,
    ServiceError,
    UnsupportedFormat,
)
from inference_service.core.report_warnings import WarningCode
from inference_service.formats.nifti import write_mask
from inference_service.formats.read_limits import ReadLimits
from inference_service.formats.scan_reader import Scan, read_scan

LIMITS = ReadLimits(max_voxels=1000, max_bytes=10**6)
TYPES = ("u1", "i2", "u2", "f4", "f8")
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
AFFINES = {
    "straight": np.array([[-1.5, 0, 0, 20], [0, 2, 0, -30], [0, 0, 2.5, 7], [0, 0, 0, 1]]),
    "turned": np.array([[0, 0, -2.5, 9], [1.5, 0, 0, -30], [0, 2.0, 0, 50], [0, 0, 0, 1]]),
    "oblique": np.array([[0.9, -1.6, 0, 9], [1.2, 1.2, 0, -30], [0, 0, 2.5, 50], [0, 0, 0, 1]]),
}
# Codes of qform and sform.
FORMS = {"both": (1, 1), "sform": (0, 2), "qform": (1, 0)}
ENDINGS = [(".hdr", ".img"), (".hdr", ".img.gz"), (".hdr.gz", ".img.gz")]
OTHER_ENDINGS = [(".hdr", ".img.bz2"), (".hdr.xz", ".img.xz")]
OFFSET = slice(108, 112)

Files = dict[str, bytes]
ByteOrder = Literal["<", ">"]


def values(dtype: str = "i2", byte_order: ByteOrder = "<") -> NDArray[np.number]:
    return (np.arange(60).reshape(3, 4, 5) * 3).astype(np.dtype(dtype).newbyteorder(byte_order))


def pair(
    kind: type[nibabel.Nifti1Pair] = nibabel.Nifti1Pair,
    dtype: str = "i2",
    affine: str = "straight",
    form: str = "both",
    byte_order: ByteOrder = "<",
) -> Files:
    """The two files of a NIfTI pair."""
    header = kind.header_class(endianness=byte_order)
    header.set_data_dtype(values(dtype, byte_order).dtype)
    image = kind(values(dtype), AFFINES[affine], header)
    qform_code, sform_code = FORMS[form]
    image.set_qform(AFFINES[affine] if qform_code else None, qform_code)
    image.set_sform(AFFINES[affine] if sform_code else None, sform_code)
    image.header.set_xyzt_units("mm")
    return saved(image)


def saved(image: nibabel.analyze.AnalyzeImage) -> Files:
    streams = {"header": io.BytesIO(), "image": io.BytesIO()}
    image.to_file_map({name: nibabel.FileHolder(fileobj=stream) for name, stream in streams.items()})
    return {"a.hdr": streams["header"].getvalue(), "a.img": streams["image"].getvalue()}


def named(files: Files, header: str, voxels: str) -> Files:
    """The files of a pair with these endings, gzipped accordingly."""
    contents = {f"a{header}": files["a.hdr"], f"a{voxels}": files["a.img"]}
    compress: dict[str, Callable[[bytes], bytes]] = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}
    return {name: compress.get(name.rpartition(".")[2], bytes)(each) for name, each in contents.items()}


def write(folder: Path, files: Mapping[str, bytes]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def packed(folder: Path, files: Mapping[str, bytes], form: str) -> Path:
    """The files as a folder, a zip or a tar, under names that do not help."""
    files = {str(number): content for number, content in enumerate(files.values())}
    source = folder / "in"
    if form == "folder":
        return write(source, files)
    if form == "zip":
        with zipfile.ZipFile(source, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    else:
        with tarfile.open(source, "w:gz") as archive_tar:
            for path in sorted(write(folder / "files", files).iterdir()):
                archive_tar.add(path, path.name)
    return source


def scan_of(source: Path, *tolerate: str) -> Scan:
    work = source.parent / "work"
    work.mkdir(exist_ok=True)
    return read_scan(source, work, LIMITS, input_options=InputOptions(tolerate=tolerate))  # type: ignore[arg-type]


def assert_as_simpleitk(scan: Scan, path: Path) -> None:
    image = SimpleITK.ReadImage(str(path))
    expected = SimpleITK.GetArrayFromImage(image).transpose()
    np.testing.assert_array_equal(scan.volume.voxels, expected)
    assert scan.volume.voxels.dtype == expected.dtype
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    np.testing.assert_allclose(scan.volume.affine, LPS_TO_RAS @ affine, atol=1e-4)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("byte_order", ["<", ">"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("affine", AFFINES)
@pytest.mark.parametrize("kind", [nibabel.Nifti1Pair, nibabel.Nifti2Pair])
def test_a_pair_is_read_as_by_other_readers(
    tmp_path: Path, kind: type[nibabel.Nifti1Pair], affine: str, form: str, byte_order: ByteOrder, dtype: str
) -> None:
    folder = write(tmp_path / "in", pair(kind, dtype, affine, form, byte_order))
    scan = scan_of(folder)
    expected = kind.from_filename(folder / "a.hdr")
    np.testing.assert_array_equal(scan.volume.voxels, np.asarray(expected.dataobj))
    assert scan.volume.voxels.dtype == np.dtype(dtype)
    np.testing.assert_allclose(scan.volume.affine, expected.affine, atol=1e-6)
    np.testing.assert_allclose(scan.volume.affine, AFFINES[affine], atol=1e-4)
    assert (scan.input_format, scan.set_aside, scan.warnings) == ("nifti", {}, ())
    if kind is nibabel.Nifti1Pair:
        # ITK does not read pairs of NIfTI-2.
        assert_as_simpleitk(scan, folder / "a.hdr")


@pytest.mark.parametrize("endings", [*ENDINGS, *OTHER_ENDINGS], ids=str)
@pytest.mark.parametrize("form", ["folder", "zip", "tar"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Pair, nibabel.Nifti2Pair])
def test_the_parts_find_each_other_by_content(
    tmp_path: Path, kind: type[nibabel.Nifti1Pair], form: str, endings: tuple[str, str]
) -> None:
    files = named(pair(kind), *endings)
    litter = {".DS_Store": b"\0\0\0\1Bud1" + bytes(100), "a.json": b"{}", "notes": b"text"}
    scan = scan_of(packed(tmp_path, {**litter, **dict(reversed(files.items()))}, form))
    np.testing.assert_array_equal(scan.volume.voxels, values(), strict=True)
    assert scan.set_aside == {"no_volume": 3}
    write(tmp_path / "named", files)
    if kind is nibabel.Nifti1Pair and endings in ENDINGS:
        assert_as_simpleitk(scan, tmp_path / "named" / f"a{endings[0]}")


def test_a_file_a_little_longer_than_the_voxels_is_left_out(tmp_path: Path) -> None:
    scan = scan_of(write(tmp_path / "in", {**pair(), "notes.txt": b"-" * 200}))
    np.testing.assert_array_equal(scan.volume.voxels, values(), strict=True)
    assert scan.set_aside == {"no_volume": 1}


def test_the_values_are_scaled(tmp_path: Path) -> None:
    files = pair()
    header = bytearray(files["a.hdr"])
    header[112:120] = np.array([0.5, -1000], "<f4").tobytes()
    folder = write(tmp_path / "in", {**files, "a.hdr": bytes(header)})
    scan = scan_of(folder)
    np.testing.assert_array_equal(scan.volume.voxels, values().astype(np.float32) / 2 - 1000)
    assert_as_simpleitk(scan, folder / "a.hdr")


def test_a_mask_has_the_grid_of_the_pair(tmp_path: Path) -> None:
    scan = scan_of(write(tmp_path / "in", pair(affine="oblique")))
    write_mask(tmp_path / "mask.nii.gz", np.ones((3, 4, 5), np.uint8), scan.grid)
    mask = nibabel.Nifti1Image.from_filename(tmp_path / "mask.nii.gz")
    np.testing.assert_allclose(mask.affine, AFFINES["oblique"], atol=1e-5)
    assert np.asarray(mask.dataobj).sum() == 60


@pytest.mark.parametrize("gzipped", [False, True])
def test_the_voxels_may_begin_later_in_their_file(tmp_path: Path, gzipped: bool) -> None:
    files = pair()
    header = bytearray(files["a.hdr"])
    header[OFFSET] = np.array(352, "<f4").tobytes()
    files = {"a.hdr": bytes(header), "a.img": bytes(352) + files["a.img"]}
    folder = write(tmp_path / "in", named(files, ".hdr", ".img.gz" if gzipped else ".img"))
    scan = scan_of(folder)
    np.testing.assert_array_equal(scan.volume.voxels, values(), strict=True)


def test_the_header_may_have_extensions(tmp_path: Path) -> None:
    files = pair()
    extension = b"\1\0\0\0" + (32).to_bytes(4, "little") + (6).to_bytes(4, "little") + b"comment".ljust(24, b"\0")
    scan = scan_of(write(tmp_path / "in", {**files, "a.hdr": files["a.hdr"] + extension}))
    np.testing.assert_array_equal(scan.volume.voxels, values(), strict=True)


def test_several_gzip_streams_are_one_data_file(tmp_path: Path) -> None:
    files = pair()
    voxels = gzip.compress(files["a.img"][:50]) + gzip.compress(files["a.img"][50:])
    scan = scan_of(write(tmp_path / "in", {"a.hdr": files["a.hdr"], "a.img.gz": voxels, "notes": b"text"}))
    np.testing.assert_array_equal(scan.volume.voxels, values(), strict=True)


def changed(files: Files, place: int, content: bytes) -> Files:
    header = files["a.hdr"]
    return {**files, "a.hdr": header[:place] + content + header[place + len(content) :]}


REFUSED: dict[str, tuple[Files, type[ServiceError], str]] = {
    "header alone": ({"a.hdr": pair()["a.hdr"]}, UnsupportedFormat, "another file, which is missing"),
    "voxels alone": ({"a.img": pair()["a.img"]}, UnsupportedFormat, "Voxels need their header"),
    "voxels cut": ({**pair(), "a.img": pair()["a.img"][:-1]}, InputCorrupt, "got 0 among 1 other file"),
    "voxels cut, gzipped": (
        {"a.hdr": pair()["a.hdr"], "a.img.gz": gzip.compress(pair()["a.img"][:-1])},
        InputCorrupt,
        "truncated: expected 120 bytes of voxels, got 119",
    ),
    "gzip cut": (
        {"a.hdr": pair()["a.hdr"], "a.img.gz": gzip.compress(pair()["a.img"])[:-3]},
        InputCorrupt,
        "gzip stream is truncated",
    ),
    "size made up": (
        {"a.hdr": pair()["a.hdr"], "a.img.gz": gzip.compress(bytes(10**6))[:-4] + (120).to_bytes(4, "little")},
        InputCorrupt,
        "",
    ),
    "too many voxels": ({**pair(), "a.img": bytes(120 + 4097)}, InputCorrupt, "got 0 among 1 other file"),
    "two data files": ({**pair(), "b.img": pair()["a.img"]}, InputCorrupt, "got 2 among 2 other file"),
    "two data files, one gzipped": (
        {**pair(), "a.img.gz": gzip.compress(pair()["a.img"])},
        InputCorrupt,
        "got 2 among 2 other file",
    ),
    "shortest gzip": ({**pair(), "b.gz": b"\x1f\x8b", "a.img": b"x"}, InputCorrupt, "gzip stream is truncated"),
    "two pairs": ({**pair(), "b.hdr": pair()["a.hdr"], "b.img": pair()["a.img"]}, NotAVolume, "2 volumes"),
    "without place": (changed(pair(), 252, bytes(4)), InconsistentGeometry, "sform_code and qform_code are 0"),
    "begins at NaN": (changed(pair(), 108, np.array(np.nan, "<f4").tobytes()), InputCorrupt, "begin at byte nan"),
    "begins before": (changed(pair(), 108, np.array(-4, "<f4").tobytes()), InputCorrupt, "begin at byte -4"),
    "begins far": (changed(pair(), 108, np.array(1e30, "<f4").tobytes()), InputCorrupt, "begin at byte 1e+30"),
    "begins after the end": (changed(pair(), 108, np.array(8, "<f4").tobytes()), InputCorrupt, "got 0 among 1"),
    "too many stated": (changed(pair(), 42, b"\xff\x7f" * 3), InputTooLarge, "voxels; this service takes at most"),
    "without magic": (changed(pair(), 344, b"abc"), InconsistentGeometry, "Analyze 7.5"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_pair_that_is_not_one_is_refused_by_name(tmp_path: Path, name: str) -> None:
    files, error, text = REFUSED[name]
    with pytest.raises(error) as caught:
        scan_of(write(tmp_path / "in", files))
    assert text in caught.value.message


def analyze(byte_order: ByteOrder = "<", dtype: str = "i2", origin: tuple[int, int, int] = (0, 0, 0)) -> Files:
    header = nibabel.Spm99AnalyzeHeader(endianness=byte_order)
    header.set_data_dtype(values(dtype, byte_order).dtype)
    header.set_data_shape((3, 4, 5))
    header.set_zooms((1.5, 2, 2.5))
    header["origin"][:3] = origin
    return {
        "a.hdr": header.binaryblock,
        "a.img": values(dtype, byte_order).tobytes(order="F"),
    }


@pytest.mark.parametrize("form", ["folder", "zip", "tar"])
def test_analyze_is_refused_because_it_does_not_tell_left_from_right(tmp_path: Path, form: str) -> None:
    with pytest.raises(InconsistentGeometry, match="left and right may be swapped"):
        scan_of(packed(tmp_path, analyze(), form))


@pytest.mark.parametrize("endings", ENDINGS, ids=str)
@pytest.mark.parametrize("byte_order", ["<", ">"])
@pytest.mark.parametrize("dtype", ["u1", "i2", "i4", "f4", "f8"])
@pytest.mark.parametrize("origin", [(0, 0, 0), (2, 1, 5)], ids=str)
def test_analyze_is_read_as_by_nibabel_if_the_request_tolerates_it(
    tmp_path: Path, endings: tuple[str, str], byte_order: ByteOrder, dtype: str, origin: tuple[int, int, int]
) -> None:
    folder = write(tmp_path / "in", named(analyze(byte_order, dtype, origin), *endings))
    scan = scan_of(folder, "analyze_orientation")
    plain = write(tmp_path / "plain", analyze(byte_order, dtype, origin))
    expected = nibabel.Spm99AnalyzeImage.from_filename(plain / "a.hdr")
    np.testing.assert_array_equal(scan.volume.voxels, np.asarray(expected.dataobj))
    assert scan.volume.voxels.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(scan.volume.affine, expected.affine)
    assert scan.volume.orientation == "LAS"
    assert (scan.input_format, [each.code for each in scan.warnings]) == ("analyze", [WarningCode.ORIENTATION_MISSING])


ANALYZE_REFUSED: dict[str, tuple[Files, type[ServiceError], str]] = {
    "alone": ({"a.hdr": analyze()["a.hdr"]}, UnsupportedFormat, "another file, which is missing"),
    "orient": (changed(analyze(), 252, b"\2"), InconsistentGeometry, "orient is 2"),
    "scaled": (changed(analyze(), 112, np.array(2, "<f4").tobytes()), UnsupportedFormat, "scales its values"),
    "spacing 0": (changed(analyze(), 80, bytes(4)), InconsistentGeometry, "pixdim"),
    "spacing negative": (changed(analyze(), 80, np.array(-2, "<f4").tobytes()), InconsistentGeometry, "pixdim"),
    "spacing NaN": (changed(analyze(), 80, np.array(np.nan, "<f4").tobytes()), InconsistentGeometry, "pixdim"),
    "spacing infinite": (changed(analyze(), 80, np.array(np.inf, "<f4").tobytes()), InconsistentGeometry, "spacing"),
    "colour": (changed(analyze(), 70, np.array(128, "<i2").tobytes()), NotAVolume, "real numbers"),
    "bits": (changed(analyze(), 70, np.array(1, "<i2").tobytes()), NotAVolume, "binary"),
    "unknown type": (changed(analyze(), 70, np.array(3, "<i2").tobytes()), UnsupportedFormat, "data type 3"),
    "time": (changed(analyze(), 40, np.array([4, 3, 4, 5, 2], "<i2").tobytes()), NotAVolume, "(3, 4, 5, 2)"),
    "voxels cut": ({**analyze(), "a.img": analyze()["a.img"][:-1]}, InputCorrupt, "got 0 among 1"),
}


@pytest.mark.parametrize("name", ANALYZE_REFUSED)
def test_a_damaged_analyze_pair_is_refused_by_name(tmp_path: Path, name: str) -> None:
    files, error, text = ANALYZE_REFUSED[name]
    with pytest.raises(error) as caught:
        scan_of(write(tmp_path / "in", files), "analyze_orientation")
    assert text in caught.value.message


@pytest.mark.parametrize("make", [pair, analyze])
@settings(max_examples=200)
@given(changes=st.lists(st.tuples(st.integers(0, 347), st.integers(0, 255)), min_size=1, max_size=6))
def test_a_damaged_header_gives_a_scan_or_a_coded_error(
    tmp_path_factory: pytest.TempPathFactory, make: Callable[[], Files], changes: list[tuple[int, int]]
) -> None:
    files = make()
    for place, value in changes:
        files = changed(files, place, bytes([value]))
    folder = write(tmp_path_factory.mktemp("pair") / "in", files)
    # Any other error fails the test.
    with suppress(ServiceError):
        scan = scan_of(folder, "analyze_orientation")
        assert scan.volume.voxels.size <= LIMITS.max_voxels
        assert np.isfinite(scan.volume.affine).all()


@pytest.mark.parametrize(
    ("given_name", "names"),
    [
        ("scan.hdr", ["scan.img"]),
        ("scan.img", ["scan.hdr"]),
        ("SCAN.HDR", ["SCAN.IMG"]),
        ("scan.hdr", ["scan.img.gz"]),
        ("scan.hdr.gz", ["scan.img.gz"]),
        ("scan.img.gz", ["scan.hdr"]),
        ("a.b.hdr", ["a.b.img"]),
    ],
)
def test_the_other_part_of_a_file_is_found_beside_it(tmp_path: Path, given_name: str, names: list[str]) -> None:
    files = pair()
    for name in (given_name, *names):
        content = files["a.img" if ".img" in name.lower() else "a.hdr"]
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    for other in ("scan2.img", "b.hdr", "scan.txt", "img", "scan"):
        (tmp_path / other).write_bytes(files["a.img"])
    scan = scan_of(tmp_path / given_name)
    np.testing.assert_array_equal(scan.volume.voxels, values(), strict=True)
    assert scan.set_aside == {}
