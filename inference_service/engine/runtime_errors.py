"""What ONNX Runtime says is wrong, judged by its words: it has no errors of a kind for most of it."""

import re

from inference_service.core.errors import GpuFailed, GpuOutOfMemory, OutOfMemory

# What ONNX Runtime's arenas, C++, CUDA, cuBLAS and cuDNN say. An arena that has a limit words it in a way of its own.
_ALLOCATION_FAILURES = (
    "allocate memory", "smaller than requested bytes", "bad_alloc", "bad allocation", "out of memory", "alloc_failed",
)  # fmt: skip
# "CUDA failure 700: an illegal memory access was encountered", "CUDNN_FE failure 8: …", "HIP error: …".
_GPU_FAILURE = re.compile(
    r"\b(?:cuda|cudnn|cudnn_fe|cublas|hip|miopen|rocblas) (?:failure|error)\b|\bcuda_?error|execution context enqueue",
    re.IGNORECASE,
)
_MOST_CHARACTERS = 300
# "…/some.cc:12 a function's signature(…) [with …] What is wrong"
_PLACE = re.compile(r"^.*\.(?:cc|h):\d+ .*?[)\]] (?=[A-Z])")


def shortage_or_failure(text: str, *, what: str, on_gpu: bool) -> OutOfMemory | GpuOutOfMemory | GpuFailed | None:
    """What ONNX Runtime's words tell of: too little memory for `what`, a GPU that fails on it, or something else."""
    if any(failure in text.lower() for failure in _ALLOCATION_FAILURES):
        if on_gpu:
            return GpuOutOfMemory(f"{what} does not fit into the GPU's memory")
        return OutOfMemory(f"{what} does not fit into this worker's memory")
    # Some of these are the network's fault, such as a convolution that the card cannot do. A CPU can do that one too.
    return GpuFailed(f"the GPU failed on {what}") if on_gpu and _GPU_FAILURE.search(text) else None


def gist(text: str) -> str:
    """What ONNX Runtime says, on one line, without the places in its source before it and the list of values behind.

    >>> gist("a.cc:7 T f(int) [with T = void] CUDA failure 35: the driver is too old ; GPU=-1 ; hostname=x")
    'CUDA failure 35: the driver is too old'
    """
    said = _PLACE.sub("", " ".join(text.split()))
    return said.partition(" ; GPU=")[0][-_MOST_CHARACTERS:]
