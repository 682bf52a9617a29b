"""NRRD and MetaImage, held against SimpleITK."""

import bz2
import gzip
import tracemalloc
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from dicom_files import regular_stack, write_series
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
from inference_service.core.report_warnings import ReportWarning, WarningCode
from inference_service.formats.read_limits import ReadLimits
from inference_service.formats.scan_reader import Scan, read_scan

LIMITS = ReadLimits(max_voxels=1000)
TYPES = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8")
# Columns are the directions of the axes.
DIRECTIONS = {
    "LPS": np.eye(3),
    "RAS": np.diag([-1.0, -1.0, 1.0]),
    "turned": np.array([[0.0, 1.0, 0.0], [0.0, 0.0, -1.0], [-1.0, 0.0, 0.0]]),
    "oblique": np.array([[0.6, -0.8, 0.0], [0.8, 0.6, 0.0], [0.0, 0.0, 1.0]]),
}
SPACING = (0.75, 1.25, 2.5)
ORIGIN = (-11.0, 7.5, 130.0)
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
MEMORY_BYTES = 8 * 2**20


def image(dtype: str = "i2", directions: str = "oblique") -> SimpleITK.Image:
    values = np.arange(60).reshape(3, 4, 5).astype(dtype)
    made = SimpleITK.GetImageFromArray(values - 7 if dtype[0] != "u" else values)
    made.SetSpacing(SPACING)
    made.SetOrigin(ORIGIN)
    made.SetDirection(DIRECTIONS[directions].ravel().tolist())
    return made


def affine_of(made: SimpleITK.Image) -> NDArray[np.float64]:
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(made.GetDirection(), (3, 3)) * made.GetSpacing()
    affine[:3, 3] = made.GetOrigin()
    return LPS_TO_RAS @ affine


def scan_of(path: Path) -> Scan:
    work = path.parent / "work"
    work.mkdir(exist_ok=True)
    return read_scan(path, work, LIMITS)


def assert_same(scan: Scan, expected: SimpleITK.Image) -> None:
    values = SimpleITK.GetArrayFromImage(expected).transpose()
    np.testing.assert_array_equal(scan.volume.voxels, values)
    assert scan.volume.voxels.dtype == values.dtype
    np.testing.assert_allclose(scan.volume.affine, affine_of(expected), atol=1e-6)


@pytest.mark.parametrize("compressed", [False, True], ids=["raw", "compressed"])
@pytest.mark.parametrize("directions", DIRECTIONS)
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("ending", ["nrrd", "mha"])
def test_a_file_is_read_as_by_simpleitk(
    tmp_path: Path, ending: str, dtype: str, directions: str, compressed: bool
) -> None:
    path = tmp_path / f"scan.{ending}"
    SimpleITK.WriteImage(image(dtype, directions), str(path), compressed)
    scan = scan_of(path)
    assert_same(scan, SimpleITK.ReadImage(str(path)))
    assert (scan.input_format, scan.warnings) == ({"nrrd": "nrrd", "mha": "metaimage"}[ending], ())


@pytest.mark.parametrize("zipped", [False, True], ids=["folder", "zip"])
@pytest.mark.parametrize("compressed", [False, True], ids=["raw", "compressed"])
@pytest.mark.parametrize("ending", ["nhdr", "mhd"])
def test_a_header_finds_its_data_file_whatever_its_name(
    tmp_path: Path, ending: str, compressed: bool, zipped: bool
) -> None:
    source = tmp_path / "scan"
    source.mkdir()
    SimpleITK.WriteImage(image(), str(source / f"scan.{ending}"), compressed)
    (data,) = [path for path in source.iterdir() if path.suffix != f".{ending}"]
    data.rename(source / "renamed")
    (source / ".DS_Store").write_bytes(bytes(3))
    if zipped:
        with zipfile.ZipFile(tmp_path / "scan.zip", "w") as archive:
            for path in source.iterdir():
                archive.write(path, path.name)
    assert_same(scan_of(tmp_path / "scan.zip" if zipped else source), image())


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("space", ["RAS", "LAS", "LPS", "right-anterior-superior", "Left-Posterior-Superior"])
def test_an_nrrd_of_any_space_and_byte_order_is_read_as_by_simpleitk(tmp_path: Path, space: str, order: str) -> None:
    path = tmp_path / "scan.nrrd"
    endian = {"<": "little", ">": "big"}[order]
    path.write_bytes(nrrd(space=space, endian=endian, data=VALUES.astype(f"{order}i2").tobytes()))
    assert_same(scan_of(path), SimpleITK.ReadImage(str(path)))


