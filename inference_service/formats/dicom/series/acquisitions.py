"""Tells the acquisitions of a series apart by attributes of its slices."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from inference_service.contract.slice_selection import SELECTABLE
from inference_service.contract.task_message import Tolerance
from inference_service.core.errors import GantryTilt, InputError, MissingSlices, SliceGroup
from inference_service.formats.dicom.frame_attributes import AttributeValue, HashedText
from inference_service.formats.dicom.instance import Slice
from inference_service.formats.dicom.series.consistency import MIN_SPACING_MM
from inference_service.formats.dicom.series.geometry import find_geometry
from inference_service.formats.dicom.series.group_description import shown_value, sort_key
from inference_service.formats.dicom.series.interleaving import check_not_interleaved

# Attributes that are combined to tell groups apart.
_MAX_COMBINED = 3
_MAX_CANDIDATES = 12
# Slices that the search examines in all, each as often as it is part of a group.
_MAX_EXAMINED_SLICES = 200_000


def find_groups(slices: Sequence[Slice]) -> list[SliceGroup]:
    """Finds the attribute, or the fewest attributes, by which a series falls into groups that are each one volume.

    Returns:
        The groups, in the order of their values; none where no attributes tell groups apart.
    """
    codes = _candidates(slices)
    places = _places(slices)
    examined = 0
    distinct: list[tuple[str, ...]] = []
    for keywords, labels in _splits(codes):
        if 2 * (labels.max() + 1) > len(slices) or not _are_distinct(labels, places):
            continue
        distinct.append(keywords)
        examined += len(slices)
        if examined > _MAX_EXAMINED_SLICES:
            break
        if all(map(_is_one_volume, _members(slices, labels))):
            return group_by(slices, keywords)
    # Groups with a defect of their own, if the series has several slices at a position.
    everything = np.zeros(len(slices), dtype=np.intp)
    return group_by(slices, distinct[0]) if distinct and not _are_distinct(everything, places) else []


def _candidates(slices: Sequence[Slice]) -> dict[str, NDArray[np.intp]]:
    """The attributes by which slices may be told apart, each with a code of its value for every slice.

    Of attributes that divide the slices alike, it is the first that all slices have, or else the first.
    """
    frames = [dict(slice_.frame.attributes) for slice_ in slices]
    found: dict[bytes, tuple[str, NDArray[np.intp]]] = {}
    columns = {keyword: [frame.get(keyword) for frame in frames] for keyword in SELECTABLE}
    for keyword, values in sorted(columns.items(), key=lambda column: None in column[1]):
        code_of = {value: code for code, value in enumerate(dict.fromkeys(values))}
        if len(code_of) == 1 or any(isinstance(value, HashedText) for value in code_of):
            continue
        codes = np.array([code_of[value] for value in values], dtype=np.intp)
        found.setdefault(codes.tobytes(), (keyword, codes))
    return dict(list(found.values())[:_MAX_CANDIDATES])


def _splits(codes: Mapping[str, NDArray[np.intp]]) -> Iterator[tuple[tuple[str, ...], NDArray[np.intp]]]:
    """Yields combinations of attributes with the number of each slice's group: few attributes and groups first."""
    for count in range(1, min(_MAX_COMBINED, len(codes)) + 1):
        splits = []
        for keywords in combinations(codes, count):
            columns = np.stack([codes[keyword] for keyword in keywords], axis=1)
            labels = np.unique(columns, axis=0, return_inverse=True)[1].reshape(-1)
            splits.append((keywords, labels))
        yield from sorted(splits, key=lambda split: int(split[1].max()))


def _members(slices: Sequence[Slice], labels: NDArray[np.intp]) -> list[list[Slice]]:
    members: list[list[Slice]] = [[] for _ in range(labels.max() + 1)]
    for slice_, label in zip(slices, labels, strict=True):
        members[label].append(slice_)
    return members


def _places(slices: Sequence[Slice]) -> NDArray[np.intp]:
    """A number for each slice: the same for slices at one position."""
    positions = np.round(np.array([slice_.frame.position_mm for slice_ in slices]) / MIN_SPACING_MM)
    return np.unique(positions, axis=0, return_inverse=True)[1].reshape(-1)


def _are_distinct(labels: NDArray[np.intp], places: NDArray[np.intp]) -> bool:
    """Returns True if no group has two slices at one position."""
    return len(np.unique(labels * (places.max() + 1) + places)) == len(labels)


def _is_one_volume(slices: Sequence[Slice]) -> bool:
    """Returns True for slices that are one acquisition, even if some are missing or the stack is tilted."""
    if len(slices) == 1:
        return True
    try:
        check_not_interleaved(find_geometry(slices, get_args(Tolerance)))
    except (MissingSlices, GantryTilt):
        return True
    except InputError:
        return False
    return True


def group_by(slices: Sequence[Slice], keywords: Sequence[str]) -> list[SliceGroup]:
    """The slices by their values of some attributes; none where a value is unknown."""
    members: dict[tuple[AttributeValue | None, ...], list[dict[str, AttributeValue]]] = {}
    for slice_ in slices:
        attributes = dict(slice_.frame.attributes)
        members.setdefault(tuple(attributes.get(keyword) for keyword in keywords), []).append(attributes)
    if any(isinstance(value, HashedText) for values in members for value in values):
        return []
    others = [keyword for keyword in SELECTABLE if keyword not in keywords]
    telling = {keyword: values for keyword in others if (values := _values_of_groups(keyword, members.values()))}
    groups = [
        SliceGroup(
            {keyword: shown_value(keyword, value) for keyword, value in zip(keywords, values, strict=True)},
            len(frames),
            {keyword: shown_value(keyword, found[number]) for keyword, found in telling.items()},
        )
        for number, (values, frames) in enumerate(members.items())
    ]
    return sorted(groups, key=lambda group: [sort_key(value) for value in group.select.values()])


def _values_of_groups(
    keyword: str, groups: Iterable[Sequence[Mapping[str, AttributeValue]]]
) -> list[AttributeValue | None] | None:
    """The value of an attribute in each group; None unless each has one, and not all the same."""
    values = [{frame.get(keyword) for frame in frames} for frames in groups]
    if any(len(each) != 1 or isinstance(next(iter(each)), HashedText) for each in values):
        return None
    found = [next(iter(each)) for each in values]
    return found if len(set(found)) > 1 else None
