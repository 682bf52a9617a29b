"""Shows values of attributes as a request states them, and describes groups of slices in error messages."""

import json
import re
from collections.abc import Mapping, Sequence

from inference_service.contract.slice_selection import SelectValue
from inference_service.core.errors import SliceGroup
from inference_service.formats.dicom.frame_attributes import CLOCK_TIMES, AttributeValue, HashedText, Text, TimeRange

_MAX_LISTED = 8
# Small numbers and kernels of vendors; with the terms below, all texts that cannot identify a patient.
_KNOWN_TEXT = re.compile(r"[-+]?\d{1,4}(\.\d{1,8})?(e[-+]\d{1,2})?|[A-Z]|[A-Z]{1,2}[a-z]?\d{2}[a-z]?")
_KNOWN_TERMS = {
    "STANDARD", "SOFT", "BONE", "BONEPLUS", "LUNG", "DETAIL", "EDGE", "CHST", "SHARP", "SMOOTH",
    "FLAT", "WEDGE", "BUTTERFLY", "FILTER_BACK_PROJ", "ITERATIVE",
    "ORIGINAL", "DERIVED", "MIXED", "PRIMARY", "SECONDARY", "AXIAL", "VOLUME", "LOCALIZER", "REFORMATTED", "RESAMPLED",
    "DYNAMIC", "OTHER", "NONE",
    "VMI", "MAT_SPECIFIC", "MAT_REMOVED", "MAT_FRACTIONAL", "MAT_VALUE_BASED", "EFF_ATOMIC_NUM", "ELECTRON_DENSITY",
    "MAGNITUDE", "PHASE", "REAL", "IMAGINARY", "MAG", "ND", "NORM", "DIS2D", "DIS3D", "FFE", "M_FFE", "DIFFUSION",
    "ADC", "TRACEW", "WATER", "FAT", "IN_PHASE", "OUT_PHASE", "OPP_PHASE",
    "HU", "US", "OD", "MGML", "Z_EFF", "ED", "EDW", "HU_MOD", "PCT", "BQML", "CNTS", "GML",
}  # fmt: skip
_HIDDEN = "…"


def describe_groups(groups: Sequence[SliceGroup]) -> str:
    """Returns how to choose one of several groups, as the end of a sentence; empty without groups.

    It quotes numbers, times and known texts alone: rows and logs hold it.
    """
    if not groups:
        return ""
    shown = [_public(group.select) for group in groups]
    listed = [
        f"{json.dumps(select, ensure_ascii=False)} ({group.slices} slice{'s' if group.slices > 1 else ''})"
        for select, group in zip(shown[:_MAX_LISTED], groups, strict=False)
    ]
    more = ", …" if len(groups) > _MAX_LISTED else ""
    has_hidden = any(select != group.select for select, group in zip(shown, groups, strict=True))
    inspect = "; `inference-service inspect` shows the texts" if has_hidden else ""
    return f"; or choose one of {len(groups)} groups of slices by input.select: {', '.join(listed)}{more}{inspect}"


def shown_value(keyword: str, value: AttributeValue | TimeRange | None) -> SelectValue:
    """The value as a request states it.

    >>> shown_value("EchoTime", 4.0), shown_value("ContentTime", 36645.5), shown_value("ImageType", Text("M"))
    (4, '101045.5', 'M')
    """
    if isinstance(value, Text):
        return value.text
    if isinstance(value, TimeRange):
        return f"{_time_of_day(value.first)}-{_time_of_day(value.last)}"
    if value is None or isinstance(value, HashedText):
        return None
    if keyword in CLOCK_TIMES:
        return _time_of_day(value)
    return int(value) if value.is_integer() else value


def _time_of_day(seconds: float) -> str:
    minutes, seconds = divmod(seconds, 60)
    return f"{int(minutes // 60):02}{int(minutes % 60):02}{seconds:09.6f}".rstrip("0").rstrip(".")


def _public(select: Mapping[str, SelectValue]) -> dict[str, SelectValue]:
    return {
        keyword: value if not isinstance(value, str) or keyword in CLOCK_TIMES or _is_known(value) else _HIDDEN
        for keyword, value in select.items()
    }


def _is_known(text: str) -> bool:
    return all(each in _KNOWN_TERMS or _KNOWN_TEXT.fullmatch(each) for each in text.split("\\"))


def sort_key(value: SelectValue) -> tuple[int, float, str]:
    """Sorts slices without a value before numbers, and numbers before texts."""
    if value is None:
        return 0, 0.0, ""
    return (2, 0.0, value) if isinstance(value, str) else (1, value, "")
