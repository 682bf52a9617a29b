"""Whether a job fits into memory: asked before it takes it, as nobody is asked by the kernel that kills for it."""

import logging
import os
from collections.abc import Callable
from math import prod
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
from numpy.typing import NDArray

from inference_service.core.errors import OutOfMemory
from inference_service.core.host import spare_memory_bytes

logger = logging.getLogger(__name__)

# What a job takes for a while beside its large arrays: planes, tables of the mapping, statistics.
_BESIDES_BYTES = 128 * 2**20
_GIB, _MIB = 2**30, 2**20


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
        """Makes sure that so many bytes more fit.

        Raises:
            OutOfMemory: They do not.
        """
        wanted, spare = size_bytes + _BESIDES_BYTES, self._spare(self._jobs)
        if wanted > spare:
            raise OutOfMemory(
                f"the scan and its image on the model's grid need {_size(wanted)} of memory more, and this worker has "
                f"{_size(spare)}"
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
        text = f"the logits of one window's depth need {_size(size_bytes)}, and this worker has "
        text += f"{_size(max(0, spare))} of memory for them"
        if self._folder is None:
            raise OutOfMemory(text)
        try:
            with TemporaryFile(dir=self._folder) as file:
                # Now, as a disk that is full when the pages are written ends the process.
                os.posix_fallocate(file.fileno(), 0, size_bytes)
                held = np.memmap(file, dtype=np.float32, mode="r+", shape=shape)
        except OSError as error:
            raise OutOfMemory(f"{text}, nor is there room on the disk") from error
        logger.warning("%s: they are held on disk", text)
        self.notes.append(f"{text}: they were held on disk")
        return held


def _size(size_bytes: int) -> str:
    return f"{size_bytes / _GIB:.1f} GiB" if size_bytes >= _GIB else f"{size_bytes / _MIB:.0f} MiB"
