"""One window in PyTorch."""

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.measurement import Run, Task
from benchmarks.networks import NETWORKS, load
from benchmarks.sides.forward import measure
from benchmarks.watch import MemoryWatch
from benchmarks.workspace import Workspace


def run(task: Task) -> Run:
    """Measures the side."""
    torch.set_num_threads(task.threads)
    memory = MemoryWatch()
    with memory.loading():
        network = load(NETWORKS[task.network], Workspace(task.workspace).weights(task.network))

    def forward(window: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            logits: NDArray[np.float32] = network(torch.from_numpy(window)).numpy()
        return logits

    return measure(task, forward, memory)
