"""Names of ONNX Runtime execution providers, and the options that decide how a network runs."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

Precision = Literal["fp32", "bf16"]
CPU = "CPUExecutionProvider"
OPENVINO = "OpenVINOExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
GPU_PROVIDERS = (CUDA, TENSORRT, "ROCMExecutionProvider", "MIGraphXExecutionProvider")


@dataclass(frozen=True)
class GpuOptions:
    """Options for NVIDIA GPUs.

    Attributes:
        tf32: Whether fp32 networks may compute in TF32, with 10 bits of mantissa, as PyTorch's convolutions do.
        memory_limit_bytes: Upper limit of one session's memory arena; None: no limit.
        aggregate_on_device: Whether the logits of overlapping windows are added up in GPU memory. This takes three
            times the memory of the accumulated logits.
        tensorrt_cache: Folder for the engines that TensorRT builds, each in minutes; None: they are not saved.
    """

    tf32: bool = True
    memory_limit_bytes: int | None = None
    aggregate_on_device: bool = False
    tensorrt_cache: Path | None = None


DEFAULT_GPU_OPTIONS = GpuOptions()


@dataclass(frozen=True)
class ExecutionOptions:
    """How networks run in this process.

    Attributes:
        providers: Execution providers, best first, as `settings.effective_onnx_providers` lists them.
        threads: Threads of one job: of its session and of everything else.
        strict: Whether a model that does not run on all of the providers is refused; otherwise a warning is logged.
        precision: Precision of networks where the manifest, the provider and the CPU allow it; fp32 elsewhere.
        batch_size: Windows in one run of the network, where the network has a free batch dimension.
        concurrency: Number of jobs that share this machine.
        gpu: Options for NVIDIA GPUs.
    """

    providers: tuple[str, ...]
    threads: int = 1
    strict: bool = False
    precision: Precision = "fp32"
    batch_size: int = 1
    concurrency: int = 1
    gpu: GpuOptions = DEFAULT_GPU_OPTIONS

    def on_cpu(self) -> "ExecutionOptions":
        """Returns the same options for the CPU alone."""
        return replace(self, providers=(CPU,), strict=False)
