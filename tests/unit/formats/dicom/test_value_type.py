"""What values measure: by RescaleType, ImageType, units, and real-world value mappings."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pydicom
import pytest
from dicom_files import phantom, regular_stack, write_enhanced, write_series
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items

from inference_service.core.errors import InconsistentGeometry, InputCorrupt
from inference_service.formats.dicom.instance import UNKNOWN_TERM, ValueType
from inference_service.formats.scan_reader import Scan

Read = Callable[..., Scan]


HU = "[hnsf'U]"


def mapping(*codes: str, slope: float = 1.0, intercept: float = -1024.0) -> Items:
    """A RealWorldValueMappingSequence with an item for each unit, by its UCUM code."""
    items = []
    for code in codes:
        unit = Dataset()
        unit.CodeValue, unit.CodingSchemeDesignator, unit.CodeMeaning = code, "UCUM", "unit"
        item = Dataset()
        item.MeasurementUnitsCodeSequence = Items([unit])
        item.RealWorldValueSlope, item.RealWorldValueIntercept = slope, intercept
        items.append(item)
    return Items(items)


def image_type(term: str) -> list[str]:
    return ["DERIVED", "PRIMARY", "AXIAL", term]


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({}, None),
        ({"RescaleType": "HU"}, ValueType("RescaleType", "HU")),
        ({"RescaleType": "hounsfield "}, ValueType("RescaleType", "HU")),
        ({"RescaleType": "US"}, ValueType("RescaleType", "US")),
        ({"RescaleType": "MGML"}, ValueType("RescaleType", "MGML")),
        ({"RescaleType": "mg/ml"}, ValueType("RescaleType", "MGML")),
        ({"RescaleType": "Z_EFF"}, ValueType("RescaleType", "Z_EFF")),
        ({"RescaleType": "ED"}, ValueType("RescaleType", "ED")),
        ({"RescaleType": "EDW"}, ValueType("RescaleType", "EDW")),
        ({"RescaleType": "HU_MOD"}, ValueType("RescaleType", "HU_MOD")),
        ({"RescaleType": "Mueller^Hans"}, ValueType("RescaleType", UNKNOWN_TERM)),
        ({"ImageType": image_type("VMI"), "RescaleType": "HU"}, ValueType("RescaleType", "HU")),
        ({"ImageType": image_type("MAT_REMOVED")}, None),
        ({"ImageType": image_type("MAT_SPECIFIC"), "RescaleType": "HU"}, ValueType("ImageType", "MAT_SPECIFIC")),
        ({"ImageType": image_type("IODINE NO WATER"), "RescaleType": "US"}, ValueType("ImageType", "IODINE_NO_WATER")),
        ({"ImageType": image_type("EFF_ATOMIC_NUM")}, ValueType("ImageType", "EFF_ATOMIC_NUM")),
        ({"ImageType": image_type("MAT_SPECIFIC"), "RescaleType": "MGML"}, ValueType("RescaleType", "MGML")),
        ({"Units": "BQML"}, ValueType("Units", "BQML")),
        ({"Units": "BQML", "RescaleType": "US"}, ValueType("Units", "BQML")),
        ({"RealWorldValueMappingSequence": mapping("mg/mL")}, ValueType("RealWorldValueMappingSequence", "MGML")),
        (
            {"RealWorldValueMappingSequence": mapping("[hnsf'U]")},
            ValueType("RealWorldValueMappingSequence", "HU"),
        ),
        (
            {"RealWorldValueMappingSequence": mapping("mg/mL", "[hnsf'U]")},
            ValueType("RealWorldValueMappingSequence", "HU"),
        ),
        (
            {"RealWorldValueMappingSequence": mapping("10*23/ml"), "RescaleType": "US"},
            ValueType("RealWorldValueMappingSequence", UNKNOWN_TERM),
        ),
        (
            {"RealWorldValueMappingSequence": mapping("mg/mL"), "RescaleType": "HU"},
            ValueType("RescaleType", "HU"),
        ),
    ],
    ids=str,
)
def test_the_most_telling_attribute_states_what_values_measure(
    tmp_path: Path, read: Read, attributes: dict[str, object], expected: ValueType | None
) -> None:
    def change(k: int, dataset: Dataset) -> None:
        for keyword, value in attributes.items():
            setattr(dataset, keyword, value)

    write_series(tmp_path / "in", regular_stack(), change=change)
    assert read(tmp_path / "in").value_type == expected


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("group", ["PixelValueTransformationSequence", "CTImageFrameTypeSequence", "Mapping"])
def test_functional_groups_state_what_values_measure(tmp_path: Path, read: Read, shared: bool, group: str) -> None:
    path = write_enhanced(tmp_path / "in", regular_stack(), shared=shared)
    assert read(path).value_type == ValueType("RescaleType", "HU")
    dataset = pydicom.dcmread(path)
    groups = dataset.SharedFunctionalGroupsSequence if shared else dataset.PerFrameFunctionalGroupsSequence
    for item in groups:
        if group == "CTImageFrameTypeSequence":
            frame_type = Dataset()
            frame_type.FrameType = image_type("ELECTRON_DENSITY")
            item.CTImageFrameTypeSequence = Items([frame_type])
        elif group == "Mapping":
            item.RealWorldValueMappingSequence = mapping("mg/mL")
            item.PixelValueTransformationSequence[0].RescaleType = "US"
        else:
            item.PixelValueTransformationSequence[0].RescaleType = "Z_EFF"
    dataset.save_as(path)
    value_type = read(path).value_type
    assert value_type is not None
    assert value_type.term in {"Z_EFF", "ELECTRON_DENSITY", "MGML"}


@pytest.mark.parametrize("few", ["HU", None])
def test_slices_that_differ_in_what_they_measure_are_refused(tmp_path: Path, read: Read, few: str | None) -> None:
    def change(k: int, dataset: Dataset) -> None:
        if k not in (1, 2):
            dataset.RescaleType = "MGML"
        elif few:
            dataset.RescaleType = few

    write_series(tmp_path / "in", regular_stack(), change=change)
    with pytest.raises(InconsistentGeometry, match=r"4 RescaleType MGML"):
        read(tmp_path / "in")


@pytest.mark.parametrize("others", ["US", None])
def test_hu_and_no_type_are_one_volume(tmp_path: Path, read: Read, others: str | None) -> None:
    def change(k: int, dataset: Dataset) -> None:
        if k < 3:
            dataset.RescaleType = "HU"
        elif others:
            dataset.RescaleType = others

    write_series(tmp_path / "in", regular_stack(phantom()), change=change)
    assert read(tmp_path / "in").value_type is not None


@pytest.mark.parametrize(
    ("rescaling", "slope", "intercept", "refused"),
    [
        ({"RescaleType": None}, 2.0, -2000.0, False),
        ({"RescaleType": "HU"}, 2.0, -2000.0, False),
        ({"RescaleType": "US"}, 1.0, -1024.0, False),
        ({"RescaleType": "US"}, 1.0, -1000.0, True),
        ({"RescaleType": "US", "RescaleIntercept": 0}, 1.0, -1024.0, True),
        ({"RescaleSlope": None, "RescaleIntercept": None}, 1.0, -1024.0, True),
        ({"RescaleSlope": None, "RescaleIntercept": None}, 1.0, 0.0, False),
        ({"RescaleSlope": None, "RescaleIntercept": None, "RescaleType": "HU"}, 1.0, -1024.0, False),
    ],
    ids=str,
)
def test_values_that_are_hu_by_the_mapping_alone_must_be_those_of_the_rescaling(
    tmp_path: Path, read: Read, rescaling: dict[str, object], slope: float, intercept: float, refused: bool
) -> None:
    def change(k: int, dataset: Dataset) -> None:
        dataset.RealWorldValueMappingSequence = Items(
            [*mapping("mg/mL", slope=7), *mapping(HU, slope=slope, intercept=intercept)]
        )
        for keyword, value in rescaling.items():
            setattr(dataset, keyword, value)

    write_series(tmp_path / "in", regular_stack(), change=change)
    with (
        pytest.raises(InputCorrupt, match="RealWorldValueMappingSequence gives other HU") if refused else nullcontext()
    ):
        read(tmp_path / "in")


def test_frames_without_a_rescaling_are_not_hu_by_a_mapping(tmp_path: Path, read: Read) -> None:
    path = write_enhanced(tmp_path / "in", regular_stack())
    dataset = pydicom.dcmread(path)
    shared = dataset.SharedFunctionalGroupsSequence[0]
    del shared.PixelValueTransformationSequence
    shared.RealWorldValueMappingSequence = mapping(HU)
    dataset.save_as(path)
    with pytest.raises(InputCorrupt, match="RealWorldValueMappingSequence gives other HU"):
        read(path)
