import json
from pathlib import Path

import pytest

from inference_service.core.execution import CPU, CUDA, OPENVINO, TENSORRT, GpuOptions, Precision
from inference_service.engine.provider_options import provider_options

CUDA_ALWAYS = {
    "arena_extend_strategy": "kSameAsRequested",
    "cudnn_conv_algo_search": "EXHAUSTIVE",
    "cudnn_conv_use_max_workspace": "1",
}
TENSORRT_CACHE = {
    "trt_engine_cache_enable": "1",
    "trt_engine_cache_path": "kept",
    "trt_timing_cache_enable": "1",
    "trt_timing_cache_path": "kept",
}


@pytest.mark.parametrize(
    ("provider", "gpu", "expected"),
    [
        (CUDA, GpuOptions(), {**CUDA_ALWAYS, "use_tf32": "1"}),
        (
            CUDA,
            GpuOptions(tf32=False, memory_limit_bytes=2**33),
            {**CUDA_ALWAYS, "use_tf32": "0", "gpu_mem_limit": "8589934592"},
        ),
        (TENSORRT, GpuOptions(), {}),
        (TENSORRT, GpuOptions(tensorrt_cache=Path("kept")), TENSORRT_CACHE),
        (CPU, GpuOptions(tf32=False, memory_limit_bytes=1), {}),
    ],
)
def test_each_provider_gets_only_its_own_options(provider: str, gpu: GpuOptions, expected: dict[str, str]) -> None:
    assert provider_options(provider, 3, "fp32", gpu) == expected


@pytest.mark.parametrize(("precision", "hint"), [("fp32", "f32"), ("bf16", "bf16")])
@pytest.mark.parametrize(("threads", "number"), [(3, {"INFERENCE_NUM_THREADS": 3}), (None, {})])
def test_openvino_gets_precision_and_threads_in_its_configuration(
    precision: Precision, hint: str, threads: int | None, number: dict[str, int]
) -> None:
    options = provider_options(OPENVINO, threads, precision, GpuOptions())
    assert options.keys() == {"device_type", "load_config"}
    assert options["device_type"] == "CPU"
    expected = {"INFERENCE_PRECISION_HINT": hint, "ENABLE_CPU_PINNING": False, **number}
    assert json.loads(options["load_config"]) == {"CPU": expected}
