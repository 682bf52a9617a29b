"""Copies of a file are left out and counted; other files with its SOPInstanceUID are refused."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_encoders import COMPRESSED_SYNTAXES, encode
from dicom_files import NATIVE_SYNTAXES, phantom, regular_stack, with_attribute, write_enhanced, write_series
from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEG2000Lossless

from inference_service.core.errors import InconsistentGeometry, InputCorrupt, NotAVolume
from inference_service.core.report_warnings import ReportWarning, WarningCode
from inference_service.formats.dicom.instance import Instance
from inference_service.formats.dicom.pixels.decoder import read_frames
from inference_service.formats.dicom.series import duplicates
from inference_service.formats.scan_reader import Scan

Read = Callable[..., Scan]
STACK = regular_stack(phantom((20, 18, 6)))


def check_read_once(scan: Scan, copies: int) -> None:
    np.testing.assert_array_equal(scan.volume.voxels, STACK.voxels)
    assert scan.set_aside == {"duplicate": copies}
    message = f"{copies} of the {6 + copies} files are copies of others, with the same header and pixels: left out"
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


def renumbered(dataset: FileDataset) -> None:
    dataset.SOPInstanceUID = "1.2.3.99"
    dataset.InstanceNumber = 99


def rounded(dataset: FileDataset) -> None:
    dataset.ImagePositionPatient = [position + 0.004 for position in dataset.ImagePositionPatient]
    dataset.ImageOrientationPatient = [1, 1e-5, 0, 0, 1, 0]
    dataset.PixelSpacing = [1.25001, 0.75001]


def renumbered_and_rounded(dataset: FileDataset) -> None:
    renumbered(dataset)
    rounded(dataset)


@pytest.mark.parametrize("change", [renumbered, rounded, renumbered_and_rounded])
def test_archives_may_renumber_and_round_a_copy(
    tmp_path: Path, read: Read, change: Callable[[FileDataset], object]
) -> None:
    paths = write_series(tmp_path / "in", STACK)
    for name, path in enumerate(paths[1:4]):
        changed_copy(path, tmp_path / "in" / f"copy{name}", change)
    check_read_once(read(tmp_path / "in"), copies=3)


def test_near_slices_of_equal_content_are_no_copies(tmp_path: Path, read: Read) -> None:
    """As in micro-CT, where slices outside the specimen are equal."""
    stack = regular_stack(np.zeros((20, 18, 6), np.int16), pixel_mm=(0.005, 0.005), step_mm=0.005)
    write_series(tmp_path / "in", stack)
    assert read(tmp_path / "in").volume.shape == (20, 18, 6)


@pytest.mark.parametrize("keyword", ["ContentTime", "AcquisitionNumber", "EchoTime", "SeriesDescription"])
def test_equal_images_of_other_acquisitions_are_no_copies(tmp_path: Path, read: Read, keyword: str) -> None:
    paths = write_series(tmp_path / "in", STACK)

    def change(dataset: FileDataset) -> None:
        renumbered(dataset)
        setattr(dataset, keyword, "101010" if keyword == "ContentTime" else "7")

    changed_copy(paths[2], tmp_path / "in" / "copy", change)
    with pytest.raises(InconsistentGeometry, match="1 of 6 slice positions have more than one slice"):
        read(tmp_path / "in")


def relabelled(dataset: FileDataset) -> None:
    dataset.SeriesDescription, dataset.SeriesNumber, dataset.ContentTime = "CORRECTED", 9, "101010"


def test_a_copy_of_one_uid_may_be_relabelled(tmp_path: Path, read: Read) -> None:
    paths = write_series(tmp_path / "in", STACK)
    for name, path in enumerate(paths[1:4]):
        changed_copy(path, tmp_path / "in" / f"copy{name}", relabelled)
    check_read_once(read(tmp_path / "in"), copies=3)


@pytest.mark.parametrize("keyword", ["RescaleIntercept", "RescaleType", "Modality"])
def test_a_copy_with_other_values_is_refused(tmp_path: Path, read: Read, keyword: str) -> None:
    paths = write_series(tmp_path / "in", STACK)
    value = {"RescaleIntercept": -1000, "RescaleType": "MGML", "Modality": "PT"}[keyword]
    changed_copy(paths[2], tmp_path / "in" / "copy", lambda dataset: setattr(dataset, keyword, value))
    with pytest.raises(InconsistentGeometry):
        read(tmp_path / "in")


@pytest.mark.parametrize("place", ["pixels' end", "pixels' start", "header"])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, JPEG2000Lossless])
def test_an_intact_file_is_read_beside_its_truncated_copy(
    tmp_path: Path, read: Read, place: str, first: bool, syntax: str
) -> None:
    paths = write_series(tmp_path / "in", STACK, syntax=ImplicitVRLittleEndian)
    for path in paths if syntax == JPEG2000Lossless else ():
        encode(path, syntax)
    for path in (paths[0], paths[3]):
        whole = path.read_bytes()
        pixels = whole.index(b"\xe0\x7f\x10\x00")
        end = {"pixels' end": len(whole) - 20, "pixels' start": pixels, "header": pixels - 60}[place]
        path.with_name(f"0 {path.name}").write_bytes(whole[:end] if first else whole)
        path.write_bytes(whole if first else whole[:end])
    scan = read(tmp_path / "in")
    np.testing.assert_array_equal(scan.volume.voxels, STACK.voxels)
    assert scan.set_aside == {"damaged_copy": 2}
    assert [(warning.code, warning.message) for warning in scan.warnings] == [
        ("damaged_copies", "2 of the 8 files are damaged copies of others, with the same SOPInstanceUID: left out")
    ]


def test_a_truncated_slice_with_the_uid_of_another_slice_is_no_copy(tmp_path: Path, read: Read) -> None:
    paths = write_series(tmp_path / "in", STACK, change=with_attribute("SOPInstanceUID", "1.2.3.4.1"))
    paths[2].write_bytes(paths[2].read_bytes()[:-100])
    with pytest.raises(InconsistentGeometry, match="5 of the series' 6 images have the SOPInstanceUID of another one"):
        read(tmp_path / "in")


def test_a_truncated_file_without_an_intact_copy_is_refused(tmp_path: Path, read: Read) -> None:
    paths = write_series(tmp_path / "in", STACK)
    paths[2].write_bytes(paths[2].read_bytes()[:-100])
    shutil.copy(paths[2], tmp_path / "in" / "copy")
    with pytest.raises((InputCorrupt, InconsistentGeometry)):
        read(tmp_path / "in")


def test_a_truncated_multi_frame_file_is_left_out(tmp_path: Path, read: Read) -> None:
    path = write_enhanced(tmp_path / "in" / "2", STACK)
    content = path.read_bytes()
    (tmp_path / "in" / "1").write_bytes(content[: len(content) // 2])
    (tmp_path / "in" / "3").write_bytes(content[:-10])
    # The functional groups are missing, with the positions of frames.
    (tmp_path / "in" / "4").write_bytes(content[: content.index(b"\x00\x52\x29\x92")])
    scan = read(tmp_path / "in")
    np.testing.assert_array_equal(scan.volume.voxels, STACK.voxels)
    assert scan.set_aside == {"damaged_copy": 3}


def test_pixels_of_many_alike_slices_are_decoded_once(
    tmp_path: Path, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of phases that no attribute tells apart."""
    for number in range(8):
        phase = replace(STACK, voxels=STACK.voxels + number, series_uid="1.2.3.4")

        def change(k: int, dataset: Dataset, number: int = number) -> None:
            dataset.SOPInstanceUID = f"1.2.3.{number}.{k}"

        write_series(tmp_path / "in" / str(number), phase, change=change)
    read_files: list[Path] = []

    def counted(instance: Instance, **options: object) -> object:
        read_files.append(instance.path)
        return read_frames(instance, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(duplicates, "read_frames", counted)
    with pytest.raises(NotAVolume, match="the series is 8 volumes"):
        read(tmp_path / "in")
    assert len(read_files) == len(set(read_files)) == 48


def test_frames_that_are_copies_are_left_out(tmp_path: Path, read: Read) -> None:
    """As of a concatenation whose parts overlap."""
    for number, frames in enumerate(([0, 1, 2, 3, 1], [2, 3, 4, 5])):
        part = replace(
            STACK,
            voxels=STACK.voxels[:, :, frames],
            positions_mm=STACK.positions_mm[frames],
            changes={"SOPInstanceUID": f"1.2.3.4.{number}"},
        )
        write_enhanced(tmp_path / "in" / str(number), part)
    scan = read(tmp_path / "in")
    np.testing.assert_array_equal(scan.volume.voxels, STACK.voxels)
    assert scan.set_aside == {}
    assert [warning.message for warning in scan.warnings] == [
        "3 frames of multi-frame images are copies of others, with the same header and pixels: left out"
    ]


def test_equal_frames_of_other_phases_are_no_copies(tmp_path: Path, read: Read) -> None:
    """As above and below the patient."""
    both = replace(
        STACK,
        voxels=np.concatenate([STACK.voxels] * 2, axis=2),
        positions_mm=np.concatenate([STACK.positions_mm] * 2),
    )
    path = write_enhanced(tmp_path / "in", both)
    dataset = pydicom.dcmread(path)
    seen: set[float] = set()
    for item in dataset.PerFrameFunctionalGroupsSequence:
        height = float(item.PlanePositionSequence[0].ImagePositionPatient[2])
        content = Dataset()
        content.FrameAcquisitionNumber = 1 + (height in seen)
        item.FrameContentSequence = [content]
        seen.add(height)
    dataset.save_as(path)
    with pytest.raises(NotAVolume, match="the series is 2 volumes"):
        read(path)
    for number in (1, 2):
        scan = read(path, select={"FrameAcquisitionNumber": number})
        np.testing.assert_array_equal(scan.volume.voxels, STACK.voxels)
