"""The memory that one job may use.

It is checked before each large allocation, because the kernel kills a process that uses too much without an error.
"""

import logging
import os
from collections.abc import Callable
from math import prod
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
from numpy.typing import NDArray

from inference_service.core.errors import OutOfMemory
from inference_service.core.host import available_memory_bytes
from inference_service.core.report_warnings import ReportWarning, WarningCode

logger = logging.getLogger(__name__)

# Short-lived arrays of a job beside its large ones: planes, interpolation tables, statistics.
_OVERHEAD_BYTES = 128 * 2**20
_GIB = 2**30
_MIB = 2**20

RequireMemory = Callable[[int], None]
"""Called with the number of bytes that are about to be allocated; the error it raises ends the reading or writing."""


def no_memory_limit(size_bytes: int) -> None:
    """A `RequireMemory` that allows everything."""


class MemoryBudget:
    """The memory of one job.

    Args:
        folder: Folder for arrays that do not fit into memory; None: they are refused.
        concurrency: Number of jobs that share the machine's or container's memory equally.
        available: Returns the bytes that this process may still take, for a concurrency.

    Attributes:
        warnings: Warnings about arrays that did not fit into memory.
    """

    def __init__(
        self, folder: Path | None = None, concurrency: int = 1, available: Callable[[int], int] = available_memory_bytes
    ) -> None:
        self._folder = folder
        self._concurrency = concurrency
        self._available = available
        self.warnings: list[ReportWarning] = []

    def require(self, size_bytes: int) -> None:
        """Checks that a number of further bytes fits into memory.

        Raises:
            OutOfMemory: They do not fit.
        """
        needed = size_bytes + _OVERHEAD_BYTES
        available = self._available(self._concurrency)
        if needed > available:
            raise OutOfMemory(
                f"this step of the job needs {_size(needed)} more memory, and this worker has {_size(available)} "
                "available"
            )

    def allocate(self, shape: tuple[int, ...], *, reserved_bytes: int = 0) -> NDArray[np.float32]:
        """Allocates zeros: in memory where they fit, otherwise in an unnamed file, with equal results but slower.

        Args:
            shape: Shape of the array.
            reserved_bytes: Memory that the job will need for other arrays.

        Raises:
            OutOfMemory: The array fits neither into memory nor on the disk.
        """
        size_bytes = 4 * prod(shape)
        available = self._available(self._concurrency) - reserved_bytes - _OVERHEAD_BYTES
        if size_bytes <= available:
            return np.zeros(shape, dtype=np.float32)
        text = f"the logits of one window's depth need {_size(size_bytes)}, and this worker has "
        text += f"{_size(max(0, available))} of memory for them"
        if self._folder is None:
            raise OutOfMemory(text)
        try:
            with TemporaryFile(dir=self._folder) as file:
                # Reserves the blocks: if the disk filled up later, SIGBUS would end the process.
                os.posix_fallocate(file.fileno(), 0, size_bytes)
                array = np.memmap(file, dtype=np.float32, mode="r+", shape=shape)
        except OSError as error:
            raise OutOfMemory(f"{text}; they do not fit on the disk either") from error
        logger.warning("%s: they are kept on disk", text)
        self.warnings.append(ReportWarning(WarningCode.LOGITS_ON_DISK, f"{text}: they were kept on disk"))
        return array


def _size(size_bytes: int) -> str:
    return f"{size_bytes / _GIB:.1f} GiB" if size_bytes >= _GIB else f"{size_bytes / _MIB:.0f} MiB"
