"""Finds instances that are copies of others: of one SOPInstanceUID, and with the same header and pixels.

Their file meta information and transfer syntax may differ, as an archive may convert one of them.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from inference_service.core.memory_budget import RequireMemory
from inference_service.formats.dicom.instance import Instance
from inference_service.formats.dicom.pixels.decoder import check_decodable, read_frames


def without_duplicates(instances: Sequence[Instance], require_memory: RequireMemory) -> list[Instance]:
    """The instances of a series without copies: the first of each is kept.

    Instances of one SOPInstanceUID that differ are all kept.

    Args:
        instances: The instances of one series.
        require_memory: Called before each large allocation.

    Raises:
        InputError: The pixels of instances with equal headers cannot be compared; the subclass says why.
    """
    kept: dict[Instance, list[Instance]] = {}
    for instance in instances:
        alike = kept.setdefault(_without_encoding(instance), [])
        if not any(_has_same_pixels(instance, other, require_memory) for other in alike):
            alike.append(instance)
    return [instance for alike in kept.values() for instance in alike]


def _without_encoding(instance: Instance) -> Instance:
    """The header without the fields that may differ between copies: equal for instances that may be copies."""
    return replace(instance, path=Path(), transfer_syntax_uid="", inflated_bytes=0)


def _has_same_pixels(one: Instance, other: Instance, require_memory: RequireMemory) -> bool:
    for instance in (one, other):
        check_decodable(instance)
    pairs = zip(
        read_frames(one, require_memory=require_memory), read_frames(other, require_memory=require_memory), strict=True
    )
    return all(np.array_equal(decode_one(), decode_other()) for decode_one, decode_other in pairs)
