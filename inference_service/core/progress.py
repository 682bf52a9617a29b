"""The stages of a job: their share of the progress bar, and the time they took."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Literal, TypeVar, get_args

Stage = Literal[
    "fetch", "read", "model_load", "preprocess", "network", "windows", "map", "postprocess", "report", "preview",
    "write", "store",
]  # fmt: skip
STAGES: tuple[Stage, ...] = get_args(Stage)
Item = TypeVar("Item")
Progress = Callable[[Stage, float], None]
"""Called with a stage and the share of it that is done, 0…1. It may raise an error to end the job."""

# Overall progress at the start of each stage: rough shares of a job's time, so that a progress bar moves evenly.
_STARTS: dict[Stage, float] = {
    "fetch": 0.0, "read": 0.02, "model_load": 0.05, "preprocess": 0.06, "network": 0.1, "windows": 0.1, "map": 0.1,
    "postprocess": 0.92, "report": 0.94, "preview": 0.955, "write": 0.965, "store": 0.98,
}  # fmt: skip


def overall_progress(stage: Stage, share: float) -> float:
    """Returns the progress of the whole job, 0…1, from the progress of one stage.

    >>> overall_progress("windows", 0.5), overall_progress("store", 1.0)
    (0.51, 1.0)
    """
    start = _STARTS[stage]
    end = min((other for other in _STARTS.values() if other > start), default=1.0)
    return start + share * (end - start)


class StageClock:
    """Measures the time of each stage. A nested stage does not count for the outer one, so that the times add up."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.periods: dict[str, tuple[int, int | None]] = {}
        """When each stage first began and last ended, in nanoseconds since the epoch; None while it runs."""
        self._running: list[Stage] = []
        self._since = 0.0

    @contextmanager
    def stage(self, name: Stage) -> Iterator[None]:
        """Adds the time of the block to a stage."""
        self._charge()
        self._running.append(name)
        began_ns = self.periods[name][0] if name in self.periods else time.time_ns()
        self.periods[name] = (began_ns, None)
        try:
            yield
        finally:
            self._charge()
            self._running.pop()
            self.periods[name] = (began_ns, time.time_ns())

    def timed(self, name: Stage, items: Iterable[Item]) -> Iterator[Item]:
        """Yields the items of an iterator and adds the time that it takes to produce them to a stage."""
        iterator = iter(items)
        while True:
            with self.stage(name):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def _charge(self) -> None:
        now = time.perf_counter()
        if self._running:
            current = self._running[-1]
            self.seconds[current] = self.seconds.get(current, 0.0) + now - self._since
        self._since = now