VALUES = np.arange(24)
FIELDS = {
    "type": "short",
    "dimension": "3",
    "space": "left-posterior-superior",
    "sizes": "2 3 4",
    "space directions": "(0,0,2) (0.5,0,0) (0,1.5,0)",
    "endian": "little",
    "encoding": "raw",
    "space origin": "(1,-2,3.5)",
}


def nrrd(data: bytes = VALUES.astype("<i2").tobytes(), **changes: str | None) -> bytes:
    """An NRRD file with some fields changed, or left out where None. Underscores stand for spaces."""
    fields = {**FIELDS, **{name.replace("_", " "): text for name, text in changes.items()}}
    lines = [f"{name}: {text}" for name, text in fields.items() if text is not None]
    return "\n".join(["NRRD0004", "# a comment: with a colon", *lines, "key:=value: x", "", ""]).encode() + data


METAIMAGE = {
    "ObjectType": "Image",
    "NDims": "3",
    "BinaryData": "True",
    "BinaryDataByteOrderMSB": "False",
    "CompressedData": "False",
    "TransformMatrix": "0 0 1 1 0 0 0 1 0",
    "Offset": "1 -2 3.5",
    "ElementSpacing": "2 0.5 1.5",
    "DimSize": "2 3 4",
    "ElementType": "MET_SHORT",
}


def mha(data: bytes = VALUES.astype("<i2").tobytes(), **changes: str | None) -> bytes:
    """A MetaImage file with some fields changed, or left out where None."""
    lines = [f"{name} = {text}" for name, text in {**METAIMAGE, **changes}.items() if text is not None]
    return "\n".join([*lines, "ElementDataFile = LOCAL", ""]).encode() + data


SHORTS = VALUES.astype("<i2").tobytes()
AS_SIMPLEITK: dict[str, bytes] = {
    "nrrd: gz": nrrd(gzip.compress(SHORTS), encoding="gz"),
    "nrrd: of two gzip members": nrrd(gzip.compress(SHORTS[:20]) + gzip.compress(SHORTS[20:]), encoding="gzip"),
    "nrrd: byte skip": nrrd(b"skipped" + SHORTS, byte_skip="7"),
    "nrrd: voxels are last": nrrd(b"skipped" + SHORTS, byte_skip="-1"),
    "nrrd: line skip": nrrd(b"a\nb\n" + SHORTS, line_skip="2"),
    "nrrd: line ends of Windows": nrrd().replace(b"\n", b"\r\n", 13),
    "mha: MSB": mha(VALUES.astype(">i2").tobytes(), BinaryDataByteOrderMSB="True"),
    "mha: MSB by its other name": mha(
        VALUES.astype(">i2").tobytes(), BinaryDataByteOrderMSB=None, ElementByteOrderMSB="True"
    ),
    "mha: zlib": mha(zlib.compress(SHORTS), CompressedData="True", CompressedDataSize=str(len(zlib.compress(SHORTS)))),
    "mha: other names": mha(TransformMatrix=None, Orientation="0 0 1 1 0 0 0 1 0", Offset=None, Position="1 -2 3.5"),
    "mha: MET_LONG has 4 bytes": mha(VALUES.astype("<i4").tobytes(), ElementType="MET_LONG"),
    "mha: AnatomicalOrientation decides nothing": mha(AnatomicalOrientation="RAI"),
}


