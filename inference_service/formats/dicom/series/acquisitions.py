"""Tells the acquisitions of a series apart by attributes of its slices."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from inference_service.contract.slice_selection import SELECTABLE
from inference_service.contract.task_message import Tolerance
from inference_service.core.errors import GantryTilt, InputError, MissingSlices, SliceGroup
from inference_service.formats.dicom.frame_attributes import CLOCK_TIMES, AttributeValue, HashedText, TimeRange
from inference_service.formats.dicom.instance import Slice
from inference_service.formats.dicom.series.consistency import MIN_SPACING_MM
from inference_service.formats.dicom.series.geometry import find_geometry
from inference_service.formats.dicom.series.group_description import shown_value, sort_key
from inference_service.formats.dicom.series.interleaving import split_by_pauses

# Attributes that are combined to tell groups apart.
_MAX_COMBINED = 3
_MAX_CANDIDATES = 12
# Slices that the search examines in all, each as often as it is part of a group.
_MAX_EXAMINED_SLICES = 200_000
# A pause between the times of two acquisitions: longer than this, and than this many times the usual step.
_MIN_PAUSE_S = 1.0
_MIN_PAUSE_STEPS = 4

ColumnValue = AttributeValue | TimeRange | None


@dataclass(frozen=True)
class Column:
    """An attribute and its value in each slice."""

    keyword: str
    values: tuple[ColumnValue, ...]


def find_groups(slices: Sequence[Slice]) -> list[SliceGroup]:
    """Finds the attribute, or the fewest attributes, by which a series falls into groups that are each one volume.

    Returns:
        The groups, in the order of their values; none where no attributes tell groups apart.
    """
    places = _places(slices)
    # A value for each slice tells no groups apart, unless all are at one position.
    max_groups = max(len(slices) // 2, int(np.bincount(places).max()))
    examined = 0
    distinct: list[tuple[Column, ...]] = []
    for columns, labels in _splits(_candidates(slices)):
        if labels.max() >= max_groups or not _are_distinct(labels, places):
            continue
        distinct.append(columns)
        examined += len(slices)
        if examined > _MAX_EXAMINED_SLICES:
            break
        if all(map(_is_one_volume, _members(slices, labels))):
            return group_by(slices, columns)
    # Groups with a defect of their own, if the series has several slices at a position.
    everything = np.zeros(len(slices), dtype=np.intp)
    return group_by(slices, distinct[0]) if distinct and not _are_distinct(everything, places) else []


def attribute_columns(slices: Sequence[Slice], keywords: Iterable[str] = SELECTABLE) -> list[Column]:
    """The values of attributes; times of day that differ from slice to slice become ranges, in a second column."""
    frames = [dict(slice_.frame.attributes) for slice_ in slices]
    columns = [Column(keyword, tuple(frame.get(keyword) for frame in frames)) for keyword in keywords]
    ranges = [
        Column(column.keyword, _time_ranges(column.values)) for column in columns if column.keyword in CLOCK_TIMES
    ]
    return [*columns, *(column for column in ranges if column not in columns)]


def _time_ranges(values: Sequence[ColumnValue]) -> tuple[ColumnValue, ...]:
    """The times of slices as the range of all times that belong together, if all slices have one."""
    acquisitions = split_by_pauses(values, min_pause_s=_MIN_PAUSE_S, min_steps=_MIN_PAUSE_STEPS)
    times: dict[int | None, list[float]] = {}
    for acquisition, value in zip(acquisitions, values, strict=True):
        if isinstance(value, float):
            times.setdefault(acquisition, []).append(value)
    if None in acquisitions:
        return tuple(values)
    ranges = {number: TimeRange(min(each), max(each)) for number, each in times.items()}
    return tuple(
        ranges[number] if ranges[number].first < ranges[number].last else ranges[number].first
        for number in acquisitions
    )


def _candidates(slices: Sequence[Slice]) -> list[tuple[Column, NDArray[np.intp]]]:
    """The attributes by which slices may be told apart, each with a code of its value for every slice.

    Of attributes that divide the slices alike, it is the first that all slices have, or else the first.
    """
    found: dict[bytes, tuple[Column, NDArray[np.intp]]] = {}
    for column in sorted(attribute_columns(slices), key=lambda column: None in column.values):
        code_of = {value: code for code, value in enumerate(dict.fromkeys(column.values))}
        if len(code_of) == 1 or any(isinstance(value, HashedText) for value in code_of):
            continue
        codes = np.array([code_of[value] for value in column.values], dtype=np.intp)
        found.setdefault(codes.tobytes(), (column, codes))
    return list(found.values())[:_MAX_CANDIDATES]


def _splits(
    candidates: Sequence[tuple[Column, NDArray[np.intp]]],
) -> Iterator[tuple[tuple[Column, ...], NDArray[np.intp]]]:
    """Yields combinations of attributes with the number of each slice's group: few attributes and groups first."""
    for count in range(1, min(_MAX_COMBINED, len(candidates)) + 1):
        splits = []
        for chosen in combinations(candidates, count):
            codes = np.stack([each for _, each in chosen], axis=1)
            labels = np.unique(codes, axis=0, return_inverse=True)[1].reshape(-1)
            splits.append((tuple(column for column, _ in chosen), labels))
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
        find_geometry(slices, get_args(Tolerance))
    except (MissingSlices, GantryTilt):
        return True
    except InputError:
        return False
    return True


def group_by(slices: Sequence[Slice], columns: Sequence[Column]) -> list[SliceGroup]:
    """The slices by their values of some attributes; none where a value is unknown."""
    members: dict[tuple[ColumnValue, ...], list[int]] = {}
    for number, values in enumerate(zip(*(column.values for column in columns), strict=True)):
        members.setdefault(values, []).append(number)
    if any(isinstance(value, HashedText) for values in members for value in values):
        return []
    chosen = {column.keyword for column in columns}
    telling: dict[str, list[ColumnValue]] = {}
    for column in attribute_columns(slices):
        found = _values_of_groups(column, members.values())
        if found and column.keyword not in chosen:
            telling.setdefault(column.keyword, found)
    groups = [
        SliceGroup(
            {column.keyword: shown_value(column.keyword, value) for column, value in zip(columns, values, strict=True)},
            len(numbers),
            {keyword: shown_value(keyword, found[group]) for keyword, found in telling.items()},
        )
        for group, (values, numbers) in enumerate(members.items())
    ]
    return sorted(groups, key=lambda group: [sort_key(value) for value in group.select.values()])


def _values_of_groups(column: Column, groups: Iterable[Sequence[int]]) -> list[ColumnValue] | None:
    """The value of an attribute in each group; None unless each has one, and not all the same."""
    values = [{column.values[number] for number in numbers} for numbers in groups]
    if any(len(each) != 1 or isinstance(next(iter(each)), HashedText) for each in values):
        return None
    found = [next(iter(each)) for each in values]
    return found if len(set(found)) > 1 else None
