"""The limits of the card, measured by PyTorch: its rates of matrix products and copies, and a window's operations."""

import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measurement import Run, Task
from benchmarks.networks import NETWORKS, build

_EDGE = 8192
_COPIED_BYTES = 2**30
_REPEATS = 20


def run(task: Task) -> Run:
    """Measures the side."""
    device = torch.device(task.side.device)
    torch.backends.cuda.matmul.allow_tf32 = True
    kind = torch.float16 if task.side.precision == "fp16" else torch.float32
    matrix = torch.ones(_EDGE, _EDGE, device=device, dtype=kind)
    product_s = _seconds(lambda: matrix @ matrix)
    copied = torch.ones(_COPIED_BYTES, device=device, dtype=torch.uint8)
    copy_s = _seconds(copied.clone)
    window = torch.zeros(1, 1, *(NETWORKS[task.network].window,) * 3, device=device)
    network = build(NETWORKS[task.network]).to(device)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network(window)
    flops = counter.get_total_flops()
    rate = 2 * _EDGE**3 / product_s
    figures = {"flops_per_s": rate, "bytes_per_s": 2 * _COPIED_BYTES / copy_s, "window_flops": float(flops)}
    return Run(flops / rate, flops / rate, 1, 0.0, 0.0, {}, figures=figures)


def _seconds(work: Callable[[], object]) -> float:
    work()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(_REPEATS):
        work()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / _REPEATS
