import gzip
import struct
import tracemalloc
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from inference_service.core.errors import (
    InconsistentGeometry,
    InputCorrupt,
    InputTooLarge,
    NotAVolume,
    ServiceError,
    UnsupportedFormat,
)
from inference_service.core.report_warnings import WarningCode
from inference_service.formats.nifti import (
    compress,
    find_headers,
    read_nifti,
    write_mask,
    write_scan,
    write_volume,
)
from inference_service.formats.read_limits import ReadLimits
from inference_service.imaging.geometry import Volume

SHAPE = (3, 4, 5)
MAX_VOXELS = 1000
KINDS = (nibabel.Nifti1Header, nibabel.Nifti2Header)
INTEGERS = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8")
FLOATS = ("f4", "f8")
GEOMETRY = (
    "dim", "pixdim", "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d",
    "qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z",
)  # fmt: skip
NAN = float("nan")
INF = float("inf")
# The qform stores a rotation as three single-precision numbers.
QFORM_TOLERANCE_MM = 1e-4
# An extension may take 16 MiB; a volume of the forged size would take more.
MAX_ALLOCATED_BYTES = 20 * 2**20
# Longer than the part that the decompressor reads ahead.
LONG_TAIL_BYTES = 20 * 2**20

Affine = NDArray[np.float64]
# Value of a header field; for an array, values by index.
Changes = Mapping[str, float | bytes | Mapping[int, float]]


def oblique() -> Affine:
    """Spacing 0.75, 2.5 and 4 mm, rotated about two axes, in numbers that single precision represents exactly."""
    a = np.radians(20)
    b = np.radians(-35)
    around_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    around_z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = around_z @ around_x @ np.diag([-0.75, 2.5, 4.0])
    affine[:3, 3] = 10.5, -20.25, 1000.125
    return affine.astype(np.float32).astype(np.float64)


STRAIGHT: Affine = np.array([[-2.0, 0, 0, 30], [0, 0, 4.5, -40], [0, 0.5, 0, 50], [0, 0, 0, 1]])
SHEARED: Affine = np.array([[2.0, 0.5, 0, 30], [0, 3.0, 0.25, -40], [0, 0, 4.0, 50], [0, 0, 0, 1]])


def ramp(dtype: str, shape: tuple[int, ...] = SHAPE) -> NDArray[np.generic]:
    return np.arange(np.prod(shape)).reshape(shape, order="F").astype(dtype)


def labels() -> NDArray[np.uint8]:
    return np.arange(60, dtype=np.uint8).reshape(SHAPE, order="F") % np.uint8(7)


def loaded(path: Path) -> nibabel.Nifti1Image:
    image = nibabel.load(path)
    assert isinstance(image, nibabel.Nifti1Image)
    return image


def header_of(
    voxels: NDArray[np.generic],
    *,
    kind: type[nibabel.Nifti1Header] = nibabel.Nifti1Header,
    byte_order: str = "<",
    sform: Affine | None = STRAIGHT,
    qform: Affine | None = STRAIGHT,
) -> nibabel.Nifti1Header:
    header = kind(endianness=byte_order)
    header.set_data_dtype(voxels.dtype)
    header.set_data_shape(voxels.shape)
    header.set_sform(sform, code="scanner" if sform is not None else "unknown")
    header.set_qform(qform, code="aligned" if qform is not None else "unknown")
    header["magic"] = header.single_magic
    header["scl_slope"] = 1
    header["scl_inter"] = 0
    header["vox_offset"] = header.single_vox_offset
    return header


def file_bytes(header: nibabel.Nifti1Header, voxels: NDArray[np.generic]) -> bytes:
    swapped = voxels.astype(voxels.dtype.newbyteorder(header.endianness))
    return bytes(header.structarr.tobytes()) + b"\0\0\0\0" + swapped.tobytes(order="F")


def changed_file(
    changes: Changes, *, kind: type[nibabel.Nifti1Header] = nibabel.Nifti1Header, dtype: str = "i2"
) -> bytes:
    """A valid file with some header fields changed."""
    header = header_of(ramp(dtype), kind=kind)
    for field, value in changes.items():
        if isinstance(value, Mapping):
            for index, element in value.items():
                header[field][index] = element
        else:
            header[field] = value
    return file_bytes(header, ramp(dtype))


@pytest.fixture
def read(tmp_path: Path) -> Callable[[bytes], Volume]:
    def read_bytes(content: bytes) -> Volume:
        path = tmp_path / "scan"
        path.write_bytes(content)
        return read_nifti(path, ReadLimits(MAX_VOXELS)).volume

    return read_bytes


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", [*INTEGERS, *FLOATS])
def test_files_of_nibabel_are_read(tmp_path: Path, kind: type[nibabel.Nifti1Header], suffix: str, dtype: str) -> None:
    image: type[nibabel.Nifti1Image] = nibabel.Nifti2Image if kind is nibabel.Nifti2Header else nibabel.Nifti1Image
    path = tmp_path / f"scan{suffix}"
    nibabel.save(image(ramp(dtype), oblique(), dtype=np.dtype(dtype)), path)
    found = read_nifti(path, ReadLimits(MAX_VOXELS))
    volume = found.volume
    header = found.header
    np.testing.assert_array_equal(volume.voxels, ramp(dtype), strict=True)
    np.testing.assert_array_equal(volume.affine, oblique())
    assert type(header) is kind
    assert find_headers([path]) == [path]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("byte_order", ["<", ">"])
