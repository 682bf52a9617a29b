import shutil
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from dicom_files import phantom, regular_stack, save, write_series
from pydicom import Dataset

from inference_service.contract.input_options import InputOptions
from inference_service.contract.slice_selection import SelectValue
from inference_service.core.errors import (
    BadRequest,
    InputCorrupt,
    InputNotFound,
    InputTooLarge,
    MixedSeries,
    NotAVolume,
    UnsupportedFormat,
)
from inference_service.formats.inspection import FoundVolume, Inspection, VolumeFacts, inspect_input
from inference_service.formats.nifti import write_volume
from inference_service.formats.read_limits import ReadLimits
from inference_service.formats.scan_reader import ReadOptions
from inference_service.imaging.geometry import Volume

SERIES = "1.2.3"
SECOND = "1.2.4"


def inspect(source: Path, series: str | None = None, **select: SelectValue) -> Inspection:
    work = source.parent / "work"
    work.mkdir(exist_ok=True)
    options = InputOptions(series=series, select=select)
    return inspect_input(source, work, ReadOptions(ReadLimits(10**5), options, threads=1))


def add_series(folder: Path, uid: str, **attributes: object) -> int:
    """Adds a series whose files have these attributes to a folder, and returns the number of its files."""

    def change(_: int, dataset: Dataset) -> None:
        for keyword, value in attributes.items():
            setattr(dataset, keyword, value)

    return len(write_series(folder / uid, replace(regular_stack(), series_uid=uid), change=change))


def by_name(found: Inspection) -> dict[str, FoundVolume]:
    return {volume.name: volume for volume in found.volumes}


def test_a_series_is_described(tmp_path: Path) -> None:
    count = add_series(tmp_path / "in", SERIES)
    found = inspect(tmp_path / "in")
    assert found.error is None
    (volume,) = found.volumes
    values = phantom()
    assert volume.facts == VolumeFacts(
        values.shape, (0.75, 1.25, 2.5), "LPS", (values.min().item(), values.max().item())
    )
    assert (volume.kind, volume.name, volume.files, volume.modality) == ("dicom", SERIES, count, "CT")
    assert (volume.left_out, volume.error) == (None, None)


