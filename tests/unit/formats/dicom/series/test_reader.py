"""Reading of synthetic, damaged and real series."""

import gzip
import zipfile
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from dicom_files import Change, Stack, phantom, regular_stack, with_attribute, without_attributes, write_series
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

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


UIDS = [b"1.2.840.10008.5.1.4.1.1.2", b"1.2.840.10008.1.2.1", b"1.2.840.10008.1.2.4.90"]
LITTER = {
    ".DS_Store": b"\0\0\0\1Bud1" + bytes(500),
    "Thumbs.db": bytes.fromhex("d0cf11e0a1b11ae1") + bytes(500),
    "desktop.ini": "[.ShellClassInfo]\r\nIconFile=cd.ico\r\n".encode("utf-16"),
    "autorun.inf": b"[autorun]\r\nopen=viewer.exe\r\n",
    "README.txt": "Diese CD enthält Bilder.".encode("latin-1"),
    "sidecar.json": b'{"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2", "00080016": {"vr": "UI"}}',
    "viewer.exe": b"MZ\x90\0" + bytes(200) + b"".join(uid.ljust(len(uid) // 8 * 8 + 8, b"\0") for uid in UIDS),
    "viewer.so": b"\x7fELF" + bytes(200) + b"\0\0\0\0".join(UIDS),
    "UID.class": b"\xca\xfe\xba\xbe" + b"".join(b"\1" + len(uid).to_bytes(2) + uid for uid in UIDS),
    "manual.pdf": b"%PDF-1.7\n" + bytes(range(256)),
    "preview.jpg": b"\xff\xd8\xff\xe0\0\x10JFIF\0" + bytes(100),
    "viewer.zip": b"PK\3\4" + bytes(100),
    "short": b"\0\1",
}


@pytest.mark.parametrize("name", LITTER)
def test_a_file_that_is_plainly_no_slice_gives_no_warning(tmp_path: Path, read: Read, name: str) -> None:
    write_series(tmp_path / "in", regular_stack())
    (tmp_path / "in" / name).write_bytes(LITTER[name])
    scan = read(tmp_path / "in")
    assert (scan.set_aside, scan.warnings) == ({"not_dicom": 1}, ())


DAMAGED: dict[str, Callable[[bytes], bytes]] = {
    "zeros": lambda content: bytes(4096) + content[4096:],
    "start overwritten": lambda content: b"x" * 400 + content[400:],
    "start lost": lambda content: content[200:],
    "bytes before it": lambda content: b"HTTP/1.1 200 OK\r\n\r\n" + content,
    "gzip cut": lambda content: gzip.compress(content)[:-20],
}


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize("damage", DAMAGED)
def test_a_last_slice_whose_start_is_lost_gives_a_warning(tmp_path: Path, read: Read, damage: str, syntax: str) -> None:
    last = write_series(tmp_path / "in", regular_stack(), syntax=syntax)[-1]
    last.write_bytes(DAMAGED[damage](last.read_bytes()))
    scan = read(tmp_path / "in")
    assert scan.set_aside == {"unreadable": 1}
    assert [warning.code for warning in scan.warnings] == [WarningCode.UNREADABLE_FILES]


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


@pytest.mark.parametrize("only", [2, 5, None])
def test_a_slice_with_a_lookup_table_is_refused(tmp_path: Path, read: Read, only: int | None) -> None:
    write_series(tmp_path / "in", regular_stack(), change=with_attribute("ModalityLUTSequence", [Dataset()], only=only))
    with pytest.raises(UnsupportedFormat, match="from a lookup table"):
        read(tmp_path / "in")


def test_an_empty_lookup_table_is_none(tmp_path: Path, read: Read) -> None:
    write_series(tmp_path / "in", regular_stack(), change=with_attribute("ModalityLUTSequence", []))
    assert read(tmp_path / "in").volume.shape == (9, 7, 6)


def test_a_lookup_table_of_an_image_that_is_no_slice_does_not_matter(tmp_path: Path, read: Read) -> None:
    write_series(tmp_path / "in" / "slices", regular_stack())

    def change(k: int, dataset: Dataset) -> None:
        dataset.SOPInstanceUID = "1.2.3.99"
        dataset.ModalityLUTSequence = [Dataset()]
        del dataset.ImagePositionPatient

    write_series(tmp_path / "in" / "other", regular_stack(phantom()[:, :, :1]), change=change)
    scan = read(tmp_path / "in")
    assert (scan.volume.shape, scan.set_aside, scan.warnings) == ((9, 7, 6), {"lookup_table": 1}, ())


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
    with pytest.raises(UnsupportedFormat, match="a DICOM series"):
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