@pytest.mark.parametrize("dtype", [*INTEGERS, *FLOATS])
def test_both_byte_orders_are_read(
    read: Callable[[bytes], Volume], kind: type[nibabel.Nifti1Header], byte_order: str, dtype: str
) -> None:
    header = header_of(ramp(dtype), kind=kind, byte_order=byte_order)
    volume = read(file_bytes(header, ramp(dtype)))
    np.testing.assert_array_equal(volume.voxels, ramp(dtype), strict=True)
    np.testing.assert_array_equal(volume.affine, STRAIGHT)


@pytest.mark.parametrize("dtype", ["u1", "i2", "f4", "f8"])
def test_values_are_scaled_as_the_header_says(read: Callable[[bytes], Volume], dtype: str) -> None:
    volume = read(changed_file({"scl_slope": 0.5, "scl_inter": -1024}, dtype=dtype))
    expected = np.arange(60, dtype=np.float32).reshape(SHAPE, order="F") * np.float32(0.5) - np.float32(1024)
    np.testing.assert_array_equal(volume.voxels, expected, strict=True)


@pytest.mark.parametrize(("dtype", "arrays"), [("<f4", 1), (">f4", 1), ("<i2", 1.5), (">i2", 1.5)])
def test_scaling_allocates_at_most_one_array(tmp_path: Path, dtype: str, arrays: float) -> None:
    header = nibabel.Nifti1Header(endianness=dtype[0])
    header.set_data_dtype(dtype)
    header.set_data_shape((128, 128, 128))
    header.set_sform(STRAIGHT, code=1)
    header["scl_slope"] = 2
    header["scl_inter"] = 1
    header["vox_offset"] = 352
    path = tmp_path / "scan.nii"
    path.write_bytes(header.binaryblock + bytes(4) + np.full(128**3, 3, dtype).tobytes())
    tracemalloc.start()
    try:
        volume = read_nifti(path, ReadLimits(128**3)).volume
        assert tracemalloc.get_traced_memory()[1] < arrays * 128**3 * 4 + 3 * 2**20
    finally:
        tracemalloc.stop()
    assert (volume.voxels == 7).all()


@pytest.mark.parametrize("slope", [0.0, NAN, INF])
def test_a_slope_that_is_zero_or_not_finite_means_no_scaling(read: Callable[[bytes], Volume], slope: float) -> None:
    volume = read(changed_file({"scl_slope": slope, "scl_inter": 7}))
    np.testing.assert_array_equal(volume.voxels, ramp("i2"), strict=True)


def test_an_intercept_alone_is_applied(read: Callable[[bytes], Volume]) -> None:
    np.testing.assert_array_equal(read(changed_file({"scl_inter": 7})).voxels, ramp("f4") + 7)


def test_values_beyond_single_precision_become_infinite_without_a_warning(read: Callable[[bytes], Volume]) -> None:
    voxels = read(changed_file({"scl_slope": 3e38})).voxels
    assert (float(voxels[0, 0, 0]), float(voxels[2, 3, 4])) == (0, INF)


@pytest.mark.parametrize("affine", [STRAIGHT, oblique()], ids=["straight", "oblique"])
def test_the_qform_is_used_without_an_sform(read: Callable[[bytes], Volume], affine: Affine) -> None:
    volume = read(file_bytes(header_of(ramp("i2"), sform=None, qform=affine), ramp("i2")))
    np.testing.assert_allclose(volume.affine, affine, rtol=0, atol=QFORM_TOLERANCE_MM)


# Rotations by 180° about an axis between x and y: b² + c² is 1 but for rounding.
HALF_TURNS = [(1.0, 0.0), (0.6, 0.8), (0.28, 0.96)]


