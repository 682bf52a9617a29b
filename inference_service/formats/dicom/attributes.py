"""Reads the values of single DICOM attributes, within limits on their length.

pydicom converts a value when it is first read, and makes an object of each component: about a hundred times the memory
of the encoded value. The length is therefore checked before.
"""

from collections.abc import MutableSequence
from typing import Any

from pydicom.datadict import dictionary_has_tag, dictionary_keyword, dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag, Tag

from inference_service.core.errors import InputCorrupt

# The attributes that are read here are short, apart from sequences.
_MAX_VALUE_BYTES = 4096


def is_too_long(dataset: Dataset, tag: BaseTag) -> bool:
    """Returns True for an attribute above the length limit that is neither a sequence nor converted by pydicom yet."""
    # pydicom's annotation omits RawDataElement, the class of an element that is not converted yet.
    element: object = dataset.get_item(tag)
    if not isinstance(element, RawDataElement) or element.length <= _MAX_VALUE_BYTES:
        return False
    vr = element.VR
    if vr in (None, "UN") and dictionary_has_tag(tag):
        vr = dictionary_VR(tag)
    return vr != "SQ"


def check_length(dataset: Dataset, tag: BaseTag) -> None:
    """Refuses an attribute that `is_too_long`."""
    if is_too_long(dataset, tag):
        raise InputCorrupt(
            f"a DICOM file's {dictionary_keyword(tag)} is longer than {_MAX_VALUE_BYTES} bytes: the file is damaged"
        )


def read_values(dataset: Dataset, keyword: str) -> list[Any]:
    """All values of an attribute, or all items of a sequence; none where it is missing or empty."""
    if keyword in dataset:
        check_length(dataset, Tag(keyword))
    value = dataset.get(keyword)
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, list | MutableSequence) else [value]


def read_text(dataset: Dataset, keyword: str) -> str:
    """The first value of an attribute as text; empty where there is none."""
    return "".join(str(value) for value in read_values(dataset, keyword)[:1]).strip(" \0")
