"""Classifies ONNX Runtime's errors by message; it has no exception types for out of memory or a failed GPU."""

import re

from inference_service.core.errors import GpuFailed, GpuOutOfMemory, OutOfMemory

# Messages of ONNX Runtime's arenas, C++, CUDA, cuBLAS and cuDNN. An arena with a limit has a message of its own.
_ALLOCATION_FAILURES = (
    "allocate memory", "smaller than requested bytes", "bad_alloc", "bad allocation", "out of memory", "alloc_failed",
)  # fmt: skip
# "CUDA failure 700: an illegal memory access was encountered", "CUDNN_FE failure 8: …", "HIP error: …".
_GPU_FAILURE = re.compile(
    r"\b(?:cuda|cudnn|cudnn_fe|cublas|hip|miopen|rocblas) (?:failure|error)\b|\bcuda_?error|execution context enqueue",
    re.IGNORECASE,
)
_MAX_CHARACTERS = 300
# "…/some.cc:12 a function's signature(…) [with …] The message"
_SOURCE_LOCATION = re.compile(r"^.*\.(?:cc|h):\d+ .*?[)\]] (?=[A-Z])")


def memory_or_gpu_error(text: str, *, subject: str, on_gpu: bool) -> OutOfMemory | GpuOutOfMemory | GpuFailed | None:
    """Maps a message of ONNX Runtime to an error of ours.

    Args:
        text: The message.
        subject: The subject of the error's sentence, such as "the model".
        on_gpu: Whether the network ran on a GPU.

    Returns:
        The error; None where the message is about neither memory nor a GPU failure.
    """
    if any(failure in text.lower() for failure in _ALLOCATION_FAILURES):
        if on_gpu:
            return GpuOutOfMemory(f"{subject} does not fit into the GPU's memory")
        return OutOfMemory(f"{subject} does not fit into this worker's memory")
    # The network may be the cause, for example a convolution that the card does not support; a CPU supports it.
    return GpuFailed(f"the GPU failed on {subject}") if on_gpu and _GPU_FAILURE.search(text) else None


def short_message(text: str) -> str:
    """Puts a message of ONNX Runtime on one line, without its source location and the values appended to it.

    >>> short_message("a.cc:7 T f(int) [with T = void] CUDA failure 35: the driver is too old ; GPU=-1 ; hostname=x")
    'CUDA failure 35: the driver is too old'
    """
    message = _SOURCE_LOCATION.sub("", " ".join(text.split()))
    return message.partition(" ; GPU=")[0][-_MAX_CHARACTERS:]
