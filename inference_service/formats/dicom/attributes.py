"""Reads the values of single DICOM attributes, within limits on their length.

pydicom converts a value when it is first read, and makes an object of each component: about a hundred times the memory
of the encoded value. The length is therefore checked before.
"""

import re
from collections.abc import Iterator, MutableSequence, Sequence
from functools import cache
from math import isfinite, nan
from typing import Any

from pydicom.datadict import dictionary_has_tag, dictionary_keyword, dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag, Tag

from inference_service.core.errors import InputCorrupt
from inference_service.formats.dicom.pydicom_errors import map_pydicom_errors

# A decimal string (PS3.5 6.2), or one with a decimal comma. It may be padded by spaces and zeros.
_NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?", re.ASCII)
_AMBIGUOUS_COMMA = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}", re.ASCII)
_PADDING = " \0\t\r\n"
# Value representations of binary numbers; the others are text, or bytes of any kind.
_BINARY = {"FL", "FD", "SL", "SS", "SV", "UL", "US", "UV", "US or SS"}
# The attributes that are read here are short, apart from sequences.
_MAX_VALUE_BYTES = 4096


@cache
def tag_of(keyword: str) -> BaseTag:
    """Returns the tag of an attribute. pydicom looks it up again for each use of a keyword, which takes much longer."""
    return Tag(keyword)


def is_too_long(dataset: Dataset, tag: BaseTag) -> bool:
    """Returns True for an attribute above the length limit that is neither a sequence nor converted by pydicom yet."""
    # pydicom's annotation omits RawDataElement, the class of an element that is not converted yet.
    element: object = dataset.get_item(tag)
    if not isinstance(element, RawDataElement) or element.length <= _MAX_VALUE_BYTES:
        return False
    return _value_representation(element) != "SQ"


def check_length(dataset: Dataset, tag: BaseTag) -> None:
    """Refuses an attribute that `is_too_long`."""
    if is_too_long(dataset, tag):
        raise InputCorrupt(
            f"a DICOM file's {dictionary_keyword(tag)} is longer than {_MAX_VALUE_BYTES} bytes: the file is damaged"
        )


def read_values(dataset: Dataset, keyword: str) -> list[Any]:
    """All values of an attribute, or all items of a sequence; none where it is missing or empty.

    Raises:
        InputCorrupt: The value cannot be read.
    """
    tag = tag_of(keyword)
    if tag not in dataset:
        return []
    check_length(dataset, tag)
    with map_pydicom_errors(f"a DICOM file's {keyword} has an invalid value"):
        value = dataset[tag].value
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, list | MutableSequence) else [value]


def holders(sources: Sequence[Dataset], group: str) -> Iterator[Dataset]:
    """Yields the data sets that may hold an attribute of a frame, the most specific one first.

    Args:
        sources: The frame's functional groups, those that frames share, and the data set, in this order.
        group: Sequence of the functional group that holds the attribute; empty where none does.
    """
    for source in sources:
        if group and tag_of(group) in source:
            yield from read_values(source, group)[:1]
        # Single-frame images have it in the data set, and some writers put it beside the group.
        yield source


def read_text(dataset: Dataset, keyword: str) -> str:
    """The first value of an attribute as text; empty where there is none."""
    return "".join(str(value) for value in read_values(dataset, keyword)[:1]).strip(" \0")


def read_numbers(dataset: Dataset, keyword: str) -> tuple[float, ...]:
    """The values of a numeric attribute, in any value representation; none where it is missing or empty.

    A decimal comma is read as a point; `has_decimal_comma` tells of it.

    Raises:
        InputCorrupt: A value is not a finite number.
    """
    components = read_components(dataset, keyword)
    values = tuple(float(each.replace(",", ".")) if _NUMBER.fullmatch(each) else nan for each in components)
    if not all(map(isfinite, values)):
        raise InputCorrupt(
            f"a DICOM file's {keyword} has an invalid value{_describe_vr(dataset, keyword)}: expected finite numbers"
        )
    return values


def has_decimal_comma(dataset: Dataset, keyword: str) -> bool:
    """Returns True for a numeric attribute in which a comma stands for the decimal point."""
    return any("," in each for each in read_components(dataset, keyword))


def has_ambiguous_comma(dataset: Dataset, keyword: str) -> bool:
    """Returns True for a numeric attribute with a comma that may separate thousands as well as decimals: 1,024."""
    return any(_AMBIGUOUS_COMMA.fullmatch(each) for each in read_components(dataset, keyword))


def read_integer(dataset: Dataset, keyword: str) -> int | None:
    """The value of an attribute that is one integer; None where it is missing or empty.

    Raises:
        InputCorrupt: The value is not one integer.
    """
    numbers = read_numbers(dataset, keyword)
    if not numbers:
        return None
    if len(numbers) > 1 or not numbers[0].is_integer():
        raise InputCorrupt(f"a DICOM file's {keyword} has an invalid value: expected one integer")
    return int(numbers[0])


def require_integer(dataset: Dataset, keyword: str) -> int:
    """The value of an attribute that is one integer.

    Raises:
        InputCorrupt: It is missing, or not one integer.
    """
    value = read_integer(dataset, keyword)
    if value is None:
        raise InputCorrupt(f"a DICOM file has no {keyword}: expected one integer")
    return value


def read_components(dataset: Dataset, keyword: str) -> list[str]:
    """The components of an attribute as text, without padding; empty ones at the end are left out."""
    tag = tag_of(keyword)
    element: object = dataset.get_item(tag) if tag in dataset else None
    if isinstance(element, RawDataElement) and _value_representation(element) not in _BINARY:
        check_length(dataset, tag)
        # Decimal strings that are stated to be of another kind stay decimal strings.
        components = (element.value or b"").decode("latin-1").split("\\")
    else:
        components = [str(value) for value in read_values(dataset, keyword)]
    stripped = [each.strip(_PADDING) for each in components]
    while stripped and not stripped[-1]:
        stripped.pop()
    return stripped


def _value_representation(element: RawDataElement) -> str:
    """The value representation that is stated, or else that of the dictionary."""
    if element.VR not in (None, "UN"):
        return element.VR or ""
    return dictionary_VR(element.tag) if dictionary_has_tag(element.tag) else "UN"


def _describe_vr(dataset: Dataset, keyword: str) -> str:
    element: object = dataset.get_item(tag_of(keyword))
    vr = _value_representation(element) if isinstance(element, RawDataElement) else ""
    return f" of value representation {vr}" if re.fullmatch("[A-Z]{2}", vr) else ""
