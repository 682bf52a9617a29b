"""The table of TotalSegmentator's labels: codes of SNOMED CT and colours."""

import csv
from collections.abc import Mapping
from importlib.util import find_spec
from io import StringIO
from pathlib import Path

from pydantic import ValidationError

from inference_service.contract.labels import Label
from inference_service.core.errors import BadRequest

_PACKAGE = "totalsegmentator"
_FILE = "resources/totalsegmentator_snomed_mapping.csv"
_MAX_BYTES = 2**20
_NAME, _COLOUR = "Structure", "DicomRGBColor"
# The columns of each code, for the field of a label.
_CODES = {
    "category": "SegmentedPropertyCategoryCodeSequence",
    "type": "SegmentedPropertyTypeCodeSequence",
    "modifier": "SegmentedPropertyTypeModifierCodeSequence",
}
_PARTS = {"scheme": "CodingSchemeDesignator", "value": "CodeValue", "meaning": "CodeMeaning"}


def find_label_table(given: Path | None) -> Path | None:
    """Returns the table that is given, or that of the installed package, of which no code runs; None: there is none."""
    if given is not None:
        return given
    package = find_spec(_PACKAGE)
    folders = (package.submodule_search_locations if package else None) or ()
    return next((Path(folder) / _FILE for folder in folders if (Path(folder) / _FILE).is_file()), None)


def read_label_table(path: Path) -> dict[str, Mapping[str, object]]:
    """Reads a table with TotalSegmentator's columns.

    Returns:
        The fields of a label, such as `type` and `colour`, by its name.

    Raises:
        BadRequest: There is no such table, or a row of it is invalid.
    """
    if not path.is_file() or path.stat().st_size > _MAX_BYTES:
        raise BadRequest(f"{path.name} is no table of labels")
    try:
        reader = csv.DictReader(StringIO(path.read_text(encoding="utf-8-sig")), strict=True)
        rows = [{str(key): str(value or "") for key, value in row.items()} for row in reader]
    except (ValueError, csv.Error) as error:
        raise BadRequest(f"{path.name} is no table of labels in CSV") from error
    needed = [_NAME, *(f"{column}.{part}" for column in _CODES.values() for part in _PARTS.values())]
    missing = [name for name in needed if name not in rows[0]] if rows else ["all rows"]
    if missing:
        raise BadRequest(f"{path.name} lacks columns of TotalSegmentator's table: {', '.join(missing)}")
    return {row[_NAME]: _label_fields(row, path.name) for row in rows if row[_NAME]}


def _label_fields(row: Mapping[str, str], file: str) -> Mapping[str, object]:
    fields: dict[str, object] = {}
    for field, column in _CODES.items():
        code = {part: row[f"{column}.{name}"].strip() for part, name in _PARTS.items()}
        if code["value"]:
            fields[field] = code
    if row.get(_COLOUR):
        fields["colour"] = [part.strip() for part in row[_COLOUR].split(",")]
    try:
        label = Label.model_validate({"name": "label", "value": 1, **fields})
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"]))
        raise BadRequest(f"{file}, {row[_NAME][:64]!r}: {place} is invalid") from error
    return label.model_dump(include={*fields})
