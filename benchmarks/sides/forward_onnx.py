"""One window in ONNX Runtime."""

import onnxruntime  # noqa: F401 - before memory is watched, so that it is no part of the model

from benchmarks.measurement import Run, Task
from benchmarks.onnx import load_forward
from benchmarks.sides.forward import measure
from benchmarks.watch import MemoryWatch
from benchmarks.workspace import Workspace


def run(task: Task) -> Run:
    """Measures the side."""
    if task.side.provider is None:
        raise ValueError(f"side {task.side.name} names no provider")
    memory = MemoryWatch()
    with memory.loading():
        onnx = Workspace(task.workspace).onnx(task.network)
        forward = load_forward(onnx, task.side.provider, task.side.precision, task.threads)
    return measure(task, forward, memory)
