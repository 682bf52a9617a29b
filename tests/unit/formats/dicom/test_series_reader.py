"""From files to a volume: geometry, order and values of synthetic series, and of a real one."""

import logging
import re
import shutil
import zipfile
from collections.abc import Callable, Sequence
from itertools import permutations, product
from pathlib import Path

import nibabel
import numpy as np
import pytest
from dicom_files import (
    PATIENT,
    PATIENT_ID,
    SYNTAXES,
    Change,
    Stack,
    Vector,
    affine_of,
    phantom,
    set_stored,
    setting,
    storing,
    straight,
    without,
    write,
    write_enhanced,
    write_mr,
)
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, SecondaryCaptureImageStorage, SegmentationStorage
from scipy.spatial.transform import Rotation

from inference_service.contract.input_options import InputOptions
from inference_service.core.errors import (
    GantryTilt,
    InconsistentGeometry,
    InputCorrupt,
    InputError,
    InputTooLarge,
    MissingSlices,
    MixedSeries,
    NotAVolume,
    UnsupportedFormat,
    UnsupportedTransferSyntax,
)
from inference_service.formats.read_limits import ReadLimits
from inference_service.formats.scan_reader import Scan, read_scan

MAX_VOXELS = 10**6
Read = Callable[..., Scan]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def read_input(path: Path, **wishes: object) -> Scan:
        folder = tmp_path / "work"
        folder.mkdir(exist_ok=True)
        return read_scan(path, folder, ReadLimits(MAX_VOXELS), input_options=InputOptions(**wishes))  # type: ignore[arg-type]

    return read_input


def with_positions(stack: Stack, heights_mm: Vector) -> Stack:
    """The stack with its slices at other heights; voxels of as many slices."""
    normal = np.cross(stack.row, stack.column)
    positions = stack.positions_mm[0] + np.outer(heights_mm, normal)
    voxels = np.stack([stack.voxels[:, :, k % stack.voxels.shape[2]] for k in range(len(heights_mm))], axis=2)
    return Stack(voxels, stack.row, stack.column, stack.pixel_mm, positions, stack.series_uid)


def oblique() -> NDArray[np.float64]:
    return Rotation.from_euler("xyz", (8, -11, 14), degrees=True).as_matrix()


