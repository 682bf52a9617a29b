"""Copies of a file are dropped and counted; other files with its SOPInstanceUID are refused."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_encoders import COMPRESSED_SYNTAXES, encode
from dicom_files import NATIVE_SYNTAXES, phantom, regular_stack, write_enhanced, write_series
from pydicom.dataset import FileDataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian

from inference_service.core.errors import InconsistentGeometry
from inference_service.core.report_warnings import ReportWarning, WarningCode
from inference_service.formats.scan_reader import Scan

Read = Callable[..., Scan]
STACK = regular_stack(phantom((20, 18, 6)))


def check_read_once(scan: Scan, copies: int) -> None:
    np.testing.assert_array_equal(scan.volume.voxels, STACK.voxels)
    assert scan.set_aside == {"duplicate": copies}
    message = (
        f"{copies} of the {6 + copies} files are copies of others, with the same SOPInstanceUID, header and pixels: "
        "they were left out"
    )
    assert scan.warnings == (ReportWarning(WarningCode.DUPLICATE_FILES, message),)


def changed_copy(path: Path, copy: Path, change: Callable[[FileDataset], object]) -> None:
    dataset = pydicom.dcmread(path)
    change(dataset)
    dataset.save_as(copy)


def test_equal_files_are_read_once(tmp_path: Path, read: Read) -> None:
    paths = write_series(tmp_path / "in", STACK)
    for path in paths[1:4]:
        shutil.copy(path, path.with_name(f"{path.name} (1)"))
    shutil.copytree(tmp_path / "in", tmp_path / "in" / "copy")
    check_read_once(read(tmp_path / "in"), copies=12)


def test_a_multi_frame_file_is_read_once(tmp_path: Path, read: Read) -> None:
    path = write_enhanced(tmp_path / "in" / "1", STACK)
    shutil.copy(path, tmp_path / "in" / "2")
    scan = read(tmp_path / "in")
    np.testing.assert_array_equal(scan.volume.voxels, STACK.voxels)
    assert scan.set_aside == {"duplicate": 1}


def test_file_meta_information_and_attributes_that_are_not_read_may_differ(tmp_path: Path, read: Read) -> None:
    paths = write_series(tmp_path / "in", STACK)

    def change(dataset: FileDataset) -> None:
        dataset.file_meta.SourceApplicationEntityTitle = "OTHER"
        dataset.file_meta.ImplementationVersionName = "OTHER"
        dataset.InstanceCreationTime = "101010"

    changed_copy(paths[2], tmp_path / "in" / "copy", change)
    check_read_once(read(tmp_path / "in"), copies=1)


@pytest.mark.parametrize("syntax", [*NATIVE_SYNTAXES, DeflatedExplicitVRLittleEndian, *COMPRESSED_SYNTAXES])
def test_transfer_syntaxes_may_differ(tmp_path: Path, read: Read, syntax: str) -> None:
    write_series(tmp_path / "in", STACK)
    written_as = syntax if syntax not in COMPRESSED_SYNTAXES else ImplicitVRLittleEndian
    copies = write_series(tmp_path / "in" / "copies", STACK, syntax=written_as)
    for path in copies if syntax in COMPRESSED_SYNTAXES else ():
        encode(path, syntax)
    check_read_once(read(tmp_path / "in"), copies=6)


def one_pixel(dataset: FileDataset) -> None:
    dataset.PixelData = dataset.PixelData[:-2] + b"\1\0"


def one_millimetre(dataset: FileDataset) -> None:
    dataset.ImagePositionPatient[1] += 1


@pytest.mark.parametrize("change", [one_pixel, one_millimetre])
def test_files_that_differ_are_refused(tmp_path: Path, read: Read, change: Callable[[FileDataset], object]) -> None:
    paths = write_series(tmp_path / "in", STACK)
    changed_copy(paths[2], tmp_path / "in" / "copy", change)
    with pytest.raises(InconsistentGeometry, match="have the SOPInstanceUID of another one, with another header or"):
        read(tmp_path / "in")