@pytest.mark.parametrize("excess", [0.0, 2e-7, 5e-7, 5e-6])
@pytest.mark.parametrize(("b", "c"), HALF_TURNS)
def test_a_quaternion_that_rounding_made_too_long_is_a_half_turn(
    tmp_path: Path, b: float, c: float, excess: float
) -> None:
    length = 1 + excess
    fields = {"sform_code": 0, "quatern_b": b * length, "quatern_c": c * length, "quatern_d": 0.0}
    (tmp_path / "scan").write_bytes(changed_file(fields))
    found = read_nifti(tmp_path / "scan", ReadLimits(MAX_VOXELS))
    volume = found.volume
    header = found.header
    expected = np.array([[b * b - c * c, 2 * b * c, 0], [2 * b * c, c * c - b * b, 0], [0, 0, -1]])
    np.testing.assert_allclose(volume.affine[:3, :3], expected * header["pixdim"][1:4], rtol=0, atol=1e-4)
    write_mask(tmp_path / "mask.nii.gz", np.zeros(volume.shape, np.uint8), header)
    np.testing.assert_allclose(
        nibabel.Nifti1Image.from_filename(tmp_path / "mask.nii.gz").affine, volume.affine, rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("length", [1.001, 1.2])
def test_a_quaternion_that_is_clearly_too_long_is_refused_by_name(
    read: Callable[[bytes], Volume], length: float
) -> None:
    with pytest.raises(InconsistentGeometry, match=rf"quatern_b, quatern_c, quatern_d has length {length:g}"):
        read(changed_file({"sform_code": 0, "quatern_b": 0.0, "quatern_c": length, "quatern_d": 0.0}))


@pytest.mark.parametrize("affine", [STRAIGHT, oblique(), SHEARED], ids=["straight", "oblique", "sheared"])
def test_the_sform_is_used_without_a_qform(read: Callable[[bytes], Volume], affine: Affine) -> None:
    volume = read(file_bytes(header_of(ramp("i2"), sform=affine, qform=None), ramp("i2")))
    np.testing.assert_array_equal(volume.affine, affine)


def test_the_sform_is_preferred_over_a_qform_of_its_scale(read: Callable[[bytes], Volume]) -> None:
    turned = oblique() @ np.diag([-1, -1, 1, 1])
    volume = read(file_bytes(header_of(ramp("i2"), sform=turned, qform=oblique()), ramp("i2")))
    np.testing.assert_array_equal(volume.affine, turned)


def scaled(factors: Sequence[float], affine: Affine = STRAIGHT) -> Affine:
    """The affine with other distances of voxels along its axes."""
    return affine @ np.diag([*factors, 1.0])


@pytest.mark.parametrize("factors", [(1, 1, 4 / 3), (1.02, 1, 1), (1, 0.75, 2), (2, 2, 2)], ids=str)
@pytest.mark.parametrize("affine", [STRAIGHT, oblique()], ids=["straight", "oblique"])
@pytest.mark.parametrize("code", [1, 99])
def test_an_sform_whose_scale_qform_and_pixdim_contradict_is_not_used(
    tmp_path: Path, affine: Affine, factors: tuple[float, ...], code: int
) -> None:
    header = header_of(ramp("i2"), sform=scaled(factors, affine), qform=affine)
    header["sform_code"] = code
    (tmp_path / "scan").write_bytes(file_bytes(header, ramp("i2")))
    found = read_nifti(tmp_path / "scan", ReadLimits(MAX_VOXELS))
    np.testing.assert_allclose(found.volume.affine, affine, rtol=0, atol=QFORM_TOLERANCE_MM)
    (warning,) = found.warnings
    assert warning.code == WarningCode.SFORM_IGNORED
    assert "sform states a spacing of" in warning.message
    assert "the qform was used" in warning.message
    write_mask(tmp_path / "mask.nii.gz", labels(), found.header)
    mask = loaded(tmp_path / "mask.nii.gz").header
    np.testing.assert_allclose(mask.get_sform(), affine, rtol=0, atol=QFORM_TOLERANCE_MM)
    # nibabel takes an unknown code for 0.
    assert mask["sform_code"] == (1 if code == 1 else 0)


@pytest.mark.parametrize(
    ("sform", "qform", "pixdim"),
    [
        (scaled((1, 1, 4 / 3)), None, (2, 0.5, 4.5)),
        (STRAIGHT, np.eye(4), (1, 1, 1)),
        (scaled((1, 1, 100)), STRAIGHT, (2, 0.5, 4.5)),
        (np.zeros((4, 4)), STRAIGHT, (2, 0.5, 4.5)),
    ],
    ids=["no qform", "pixdim and qform by default", "damaged", "no sform"],
)
def test_contradicting_scales_that_nothing_decides_are_refused(
    read: Callable[[bytes], Volume], sform: Affine, qform: Affine | None, pixdim: tuple[float, ...]
) -> None:
    header = header_of(ramp("i2"), sform=sform, qform=qform)
    header["pixdim"][1:4] = pixdim
    with pytest.raises(InconsistentGeometry, match=r"states a spacing of .*, and pixdim one of"):
        read(file_bytes(header, ramp("i2")))


@pytest.mark.parametrize("pixdim", [(1, 1, 1), (0, 0, 0), (NAN, 1, 1), (-2, 0.5, 4.5), (2.01, 0.5, 4.5)], ids=str)
def test_the_sform_is_used_beside_a_pixdim_that_states_nothing_else(tmp_path: Path, pixdim: tuple[float, ...]) -> None:
    header = header_of(ramp("i2"), qform=None)
    header["pixdim"][1:4] = pixdim
    (tmp_path / "scan").write_bytes(file_bytes(header, ramp("i2")))
    found = read_nifti(tmp_path / "scan", ReadLimits(MAX_VOXELS))
    np.testing.assert_array_equal(found.volume.affine, STRAIGHT)
    codes = [warning.code for warning in found.warnings]
    assert codes == ([WarningCode.PIXDIM_IGNORED] if pixdim == (1, 1, 1) else [])


@pytest.mark.parametrize("distance", ["along", "across"])
def test_pixdim_may_be_the_distance_of_sheared_planes(tmp_path: Path, distance: str) -> None:
    sheared: Affine = np.array([[2.0, 0, 1.5, 30], [0, 3.0, 0, -40], [0, 0, 4.0, 50], [0, 0, 0, 1]])
    header = header_of(ramp("i2"), sform=sheared, qform=None)
    header["pixdim"][1:4] = (2, 3, np.hypot(1.5, 4) if distance == "along" else 4)
    (tmp_path / "scan").write_bytes(file_bytes(header, ramp("i2")))
    found = read_nifti(tmp_path / "scan", ReadLimits(MAX_VOXELS))
    np.testing.assert_array_equal(found.volume.affine, sheared)
    assert found.warnings == ()


@pytest.mark.parametrize(("units", "unit"), [(1, "metre"), (3, "micron"), (3 + 8, "micron")])
@pytest.mark.parametrize("form", ["sform", "qform"])
def test_a_unit_that_makes_a_body_a_speck_or_a_mountain_is_refused_unless_it_is_tolerated(
    tmp_path: Path, form: str, units: int, unit: str
) -> None:
    header = header_of(ramp("i2"), sform=STRAIGHT if form == "sform" else None)
    header["xyzt_units"] = units
    (tmp_path / "scan").write_bytes(file_bytes(header, ramp("i2")))
    with pytest.raises(InconsistentGeometry, match=f"xyzt_units states {unit}, by which .*set options.tolerate to"):
        read_nifti(tmp_path / "scan", ReadLimits(MAX_VOXELS))
    found = read_nifti(tmp_path / "scan", ReadLimits(MAX_VOXELS), ["unusual_extent"])
    factor = 1000 if unit == "metre" else 0.001
    np.testing.assert_allclose(found.volume.spacing_mm, np.array([2, 0.5, 4.5]) * factor, rtol=1e-6)
    assert found.warnings[0].code == WarningCode.IMPLAUSIBLE_UNIT
    assert "the stated unit was used" in found.warnings[0].message


def test_an_invalid_qform_is_ignored_beside_an_sform(read: Callable[[bytes], Volume]) -> None:
    volume = read(changed_file({"quatern_b": 5.0, "pixdim": {0: 3}}))
    np.testing.assert_array_equal(volume.affine, STRAIGHT)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"sform_code": 0}, []),
        ({"qform_code": 0, "qoffset_x": 99}, []),
        ({"qoffset_x": 30.05}, []),
        ({"qoffset_x": 33.0}, ["disagree by up to 3 mm: the sform was used"]),
        ({"quatern_b": 5.0, "pixdim": {0: 3}}, ["disagree and the qform is invalid"]),
        ({"qform_code": 0, "srow_x": {1: 0.5}}, []),
    ],
    ids=str,
)  # fmt: skip
def test_a_disagreement_of_qform_and_sform_gives_a_warning(
    tmp_path: Path, changes: Changes, expected: list[str]
) -> None:
    (tmp_path / "scan").write_bytes(changed_file(changes))
    warnings = read_nifti(tmp_path / "scan", ReadLimits(MAX_VOXELS)).warnings
    assert [warning.code for warning in warnings] == [WarningCode.QFORM_IGNORED] * len(expected)
    assert all(text in warning.message for text, warning in zip(expected, warnings, strict=True))


