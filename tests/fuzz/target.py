"""A target of fuzzing: a function of bytes, which may raise the service's own errors alone."""

import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from inference_service.core.errors import ServiceError

MAX_CPU_S = 5.0
"""CPU time that one input may take; the seeds take milliseconds."""
MAX_MEMORY_BYTES = 192 * 2**20
"""Memory that one input may take, beyond what the process had before it. Threads reserve 8 MiB each."""
MAX_SCAN_VOXELS = 20_000
MAX_SCAN_BYTES = 10**6
"""The limits under which scans are read. An input within them takes little of the memory above."""

_PAGE_BYTES = resource.getpagesize()


@dataclass(frozen=True)
class Target:
    """One kind of input.

    Attributes:
        name: The name.
        run: Reads one input. It raises the refusals alone, and AssertionError if an outcome is wrong.
        seeds: Makes valid inputs, from which the fuzzer starts.
        prepare: Called once before the first input: starts a server, for example.
        refusals: The errors with which an input may be refused.
        max_input_bytes: The longest input.
    """

    name: str
    run: Callable[[bytes], None]
    seeds: Callable[[], Sequence[bytes]]
    prepare: Callable[[], object] = lambda: None
    refusals: tuple[type[Exception], ...] = (ServiceError,)
    max_input_bytes: int = 4096


class TooSlow(AssertionError):
    """An input took too much CPU time."""


def check(target: Target, data: bytes) -> bool:
    """Runs a target with one input, within the bounds of time and memory.

    Returns:
        True if the input was accepted, False if it was refused.

    Raises:
        Exception: The finding: any error that is no refusal, MemoryError and TooSlow among them.
    """
    start_s = time.process_time()
    with _bounded_memory():
        try:
            target.run(data)
            accepted = True
        except target.refusals:
            accepted = False
    seconds = time.process_time() - start_s
    if seconds > MAX_CPU_S:
        raise TooSlow(f"{target.name}: {seconds:.1f} s for {len(data)} bytes")
    return accepted


@contextmanager
def _bounded_memory() -> Iterator[None]:
    """Bounds the private memory that the block may allocate."""
    limits = resource.getrlimit(resource.RLIMIT_DATA)
    data_pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[5])
    resource.setrlimit(resource.RLIMIT_DATA, (data_pages * _PAGE_BYTES + MAX_MEMORY_BYTES, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, limits)


@cache
def scratch_folder() -> Path:
    """A folder for the files of this process, in memory where the machine has such a file system."""
    memory = Path("/dev/shm")
    folder = tempfile.TemporaryDirectory(prefix="fuzz-", dir=memory if memory.is_dir() else None)
    _kept.append(folder)
    return Path(folder.name)


_kept: list["tempfile.TemporaryDirectory[str]"] = []


class Pieces:
    """Cuts an input into numbers and pieces of bytes. An exhausted input gives zeros and empty pieces."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def byte(self) -> int:
        """The next byte."""
        return int.from_bytes(self.take(1))

    def take(self, count: int) -> bytes:
        """The next bytes, as many as there are."""
        piece = self._data[self._at : self._at + count]
        self._at += len(piece)
        return piece

    def piece(self) -> bytes:
        """The next piece, whose length is in the byte before it."""
        return self.take(self.byte())

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(len(self._data))
