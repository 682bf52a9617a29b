"""Codes and colours of labels from a table with TotalSegmentator's columns."""

from pathlib import Path

import pytest

from inference_service.core.errors import BadRequest
from inference_service.importers.totalsegmentator import label_table
from inference_service.importers.totalsegmentator.label_table import find_label_table, read_label_table

CODES = [
    f"{code}.{part}"
    for code in (
        "SegmentedPropertyCategoryCodeSequence",
        "SegmentedPropertyTypeCodeSequence",
        "SegmentedPropertyTypeModifierCodeSequence",
    )
    for part in ("CodingSchemeDesignator", "CodeValue", "CodeMeaning")
]
HEAD = ",".join(["Structure", *CODES, "DicomRGBColor"])
STRUCTURE = "SCT,123037004,Anatomical Structure"


def table(folder: Path, *rows: str, head: str = HEAD) -> Path:
    path = folder / "table.csv"
    path.write_text("\n".join([head, *rows, ""]))
    return path


def test_a_label_gets_its_codes_and_its_colour(tmp_path: Path) -> None:
    path = table(
        tmp_path,
        f'hip_left,{STRUCTURE},SCT,29836001,Hip,SCT,7771000,Left,"230,248, 62"',
        f"heart,{STRUCTURE},SCT,80891009,Heart,,,,",
    )
    labels = read_label_table(path)
    assert labels["hip_left"] == {
        "category": {"scheme": "SCT", "value": "123037004", "meaning": "Anatomical Structure"},
        "type": {"scheme": "SCT", "value": "29836001", "meaning": "Hip"},
        "modifier": {"scheme": "SCT", "value": "7771000", "meaning": "Left"},
        "colour": (230, 248, 62),
    }
    assert set(labels["heart"]) == {"category", "type"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (f"heart,{STRUCTURE},SCT,{17 * '8'},Heart,,,,", "'heart': type.value is invalid"),
        (f'heart,{STRUCTURE},SCT,80891009,Heart,,,,"1,2"', "'heart': colour.2 is invalid"),
        (f"heart,{STRUCTURE},SCT,80891009,Heart,,,,red", "'heart': colour.0 is invalid"),
        ('heart,"', "no table of labels in CSV"),
    ],
)
def test_an_invalid_row_is_refused(tmp_path: Path, row: str, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        read_label_table(table(tmp_path, row))


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="is no table of labels"):
        read_label_table(tmp_path / "missing.csv")
    with pytest.raises(BadRequest, match=r"lacks columns of TotalSegmentator's table: SegmentedPropertyCategory"):
        read_label_table(table(tmp_path, "heart,red", head="Structure,colour"))
    with pytest.raises(BadRequest, match="all rows"):
        read_label_table(table(tmp_path))
    (tmp_path / "table.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadRequest, match="CSV"):
        read_label_table(tmp_path / "table.csv")


def test_the_table_of_the_installed_package_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_table, "_PACKAGE", "package_with_a_table")
    assert find_label_table(None) is None
    resources = tmp_path / "package_with_a_table" / "resources"
    resources.mkdir(parents=True)
    (resources.parent / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert find_label_table(None) is None
    (resources / "totalsegmentator_snomed_mapping.csv").write_text("")
    assert find_label_table(None) == resources / "totalsegmentator_snomed_mapping.csv"
    assert find_label_table(tmp_path / "own.csv") == tmp_path / "own.csv"