def test_a_qform_without_handedness_is_right_handed(read: Callable[[bytes], Volume]) -> None:
    """The NIfTI-1 standard: where pixdim[0] is 0, qfac is 1."""
    straight = np.diag([2.0, 3.0, 4.0, 1.0])
    header = header_of(ramp("i2"), sform=None, qform=straight)
    header["pixdim"][0] = 0
    np.testing.assert_allclose(read(file_bytes(header, ramp("i2"))).affine, straight, rtol=0, atol=QFORM_TOLERANCE_MM)


@pytest.mark.parametrize("form", ["sform", "qform"])
@pytest.mark.parametrize(
    ("units", "factor"),
    [(0, 1.0), (1, 1000.0), (2, 1.0), (3, 0.001), (2 + 8, 1.0), (3 + 16, 0.001), (4, 1.0), (64, 1.0)],
)
def test_units_are_converted_to_millimetres(
    read: Callable[[bytes], Volume], form: str, units: int, factor: float
) -> None:
    stated = STRAIGHT.copy()
    stated[:3] /= factor
    header = header_of(ramp("i2"), sform=stated if form == "sform" else None, qform=stated)
    header["xyzt_units"] = units
    volume = read(file_bytes(header, ramp("i2")))
    np.testing.assert_allclose(volume.affine[:3], STRAIGHT[:3], rtol=1e-6, atol=QFORM_TOLERANCE_MM)
    assert volume.affine[3].tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize("trailing", [(1,), (1, 1), (1, 1, 1, 1)])
