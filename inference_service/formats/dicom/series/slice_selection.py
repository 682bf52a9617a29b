"""Selects the slices of a series that have the attributes of a request."""

import re
from collections.abc import Mapping, Sequence

from inference_service.contract.slice_selection import SelectValue
from inference_service.core.errors import NotAVolume
from inference_service.formats.dicom.frame_attributes import (
    CLOCK_TIMES,
    AttributeValue,
    Text,
    TimeRange,
    format_number,
    to_value,
)
from inference_service.formats.dicom.instance import Slice
from inference_service.formats.dicom.series.acquisitions import attribute_columns, find_groups, group_by
from inference_service.formats.dicom.series.group_description import describe_groups

_PADDING = " \0\t"
# As in queries (PS3.4 C.2.2.2.5). The offset from UTC after a time has four digits.
_TIME_RANGE = re.compile(r"(\d{6}(?:\.\d{1,6})?)-(\d{6}(?:\.\d{1,6})?)")

_Requested = AttributeValue | TimeRange | None


def select_slices(slices: Sequence[Slice], selection: Mapping[str, SelectValue]) -> list[Slice]:
    """Returns the slices that have all the values of a selection.

    Args:
        slices: The slices of one series.
        selection: Values of attributes by keyword; see `InputOptions.select`.

    Raises:
        NotAVolume: There is none. The message lists the values that there are.
    """
    if not selection:
        return list(slices)
    wanted = {keyword: _requested_value(keyword, value) for keyword, value in selection.items()}
    found = [slice_ for slice_ in slices if _has_values(dict(slice_.frame.attributes), wanted)]
    if found:
        return found
    groups = group_by(slices, attribute_columns(slices, selection)[: len(selection)])
    if len(groups) < 2:
        groups = find_groups(slices)
    raise NotAVolume(
        f"none of the series' {len(slices)} slices has the values of {', '.join(selection)} in input.select"
        + describe_groups(groups),
        groups,
    )


def _requested_value(keyword: str, value: SelectValue) -> _Requested:
    if value is None:
        return None
    if isinstance(value, str):
        text = value
    elif keyword in CLOCK_TIMES and isinstance(value, int):
        text = f"{value:06}"
    else:
        text = f"{value:.15g}"
    ends = _TIME_RANGE.fullmatch(text.strip(_PADDING)) if keyword in CLOCK_TIMES else None
    if ends:
        first, last = (to_value(keyword, [end]) for end in ends.groups())
        if isinstance(first, float) and isinstance(last, float):
            return TimeRange(first, last)
    return to_value(keyword, [component.strip(_PADDING) for component in text.split("\\")])


def _has_values(stated: Mapping[str, AttributeValue], wanted: Mapping[str, _Requested]) -> bool:
    return all(_agree(stated.get(keyword), value) for keyword, value in wanted.items())


def _agree(stated: AttributeValue | None, wanted: _Requested) -> bool:
    """Returns True for equal values, for a time in the wanted range, or if one of several stated values is wanted."""
    if stated == wanted:
        return True
    if isinstance(wanted, TimeRange):
        return isinstance(stated, float) and wanted.first <= stated <= wanted.last
    if not isinstance(stated, Text):
        return False
    text = wanted.text if isinstance(wanted, Text) else format_number(wanted) if isinstance(wanted, float) else None
    return text in stated.text.split("\\")
