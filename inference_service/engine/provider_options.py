"""The options that are passed to each ONNX Runtime execution provider."""

import json

from inference_service.core.execution import CUDA, OPENVINO, TENSORRT, GpuOptions, Precision

_OPENVINO_PRECISIONS: dict[Precision, str] = {"fp32": "f32", "bf16": "bf16"}


def provider_options(provider: str, threads: int | None, precision: Precision, gpu: GpuOptions) -> dict[str, str]:
    """Returns the options of one provider; empty for providers that need none.

    Args:
        provider: The execution provider.
        threads: Threads of one run; None: the provider's own choice.
        precision: Precision that the network computes in.
        gpu: Options for NVIDIA GPUs.
    """
    if provider == CUDA:
        return _cuda_options(gpu)
    if provider == TENSORRT:
        return _tensorrt_options(gpu)
    if provider != OPENVINO:
        return {}
    # OpenVINO ignores the session's options. Its default pins threads, and those of two workers to the same cores.
    options: dict[str, str | int] = {
        "INFERENCE_PRECISION_HINT": _OPENVINO_PRECISIONS[precision],
        "ENABLE_CPU_PINNING": False,
    }
    if threads:
        options["INFERENCE_NUM_THREADS"] = threads
    return {"device_type": "CPU", "load_config": json.dumps({"CPU": options})}


def _cuda_options(gpu: GpuOptions) -> dict[str, str]:
    options = {
        # Other sessions and processes share the card; the default strategy doubles the arena.
        "arena_extend_strategy": "kSameAsRequested",
        # Algorithms are measured on the first window of a shape, with their workspace, and kept with the session.
        "cudnn_conv_algo_search": "EXHAUSTIVE",
        "cudnn_conv_use_max_workspace": "1",
        "use_tf32": str(int(gpu.tf32)),
    }
    if gpu.memory_limit_bytes is not None:
        options["gpu_mem_limit"] = str(gpu.memory_limit_bytes)
    return options


def _tensorrt_options(gpu: GpuOptions) -> dict[str, str]:
    if gpu.tensorrt_cache is None:
        return {}
    folder = str(gpu.tensorrt_cache)
    return {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": folder,
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": folder,
    }
