"""Names of ONNX Runtime execution providers and the options that choose how a network is computed."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Precision = Literal["fp32", "bf16"]
CPU = "CPUExecutionProvider"
OPENVINO = "OpenVINOExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
GPUS = (CUDA, TENSORRT, "ROCMExecutionProvider", "MIGraphXExecutionProvider")


@dataclass(frozen=True)
class GpuOptions:
    """What NVIDIA's GPUs are told.

    Attributes:
        tf32: Whether fp32 networks may multiply with 10 bits of mantissa, as PyTorch's convolutions do.
        memory_limit_bytes: The most that a session's arena takes; None: what there is.
        sums_on_device: Whether logits are added up in the GPU's memory, which takes three times what is held there.
        tensorrt_cache: Folder of the engines that TensorRT builds, which takes minutes; None: it builds them anew.
    """

    tf32: bool = True
    memory_limit_bytes: int | None = None
    sums_on_device: bool = False
    tensorrt_cache: Path | None = None