def axes() -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Row and column directions along the world's axes, in all 24 ways; the normal's sign follows."""
    unit = np.eye(3)
    return [(a * unit[i], b * unit[j]) for i, j in permutations(range(3), 2) for a, b in product((1.0, -1.0), repeat=2)]


@pytest.mark.parametrize("turned", [False, True], ids=["straight", "oblique"])
@pytest.mark.parametrize(("row", "column"), axes())
def test_every_orientation_gives_values_and_places_as_written(
    tmp_path: Path, read: Read, row: NDArray[np.float64], column: NDArray[np.float64], turned: bool
) -> None:
    turn = oblique() if turned else np.eye(3)
    stack = straight(row=turn @ row, column=turn @ column)
    write(tmp_path / "in", stack)
    scan = read(tmp_path / "in")
    np.testing.assert_array_equal(scan.volume.voxels, stack.voxels, strict=True)
    np.testing.assert_allclose(scan.volume.affine, affine_of(stack), atol=1e-9)
    assert (scan.input_format, scan.modality, scan.warnings, scan.set_aside) == ("dicom", "CT", (), {})
    # Slices run along the normal whichever way they were numbered, and are the source's own.
    assert [slice_.instance.sop_instance_uid for slice_ in scan.slices] == [f"1.2.3.4.{k + 1}" for k in range(6)]


def test_a_mask_gets_the_series_grid(tmp_path: Path, read: Read) -> None:
    stack = straight(row=oblique()[:, 0], column=oblique()[:, 1])
    write(tmp_path / "in", stack)
    grid = read(tmp_path / "in").grid
    assert grid.get_data_shape() == (9, 7, 6)
    np.testing.assert_allclose(grid.get_sform(), affine_of(stack), atol=1e-4)
    np.testing.assert_allclose(grid.get_qform(), affine_of(stack), atol=1e-3)


@pytest.mark.parametrize("syntax", [*SYNTAXES, DeflatedExplicitVRLittleEndian])
def test_every_native_syntax_is_read(tmp_path: Path, read: Read, syntax: str) -> None:
    stack = straight()
    write(tmp_path / "in", stack, syntax=syntax)
    np.testing.assert_array_equal(read(tmp_path / "in").volume.voxels, stack.voxels, strict=True)


@pytest.mark.parametrize("modality", ["CT", "MR"])
@pytest.mark.parametrize("shared", [True, False])
def test_a_multi_frame_object_is_a_series(tmp_path: Path, read: Read, modality: str, shared: bool) -> None:
    stack = straight(row=oblique()[:, 0], column=oblique()[:, 1])
    scan = read(write_enhanced(tmp_path / "object", stack, modality=modality, shared=shared))
    np.testing.assert_array_equal(scan.volume.voxels, stack.voxels, strict=True)
    np.testing.assert_allclose(scan.volume.affine, affine_of(stack), atol=1e-9)
    assert scan.modality == modality
    assert sorted(slice_.frame.index for slice_ in scan.slices) == list(range(6))


def test_a_zip_is_read_like_a_folder(tmp_path: Path, read: Read) -> None:
    stack = straight()
    with zipfile.ZipFile(tmp_path / "in", "w") as archive:
        for number, path in enumerate(write(tmp_path / "files", stack)):
            archive.write(path, f"../study/{number}/IM")
        archive.writestr("README", "no image")
    scan = read(tmp_path / "in")
    np.testing.assert_array_equal(scan.volume.voxels, stack.voxels, strict=True)
    assert scan.set_aside == {"not_dicom": 1}


def test_a_nifti_in_a_zip_is_read(tmp_path: Path, read: Read) -> None:
    nibabel.save(nibabel.Nifti1Image(phantom(), np.eye(4)), tmp_path / "scan.nii.gz")
    with zipfile.ZipFile(tmp_path / "in", "w") as archive:
        archive.write(tmp_path / "scan.nii.gz")
    np.testing.assert_array_equal(read(tmp_path / "in").volume.voxels, phantom())


def test_missing_identifiers_do_no_harm(tmp_path: Path, read: Read) -> None:
    def change(k: int, dataset: Dataset) -> None:
        dataset.SeriesInstanceUID = dataset.FrameOfReferenceUID = dataset.Modality = ""
        del dataset.ImageType, dataset.SliceThickness

    write(tmp_path / "in", straight(), change=change)
    scan = read(tmp_path / "in")
    assert (scan.modality, scan.volume.shape) == ("", (9, 7, 6))


def test_what_is_no_part_of_the_series_is_set_aside_and_counted(tmp_path: Path, read: Read) -> None:
    stack = straight()
    write(tmp_path / "in", stack)

    def aside(name: str, uid: str, change: Change, count: int = 1) -> None:
        one = straight(phantom()[:, :, :count])
        write(tmp_path / "in" / name, Stack(one.voxels, one.row, one.column, one.pixel_mm, one.positions_mm, uid),
              change=change)  # fmt: skip

    aside("a", "1.1", setting("ImageType", ["ORIGINAL", "PRIMARY", "LOCALIZER"]))
    aside("b", "1.2", setting("SOPClassUID", SecondaryCaptureImageStorage), 3)
    aside("c", "1.3", setting("SOPClassUID", SegmentationStorage))
    aside("d", "1.4", setting("ImageType", ["DERIVED", "SECONDARY", "REFORMATTED"]), 4)
    aside("e", "1.5", without("ImagePositionPatient"))
    aside("f", "1.6", without("Rows", "Columns", "PixelData"))
    aside("g", "1.7", setting("ImageType", ["DERIVED", "SECONDARY", "PROJECTION IMAGE"]), 2)
    aside("h", "1.8", setting("SamplesPerPixel", 3))
    aside("i", "1.9", setting("Modality", "CT"))
    aside("j", "1.10", setting("ModalityLUTSequence", [Dataset()]), 2)
    (tmp_path / "in" / "Thumbs.db").write_bytes(b"no image")
    scan = read(tmp_path / "in")
    np.testing.assert_array_equal(scan.volume.voxels, stack.voxels)
    assert scan.set_aside == {
        "localizer": 1, "secondary_capture": 3, "no_image": 1, "unreadable": 1, "reformat": 4, "no_position": 1,
        "projection": 2, "colour": 1, "single_image": 1, "not_dicom": 1, "lookup_table": 2,
    }  # fmt: skip


def test_a_reformat_alone_is_the_volume(tmp_path: Path, read: Read) -> None:
    write(tmp_path / "in", straight(), change=setting("ImageType", ["DERIVED", "SECONDARY", "MPR"]))
    assert read(tmp_path / "in").volume.shape == (9, 7, 6)


def test_of_several_series_one_must_be_named(tmp_path: Path, read: Read) -> None:
    first, second = straight(), straight(phantom()[::-1])
    write(tmp_path / "in" / "a", first)
    write(tmp_path / "in" / "b", Stack(second.voxels, first.row, first.column, (1, 1), first.positions_mm, "1.2.3.5"))
    with pytest.raises(MixedSeries, match=r"has 2 series.*1\.2\.3\.4 of 6 slices, 1\.2\.3\.5 of 6 slices"):
        read(tmp_path / "in")
    scan = read(tmp_path / "in", series="1.2.3.5")
    np.testing.assert_array_equal(scan.volume.voxels, second.voxels)
    assert scan.set_aside == {"other_series": 6}
    with pytest.raises(NotAVolume, match=r"names in input\.series is not in the input"):
        read(tmp_path / "in", series="1.2.3.6")


@pytest.mark.parametrize("kind", ["LOCALIZER", "CT_SOM5 TOP SCOUT", "MOSAIC"])
def test_what_is_no_slice_is_set_aside_from_a_named_series_too(tmp_path: Path, read: Read, kind: str) -> None:
    write(tmp_path / "in", straight())
    scout = straight(phantom()[:, :, :1], row=(0, 1, 0), column=(0, 0, -1))
    write(tmp_path / "in" / "scout", scout, change=setting("ImageType", ["ORIGINAL", "PRIMARY", kind]))
    for wishes in ({}, {"series": "1.2.3.4"}):
        scan = read(tmp_path / "in", **wishes)
        assert (scan.volume.shape, sum(scan.set_aside.values())) == ((9, 7, 6), 1)


def test_a_series_that_is_named_may_be_an_unlikely_one(tmp_path: Path, read: Read) -> None:
    write(tmp_path / "in", straight(), change=setting("ImageType", ["DERIVED", "SECONDARY", "CSA MIP"]))
    with pytest.raises(NotAVolume, match="6 projection"):
        read(tmp_path / "in")
    assert read(tmp_path / "in", series="1.2.3.4").volume.shape == (9, 7, 6)


def test_slices_without_a_position_are_not_dropped(tmp_path: Path, read: Read) -> None:
    write(tmp_path / "in", straight(), change=without("ImagePositionPatient", only=2))
    with pytest.raises(InconsistentGeometry, match="1 of the series' 6 images"):
        read(tmp_path / "in")


@pytest.mark.parametrize(
    ("heights", "expected", "message"),
    [
        ((0, 2, 4, 8, 10), MissingSlices, r"1 slice is missing: between slices 3 and 4 of 5 lie 4 mm, elsewhere 2 mm"),
        ((0, 2, 8, 10, 14), MissingSlices, r"3 slices are missing: between slices 2 and 3 of 5 lie 6 mm"),
        ((0, 2, 4.5, 6.5), InconsistentGeometry, r"2 to 2\.5 mm apart: between slices 2 and 3 of 4 lie 2\.5 mm"),
        ((0, 2, 4, 4, 6), InconsistentGeometry, r"more than once: 1 of 4 positions have several"),
        ((0, 0, 2, 2, 4, 4), NotAVolume, r"2 volumes.*each of its 3 positions has 2 slices"),
    ],
)
def test_slices_that_are_missing_uneven_or_doubled_are_refused_with_numbers(
    tmp_path: Path, read: Read, heights: Sequence[float], expected: type[InputError], message: str
) -> None:
    write(tmp_path / "in", with_positions(straight(), heights))
    with pytest.raises(expected, match=message):
        read(tmp_path / "in")


def test_rounded_positions_are_even(tmp_path: Path, read: Read) -> None:
    heights = np.round(np.arange(9) * 0.625, 1)
    write(tmp_path / "in", with_positions(straight(), heights))
    assert read(tmp_path / "in").volume.spacing_mm[2] == pytest.approx(0.625)


def test_uneven_slices_are_interpolated_where_that_is_tolerated(tmp_path: Path, read: Read) -> None:
    ramp = np.zeros((4, 5, 5), dtype=np.int16)
    heights = np.array([0, 2, 4, 8, 10])
    ramp[:] = heights * 10
    write(tmp_path / "in", with_positions(straight(ramp), heights))
    scan = read(tmp_path / "in", tolerate=("uneven_spacing",))
    assert scan.volume.shape == (4, 5, 6)
    np.testing.assert_allclose(scan.volume.spacing_mm, (0.75, 1.25, 2))
    np.testing.assert_array_equal(scan.volume.voxels[1, 1], [0, 20, 40, 60, 80, 100])
    assert scan.volume.voxels.dtype == np.int16
    (warning,) = scan.warnings
    assert re.search("1 slice is missing.*4 mm.*interpolated to evenly spaced slices", warning)


def test_a_wide_gap_is_not_bridged_whatever_is_tolerated(tmp_path: Path, read: Read) -> None:
    write(tmp_path / "in", with_positions(straight(), (0, 2, 4, 16, 18)))
    with pytest.raises(MissingSlices, match="lie 12 mm"):
        read(tmp_path / "in", tolerate=("uneven_spacing",))


@pytest.mark.parametrize("degrees", [-12, 0.5, 25])
def test_a_tilted_gantry_is_refused_with_its_angle(tmp_path: Path, read: Read, degrees: float) -> None:
    drift = np.array([0, np.tan(np.radians(degrees)) * 2.5, 0])
    write(tmp_path / "in", straight(drift_mm=drift))
    with pytest.raises(GantryTilt, match=f"tilted by {abs(degrees):g}°"):
        read(tmp_path / "in")


def test_a_tilted_stack_is_put_in_line_and_labels_go_back(tmp_path: Path, read: Read) -> None:
    turn = oblique()
    stack = straight(row=turn[:, 0], column=turn[:, 1], drift_mm=turn @ (0.3, -1.1, 0))
    write(tmp_path / "in", stack)
    scan = read(tmp_path / "in", tolerate=("gantry_tilt",))
    np.testing.assert_array_equal(scan.volume.voxels, stack.voxels)
    np.testing.assert_allclose(scan.volume.affine, affine_of(stack), atol=1e-9)
    assert scan.aligned is not None
    seen = scan.aligned.volume
    gram = seen.affine[:3, :3].T @ seen.affine[:3, :3]
    np.testing.assert_allclose(gram, np.diag(np.diag(gram)), atol=1e-9)
    assert seen.spacing_mm[2] == pytest.approx(2.5)
    # What the network sees of a voxel lies where the voxel is, to half a pixel.
    here, there = np.argwhere(scan.volume.voxels == 60), np.argwhere(seen.voxels == 60)
    assert len(here) == len(there)
    for k in range(6):
        mean = [
            (volume.affine @ np.append(points[points[:, 2] == k].mean(axis=0), 1))[:3]
            for volume, points in ((scan.volume, here), (seen, there))
            if (points[:, 2] == k).any()
        ]
        if mean:
            assert np.linalg.norm(mean[0] - mean[1]) <= np.hypot(0.75, 1.25) / 2 + 1e-9
    labels = np.arange(seen.voxels.size, dtype=np.uint32).reshape(seen.shape)
    back = scan.aligned.restore_mask(labels)
    np.testing.assert_array_equal(seen.voxels.reshape(-1)[back], stack.voxels)
    assert "aligned by shifts of whole pixels" in scan.warnings[0]


def test_tilted_and_uneven_slices_can_be_mended_together(tmp_path: Path, read: Read) -> None:
    stack = straight(drift_mm=(0, 1.25, 0))
    kept = [0, 1, 2, 4, 5]
    write(tmp_path / "in", Stack(stack.voxels[:, :, kept], stack.row, stack.column, stack.pixel_mm,
                                 stack.positions_mm[kept]))  # fmt: skip
    with pytest.raises(GantryTilt):
        read(tmp_path / "in", tolerate=("uneven_spacing",))
    scan = read(tmp_path / "in", tolerate=("uneven_spacing", "gantry_tilt"))
    assert scan.volume.shape == (9, 7 + 5, 6)
    assert len(scan.warnings) == 2
    np.testing.assert_allclose(np.diag(scan.volume.affine)[:3], (-0.75, -1.25, 2.5))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("PixelSpacing", [1.25, 0.8], r"pixel spacing: .*0\.75 × 1\.25 .*0\.8 × 1\.25"),
        ("ImageOrientationPatient", [1, 0, 0, 0, 0.98, 0.199], "orientation"),
        ("FrameOfReferenceUID", "1.2.10", "frames of reference"),
        ("ImagePositionPatient", [-30.5, 13.25, -695.0], "one line"),
        ("ImagePositionPatient", [-30.5, 13.25], "expected 3 finite numbers"),
        ("ImageOrientationPatient", [1, 0, 0, 0, 0.5, 0], "orientation|axes"),
    ],
)
def test_slices_that_contradict_one_another_are_refused(
    tmp_path: Path, read: Read, name: str, value: object, message: str
) -> None:
    write(tmp_path / "in", straight(), change=setting(name, value, only=2))
    with pytest.raises(InconsistentGeometry, match=message):
        read(tmp_path / "in")


def test_slices_of_different_size_are_refused(tmp_path: Path, read: Read) -> None:
    write(
        tmp_path / "in", straight(),
        change=storing(np.zeros((7, 8), np.uint16), only=2),
    )  # fmt: skip
    with pytest.raises(InconsistentGeometry, match="differ in size: "):
        read(tmp_path / "in")


@pytest.mark.parametrize("value", [[1, 0, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0], [2, 0, 0, 0, 2, 0]])
def test_an_orientation_that_is_none_is_refused(tmp_path: Path, read: Read, value: list[float]) -> None:
    write(tmp_path / "in", straight(), change=setting("ImageOrientationPatient", value))
    with pytest.raises(InconsistentGeometry, match="axes make no sense"):
        read(tmp_path / "in")


def test_a_single_slice_rests_on_its_thickness_and_says_so(tmp_path: Path, read: Read) -> None:
    stack = straight(phantom()[:, :, :1])
    write(tmp_path / "in", stack)
    scan = read(tmp_path / "in")
    assert scan.volume.spacing_mm == pytest.approx((0.75, 1.25, 7))
    assert "single slice" in scan.warnings[0]
    write(tmp_path / "in", stack, change=without("SliceThickness"))
    with pytest.raises(NotAVolume, match="single slice"):
        read(tmp_path / "in")


def test_slope_and_intercept_are_each_slices_own(tmp_path: Path, read: Read) -> None:
    def change(k: int, dataset: Dataset) -> None:
        set_stored(dataset, np.full((7, 9), 100 * k, np.uint16))
        dataset.RescaleSlope, dataset.RescaleIntercept = 0.5 + k, -k

    write(tmp_path / "in", straight(), change=change)
    voxels = read(tmp_path / "in").volume.voxels
    assert voxels.dtype == np.float32
    np.testing.assert_array_equal(voxels[4, 3], [100 * k * (0.5 + k) - k for k in range(6)])


@pytest.mark.parametrize("signed", [False, True])
def test_bits_beside_the_value_are_not_looked_at(tmp_path: Path, read: Read, signed: bool) -> None:
    stored = np.arange(63).reshape(7, 9) * 45 - (1000 if signed else 0)

    def change(k: int, dataset: Dataset) -> None:
        raw = ((stored & 0xFFF) << 2 | 0xC003).astype(np.uint16)
        set_stored(dataset, raw, bits=12)
        dataset.HighBit, dataset.PixelRepresentation = 13, int(signed)

    write(tmp_path / "in", straight(), change=change)
    voxels = read(tmp_path / "in").volume.voxels
    np.testing.assert_array_equal(voxels[:, :, 2].T, stored - 1024)
    assert voxels.dtype == np.int16


@pytest.mark.parametrize("padding", [-2000, 63536])
def test_padding_becomes_air(tmp_path: Path, read: Read, padding: int) -> None:
    stored = np.arange(63).reshape(7, 9).astype(np.int16)
    stored[0] = -2000

    def change(k: int, dataset: Dataset) -> None:
        set_stored(dataset, stored)
        dataset.add_new("PixelPaddingValue", "SS" if padding < 0 else "US", padding)

    write(tmp_path / "in", straight(), change=change)
    scan = read(tmp_path / "in")
    assert set(np.unique(scan.volume.voxels[:, 0])) == {-1024}
    np.testing.assert_array_equal(scan.volume.voxels[:, 1:, 0].T, stored[1:] - 1024)
    assert scan.warnings == ("54 voxels are padding, and got the value -1024",)


def test_a_range_of_padding_is_padding(tmp_path: Path, read: Read) -> None:
    def change(k: int, dataset: Dataset) -> None:
        set_stored(dataset, np.arange(63).reshape(7, 9).astype(np.uint16))
        dataset.PixelPaddingValue, dataset.PixelPaddingRangeLimit = 20, 10
        dataset.Modality, dataset.RescaleIntercept = "MR", 0

    write(tmp_path / "in", straight(), change=change)
    values = np.unique(read(tmp_path / "in").volume.voxels)
    assert set(values) == {*range(10), *range(21, 63)}


def test_values_beyond_16_bits_are_kept(tmp_path: Path, read: Read) -> None:
    stored = np.linspace(0, 65535, 63).astype(np.uint16).reshape(7, 9)
    write(tmp_path / "in", straight(), change=storing(stored))
    voxels = read(tmp_path / "in").volume.voxels
    assert voxels.dtype == np.float32
    np.testing.assert_array_equal(voxels[:, :, 3].T, stored - np.float32(1024))


def test_monochrome1_is_not_inverted_and_said(tmp_path: Path, read: Read) -> None:
    stack = straight()
    write(tmp_path / "in", stack, change=setting("PhotometricInterpretation", "MONOCHROME1"))
    scan = read(tmp_path / "in")
    np.testing.assert_array_equal(scan.volume.voxels, stack.voxels)
    assert "MONOCHROME1" in scan.warnings[0]


def test_an_mr_series_is_read(tmp_path: Path, read: Read) -> None:
    write_mr(tmp_path / "in", straight())
    scan = read(tmp_path / "in")
    assert scan.modality == "MR"
    assert scan.volume.voxels.min() == 24


def test_too_many_voxels_are_refused_before_pixels_are_read(tmp_path: Path) -> None:
    for path in write(tmp_path / "in", straight()):
        path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(InputTooLarge, match="378 voxels; this service takes at most 377"):
        read_scan(tmp_path / "in", tmp_path, ReadLimits(377))
    with pytest.raises(InputCorrupt, match="truncated: expected 126 bytes of pixels"):
        read_scan(tmp_path / "in", tmp_path, ReadLimits(378))


def test_a_deflated_bomb_is_refused(tmp_path: Path) -> None:
    voxels = np.zeros((600, 600, 1), np.int16)
    write(tmp_path / "in", straight(voxels), syntax=DeflatedExplicitVRLittleEndian)
    with pytest.raises(InputTooLarge, match="inflates to more than the 100000 bytes"):
        read_scan(tmp_path / "in", tmp_path, ReadLimits(10**6, 100_000))


@pytest.mark.parametrize(
    ("syntax", "name"),
    [("1.2.840.10008.1.2.4.100", "MPEG2"), ("1.2.840.113619.5.2", r"1\.2\.840\.113619\.5\.2"), ("1.2.x<y>", r"1\.2\.")],
)
def test_a_syntax_without_a_decoder_is_named(tmp_path: Path, read: Read, syntax: str, name: str) -> None:
    for path in write(tmp_path / "in", straight()):
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


@pytest.mark.parametrize("content", [b"", b"plain text"])
def test_a_folder_without_dicom_is_refused(tmp_path: Path, read: Read, content: bytes) -> None:
    (tmp_path / "in").mkdir()
    for name in "ab":
        (tmp_path / "in" / name).write_bytes(content)
    with pytest.raises(UnsupportedFormat, match="a DICOM series, as a file, a folder or a zip"):
        read(tmp_path / "in")


def test_only_objects_without_an_image_are_no_volume(tmp_path: Path, read: Read) -> None:
    write(tmp_path / "in", straight(), change=setting("ImageType", ["ORIGINAL", "PRIMARY", "SCOUT"]))
    with pytest.raises(NotAVolume, match="6 localizer"):
        read(tmp_path / "in")


def test_nothing_of_the_patient_is_in_messages_logs_or_values(
    tmp_path: Path, read: Read, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    def change(k: int, dataset: Dataset) -> None:
        dataset.ImagePositionPatient = None
        dataset.add_new("ImageComments", "LT", f"{PATIENT} {PATIENT_ID}")

    write(tmp_path / "in", straight(), change=change)
    with pytest.raises(NotAVolume) as caught:
        read(tmp_path / "in")
    text = caught.value.message + caplog.text
    shutil.rmtree(tmp_path / "in")
    write(tmp_path / "in", straight())
    # Addresses of objects hold any digits.
    text += re.sub(r" at 0x[0-9a-f]+", "", repr(read(tmp_path / "in"))) + caplog.text
    for secret in ("Mueller", "4711", "19610203", "0815"):
        assert secret not in text.replace("1.2.3.4", "")


def test_the_real_series_agrees_with_its_segmentation(real_scans: Path, tmp_path: Path) -> None:
    """JPEG 2000, a SliceThickness that is not the spacing, empty UIDs, InstanceNumber from the head down."""
    scan = read_scan(real_scans / "example_ct_dicom", tmp_path, ReadLimits(10**7))
    image = nibabel.Nifti1Image.from_filename(real_scans / "example_seg_dicom.nii.gz")
    change = nibabel.orientations.ornt_transform(
        nibabel.orientations.io_orientation(image.affine), nibabel.orientations.io_orientation(scan.volume.affine)
    )
    labels = image.as_reoriented(change)
    np.testing.assert_array_equal(labels.affine, scan.volume.affine)
    mask = np.asanyarray(labels.dataobj)
    for label, mean_hu in ((5, 89), (52, 177), (1, 80)):
        assert scan.volume.voxels[mask == label].mean() == pytest.approx(mean_hu, abs=3)
