"""Reading of synthetic, damaged and real series."""

import zipfile
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from dicom_files import Change, Stack, phantom, regular_stack, with_attribute, without_attributes, write_series
from pydicom.dataset import Dataset

from inference_service.core.errors import (
    InputCorrupt,
    InputError,
    InputTooLarge,
    UnsupportedFormat,
)
from inference_service.core.report_warnings import WarningCode
from inference_service.formats.read_limits import ReadLimits
from inference_service.formats.scan_reader import Scan, read_scan

Read = Callable[..., Scan]
MAX_VOXELS = 10**6


BROKEN: list[Change] = [
    with_attribute("PixelSpacing", [1]),
    with_attribute("RescaleSlope", "1e39"),
    with_attribute("HighBit", 40),
    with_attribute("ImageOrientationPatient", [1, 0, 0, 0]),
    without_attributes("Rows"),
]


@pytest.mark.parametrize("left", [500, 600, 700, 800])
def test_a_last_slice_with_a_truncated_header_is_refused(tmp_path: Path, read: Read, left: int) -> None:
    last = write_series(tmp_path / "in", regular_stack())[-1]
    last.write_bytes(last.read_bytes()[:left])
    with pytest.raises(InputCorrupt):
        read(tmp_path / "in")


@pytest.mark.parametrize("left", [0, 100, 131, 132, 140, 200, 300])
def test_an_unreadable_last_slice_gives_a_warning(tmp_path: Path, read: Read, left: int) -> None:
    last = write_series(tmp_path / "in", regular_stack())[-1]
    last.write_bytes(last.read_bytes()[:left])
    scan = read(tmp_path / "in")
    assert scan.volume.shape[2] == 5
    assert scan.warnings[-1].code == WarningCode.UNREADABLE_FILES
    assert "1 of the 6 files could not be read as DICOM" in scan.warnings[-1].message


@pytest.mark.parametrize("change", BROKEN)
def test_defects_of_another_series_do_not_matter(tmp_path: Path, read: Read, change: Change) -> None:
    write_series(tmp_path / "in" / "ours", regular_stack())
    other = regular_stack(phantom()[:, :, :2])
    other = Stack(other.voxels, other.row, other.column, other.pixel_mm, other.positions_mm, "1.2.3.5")
    write_series(tmp_path / "in" / "other", other, change=change)
    assert read(tmp_path / "in", series="1.2.3.4").volume.shape == (9, 7, 6)
    scan = read(tmp_path / "in")
    assert scan.volume.shape == (9, 7, 6)
    assert scan.set_aside == {"unreadable": 2}
    write_series(
        tmp_path / "in" / "ours", regular_stack(), change=lambda k, dataset: change(k, dataset) if k == 2 else None
    )
    with pytest.raises(InputError, match=r"\(1 of the series' 6 files\)"):
        read(tmp_path / "in", series="1.2.3.4")


def test_a_last_slice_with_a_lookup_table_gives_a_warning(tmp_path: Path, read: Read) -> None:
    write_series(tmp_path / "in", regular_stack(), change=with_attribute("ModalityLUTSequence", [Dataset()], only=5))
    scan = read(tmp_path / "in")
    assert scan.volume.shape[2] == 5
    assert scan.warnings[-1].code == WarningCode.UNREADABLE_FILES
    assert "1 of the 6 files could not be read as DICOM" in scan.warnings[-1].message


def test_a_last_slice_marked_as_projection_gives_a_warning(tmp_path: Path, read: Read) -> None:
    write_series(
        tmp_path / "in", regular_stack(), change=with_attribute("ImageType", ["DERIVED", "PRIMARY", "MIP"], only=5)
    )
    scan = read(tmp_path / "in")
    assert scan.volume.shape[2] == 5
    assert scan.warnings[-1].code == WarningCode.POSSIBLE_SLICES_LEFT_OUT
    assert scan.warnings[-1].message.startswith("1 image with the planes of the series was left out")


def test_a_zip_is_read_like_a_folder(tmp_path: Path, read: Read) -> None:
    stack = regular_stack()
    with zipfile.ZipFile(tmp_path / "in", "w") as archive:
        for number, path in enumerate(write_series(tmp_path / "files", stack)):
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


def test_too_many_voxels_are_refused_before_pixels_are_read(tmp_path: Path) -> None:
    for path in write_series(tmp_path / "in", regular_stack()):
        path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(InputTooLarge, match="378 voxels; this service takes at most 377"):
        read_scan(tmp_path / "in", tmp_path, ReadLimits(377))
    with pytest.raises(InputCorrupt, match="truncated: expected 126 bytes of pixels"):
        read_scan(tmp_path / "in", tmp_path, ReadLimits(378))


def test_a_folder_without_dicom_is_refused(tmp_path: Path, read: Read) -> None:
    (tmp_path / "in").mkdir()
    for name in "ab":
        (tmp_path / "in" / name).write_bytes(b"plain text")
    with pytest.raises(UnsupportedFormat, match="a DICOM series, as a file, a folder or a zip"):
        read(tmp_path / "in")


def test_a_real_series_agrees_with_its_segmentation(real_scans: Path, tmp_path: Path) -> None:
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
