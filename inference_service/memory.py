"""Whether a job fits into memory: asked before it takes it, as nobody is asked by the kernel that kills for it."""

import logging
import shutil
from collections.abc import Callable
from math import prod
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
from numpy.typing import NDArray

from inference_service.errors import OutOfMemory
from inference_service.machine import spare_memory_bytes

logger = logging.getLogger(__name__)

# What a job takes for a while beside its large arrays: planes, tables of the mapping, statistics.
_BESIDES_BYTES = 128 * 2**20
_GIB = 2**30


class Memory:
    """The memory of one job.

    Args:
        folder: Where arrays go that do not fit; None: nowhere.
        jobs: How many jobs share this machine's or container's memory equally.
        spare: Says how many bytes this process may still take.

    Attributes:
        notes: What had to be done differently for want of memory, in words.
    """

    def __init__(
        self, folder: Path | None = None, jobs: int = 1, spare: Callable[[int], int] = spare_memory_bytes
    ) -> None:
        self._folder, self._jobs, self._spare = folder, jobs, spare
        self.notes: list[str] = []

    def require(self, size_bytes: int) -> None:
        """Makes sure that arrays of some size fit.

        Raises:
            OutOfMemory: They do not.
        """
        wanted, spare = size_bytes + _BESIDES_BYTES, self._spare(self._jobs)
        if wanted > spare:
            raise OutOfMemory(
                f"the scan on the model's grid needs {wanted / _GIB:.1f} GiB of memory, and this worker has "
                f"{spare / _GIB:.1f} GiB for it"
            )

    def hold(self, shape: tuple[int, ...], *, besides: int = 0) -> NDArray[np.float32]:
        """Gives zeros: in memory where they fit, otherwise in an unnamed file, which is slower and exact.

        Args:
            shape: Of the array.
            besides: Bytes that the job has yet to take for other arrays.

        Raises:
            OutOfMemory: They fit neither into memory nor on the disk.
        """
        size_bytes = 4 * prod(shape)
        spare = self._spare(self._jobs) - besides - _BESIDES_BYTES
        if size_bytes <= spare:
            return np.zeros(shape, dtype=np.float32)
        text = f"the logits of one window's depth need {size_bytes / _GIB:.1f} GiB, and this worker has "
        text += f"{max(0, spare) / _GIB:.1f} GiB of memory for them"
        if self._folder is None or size_bytes > shutil.disk_usage(self._folder).free:
            raise OutOfMemory(text)
        logger.warning("%s: they are held on disk", text)
        self.notes.append(f"{text}: they were held on disk")
        with TemporaryFile(dir=self._folder) as file:
            return np.memmap(file, dtype=np.float32, mode="w+", shape=shape)
