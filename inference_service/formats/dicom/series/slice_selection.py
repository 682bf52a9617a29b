"""Selects the slices of a series that have the attributes of a request."""

from collections.abc import Mapping, Sequence

from inference_service.contract.slice_selection import SelectValue
from inference_service.core.errors import NotAVolume
from inference_service.formats.dicom.frame_attributes import CLOCK_TIMES, AttributeValue, Text, format_number, to_value
from inference_service.formats.dicom.instance import Slice
from inference_service.formats.dicom.series.acquisitions import find_groups, group_by
from inference_service.formats.dicom.series.group_description import describe_groups

_PADDING = " \0\t"


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
    groups = group_by(slices, tuple(selection))
    if len(groups) < 2:
        groups = find_groups(slices)
    raise NotAVolume(
        f"none of the series' {len(slices)} slices has the values of {', '.join(selection)} in input.select"
        + describe_groups(groups),
        groups,
    )


def _requested_value(keyword: str, value: SelectValue) -> AttributeValue | None:
    if value is None:
        return None
    if isinstance(value, str):
        text = value
    elif keyword in CLOCK_TIMES and isinstance(value, int):
        text = f"{value:06}"
    else:
        text = f"{value:.15g}"
    return to_value(keyword, [component.strip(_PADDING) for component in text.split("\\")])


def _has_values(stated: Mapping[str, AttributeValue], wanted: Mapping[str, AttributeValue | None]) -> bool:
    return all(_agree(stated.get(keyword), value) for keyword, value in wanted.items())


def _agree(stated: AttributeValue | None, wanted: AttributeValue | None) -> bool:
    """Returns True for equal values, or if the wanted one is one of several that are stated."""
    if stated == wanted:
        return True
    if not isinstance(stated, Text):
        return False
    text = wanted.text if isinstance(wanted, Text) else format_number(wanted) if isinstance(wanted, float) else None
    return text in stated.text.split("\\")
