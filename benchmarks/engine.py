"""Our engine as our sides use it."""

from benchmarks.measurement import Task
from benchmarks.onnx import PROVIDERS
from benchmarks.watch import MemoryWatch, NetworkClock
from benchmarks.workspace import Workspace
from inference_service.core.execution import ExecutionOptions, GpuOptions
from inference_service.core.execution import Precision as EnginePrecision
from inference_service.engine.model_registry import Model, read_model


def task_execution(task: Task) -> ExecutionOptions:
    """The options that a side runs with; strict, so that no other provider replaces the one that is measured."""
    if task.side.provider is None:
        raise ValueError(f"side {task.side.name} names no provider")
    precision: EnginePrecision = "bf16" if task.side.precision == "bf16" else "fp32"
    return ExecutionOptions(
        (PROVIDERS[task.side.provider],), task.threads, strict=True, precision=precision,
        gpu=GpuOptions(tf32=task.side.precision == "tf32", aggregate_on_device=task.side.sums_on_device),
    )  # fmt: skip


def task_model(task: Task) -> Model:
    """The model of a side's case."""
    return read_model(Workspace(task.workspace).model(task.case, task.side.precision))


def check_precision(task: Task, used: EnginePrecision) -> None:
    """Makes sure that the engine has not taken fp32 where a side is about bf16.

    Raises:
        RuntimeError: It has, as it does on a CPU that does not compute in it.
    """
    if (used == "bf16") != (task.side.precision == "bf16"):
        raise RuntimeError(f"expected the network in {task.side.precision}, got {used}")


def check_watched(memory: MemoryWatch, network: NetworkClock) -> None:
    """Makes sure that what a side measures is what the engine did.

    Raises:
        RuntimeError: The engine loads or runs its network by another way than the side watches.
    """
    if not (memory.loads and network.runs):
        raise RuntimeError(f"expected the network loaded and run, watched {memory.loads} loads and {network.runs} runs")