def test_each_series_gets_a_verdict_of_its_own(tmp_path: Path) -> None:
    source = tmp_path / "in"
    add_series(source, SERIES)
    add_series(source, SECOND, ImagePositionPatient=[0.0, 0.0, 0.0])
    localizers = add_series(source, "1.2.5", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    (source / "notes.txt").write_text("x")
    found = inspect(source)
    volumes = by_name(found)
    assert volumes[SERIES].facts is not None
    assert isinstance(volumes[SECOND].error, NotAVolume)
    assert (volumes["1.2.5"].left_out, volumes["1.2.5"].files) == ("localizer", localizers)
    assert found.other_files == {"not_dicom": 1}
    assert isinstance(found.error, MixedSeries)
    assert inspect(source, SERIES).error is None
    assert isinstance(inspect(source, "1.9").error, NotAVolume)


def test_volumes_of_single_files_are_named_by_their_paths(tmp_path: Path) -> None:
    source = tmp_path / "in"
    (source / "b").mkdir(parents=True)
    volume = Volume(np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.diag([-1.0, -2.0, 3.0, 1.0]))
    for name in ("a.nii.gz", "b/c.nii.gz"):
        write_volume(source / name, volume)
    (source / "notes.txt").write_text("x")
    found = inspect(source)
    facts = VolumeFacts((2, 3, 4), (1, 2, 3), "LPS", (0, 23))
    assert {name: each.facts for name, each in by_name(found).items()} == {"a.nii.gz": facts, "b/c.nii.gz": facts}
    assert found.other_files == {"not_dicom": 1}
    assert isinstance(found.error, NotAVolume)
    assert inspect(source / "a.nii.gz").error is None


def test_an_input_without_a_volume_is_told(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    (source / "notes.txt").write_text("x")
    found = inspect(source)
    assert (found.volumes, found.other_files) == ((), {"not_dicom": 1})
    assert found.error is not None
    assert isinstance(inspect(tmp_path / "work").error, InputNotFound)


def test_the_error_of_files_that_cannot_be_listed_is_told(tmp_path: Path) -> None:
    (tmp_path / "damaged.zip").write_bytes(b"PK\x03\x04" + bytes(100))
    assert isinstance(inspect(tmp_path / "damaged.zip").error, InputCorrupt)
    source = tmp_path / "in"
    (path,) = write_series(source, regular_stack(phantom((9, 7, 1))))
    dataset = pydicom.dcmread(path)
    dataset.NumberOfFrames = 10**9
    save(dataset, path)
    assert isinstance(inspect(source).error, InputTooLarge)


def add_phases(folder: Path, uid: str) -> None:
    for number in (1, 2):
        stack = replace(regular_stack(), series_uid=uid)

        def change(k: int, dataset: Dataset, number: int = number) -> None:
            dataset.SOPInstanceUID = f"{uid}.{number}.{k}"
            dataset.AcquisitionNumber = number

        write_series(folder / uid / str(number), stack, change=change)


def test_the_phases_of_a_series_are_listed(tmp_path: Path) -> None:
    source = tmp_path / "in"
    add_phases(source, SERIES)
    (volume,) = inspect(source).volumes
    assert isinstance(volume.error, NotAVolume)
    assert [(dict(group.select), group.slices) for group in volume.error.groups] == [
        ({"AcquisitionNumber": 1}, 6),
        ({"AcquisitionNumber": 2}, 6),
    ]
    assert volume.modality == "CT"
    found = inspect(source, AcquisitionNumber=2)
    assert found.error is None
    assert found.volumes[0].facts is not None
    assert isinstance(inspect(source, AcquisitionNumber=3).error, NotAVolume)


def test_a_selection_is_for_the_named_series(tmp_path: Path) -> None:
    source = tmp_path / "in"
    add_phases(source, SERIES)
    add_series(source, SECOND)
    found = inspect(source, SERIES, AcquisitionNumber=2)
    assert found.error is None
    assert {name: volume.error for name, volume in by_name(found).items()} == {SERIES: None, SECOND: None}
    assert isinstance(inspect(source, AcquisitionNumber=2).error, MixedSeries)


def test_a_damaged_copy_is_no_error_of_its_series(tmp_path: Path) -> None:
    source = tmp_path / "in"
    add_series(source, SERIES)
    path = next(path for path in source.rglob("*") if path.is_file())
    (source / "copy").write_bytes(path.read_bytes()[:-200])
    found = inspect(source)
    assert found.error is None
    assert found.volumes[0].error is None


def test_slices_of_a_nifti_file_cannot_be_selected(tmp_path: Path) -> None:
    volume = Volume(np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.diag([-1.0, -2.0, 3.0, 1.0]))
    write_volume(tmp_path / "a.nii.gz", volume)
    found = inspect(tmp_path / "a.nii.gz", AcquisitionNumber=2)
    assert found.volumes[0].error is None
    assert isinstance(found.error, BadRequest)


@pytest.mark.parametrize("packed", ["folder", "zip", "zip in a folder", "tar in a zip"])
def test_volumes_in_archives_and_pairs_are_described(tmp_path: Path, packed: str) -> None:
    pair = nibabel.Nifti1Pair(np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.diag([-1.0, -2.0, 3.0, 1.0]))
    source = tmp_path / "in"
    source.mkdir()
    nibabel.save(pair, source / "a.hdr")
    (source / "notes.txt").write_text("x")
    if packed != "folder":
        source = pack(source, tmp_path, packed)
    found = inspect(source)
    assert found.error is None
    (volume,) = found.volumes
    assert (volume.kind, volume.files) == ("nifti", 2)
    assert volume.facts == VolumeFacts((2, 3, 4), (1, 2, 3), "LPS", (0, 23))
    assert found.other_files == {"not_dicom": 1}


def pack(files: Path, folder: Path, packed: str) -> Path:
    archive = Path(shutil.make_archive(str(folder / "files"), "tar" if packed == "tar in a zip" else "zip", files))
    if packed == "zip":
        return archive
    outer = folder / "outer"
    outer.mkdir()
    archive.rename(outer / "inner")
    return outer if packed == "zip in a folder" else Path(shutil.make_archive(str(folder / "all"), "zip", outer))


def test_a_header_without_voxels_is_refused(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Pair(np.zeros((2, 3, 4), np.int16), np.eye(4)), tmp_path / "a.hdr")
    (tmp_path / "a.img").unlink()
    found = inspect(tmp_path / "a.hdr")
    (volume,) = found.volumes
    assert isinstance(volume.error, UnsupportedFormat)
    assert found.error is volume.error
    assert found.other_files == {}
