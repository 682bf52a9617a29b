"""Measures the memory of a process and of a GPU, and the time of a network."""

import ctypes
import gc
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from types import TracebackType
from typing import ParamSpec, Self, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
# Resets the peak of resident memory (proc_pid_clear_refs(5)).
_FORGET_PEAK = "5"
_BYTES_PER_KIB = 1024
_BYTES_PER_MB = 1_000_000


class MemoryWatch:
    """Measures the resident memory of this process, and that of the loaded model apart from it."""

    def __init__(self) -> None:
        self.peak_mb = _status_mb("VmHWM")
        self.above_model_mb = 0.0
        self.loads = 0
        self._base_mb = self._forget()

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Measures the loading of the model: the memory that stays taken counts as the model's."""
        self.finish()
        before = self._forget()
        yield
        self.peak_mb = max(self.peak_mb, _status_mb("VmHWM"))
        self._base_mb += self._forget() - before
        self.loads += 1

    def finish(self) -> None:
        """Adds the peak since the last measurement."""
        peak = _status_mb("VmHWM")
        self.peak_mb = max(self.peak_mb, peak)
        self.above_model_mb = max(self.above_model_mb, peak - self._base_mb)

    def _forget(self) -> float:
        """Releases free memory, resets the peak, and returns the resident memory."""
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        _CLEAR_REFS.write_text(_FORGET_PEAK)
        return _status_mb("VmRSS")


class DeviceWatch:
    """Measures the memory of the first NVIDIA GPU by nvidia-smi while its block runs.

    Attributes:
        peak_mb: Peak above the first measurement, in 10⁶ bytes; 0 where there is no such GPU.
    """

    _COMMAND = ("nvidia-smi", "--id=0", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--loop-ms=100")

    def __init__(self) -> None:
        self.peak_mb = 0.0
        self._process: subprocess.Popen[str] | None = None
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._first = threading.Event()

    def __enter__(self) -> Self:
        if shutil.which(self._COMMAND[0]):
            self._process = subprocess.Popen(self._COMMAND, stdout=subprocess.PIPE, text=True)
            self._thread.start()
            self._first.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._thread.join()

    def _follow(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        first: float | None = None
        with self._process.stdout as lines:
            for line in lines:
                if line.strip().isdigit():
                    used = int(line) * _BYTES_PER_KIB**2 / _BYTES_PER_MB
                    first = used if first is None else first
                    self.peak_mb = max(self.peak_mb, used - first)
                    self._first.set()
        self._first.set()


class NetworkClock:
    """Counts and times the runs of a network."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.runs = 0

    def timed(self, run: Callable[P, R]) -> Callable[P, R]:
        """Wraps a function whose calls count as runs of the network."""

        @wraps(run)
        def timing(*args: P.args, **kwargs: P.kwargs) -> R:
            start = time.perf_counter()
            try:
                return run(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - start
                self.runs += 1

        return timing


def _status_mb(field: str) -> float:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * _BYTES_PER_KIB / _BYTES_PER_MB
    raise LookupError(f"expected {field} in {_STATUS}, found none")
