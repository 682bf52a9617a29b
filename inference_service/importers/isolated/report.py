"""The messages of the process to its parent: one object of JSON a line."""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Self, TextIO

# Share of the windows after which the next message is worth it.
_STEP = 0.005


class _Parent:
    """The parent, if there is one: without, nothing is told."""

    lines: TextIO | None = None


def keep_output() -> None:
    """Keeps the standard output for the parent. Libraries print there as they like: their lines go to the errors."""
    _Parent.lines = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.stdout = sys.stderr


def tell(**message: object) -> None:
    """Tells the parent something at once."""
    if _Parent.lines is not None:
        _Parent.lines.write(json.dumps(message) + "\n")
        _Parent.lines.flush()


def tell_progress(activity: str, share: float) -> None:
    """Tells the parent what is being done, and the share of the task that is done, 0…1."""
    tell(activity=activity, share=share)


class WindowProgress:
    """Tells the parent how many windows of a predictor are done, in place of `tqdm` in the predictor's module.

    Args:
        activity: What is being done.
        start: The share of the task that is done before.
        stop: The share of the task that is done after.
        passes: How often the predictor runs all windows of a scan, such as once for each fold.
    """

    def __init__(self, activity: str, start: float, stop: float, passes: int = 1) -> None:
        self._activity = activity
        self._start = start
        self._stop = stop
        self._passes = passes
        self._begun = 0
        self._told = -1.0
        tell_progress(activity, start)

    def __call__(self, windows: Sequence[int] = (), *, total: int = 0, **_: object) -> "_Pass":
        """Begins a pass, as `tqdm(windows)` or `tqdm(total=number)` does."""
        self._begun = min(self._begun + 1, self._passes)
        return _Pass(self, windows, total or len(windows))

    def done(self, share: float) -> None:
        """Takes the share of the windows of this pass that are done."""
        whole = (self._begun - 1 + share) / self._passes
        if whole >= self._told + _STEP:
            self._told = whole
            tell_progress(self._activity, self._start + whole * (self._stop - self._start))


class _Pass:
    """The part of tqdm's interface that predictors use."""

    def __init__(self, progress: WindowProgress, windows: Sequence[int], total: int) -> None:
        self._progress = progress
        self._windows = windows
        self._total = max(total, 1)
        self._done = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Does nothing."""

    def __iter__(self) -> Iterator[int]:
        for window in self._windows:
            yield window
            self.update()

    def update(self, count: int = 1) -> None:
        """Counts windows that are done."""
        self._done += count
        self._progress.done(min(self._done / self._total, 1.0))
