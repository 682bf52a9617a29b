"""The service's engine, set up for the sides that measure it."""

from benchmarks.measurement import Task
from benchmarks.onnx import PROVIDERS
from benchmarks.watch import MemoryWatch, NetworkClock
from benchmarks.workspace import Workspace
from inference_service.core.execution import ExecutionOptions, GpuOptions
from inference_service.core.execution import Precision as EnginePrecision
from inference_service.engine.model_registry import Model, read_model


def task_execution(task: Task) -> ExecutionOptions:
    """Returns the options that a side runs with; strict, so that no other provider replaces the one that is measured.

    Raises:
        ValueError: The side names no provider.
    """
    if task.side.provider is None:
        raise ValueError(f"side {task.side.name} names no provider")
    precision: EnginePrecision = "bf16" if task.side.precision == "bf16" else "fp32"
    return ExecutionOptions(
        (PROVIDERS[task.side.provider],),
        task.threads,
        strict=True,
        precision=precision,
        gpu=GpuOptions(tf32=task.side.precision == "tf32", aggregate_on_device=task.side.aggregate_on_device),
    )


def task_model(task: Task) -> Model:
    """Reads the model of a side's case."""
    return read_model(Workspace(task.workspace).model(task.model, task.side.precision))


def check_precision(task: Task, used: EnginePrecision) -> None:
    """Checks that the network ran in the precision of the side.

    Raises:
        RuntimeError: It ran in fp32 instead of bf16, as the engine does on a CPU that does not support bf16.
    """
    if (used == "bf16") != (task.side.precision == "bf16"):
        raise RuntimeError(f"expected the network in {task.side.precision}, got {used}")


def check_watched(memory: MemoryWatch, network: NetworkClock) -> None:
    """Checks that the loading and the runs of the network were measured.

    Raises:
        RuntimeError: The engine loads or runs the network through other functions than the side measures.
    """
    if not (memory.loads and network.runs):
        raise RuntimeError(f"expected the network loaded and run, watched {memory.loads} loads and {network.runs} runs")
