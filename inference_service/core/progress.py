"""How far a job is and how long its stages took."""

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
"""Called with the stage and the share of it that is done, 0…1. What it raises ends the job."""

# Where each stage begins on the way from 0 to 1: rough shares of a job's time, so that a progress bar moves evenly.
_BEGINS: dict[Stage, float] = {
    "fetch": 0.0, "read": 0.02, "model_load": 0.05, "preprocess": 0.06, "network": 0.1, "windows": 0.1, "map": 0.1,
    "postprocess": 0.92, "report": 0.94, "preview": 0.955, "write": 0.965, "store": 0.98,
}  # fmt: skip


def overall_progress(stage: Stage, share: float) -> float:
    """Progress of the whole job from the progress of a stage.

    >>> overall_progress("windows", 0.5), overall_progress("store", 1.0)
    (0.51, 1.0)
    """
    begin = _BEGINS[stage]
    end = min((other for other in _BEGINS.values() if other > begin), default=1.0)
    return begin + share * (end - begin)


class StageClock:
    """Measures stages; one inside another is not counted in the outer one, so that they add up to the whole."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._running: list[Stage] = []
        self._since = 0.0

    @contextmanager
    def stage(self, name: Stage) -> Iterator[None]:
        """Counts the time until the end of the block as this stage's."""
        self._charge()
        self._running.append(name)
        try:
            yield
        finally:
            self._charge()
            self._running.pop()

    def timed(self, name: Stage, items: Iterable[Item]) -> Iterator[Item]:
        """Passes items on, and counts the time that each one took to come as this stage's."""
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
