"""Finds slices that are copies of others, with the same header and pixels, and damaged copies of files.

File meta information, transfer syntax, SOPInstanceUID and InstanceNumber of a copy may differ, and the last digits of
its position: archives convert, round and renumber.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from functools import cache
from hashlib import blake2b
from itertools import product
from math import floor
from pathlib import Path

import numpy as np

from inference_service.core.errors import InputCorrupt
from inference_service.core.memory_budget import RequireMemory
from inference_service.formats.dicom.instance import Frame, Instance, Slice
from inference_service.formats.dicom.pixels.decoder import check_decodable, read_frames
from inference_service.formats.dicom.series.consistency import direction_cosines
from inference_service.formats.dicom.series.geometry import instances_of

# Distance of copies with rounded positions, in mm and in pixels, at most.
_MAX_DISTANCE_MM = 0.01
_MAX_DISTANCE_PX = 0.1
# Side of the cells by which near positions are found.
_CELL_MM = 2 * _MAX_DISTANCE_MM
# Difference of direction cosines, and of pixel spacings as a share, that is rounding.
_MAX_DIFFERENCE = 1e-3

Cell = tuple[int, ...]
Digests = Callable[[Instance], Sequence[bytes] | None]
"""Returns a hash of each frame's pixels; None if they are damaged."""


class CopyFinder:
    """Leaves out copies in one series; the pixels of each file are decoded at most once.

    Args:
        require_memory: Called before each large allocation.
    """

    def __init__(self, require_memory: RequireMemory) -> None:
        self._require_memory = require_memory
        self._digests = cache(self._hash_frames)

    def without_damaged_copies(self, instances: Sequence[Instance]) -> list[Instance]:
        """Leaves out instances with damaged pixels if an intact one has the same SOPInstanceUID and positions.

        Raises:
            UnsupportedTransferSyntax: There is no decoder for instances of one SOPInstanceUID.
        """
        members: dict[Hashable, list[Instance]] = {}
        for instance in instances:
            members.setdefault(instance.sop_instance_uid or instance.path, []).append(instance)
        return [instance for alike in members.values() for instance in self._without_damaged(alike)]

    def _without_damaged(self, alike: Sequence[Instance]) -> list[Instance]:
        """Leaves out damaged instances of one SOPInstanceUID, unless all are or they lie elsewhere."""
        if len(alike) == 1:
            return list(alike)
        intact = {instance.path: instance for instance in alike if self._digests(instance)}
        places: dict[Cell, list[Sequence[Frame]]] = {}
        for instance in intact.values():
            places.setdefault(_cell(instance.frames[0]), []).append(instance.frames)

        def is_copy(damaged: Instance) -> bool:
            if not intact or not damaged.frames:
                # A header that is cut off may state no frames.
                return bool(intact)
            near = (frames for cell in _cells_around(damaged.frames[0]) for frames in places.get(cell, ()))
            return any(_are_near(damaged.frames, frames) for frames in near)

        return [instance for instance in alike if instance.path in intact or not is_copy(instance)]

    def without_equal_copies(self, slices: Sequence[Slice]) -> list[Slice]:
        """Leaves out slices that are copies of others.

        Slices that differ are all kept, also with one SOPInstanceUID. Attributes that tell acquisitions apart may
        differ between files of one SOPInstanceUID, but not between others.

        Raises:
            UnsupportedTransferSyntax: There is no decoder for instances that may be copies.
        """
        header_of = {instance.path: _comparable(instance) for instance in instances_of(slices)}
        identities = [_identities(header_of[slice_.instance.path], slice_) for slice_ in slices]
        occupied = Counter(
            (identity, _cell(slice_.frame))
            for slice_, each in zip(slices, identities, strict=True)
            for identity in each
        )
        kept: dict[Hashable, list[Frame]] = {}
        distinct = []
        for slice_, each in zip(slices, identities, strict=True):
            places = [(identity, cell) for identity in each for cell in _cells_around(slice_.frame)]
            # Only pixels of slices that may have a copy are decoded here.
            digest = self._digest(slice_) if sum(occupied[place] for place in places) > len(each) else None
            alike = (frame for place in places for frame in kept.get((place, digest), ()))
            if digest is None or not any(_are_near([slice_.frame], [frame]) for frame in alike):
                for identity in each:
                    kept.setdefault(((identity, _cell(slice_.frame)), digest), []).append(slice_.frame)
                distinct.append(slice_)
        return distinct

    def _digest(self, slice_: Slice) -> bytes | None:
        digests = self._digests(slice_.instance)
        return digests[slice_.frame.index] if digests else None

    def _hash_frames(self, instance: Instance) -> Sequence[bytes] | None:
        check_decodable(instance)
        found = []
        try:
            for decode in read_frames(instance, require_memory=self._require_memory):
                digest = blake2b()
                for row in decode():
                    # Equal values have equal bytes whatever the transfer syntax.
                    digest.update(row.astype(np.int64).tobytes())
                found.append(digest.digest())
        except InputCorrupt:
            return None
        return found


def _comparable(instance: Instance) -> Instance:
    """The header without its frames and the fields that may differ between copies."""
    return replace(
        instance,
        path=Path(),
        sop_instance_uid="",
        transfer_syntax_uid="",
        inflated_bytes=0,
        number=None,
        frames=(),
    )


def _identities(header: Instance, slice_: Slice) -> list[Hashable]:
    """Values of which copies have one in common: the header with the attributes, or with the frame's UID and index."""
    frame = _without_place(slice_.frame)
    uid = slice_.instance.sop_instance_uid
    by_uid = [(header, frame, uid, slice_.frame.index)] if uid else []
    return [(header, frame, slice_.frame.attributes), *by_uid]


def _without_place(frame: Frame) -> Frame:
    return replace(
        frame,
        attributes=(),
        index=0,
        position_mm=(0, 0, 0),
        row_direction=(0, 0, 0),
        column_direction=(0, 0, 0),
        pixel_spacing_mm=(0, 0),
    )


def _cell(frame: Frame) -> Cell:
    return tuple(floor(side / _CELL_MM) for side in frame.position_mm)


def _cells_around(frame: Frame) -> list[Cell]:
    """The cells of all positions that may be the same as the frame's."""
    shifts = (-_MAX_DISTANCE_MM, _MAX_DISTANCE_MM)
    return list(product(*({floor((side + shift) / _CELL_MM) for shift in shifts} for side in frame.position_mm)))


def _are_near(one: Sequence[Frame], other: Sequence[Frame]) -> bool:
    """Returns True for frames that lie at the same places, but for rounding."""
    return len(one) == len(other) and all(map(_is_near, one, other))


def _is_near(one: Frame, other: Frame) -> bool:
    tolerance_mm = min(_MAX_DISTANCE_MM, _MAX_DISTANCE_PX * min(one.pixel_spacing_mm))
    return (
        np.allclose(one.position_mm, other.position_mm, rtol=0, atol=tolerance_mm)
        and np.allclose(direction_cosines(one), direction_cosines(other), rtol=0, atol=_MAX_DIFFERENCE)
        and np.allclose(one.pixel_spacing_mm, other.pixel_spacing_mm, rtol=_MAX_DIFFERENCE, atol=0)
    )
