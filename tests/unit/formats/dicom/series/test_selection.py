"""Choice of the series to read, and files that are set aside."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dicom_files import (
    Change,
    Stack,
    phantom,
    regular_stack,
    with_attribute,
    without_attributes,
    write_series,
)
from pydicom.dataset import Dataset
from pydicom.uid import SecondaryCaptureImageStorage, SegmentationStorage

from inference_service.contract.task_message import InputReference
from inference_service.core.errors import (
    MixedSeries,
    NotAVolume,
)
from inference_service.formats.scan_reader import Scan

Read = Callable[..., Scan]


def test_other_files_are_set_aside_and_counted_by_reason(tmp_path: Path, read: Read) -> None:
    stack = regular_stack()
    write_series(tmp_path / "in", stack)

    def write_aside(name: str, uid: str, change: Change, count: int = 1) -> None:
        one = replace(regular_stack(phantom()[:, :, :count]), series_uid=uid)
        write_series(tmp_path / "in" / name, one, change=change)

    write_aside("a", "1.1", with_attribute("ImageType", ["ORIGINAL", "PRIMARY", "LOCALIZER"]))
    write_aside("b", "1.2", with_attribute("SOPClassUID", SecondaryCaptureImageStorage), 3)
    write_aside("c", "1.3", with_attribute("SOPClassUID", SegmentationStorage))
    write_aside("d", "1.4", with_attribute("ImageType", ["DERIVED", "SECONDARY", "REFORMATTED"]), 4)
    write_aside("e", "1.5", without_attributes("ImagePositionPatient"))
    write_aside("f", "1.6", without_attributes("Rows", "Columns", "PixelData"))
    write_aside("g", "1.7", with_attribute("ImageType", ["DERIVED", "SECONDARY", "PROJECTION IMAGE"]), 2)
    write_aside("h", "1.8", with_attribute("SamplesPerPixel", 3))
    write_aside("i", "1.9", with_attribute("Modality", "CT"))
    write_aside("j", "1.10", with_attribute("ModalityLUTSequence", [Dataset()]), 2)
    (tmp_path / "in" / "Thumbs.db").write_bytes(b"no image")
    scan = read(tmp_path / "in")
    np.testing.assert_array_equal(scan.volume.voxels, stack.voxels)
    assert scan.set_aside == {
        "localizer": 1,
        "secondary_capture": 3,
        "no_image": 1,
        "unreadable": 1,
        "reformat": 4,
        "no_position": 1,
        "projection": 2,
        "colour": 1,
        "single_image": 1,
        "not_dicom": 1,
        "lookup_table": 2,
    }


def test_a_reformatted_series_is_read_if_it_is_alone(tmp_path: Path, read: Read) -> None:
    write_series(tmp_path / "in", regular_stack(), change=with_attribute("ImageType", ["DERIVED", "SECONDARY", "MPR"]))
    assert read(tmp_path / "in").volume.shape == (9, 7, 6)


def test_one_of_several_series_must_be_named(tmp_path: Path, read: Read) -> None:
    first = regular_stack()
    second = regular_stack(phantom()[::-1])
    write_series(tmp_path / "in" / "a", first)
    write_series(
        tmp_path / "in" / "b", Stack(second.voxels, first.row, first.column, (1, 1), first.positions_mm, "1.2.3.5")
    )
    with pytest.raises(MixedSeries, match=r"^the input has 2 series, of 6, 6 slices: name one of them ") as caught:
        read(tmp_path / "in")
    assert caught.value.slices == {"1.2.3.4": 6, "1.2.3.5": 6}
    scan = read(tmp_path / "in", series="1.2.3.5")
    np.testing.assert_array_equal(scan.volume.voxels, second.voxels)
    assert scan.set_aside == {"other_series": 6}
    with pytest.raises(NotAVolume, match=r"input\.series is not among the 2 series of the input$"):
        read(tmp_path / "in", series="1.2.3.6")


@pytest.mark.parametrize("uid", ["1.2.840.113619.0012", "Thorax 5 mm_1", "A" * 70, "é^ß", "-1"])
def test_a_series_is_named_by_what_its_files_state_even_if_that_is_no_uid(tmp_path: Path, read: Read, uid: str) -> None:
    write_series(tmp_path / "in" / "a", regular_stack())
    write_series(tmp_path / "in" / "b", regular_stack(), change=with_attribute("SeriesInstanceUID", uid))
    with pytest.raises(MixedSeries) as caught:
        read(tmp_path / "in")
    assert caught.value.slices == {"1.2.3.4": 6, uid: 6}
    named = InputReference(bucket=None, key="ct/", series=uid).series
    for name in (named, f"{named} ", f"{named}\0"):
        assert read(tmp_path / "in", series=name).set_aside == {"other_series": 6}


@pytest.mark.parametrize("kind", ["LOCALIZER", "CT_SOM5 TOP SCOUT", "MOSAIC"])
def test_localizers_of_a_named_series_are_set_aside(tmp_path: Path, read: Read, kind: str) -> None:
    write_series(tmp_path / "in", regular_stack())
    scout = regular_stack(phantom()[:, :, :1], row=(0, 1, 0), column=(0, 0, -1))
    write_series(tmp_path / "in" / "scout", scout, change=with_attribute("ImageType", ["ORIGINAL", "PRIMARY", kind]))
    for options in ({}, {"series": "1.2.3.4"}):
        scan = read(tmp_path / "in", **options)
        assert (scan.volume.shape, sum(scan.set_aside.values())) == ((9, 7, 6), 1)


def test_a_series_of_projections_is_read_if_it_is_named(tmp_path: Path, read: Read) -> None:
    write_series(
        tmp_path / "in", regular_stack(), change=with_attribute("ImageType", ["DERIVED", "SECONDARY", "CSA MIP"])
    )
    with pytest.raises(NotAVolume, match="6 projection"):
        read(tmp_path / "in")
    assert read(tmp_path / "in", series="1.2.3.4").volume.shape == (9, 7, 6)


def test_no_uid_is_quoted(tmp_path: Path, read: Read) -> None:
    """Rows and logs hold the message, and a UID may identify a patient."""
    for name in ("a", "b"):
        write_series(
            tmp_path / "in" / name,
            regular_stack(),
            change=with_attribute("SeriesInstanceUID", f"{name} SENT^DOE\nInjected"),
        )
    with pytest.raises(MixedSeries) as caught:
        read(tmp_path / "in")
    assert not re.search(r"SENT|DOE|Injected|1\.2", caught.value.message)
    write_series(tmp_path / "one", regular_stack(), change=with_attribute("Modality", "SENT^DOE"))
    assert read(tmp_path / "one").modality == "?"