@pytest.mark.parametrize("name", AS_SIMPLEITK)
def test_variants_are_read_as_by_simpleitk(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"scan.{name.partition(':')[0]}"
    path.write_bytes(AS_SIMPLEITK[name])
    assert_same(scan_of(path), SimpleITK.ReadImage(str(path)))


def test_units_other_than_millimetres_are_converted(tmp_path: Path) -> None:
    for name, content in (
        ("a.nrrd", nrrd(space_units='"cm" "cm" "cm"')),
        ("b.nrrd", nrrd(space_units='"Centimeters" "centimetre" "cm"')),
        ("a.mha", mha(DistanceUnits="cm")),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        assert scan_of(path).volume.spacing_mm == pytest.approx((20, 5, 15))
        assert scan_of(path).volume.affine[:3, 3] == pytest.approx((-10, 20, 35))


@pytest.mark.parametrize("unit", ["um", "m"])
@pytest.mark.parametrize("ending", ["nrrd", "mha"])
def test_a_unit_that_makes_a_body_a_speck_or_a_mountain_is_refused_unless_it_is_tolerated(
    tmp_path: Path, ending: str, unit: str
) -> None:
    path = tmp_path / f"scan.{ending}"
    path.write_bytes(nrrd(space_units=f'"{unit}" "{unit}" "{unit}"') if ending == "nrrd" else mha(DistanceUnits=unit))
    with pytest.raises(InconsistentGeometry, match=f"states {unit}, by which the scan measures .*set options.tolerate"):
        scan_of(path)
    scan = read_scan(path, tmp_path, LIMITS, input_options=InputOptions(tolerate=("unusual_extent",)))
    factor = {"um": 0.001, "m": 1000}[unit]
    np.testing.assert_allclose(scan.volume.spacing_mm, np.array([2, 0.5, 1.5]) * factor)
    codes = {warning.code for warning in scan.warnings}
    assert codes == {WarningCode.IMPLAUSIBLE_UNIT, WarningCode.UNUSUAL_EXTENT}


@pytest.mark.parametrize("ending", ["nrrd", "mha"])
def test_microns_of_a_body_are_converted(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"scan.{ending}"
    path.write_bytes(
        nrrd(space_units='"micron" "um" "um"', space_directions="(0,0,2000) (500,0,0) (0,1500,0)")
        if ending == "nrrd"
        else mha(DistanceUnits="um", ElementSpacing="2000 500 1500")
    )
    scan = scan_of(path)
    assert scan.volume.spacing_mm == pytest.approx((2, 0.5, 1.5))
    assert scan.warnings == ()


@pytest.mark.parametrize("spacings", ["nan nan nan", "2 0.5 1.5", "2.01 0.5 nan"])
def test_spacings_that_agree_with_the_directions_are_accepted(tmp_path: Path, spacings: str) -> None:
    path = tmp_path / "scan.nrrd"
    path.write_bytes(nrrd(spacings=spacings))
    assert scan_of(path).volume.spacing_mm == pytest.approx((2, 0.5, 1.5))


def test_an_axis_of_one_value_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.nrrd"
    directions = f"none {FIELDS['space directions']}"
    path.write_bytes(nrrd(dimension="4", sizes="1 2 3 4", space_directions=directions))
    assert scan_of(path).volume.shape == (2, 3, 4)
    path.write_bytes(
        mha(NDims="4", DimSize="2 3 4 1", TransformMatrix=None, Offset="1 2 3 0", ElementSpacing="1 1 1 1")
    )
    assert scan_of(path).volume.shape == (2, 3, 4)


def test_the_modality_and_what_was_assumed_are_told(tmp_path: Path) -> None:
    path = tmp_path / "a.mha"
    path.write_bytes(mha(Modality="MET_MOD_CT", TransformMatrix=None, Offset=None))
    scan = scan_of(path)
    assert scan.modality == "CT"
    assert [(warning.code, warning.message.partition(":")[0]) for warning in scan.warnings] == [
        (WarningCode.ORIENTATION_MISSING, "the header has no TransformMatrix"),
        (WarningCode.ORIGIN_MISSING, "the header has no Offset"),
    ]
    path.write_bytes(nrrd(space_origin=None))
    message = "the header has no `space origin`: the first voxel was taken for the origin"
    assert scan_of(path).warnings == (ReportWarning(WarningCode.ORIGIN_MISSING, message),)


@pytest.mark.parametrize("ending", ["nrrd", "mha"])
def test_compressed_voxels_are_held_once(tmp_path: Path, ending: str) -> None:
    shape = (256, 256, 128)
    size = " ".join(map(str, shape))
    voxels = bytes(2 * int(np.prod(shape)))
    path = tmp_path / f"scan.{ending}"
    path.write_bytes(
        nrrd(gzip.compress(voxels), sizes=size, encoding="gzip")
        if ending == "nrrd"
        else mha(zlib.compress(voxels), DimSize=size, CompressedData="True")
    )
    tracemalloc.start()
    try:
        scan = read_scan(path, tmp_path, ReadLimits(10**8))
        assert tracemalloc.get_traced_memory()[1] < len(voxels) + MEMORY_BYTES
    finally:
        tracemalloc.stop()
    assert scan.volume.shape == shape


REFUSED: dict[str, tuple[bytes, type[ServiceError], str]] = {
    "nrrd: no directions": (nrrd(space_directions=None), InconsistentGeometry, "has no `space directions`"),
    "nrrd: no space": (nrrd(space=None), InconsistentGeometry, "expected a `space`"),
    "nrrd: space of a scanner": (nrrd(space="scanner-xyz"), InconsistentGeometry, "expected a `space`"),
    "nrrd: unknown units": (nrrd(space_units='"in" "in" "in"'), InconsistentGeometry, "space units"),
    "nrrd: two units": (nrrd(space_units='"mm" "mm"'), InconsistentGeometry, "space units"),
    "nrrd: infinite direction": (
        nrrd(space_directions="(0,0,inf) (0.5,0,0) (0,1.5,0)"),
        InconsistentGeometry,
        "three finite numbers",
    ),
    "nrrd: axes in a plane": (nrrd(space_directions="(1,0,0) (2,0,0) (0,1,0)"), InconsistentGeometry, "singular"),
    "nrrd: other spacings": (nrrd(spacings="nan 1 nan"), InconsistentGeometry, "spacings state 1 for an axis"),
    "nrrd: few directions": (nrrd(space_directions="(1,0,0) (0,1,0)"), InputCorrupt, "2 vectors for 3 axes"),
    "nrrd: sizes": (nrrd(sizes="2 3"), InputCorrupt, "'sizes' is not a list of 3 finite numbers"),
    "nrrd: no sizes": (nrrd(sizes=None), InputCorrupt, "no field 'sizes'"),
    "nrrd: empty axis": (nrrd(sizes="2 0 4"), InputCorrupt, "at least 1 along each axis"),
    "nrrd: a plane": (
        nrrd(dimension="2", sizes="6 4", space_directions="(1,0,0) (0,1,0)"),
        NotAVolume,
        "shape (6, 4)",
    ),
    "nrrd: vectors": (
        nrrd(dimension="4", sizes="3 2 2 2", space_directions="none (1,0,0) (0,1,0) (0,0,1)"),
        NotAVolume,
        "shape (3, 2, 2, 2) with 3 axes in space",
    ),
    "nrrd: too many voxels": (nrrd(sizes="1000000 1000000 1000000"), InputTooLarge, "at most 1000"),
    "nrrd: text": (nrrd(encoding="txt"), UnsupportedFormat, "neither raw nor gzip"),
    "nrrd: bzip2": (nrrd(bz2.compress(SHORTS), encoding="bzip2"), UnsupportedFormat, "neither raw nor gzip"),
    "nrrd: block": (nrrd(type="block"), UnsupportedFormat, "`type`"),
    "nrrd: no byte order": (nrrd(endian=None), InputCorrupt, "no field 'endian'"),
    "nrrd: byte order": (nrrd(endian="middle"), InputCorrupt, "neither little nor big"),
    "nrrd: truncated": (nrrd(SHORTS[:-1]), InputCorrupt, "expected 48 bytes of voxels, got 47"),
    "nrrd: truncated at its end": (nrrd(SHORTS[:-1], byte_skip="-1"), InputCorrupt, "at its end"),
    "nrrd: truncated gzip": (nrrd(gzip.compress(SHORTS)[:-9], encoding="gzip"), InputCorrupt, "truncated or damaged"),
    "nrrd: damaged gzip": (nrrd(b"no gzip", encoding="gzip"), InputCorrupt, "truncated or damaged"),
    "nrrd: too long": (nrrd(SHORTS + bytes(5000)), InputCorrupt, "more than 4096 bytes after its last voxel"),
    "nrrd: skips all": (nrrd(byte_skip="99"), InputCorrupt, "header says to skip"),
    "nrrd: skips all lines": (nrrd(line_skip="99"), InputCorrupt, "header says to skip"),
    "nrrd: no end of the header": (b"NRRD0004\ntype: short", InputCorrupt, "does not end"),
    "nrrd: detached": (nrrd(b"", data_file="elsewhere.raw"), UnsupportedFormat, "send both in one zip or folder"),
    "nrrd: absolute path": (nrrd(b"", data_file="/etc/passwd"), UnsupportedFormat, "send both in one zip or folder"),
    "nrrd: list of files": (nrrd(b"", data_file="LIST"), UnsupportedFormat, "several data files"),
    "nrrd: pattern of files": (nrrd(b"", data_file="a%03d.raw 1 4 1"), UnsupportedFormat, "several data files"),
    "mha: truncated": (mha(SHORTS[:-1]), InputCorrupt, "expected 48 bytes of voxels, got 47"),
    "mha: truncated zlib": (
        mha(zlib.compress(SHORTS)[:-9], CompressedData="True"),
        InputCorrupt,
        "truncated or damaged",
    ),
    "mha: channels": (mha(ElementNumberOfChannels="3"), NotAVolume, "3 channels"),
    "mha: time": (
        mha(NDims="4", DimSize="2 3 2 2", TransformMatrix=None, Offset="1 2 3 0", ElementSpacing="1 1 1 1"),
        NotAVolume,
        "shape (2, 3, 2, 2)",
    ),
    "mha: mesh": (mha(ObjectType="Mesh"), NotAVolume, "not Image"),
    "mha: text": (mha(BinaryData="False"), UnsupportedFormat, "as text"),
    "mha: type": (mha(ElementType="MET_STRING"), UnsupportedFormat, "ElementType"),
    "mha: scaled": (mha(ElementToIntensityFunctionSlope="2"), UnsupportedFormat, "readers treat differently"),
    "mha: no spacing": (mha(ElementSpacing=None), InconsistentGeometry, "no ElementSpacing"),
    "mha: spacing in the directions": (
        mha(TransformMatrix="0 0 2 0.5 0 0 0 1.5 0"),
        InconsistentGeometry,
        "have the lengths [2.0, 0.5, 1.5]: expected 1",
    ),
    "mha: units": (mha(DistanceUnits="in"), InconsistentGeometry, "DistanceUnits"),
    "mha: flag": (mha(CompressedData="maybe"), InputCorrupt, "neither True nor False"),
    "mha: list of files": (
        mha(b"").replace(b"LOCAL", b"LIST"),
        UnsupportedFormat,
        "several data files",
    ),
    "mha: elsewhere": (
        mha(b"").replace(b"LOCAL", b"../../secret.raw"),
        UnsupportedFormat,
        "send both in one zip or folder",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_readable_volume_is_refused_by_name(tmp_path: Path, name: str) -> None:
    content, error, text = REFUSED[name]
    path = tmp_path / "scan"
    path.write_bytes(content)
    with pytest.raises(error) as caught:
        scan_of(path)
    assert text in caught.value.message


def test_two_volumes_are_refused(tmp_path: Path) -> None:
    source = tmp_path / "scan"
    source.mkdir()
    for number in range(2):
        (source / f"{number}.nrrd").write_bytes(nrrd())
    with pytest.raises(NotAVolume, match="the input holds 2 volumes"):
        scan_of(source)


def test_a_volume_beside_one_of_another_format_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "scan"
    source.mkdir()
    (source / "a.nrrd").write_bytes(nrrd())
    (source / "notes.txt").write_text("x")
    assert scan_of(source).set_aside == {"no_volume": 1}
    SimpleITK.WriteImage(image(), str(source / "b.nii.gz"))
    with pytest.raises(NotAVolume, match="the input holds 2 volumes"):
        scan_of(source)


def test_a_dicom_series_goes_before_a_volume_beside_it(tmp_path: Path) -> None:
    source = tmp_path / "scan"
    write_series(source, regular_stack())
    (source / "mask.nrrd").write_bytes(nrrd())
    scan = read_scan(source, tmp_path, ReadLimits(max_voxels=10**6))
    assert (scan.input_format, scan.set_aside) == ("dicom", {"not_dicom": 1})


def test_a_data_file_that_does_not_fit_is_not_taken(tmp_path: Path) -> None:
    source = tmp_path / "scan"
    source.mkdir()
    (source / "a.nhdr").write_bytes(nrrd(b"", data_file="a.raw"))
    (source / "a.raw").write_bytes(SHORTS[:-1])
    with pytest.raises(InputCorrupt, match="got 0 among 1 other"):
        scan_of(source)
    (source / "a.raw").write_bytes(SHORTS)
    (source / "b.raw").write_bytes(SHORTS)
    with pytest.raises(InputCorrupt, match="got 2 among 2 other"):
        scan_of(source)


@pytest.mark.parametrize("compressed", [False, True], ids=["raw", "compressed"])
def test_files_beside_the_data_file_are_left_out(tmp_path: Path, compressed: bool) -> None:
    source = tmp_path / "scan"
    source.mkdir()
    encoding = "gzip" if compressed else "raw"
    (source / "a.nhdr").write_bytes(nrrd(b"", data_file="a.raw", encoding=encoding))
    (source / "a.raw").write_bytes(gzip.compress(SHORTS) if compressed else SHORTS)
    (source / "notes.txt").write_text(
        "xyz: a text a little longer than the voxels, which begins with the letter of zlib"
    )
    scan = scan_of(source)
    np.testing.assert_array_equal(scan.volume.voxels.ravel(order="F"), VALUES)
    assert scan.set_aside == {"no_volume": 1}


VALID = [nrrd(), nrrd(gzip.compress(SHORTS), encoding="gzip"), mha(), mha(zlib.compress(SHORTS), CompressedData="True")]


@given(st.sampled_from(VALID), st.integers(0, 400), st.binary(max_size=8), st.integers(0, 8))
@settings(max_examples=300, deadline=None)
def test_a_damaged_file_gives_a_scan_or_a_coded_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, place: int, inserted: bytes, removed: int
) -> None:
    path = tmp_path_factory.mktemp("raster") / "scan"
    path.write_bytes(content[:place] + inserted + content[place + removed :])
    # Any other error fails the test.
    with suppress(ServiceError):
        assert scan_of(path).volume.voxels.size <= LIMITS.max_voxels
