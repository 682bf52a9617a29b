"""Threads for numerics that release the GIL: numpy, SciPy and BLAS on pieces of one array."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from types import TracebackType
from typing import Self


class Threads:
    """A few threads that one job's numerics share; as a context manager, they end with its block.

    Args:
        count: How many pieces are worked on at a time, the calling thread's included.

    >>> seen = [0] * 5
    >>> with Threads(2) as threads:
    ...     threads.each_slice(5, lambda part: seen.__setitem__(part, range(5)[part]))
    >>> seen
    [0, 1, 2, 3, 4]
    """

    def __init__(self, count: int) -> None:
        self.count = max(1, count)
        self._pool = ThreadPoolExecutor(self.count - 1, "numerics") if self.count > 1 else None

    def each_slice(self, size: int, work: Callable[[slice], None], *, least: int = 1) -> None:
        """Calls `work` on adjoining slices of range(size), one a thread, and returns when all are done.

        Args:
            size: What the slices cover.
            work: Must release the GIL to gain anything. If it raises, the error of the first slice is raised here.
            least: Size below which another slice is not worth a thread.
        """
        pieces = max(1, min(self.count, size // least))
        slices = [slice(size * piece // pieces, size * (piece + 1) // pieces) for piece in range(pieces)]
        if self._pool is None or pieces == 1:
            for part in slices:
                work(part)
            return
        others = [self._pool.submit(work, part) for part in slices[1:]]
        try:
            work(slices[0])
        finally:
            wait(others)
        for other in others:
            other.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown()


ALONE = Threads(1)
"""Everything in the calling thread."""
