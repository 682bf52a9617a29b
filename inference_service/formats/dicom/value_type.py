"""Reads the quantity that the values of a frame measure, such as Hounsfield units or a concentration.

Only known terms are held: any other text could identify a patient.
"""

import re
from collections.abc import Sequence

import numpy as np
from pydicom.dataset import Dataset

from inference_service.core.errors import InputCorrupt
from inference_service.formats.dicom.attributes import holders, read_numbers, read_text, read_values
from inference_service.formats.dicom.instance import UNKNOWN_TERM, ValueType

# Terms of RescaleType (PS3.3 C.11.1.1.2) and of Units (C.8.9.1), and the spellings of scanners.
_RESCALE_TYPES = {
    **{term: term for term in ("HU", "HU_MOD", "OD", "MGML", "Z_EFF", "ED", "EDW", "PCT", "BQML", "CNTS", "GML")},
    **dict.fromkeys(("HOUNSFIELD", "HOUNSFIELD UNIT", "HOUNSFIELD UNITS", "[HNSF'U]", "HNSF'U"), "HU"),
    **dict.fromkeys(("", "US", "UNSPECIFIED", "UNKNOWN", "NONE"), "US"),
    **dict.fromkeys(("MG/ML", "MG/CC"), "MGML"),
    **dict.fromkeys(("Z", "ZEFF"), "Z_EFF"),
    "%": "PCT",
    "BQ/ML": "BQML",
}
# Values of ImageType by which an image is a map of materials: PS3.3 C.8.2.1.1.1, and the usage of scanners. Virtual
# monoenergetic images (VMI) and those with a material removed (MAT_REMOVED) are in HU, unless RescaleType differs.
_MATERIAL_MAPS = {
    "MAT_SPECIFIC", "MAT_FRACTIONAL", "MAT_VALUE_BASED", "EFF_ATOMIC_NUM", "ELECTRON_DENSITY", "IODINE", "IODINE_MAP",
    "IODINE_DENSITY", "IODINE_NO_WATER", "Z_EFF", "ZEFF", "Z_EFFECTIVE", "RHO_Z", "URIC_ACID",
}  # fmt: skip
_UNIT_CODES = {"[HNSF'U]": "HU", "HNSF'U": "HU", "MG/ML": "MGML", "BQ/ML": "BQML", "%": "PCT"}


def read_value_type(sources: Sequence[Dataset]) -> ValueType | None:
    """Reads the type of a frame's values from the most specific attribute that states it.

    A RescaleType other than HU comes first. An ImageType of a map of materials comes before the RescaleType HU, which
    some scanners write for the enhancement by iodine alone: such an image does not show the patient.

    Args:
        sources: The frame's functional groups, those that frames share, and the data set, in this order.

    Returns:
        None where no attribute states it.
    """
    rescale_type = _read_term(sources, "PixelValueTransformationSequence", "RescaleType")
    stated = ValueType("RescaleType", rescale_type) if rescale_type else None
    if stated and rescale_type not in {"HU", "US"}:
        return stated
    material_map = _read_material_map(sources)
    if material_map:
        return material_map
    if rescale_type == "HU":
        return stated
    units = _read_term(sources, "", "Units")
    if units and units not in {"HU", "US"}:
        return ValueType("Units", units)
    return _read_real_world_unit(sources) or stated


def check_real_world_mapping(sources: Sequence[Dataset], slope: float, intercept: float) -> None:
    """Refuses a frame whose values are HU by the real-world value mapping alone, if rescaling gives others.

    The mapping applies to stored values (PS3.3 C.7.6.16.2.11). A rescaling that states its type, or none in CT, counts
    more.

    Args:
        sources: As for `read_value_type`.
        slope: RescaleSlope; 1 where it is not stated.
        intercept: RescaleIntercept; 0 where it is not stated.

    Raises:
        InputCorrupt: The values differ.
    """
    group = "PixelValueTransformationSequence"
    is_rescaled = any(read_text(holder, "RescaleSlope") for holder in holders(sources, group))
    rescale_type = _read_term(sources, group, "RescaleType")
    if rescale_type not in {"", "US"} or (is_rescaled and not rescale_type):
        return
    mappings = _real_world_mappings(sources)
    linear = [
        read_numbers(each, "RealWorldValueSlope") + read_numbers(each, "RealWorldValueIntercept")
        for each, unit in mappings
        if unit == "HU"
    ]
    if linear and not any(np.allclose(each, (slope, intercept)) for each in linear if len(each) == 2):
        raise InputCorrupt(
            "a DICOM file's RealWorldValueMappingSequence gives other HU than RescaleSlope and RescaleIntercept, or "
            "than the stored values if these are missing: expected a rescaling to HU"
        )


def _read_term(sources: Sequence[Dataset], group: str, keyword: str) -> str:
    """The known term of the first source that has the attribute; empty where none has it."""
    for holder in holders(sources, group):
        text = read_text(holder, keyword).upper()
        if text:
            return _RESCALE_TYPES.get(text, UNKNOWN_TERM)
    return ""


def _read_material_map(sources: Sequence[Dataset]) -> ValueType | None:
    for source in sources:
        frame_types = read_values(source, "CTImageFrameTypeSequence")[:1]
        for holder, keyword in (*((item, "FrameType") for item in frame_types), (source, "ImageType")):
            values = read_values(holder, keyword)
            terms = (re.sub(r"[ -]", "_", str(value).strip().upper()) for value in values)
            found = next((term for term in terms if term in _MATERIAL_MAPS), None)
            if found:
                return ValueType(keyword, found)
    return None


def _read_real_world_unit(sources: Sequence[Dataset]) -> ValueType | None:
    """The unit of the real-world value mapping (PS3.3 C.7.6.16.2.11); HU where it is one of several."""
    units = [unit for _, unit in _real_world_mappings(sources)]
    return ValueType("RealWorldValueMappingSequence", "HU" if "HU" in units else units[0]) if units else None


def _real_world_mappings(sources: Sequence[Dataset]) -> list[tuple[Dataset, str]]:
    """The real-world value mappings of the first source that states any, with their units."""
    for source in sources:
        found = [
            (mapping, _UNIT_CODES.get(read_text(code, "CodeValue").upper(), UNKNOWN_TERM))
            for mapping in read_values(source, "RealWorldValueMappingSequence")
            for code in read_values(mapping, "MeasurementUnitsCodeSequence")[:1]
        ]
        if found:
            return found
    return []