def test_trailing_axes_of_one_are_dropped(read: Callable[[bytes], Volume], trailing: tuple[int, ...]) -> None:
    voxels = ramp("i2", (*SHAPE, *trailing))
    assert read(file_bytes(header_of(voxels), voxels)).shape == SHAPE


def test_an_extension_is_skipped(read: Callable[[bytes], Volume]) -> None:
    header = header_of(ramp("i2"))
    header["vox_offset"] = 352 + 32
    extension = struct.pack("<ii", 32, 6) + b"Mueller^Hans".ljust(24)
    content = bytes(header.structarr.tobytes()) + b"\1\0\0\0" + extension + ramp("i2").tobytes(order="F")
    np.testing.assert_array_equal(read(content).voxels, ramp("i2"))


def test_bytes_after_the_voxels_are_ignored(read: Callable[[bytes], Volume]) -> None:
    np.testing.assert_array_equal(read(changed_file({}) + b"\0" * 100).voxels, ramp("i2"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("byte_order", ["<", ">"])
@pytest.mark.parametrize("trailing", [(), (1,), (1, 1)])
@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_a_mask_has_exactly_the_grid_of_its_scan(
    tmp_path: Path, kind: type[nibabel.Nifti1Header], byte_order: str, trailing: tuple[int, ...], dtype: str
) -> None:
    scan = ramp("f4", (*SHAPE, *trailing))
    turned = oblique() @ np.diag([-1, -1, 1, 1])
    header = header_of(scan, kind=kind, byte_order=byte_order, sform=turned, qform=oblique())
    header.set_xyzt_units("micron", "sec")
    header["pixdim"][1:4] *= 1000
    for row in ("srow_x", "srow_y", "srow_z"):
        header[row] *= 1000
    (tmp_path / "scan").write_bytes(file_bytes(header, scan))
    grid = read_nifti(tmp_path / "scan", ReadLimits(MAX_VOXELS)).header
    mask = labels().astype(dtype)
    write_mask(tmp_path / "mask.nii.gz", mask, grid)

    written = loaded(tmp_path / "mask.nii.gz")
    assert type(written.header) is kind
    for field in GEOMETRY:
        expected = np.asarray(header[field])
        assert np.asarray(written.header[field]).astype(expected.dtype).tobytes() == expected.tobytes(), field
    assert written.shape == scan.shape
    assert written.get_data_dtype() == dtype
    np.testing.assert_array_equal(np.asanyarray(written.dataobj).reshape(SHAPE, order="F"), mask)
    for form in ("get_sform", "get_qform"):
        got, code = getattr(written.header, form)(coded=True)
        wanted, wanted_code = getattr(header, form)(coded=True)
        np.testing.assert_array_equal(got, wanted)
        assert code == wanted_code


@pytest.mark.parametrize(
    ("dtype", "values", "written"),
    [
        ("u1", (0, 255), "i2"),
        ("i2", (-32768, 32767), "i2"),
        ("u2", (0, 32767), "i2"),
        ("u2", (0, 32768), "f4"),
        ("i4", (-32769, 0), "f4"),
        ("i8", (-1024, 3071), "i2"),
        ("f4", (-1024.0, 3071.0), "i2"),
        ("f4", (-1024.0, 3071.5), "f4"),
        ("f8", (-0.0, 32767.0), "i2"),
        ("f8", (0.0, 1e9), "f4"),
    ],
)
def test_a_scan_is_stored_as_int16_where_that_is_exact(
    tmp_path: Path, dtype: str, values: tuple[float, float], written: str
) -> None:
    voxels = np.full(SHAPE, values[0], dtype, order="F")
    voxels[2, 3, 4] = values[1]
    write_scan(tmp_path / "scan.nii.gz", voxels, header_of(voxels))
    stored = loaded(tmp_path / "scan.nii.gz")
    assert stored.get_data_dtype() == written
    np.testing.assert_array_equal(np.asanyarray(stored.dataobj), voxels)


@pytest.mark.parametrize("dtype", ["i2", "f4"])
def test_no_copy_of_a_written_volume_is_held(tmp_path: Path, dtype: str) -> None:
    voxels = np.zeros((96, 96, 256), dtype)
    header = header_of(voxels)
    tracemalloc.start()
    try:
        write_scan(tmp_path / "scan.nii.gz", voxels, header)
        write_mask(tmp_path / "mask.nii.gz", np.broadcast_to(np.uint8(1), voxels.shape), header)
        assert tracemalloc.get_traced_memory()[1] < voxels.nbytes / 4
    finally:
        tracemalloc.stop()


def test_a_mask_has_only_the_forms_of_its_scan(tmp_path: Path) -> None:
    for sform, qform in ((None, oblique()), (oblique(), None)):
        header = header_of(ramp("i2"), sform=sform, qform=qform)
        write_mask(tmp_path / "mask.nii.gz", labels(), header)
        written = loaded(tmp_path / "mask.nii.gz").header
        assert (written["sform_code"], written["qform_code"]) == (0 if sform is None else 1, 0 if qform is None else 2)


def test_a_written_file_contains_no_text_of_its_scan(tmp_path: Path) -> None:
    texts = {"descrip": b"Mueller^Hans", "aux_file": b"PID-4711", "db_name": b"Ward 7", "intent_name": b"19610203"}
    header = header_of(ramp("i2"), sform=oblique())
    for field, text in texts.items():
        header[field] = text
    header["cal_max"] = 19610203
    header["slice_duration"] = 4711
    header["toffset"] = 4711
    scan = tmp_path / "scan"
    scan.write_bytes(file_bytes(header, ramp("i2")))
    assert all(text in scan.read_bytes() for text in texts.values())
    grid = read_nifti(scan, ReadLimits(MAX_VOXELS)).header
    write_mask(tmp_path / "mask.nii.gz", labels(), grid)
    write_scan(tmp_path / "scan.nii.gz", ramp("i2"), grid)
    for name in ("mask.nii.gz", "scan.nii.gz"):
        packed = (tmp_path / name).read_bytes()
        content = gzip.decompress(packed)
        assert not any(text in content or text in packed for text in texts.values())
        written = loaded(tmp_path / name).header
        assert [float(written[field]) for field in ("cal_max", "slice_duration", "toffset")] == [0, 0, 0]


def test_equal_masks_are_equal_files(tmp_path: Path) -> None:
    for name in ("a.nii.gz", "other name.nii.gz"):
        write_mask(tmp_path / name, labels(), header_of(ramp("i2")))
    content = (tmp_path / "a.nii.gz").read_bytes()
    assert content == (tmp_path / "other name.nii.gz").read_bytes()
    assert content[3] == 0, "no name, no comment"
    assert content[4:8] == b"\0\0\0\0", "no time"


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_mask_may_have_any_memory_order(tmp_path: Path, order: Literal["C", "F"]) -> None:
    write_mask(tmp_path / "mask.nii.gz", labels().copy(order=order)[::-1], header_of(ramp("i2")))
    np.testing.assert_array_equal(np.asanyarray(loaded(tmp_path / "mask.nii.gz").dataobj), labels()[::-1])


@pytest.mark.parametrize("dtype", ["i2", "u1", "f4", "f8"])
def test_a_written_volume_is_read_back(tmp_path: Path, dtype: str) -> None:
    write_volume(tmp_path / "volume.nii.gz", Volume(ramp(dtype), oblique()))
    found = read_nifti(tmp_path / "volume.nii.gz", ReadLimits(MAX_VOXELS))
    volume = found.volume
    header = found.header
    np.testing.assert_array_equal(volume.voxels, ramp(dtype), strict=True)
    np.testing.assert_array_equal(volume.affine, oblique())
    np.testing.assert_allclose(header.get_qform(), oblique(), rtol=0, atol=QFORM_TOLERANCE_MM)
    assert header.get_xyzt_units()[0] == "mm"


def test_a_written_volume_with_shear_has_no_qform_but_its_spacing(tmp_path: Path) -> None:
    write_volume(tmp_path / "volume.nii.gz", Volume(ramp("i2"), SHEARED))
    found = read_nifti(tmp_path / "volume.nii.gz", ReadLimits(MAX_VOXELS))
    volume = found.volume
    header = found.header
    np.testing.assert_array_equal(volume.affine, SHEARED)
    assert int(header["qform_code"]) == 0
    np.testing.assert_allclose(header.get_zooms(), np.linalg.norm(SHEARED[:3, :3], axis=0), rtol=1e-6)


@pytest.mark.parametrize("gzipped", [False, True])
def test_compress_leaves_gzipped_files_as_they_are(tmp_path: Path, gzipped: bool) -> None:
    content = changed_file({})
    (tmp_path / "source").write_bytes(gzip.compress(content) if gzipped else content)
    compress(tmp_path / "source", tmp_path / "target.nii.gz")
    assert gzip.decompress((tmp_path / "target.nii.gz").read_bytes()) == content


GZIPPED = gzip.compress(changed_file({}), mtime=0)


def flipped(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 0xFF]) + content[position + 1 :]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", InputCorrupt),
        (gzip.compress(b"", mtime=0), InputCorrupt),
        (b"\x5c", UnsupportedFormat),
        (b"not an image\n" * 40, UnsupportedFormat),
        (gzip.compress(b"not an image\n" * 40, mtime=0), UnsupportedFormat),
        (changed_file({})[:200], InputCorrupt),
        (changed_file({})[:348], InputCorrupt),
        (changed_file({})[:352], InputCorrupt),
        (changed_file({})[:-1], InputCorrupt),
        (GZIPPED[:1] + b"\x8b", InputCorrupt),
        (GZIPPED[:5], InputCorrupt),
        (GZIPPED[:20], InputCorrupt),
        (GZIPPED[: len(GZIPPED) // 2], InputCorrupt),
        (GZIPPED[:-8], InputCorrupt),
        (GZIPPED[:-1], InputCorrupt),
        (flipped(GZIPPED, len(GZIPPED) // 3), InputCorrupt),
        (flipped(GZIPPED, len(GZIPPED) // 2), InputCorrupt),
        (flipped(GZIPPED, len(GZIPPED) - 12), InputCorrupt),
        (flipped(GZIPPED, len(GZIPPED) - 6), InputCorrupt),
        (flipped(GZIPPED, len(GZIPPED) - 1), InputCorrupt),
        (flipped(GZIPPED, 2), InputCorrupt),
    ],
)  # fmt: skip
def test_a_damaged_file_is_refused(
    read: Callable[[bytes], Volume], content: bytes, expected: type[ServiceError]
) -> None:
    with pytest.raises(ServiceError) as caught:
        read(content)
    assert type(caught.value) is expected


def test_a_flipped_byte_in_a_gzipped_file_is_refused_or_without_effect(read: Callable[[bytes], Volume]) -> None:
    refused = 0
    for position in range(len(GZIPPED)):
        try:
            volume = read(flipped(GZIPPED, position))
        except ServiceError:
            refused += 1
        else:
            np.testing.assert_array_equal(volume.voxels, ramp("i2"), strict=True)
            np.testing.assert_array_equal(volume.affine, STRAIGHT)
    # Only the time and the operating system in gzip's header have no effect.
    assert refused >= len(GZIPPED) - 10


def test_gzips_checksum_is_verified_after_a_long_tail(read: Callable[[bytes], Volume]) -> None:
    packed = gzip.compress(changed_file({}) + bytes(LONG_TAIL_BYTES), compresslevel=1)
    np.testing.assert_array_equal(read(packed).voxels, ramp("i2"))
    with pytest.raises(InputCorrupt, match="gzip"):
        read(flipped(packed, len(packed) - 6))


def test_an_endless_tail_is_refused(read: Callable[[bytes], Volume]) -> None:
    packed = gzip.compress(changed_file({}) + bytes(4 * LONG_TAIL_BYTES), compresslevel=1)
    with pytest.raises(InputCorrupt, match="more than 67108864 bytes after its last voxel"):
        read(packed)


def test_a_gzipped_file_truncated_anywhere_is_refused(read: Callable[[bytes], Volume]) -> None:
    for length in range(len(GZIPPED)):
        with pytest.raises(InputCorrupt if length >= 2 or length == 0 else UnsupportedFormat):
            read(GZIPPED[:length])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"dim": {0: 4, 4: 2}}, NotAVolume),
        ({"dim": {0: 2}}, NotAVolume),
        ({"dim": {0: 0}}, InputCorrupt),
        ({"dim": {0: 8}}, InputCorrupt),
        ({"dim": {0: -3}}, InputCorrupt),
        ({"dim": {1: 0}}, InputCorrupt),
        ({"dim": {2: -4}}, InputCorrupt),
        ({"dim": {1: 30_000, 2: 30_000, 3: 30_000}}, InputTooLarge),
        ({"dim": {1: 1001, 2: 1, 3: 1}}, InputTooLarge),
        ({"dim": {3: 6}}, InputCorrupt),
        ({"datatype": 128}, NotAVolume),
        ({"datatype": 2304}, NotAVolume),
        ({"datatype": 32}, NotAVolume),
        ({"datatype": 1792}, NotAVolume),
        ({"datatype": 0}, NotAVolume),
        ({"datatype": 1}, NotAVolume),
        ({"datatype": 3}, UnsupportedFormat),
        ({"datatype": -4}, UnsupportedFormat),
        ({"magic": b"ni1"}, UnsupportedFormat),
        ({"magic": b"ni2"}, UnsupportedFormat),
        ({"magic": b""}, UnsupportedFormat),
        ({"vox_offset": -1}, InputCorrupt),
        ({"vox_offset": 16}, InputCorrupt),
        ({"vox_offset": 100_000}, InputCorrupt),
        ({"vox_offset": 2**62}, InputCorrupt),
        ({"srow_x": {0: 0}, "srow_y": {0: 0}, "srow_z": {0: 0}}, InconsistentGeometry),
        ({"srow_x": {0: 2, 1: 4, 2: 1}, "srow_y": {0: 3, 1: 6, 2: 5}, "srow_z": {0: 0, 1: 0, 2: 0}},
         InconsistentGeometry),
        ({"srow_x": {0: NAN}}, InconsistentGeometry),
        ({"srow_y": {3: NAN}}, InconsistentGeometry),
        ({"srow_z": {1: INF}}, InconsistentGeometry),
        ({"srow_z": {1: 3e38}}, InconsistentGeometry),
        ({"srow_z": {1: 1e-30}}, InconsistentGeometry),
        ({"sform_code": 0, "qform_code": 0}, InconsistentGeometry),
        ({"sform_code": 0, "quatern_b": 0.9, "quatern_c": 0.9}, InconsistentGeometry),
        ({"sform_code": 0, "quatern_d": NAN}, InconsistentGeometry),
        ({"sform_code": 0, "qoffset_x": INF}, InconsistentGeometry),
        ({"sform_code": 0, "pixdim": {1: 0}}, InconsistentGeometry),
        ({"sform_code": 0, "pixdim": {2: -1}}, InconsistentGeometry),
        ({"sform_code": 0, "pixdim": {3: NAN}}, InconsistentGeometry),
        ({"sform_code": 0, "pixdim": {0: 2}}, InconsistentGeometry),
        ({"scl_slope": 2, "scl_inter": NAN}, InputCorrupt),
    ],
    ids=str,
)  # fmt: skip
def test_an_invalid_header_is_refused(
    read: Callable[[bytes], Volume], kind: type[nibabel.Nifti1Header], changes: Changes, expected: type[ServiceError]
) -> None:
    with pytest.raises(ServiceError) as caught:
        read(changed_file(changes, kind=kind))
    assert type(caught.value) is expected


@pytest.mark.parametrize("offset", [NAN, INF, -INF, 1e30])
def test_an_invalid_voxel_offset_is_refused(read: Callable[[bytes], Volume], offset: float) -> None:
    with pytest.raises(InputCorrupt):
        read(changed_file({"vox_offset": offset}))


@pytest.mark.parametrize("changes", [{"srow_x": {0: 1e300}}, {"xyzt_units": 1, "srow_x": {3: 1e308}}], ids=str)
def test_a_grid_beyond_double_precision_is_refused(read: Callable[[bytes], Volume], changes: Changes) -> None:
    with pytest.raises(InconsistentGeometry):
        read(changed_file(changes, kind=nibabel.Nifti2Header))


@pytest.mark.parametrize("extents", [(30_000, 30_000, 30_000), (32_767, 32_767, 1)])
def test_too_many_voxels_are_refused_before_anything_is_allocated(
    read: Callable[[bytes], Volume], extents: tuple[int, int, int]
) -> None:
    content = changed_file({"dim": dict(enumerate(extents, start=1))}, dtype="f8")
    tracemalloc.start()
    try:
        with pytest.raises(InputTooLarge, match=r"takes at most 1000$"):
            read(content)
        assert tracemalloc.get_traced_memory()[1] < MAX_ALLOCATED_BYTES
    finally:
        tracemalloc.stop()


def test_errors_do_not_quote_texts_of_the_header(read: Callable[[bytes], Volume]) -> None:
    with pytest.raises(InconsistentGeometry) as caught:
        read(changed_file({"sform_code": 0, "qform_code": 0, "descrip": b"Mueller^Hans", "db_name": b"PID-4711"}))
    assert "Mueller" not in caught.value.message
    assert "4711" not in caught.value.message


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150)
@given(data=st.data())
def test_a_damaged_header_gives_a_volume_or_a_service_error(
    tmp_path_factory: pytest.TempPathFactory, kind: type[nibabel.Nifti1Header], data: st.DataObject
) -> None:
    content = bytearray(changed_file({}, kind=kind))
    size = kind.sizeof_hdr
    positions = data.draw(st.lists(st.integers(4, size - 1), min_size=1, max_size=4))
    for position in positions:
        content[position] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with suppress(ServiceError):
                volume = read_nifti(path, ReadLimits(MAX_VOXELS)).volume
                assert volume.voxels.size <= MAX_VOXELS
                assert np.isfinite(volume.affine).all()
        assert tracemalloc.get_traced_memory()[1] < MAX_ALLOCATED_BYTES
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("dtype", "slope", "bytes_a_voxel"),
    [("i2", 1, 2), ("i2", 2, 6), ("<f4", 2, 5), ("f8", 1, 9), ("f8", 2, 12)],
)
def test_memory_is_required_before_it_is_allocated(
    tmp_path: Path, dtype: str, slope: float, bytes_a_voxel: int
) -> None:
    class Enough(Exception):
        pass

    def require(size_bytes: int) -> None:
        required.append(size_bytes)
        raise Enough

    required: list[int] = []
    image = nibabel.Nifti1Image(np.ones((30, 40, 50), dtype=dtype), np.eye(4))
    nibabel.save(image, tmp_path / "scan.nii.gz")
    content = bytearray(gzip.decompress((tmp_path / "scan.nii.gz").read_bytes()))
    content[112:120] = struct.pack("<ff", slope, 0)
    (tmp_path / "scan.nii.gz").write_bytes(gzip.compress(bytes(content)))
    with pytest.raises(Enough):
        read_nifti(tmp_path / "scan.nii.gz", ReadLimits(10**6, require_memory=require))
    assert required == [30 * 40 * 50 * bytes_a_voxel]
