"""MONAI's sliding window over a volume in memory, the network in PyTorch or ONNX Runtime.

On a GPU, all data stay there from the copy of the volume to the labels, which is MONAI's fastest way.
"""

import time
from collections.abc import Callable

import numpy as np
import torch
from monai.inferers import sliding_window_inference

from benchmarks.measurement import Run, Task
from benchmarks.networks import NETWORKS, load
from benchmarks.onnx import load_forward
from benchmarks.watch import MemoryWatch, NetworkClock
from benchmarks.workspace import Workspace

_Predictor = Callable[["torch.Tensor"], "torch.Tensor"]


def run(task: Task) -> Run:
    """Measures the side."""
    torch.set_num_threads(task.threads)
    if task.side.provider is not None:
        import onnxruntime  # noqa: F401 - before memory is watched
    edge = NETWORKS[task.network].window
    network = NetworkClock()
    memory = MemoryWatch()
    with memory.loading():
        predictor = _load(task)
    volume = torch.from_numpy(np.load(task.source))[None, None]
    device = torch.device(task.side.device)
    amp = torch.autocast(task.side.device, torch.float16, enabled=task.side.precision == "fp16")
    with torch.inference_mode(), amp:
        predictor(torch.zeros(1, 1, edge, edge, edge, device=device)).cpu()
        start = time.perf_counter()
        logits = sliding_window_inference(
            volume.to(device), (edge,) * 3, 1, network.timed(predictor), overlap=0.5, mode="gaussian"
        )
        labels = logits.argmax(1)[0].to(torch.uint8).cpu().numpy()
        seconds = time.perf_counter() - start
    memory.finish()
    if task.labels:
        np.save(task.labels, labels)
    return Run(seconds, network.seconds, network.runs, memory.peak_mb, memory.above_model_mb, {})


def _load(task: Task) -> _Predictor:
    workspace = Workspace(task.workspace)
    if task.side.provider is None:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = task.side.precision != "fp32"
        torch.backends.cudnn.benchmark = True
        network: _Predictor = load(NETWORKS[task.network], workspace.weights(task.network)).to(task.side.device)
        return network
    onnx = workspace.onnx(task.network)
    forward = load_forward(onnx, task.side.provider, task.side.precision, task.threads)
    return lambda windows: torch.from_numpy(forward(windows.numpy()))
