"""A whole job in the predictor of an imported model's source, in one process."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import numpy as np
import torch

from benchmarks.measurement import Run, Task
from benchmarks.watch import MemoryWatch, NetworkClock
from benchmarks.workspace import Workspace
from inference_service.importers.isolated.prediction import predict


@contextmanager
def _watched(clock: NetworkClock) -> Iterator[None]:
    """Counts and times the runs of PyTorch's outermost modules, which are the networks."""
    call = torch.nn.Module.__call__
    depth = 0

    def calling(module: torch.nn.Module, *args: object, **kwargs: object) -> object:
        nonlocal depth
        depth += 1
        try:
            return (timed if depth == 1 else call)(module, *args, **kwargs)
        finally:
            depth -= 1

    timed = clock.timed(call)
    with patch.object(torch.nn.Module, "__call__", calling):
        yield


def run(task: Task) -> Run:
    """Measures the side.

    Raises:
        RuntimeError: The predictor does not run its network as it is watched here.
    """
    torch.set_num_threads(task.threads)
    reference = json.loads(Workspace(task.workspace).reference(task.model).read_text(encoding="utf-8"))
    network = NetworkClock()
    memory = MemoryWatch()
    with TemporaryDirectory(dir=task.workspace) as folder, _watched(network):
        mask = Path(folder) / "mask.npy"
        start = time.perf_counter()
        predict(
            {
                **reference["arguments"],
                "predictor": reference["predictor"],
                "scans": [str(task.source)],
                "target": str(mask),
            }
        )
        seconds = time.perf_counter() - start
        memory.finish()
        if task.labels:
            np.save(task.labels, np.load(mask))
    if not network.runs:
        raise RuntimeError("expected runs of the network, watched none")
    return Run(seconds, network.seconds, network.runs, memory.peak_mb, memory.above_model_mb, {})
