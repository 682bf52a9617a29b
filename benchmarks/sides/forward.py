"""Times one window, in the same way for all sides."""

import statistics
import time

import numpy as np

from benchmarks.measurement import Run, Task
from benchmarks.onnx import Forward
from benchmarks.watch import MemoryWatch

_REPEATS = 3


def measure(task: Task, forward: Forward, memory: MemoryWatch) -> Run:
    """Runs the task's window once without measuring, and then several times."""
    window = np.load(task.source)[np.newaxis, np.newaxis]
    forward(window)
    repeats = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        forward(window)
        repeats.append(time.perf_counter() - start)
    memory.finish()
    seconds = statistics.median(repeats)
    return Run(seconds, seconds, _REPEATS, memory.peak_mb, memory.above_model_mb, {}, tuple(repeats))
