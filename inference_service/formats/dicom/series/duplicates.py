"""Finds instances that are copies of others: with the same header and pixels, or damaged.

File meta information, transfer syntax, SOPInstanceUID and InstanceNumber of a copy may differ, and the last digits of
its position: archives convert, round and renumber.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from hashlib import blake2b
from itertools import product
from math import floor
from pathlib import Path

import numpy as np

from inference_service.core.errors import InputCorrupt
from inference_service.core.memory_budget import RequireMemory
from inference_service.formats.dicom.instance import ExclusionReason, Instance
from inference_service.formats.dicom.pixels.decoder import check_decodable, read_frames
from inference_service.formats.dicom.series.consistency import direction_cosines

# Distance of copies with rounded positions, in mm and in pixels, at most.
_MAX_DISTANCE_MM = 0.01
_MAX_DISTANCE_PX = 0.1
# Side of the cells by which near positions are found.
_CELL_MM = 2 * _MAX_DISTANCE_MM
# Difference of direction cosines, and of pixel spacings as a share, that is rounding.
_MAX_DIFFERENCE = 1e-3

Cell = tuple[int, ...]
# Hash of an instance's pixels; None if they are damaged.
Digest = Callable[[Instance], bytes | None]


@dataclass(frozen=True)
class DistinctInstances:
    """The instances of a series without copies.

    Attributes:
        instances: The first of each.
        copies: Number of the others by reason: DUPLICATE or DAMAGED_COPY.
    """

    instances: list[Instance]
    copies: Counter[ExclusionReason]


def without_copies(instances: Sequence[Instance], require_memory: RequireMemory) -> DistinctInstances:
    """Leaves out copies of instances.

    Instances of one SOPInstanceUID that differ are all kept, and so are damaged ones without an intact copy.

    Args:
        instances: The instances of one series.
        require_memory: Called before each large allocation.

    Raises:
        UnsupportedTransferSyntax: There is no decoder for instances that may be copies.
    """

    @cache
    def digest(instance: Instance) -> bytes | None:
        return _digest(instance, require_memory)

    intact = _without_damaged_copies(instances, digest)
    distinct = _without_equal_copies(intact, digest)
    copies = {
        ExclusionReason.DAMAGED_COPY: len(instances) - len(intact),
        ExclusionReason.DUPLICATE: len(intact) - len(distinct),
    }
    return DistinctInstances(distinct, Counter(copies))


def _without_damaged_copies(instances: Sequence[Instance], digest: Digest) -> list[Instance]:
    """Leaves out instances with damaged pixels if an intact one has the same SOPInstanceUID and position."""
    members: dict[Hashable, list[Instance]] = {}
    for instance in instances:
        members.setdefault(instance.sop_instance_uid or instance.path, []).append(instance)
    kept = []
    for alike in members.values():
        intact = [each for each in alike if len(alike) == 1 or digest(each) is not None]
        damaged = [each for each in alike if each not in intact and not any(_are_near(each, other) for other in intact)]
        kept += [*intact, *damaged]
    return kept


def _without_equal_copies(instances: Sequence[Instance], digest: Digest) -> list[Instance]:
    headers = [_comparable(instance) for instance in instances]
    occupied = Counter((header, _cell(instance)) for header, instance in zip(headers, instances, strict=True))
    kept: dict[Hashable, list[Instance]] = {}
    distinct = []
    for header, instance in zip(headers, instances, strict=True):
        cells = _neighbours(instance)
        # Only pixels of instances that may have a copy are decoded here.
        pixels = digest(instance) if sum(occupied[header, cell] for cell in cells) > 1 else None
        alike = (other for cell in cells for other in kept.get((header, cell, pixels), ()))
        if pixels is None or not any(_are_near(instance, other) for other in alike):
            kept.setdefault((header, _cell(instance), pixels), []).append(instance)
            distinct.append(instance)
    return distinct


def _comparable(instance: Instance) -> Instance:
    """The header without the fields that may differ between copies."""
    frames = tuple(
        replace(
            frame, position_mm=(0, 0, 0), row_direction=(0, 0, 0), column_direction=(0, 0, 0), pixel_spacing_mm=(0, 0)
        )
        for frame in instance.frames
    )
    return replace(
        instance,
        path=Path(),
        sop_instance_uid="",
        transfer_syntax_uid="",
        inflated_bytes=0,
        number=None,
        frames=frames,
    )


def _cell(instance: Instance) -> Cell:
    """The cell of the first frame's position; empty for an instance without a position."""
    return tuple(floor(side / _CELL_MM) for frame in instance.frames[:1] for side in frame.position_mm)


def _neighbours(instance: Instance) -> Iterable[Cell]:
    """The cells of all positions near that of the first frame."""
    sides = [side for frame in instance.frames[:1] for side in frame.position_mm]
    ranges = [{floor((side + shift) / _CELL_MM) for shift in (-_MAX_DISTANCE_MM, _MAX_DISTANCE_MM)} for side in sides]
    return list(product(*ranges))


def _are_near(one: Instance, other: Instance) -> bool:
    """Returns True for instances whose frames lie at the same places, but for rounding."""
    if len(one.frames) != len(other.frames):
        return False
    for frame, other_frame in zip(one.frames, other.frames, strict=True):
        tolerance_mm = min(_MAX_DISTANCE_MM, _MAX_DISTANCE_PX * min(frame.pixel_spacing_mm))
        if not (
            np.allclose(frame.position_mm, other_frame.position_mm, rtol=0, atol=tolerance_mm)
            and np.allclose(direction_cosines(frame), direction_cosines(other_frame), rtol=0, atol=_MAX_DIFFERENCE)
            and np.allclose(frame.pixel_spacing_mm, other_frame.pixel_spacing_mm, rtol=_MAX_DIFFERENCE, atol=0)
        ):
            return False
    return True


def _digest(instance: Instance, require_memory: RequireMemory) -> bytes | None:
    check_decodable(instance)
    found = blake2b()
    try:
        for decode in read_frames(instance, require_memory=require_memory):
            for row in decode():
                # Equal values have equal bytes whatever the transfer syntax.
                found.update(row.astype(np.int64).tobytes())
    except InputCorrupt:
        return None
    return found.digest()
