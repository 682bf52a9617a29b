"""A thread pool for numerics that release the GIL: numpy, SciPy and BLAS on slices of one array."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from types import TracebackType
from typing import Self


class ThreadPool:
    """The threads of one job's numerics; as a context manager, it ends them with its block.

    Args:
        count: Number of threads, the calling one included.

    >>> seen = [0] * 5
    >>> with ThreadPool(2) as threads:
    ...     threads.for_each_slice(5, lambda part: seen.__setitem__(part, range(5)[part]))
    >>> seen
    [0, 1, 2, 3, 4]
    """

    def __init__(self, count: int) -> None:
        self.count = max(1, count)
        self._pool = ThreadPoolExecutor(self.count - 1, "numerics") if self.count > 1 else None

    def for_each_slice(self, size: int, work: Callable[[slice], None], *, min_size: int = 1) -> None:
        """Splits range(size) into adjoining slices, one a thread, and calls `work` with each; returns when all end.

        Args:
            size: Length of the range.
            work: Must release the GIL to gain anything. If it raises, the first slice's error is raised here.
            min_size: Least length of a slice; fewer threads are used for a short range.
        """
        count = max(1, min(self.count, size // min_size))
        slices = [slice(size * index // count, size * (index + 1) // count) for index in range(count)]
        if self._pool is None or count == 1:
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


SINGLE_THREAD = ThreadPool(1)
"""Runs everything in the calling thread."""
