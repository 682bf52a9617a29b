"""Recognition of images, and the attributes read from them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dicom_files import (
    phantom,
    regular_stack,
    with_attribute,
    write_series,
)
from pydicom.dataset import Dataset
from pydicom.uid import (
    MRSpectroscopyStorage,
    RTStructureSetStorage,
)

from inference_service.core.errors import (
    InconsistentGeometry,
    NotAVolume,
)
from inference_service.formats.scan_reader import Scan

Read = Callable[..., Scan]


def items(count: int) -> list[Dataset]:
    made = [Dataset() for _ in range(count)]
    for item in made:
        item.ReferencedSOPInstanceUID = "1.2"
        item.PurposeOfReferenceCodeSequence = [Dataset()]
    return made


X_RAY_DOSE = "1.2.840.10008.5.1.4.1.1.88.67"


@pytest.mark.parametrize("kind", [MRSpectroscopyStorage, RTStructureSetStorage])
def test_objects_without_an_image_are_set_aside(tmp_path: Path, read: Read, kind: str) -> None:
    write_series(tmp_path / "in" / "ours", regular_stack())

    def change(k: int, dataset: Dataset) -> None:
        dataset.SOPClassUID = kind
        dataset.SeriesInstanceUID = "1.2.3.5"
        del dataset.BitsAllocated, dataset.PixelData
        if kind == RTStructureSetStorage:
            del dataset.Rows, dataset.Columns

    write_series(tmp_path / "in" / "other", regular_stack(phantom()[:, :, :1]), change=change)
    assert read(tmp_path / "in").set_aside == {"no_image": 1}


def test_a_slice_may_list_its_source_images(tmp_path: Path, read: Read) -> None:
    write_series(tmp_path / "in", regular_stack(), change=with_attribute("SourceImageSequence", items(700)))
    np.testing.assert_array_equal(read(tmp_path / "in").volume.voxels, regular_stack().voxels)


def test_a_report_with_many_items_is_no_unreadable_image(tmp_path: Path, read: Read) -> None:
    def change(k: int, dataset: Dataset) -> None:
        del dataset.Rows, dataset.Columns, dataset.PixelData
        dataset.SOPClassUID = X_RAY_DOSE
        dataset.SeriesInstanceUID = ""
        dataset.SourceImageSequence = items(20_000)

    write_series(tmp_path / "in", regular_stack(), change=with_attribute("SeriesInstanceUID", ""))
    write_series(tmp_path / "in" / "report", regular_stack(phantom()[:, :, :1]), change=change)
    scan = read(tmp_path / "in")
    assert scan.set_aside == {"no_image": 1}
    assert scan.warnings == ()


def test_an_invalid_modality_is_not_quoted(tmp_path: Path, read: Read) -> None:
    write_series(tmp_path / "in", regular_stack(), change=with_attribute("Modality", "MUSTERMANN", only=2))
    with pytest.raises(InconsistentGeometry, match=r"differ in modality: \?, CT"):
        read(tmp_path / "in")


def test_identifiers_may_be_missing(tmp_path: Path, read: Read) -> None:
    def change(k: int, dataset: Dataset) -> None:
        dataset.SeriesInstanceUID = dataset.FrameOfReferenceUID = dataset.Modality = ""
        del dataset.ImageType, dataset.SliceThickness

    write_series(tmp_path / "in", regular_stack(), change=change)
    scan = read(tmp_path / "in")
    assert (scan.modality, scan.volume.shape) == ("", (9, 7, 6))


def test_colour_images_are_refused(tmp_path: Path, read: Read) -> None:
    write_series(tmp_path / "in", regular_stack(), change=with_attribute("PhotometricInterpretation", "PALETTE COLOR"))
    with pytest.raises(NotAVolume, match="no series of slices: it holds 6 colour"):
        read(tmp_path / "in")


def test_localizers_alone_are_refused(tmp_path: Path, read: Read) -> None:
    write_series(tmp_path / "in", regular_stack(), change=with_attribute("ImageType", ["ORIGINAL", "PRIMARY", "SCOUT"]))
    with pytest.raises(NotAVolume, match="6 localizer"):
        read(tmp_path / "in")
