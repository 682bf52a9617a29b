"""The limits that every reader of inputs keeps to."""

from dataclasses import dataclass

from inference_service.core.memory_budget import RequireMemory, no_memory_limit

DEFAULT_MAX_BYTES = 4 * 2**30
"""Limit on the size of an input where no setting gives one."""


@dataclass(frozen=True)
class ReadLimits:
    """The largest input that is read.

    Attributes:
        max_voxels: Larger volumes are refused before anything is allocated for their voxels.
        max_bytes: Limit on the input's files together, and on the size that archives, compressed files or deflated
            DICOM expand to.
        require_memory: Called before each large allocation.
    """

    max_voxels: int
    max_bytes: int = DEFAULT_MAX_BYTES
    require_memory: RequireMemory = no_memory_limit
