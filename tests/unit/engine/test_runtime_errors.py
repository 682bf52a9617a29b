import pytest

from inference_service.core.errors import GpuFailed, GpuOutOfMemory, OutOfMemory
from inference_service.engine.runtime_errors import memory_or_gpu_error, short_message

FAILED_ALLOCATIONS = [
    "Exception during initialization: std::bad_alloc",
    "CUDA failure 2: out of memory",
    "Failed to allocate memory for requested buffer of size 8",
    "Available memory of 19968 is smaller than requested bytes of 20000",
    "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0",
    "CUDNN failure 4: CUDNN_STATUS_ALLOC_FAILED ; GPU=0",
]
GPU_FAILURES = [
    "CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; hostname=h ; file=f.cc ; line=1",
    "CUDA failure 719: unspecified launch failure ; GPU=0",
    "CUDNN failure 5003: CUDNN_STATUS_EXECUTION_FAILED ; GPU=0",
    "CUDNN_FE failure 8: GRAPH_EXECUTION_FAILED ; GPU=0",
    "CUBLAS failure 13: CUBLAS_STATUS_EXECUTION_FAILED ; GPU=0",
    "CUDA error executing cudaMemcpy(dst_data, src_data, bytes, cudaMemcpyHostToDevice)",
    "cudaErrorIllegalAddress: an illegal memory access was encountered",
    "CUDA_ERROR_ILLEGAL_ADDRESS",
    "TensorRT EP execution context enqueue failed.",
]
PREFIX = "Non-zero status code returned: "


@pytest.mark.parametrize("message", FAILED_ALLOCATIONS)
def test_a_failed_allocation_is_out_of_memory_of_the_gpu_or_the_worker(message: str) -> None:
    on_gpu = memory_or_gpu_error(PREFIX + message, subject="the model", on_gpu=True)
    assert isinstance(on_gpu, GpuOutOfMemory)
    assert on_gpu.message == "the model does not fit into the GPU's memory"
    on_cpu = memory_or_gpu_error(PREFIX + message, subject="the model", on_gpu=False)
    assert type(on_cpu) is OutOfMemory
    assert on_cpu.message == "the model does not fit into this worker's memory"


@pytest.mark.parametrize("message", GPU_FAILURES)
def test_a_gpu_failure_is_recognised_on_a_gpu_only(message: str) -> None:
    on_gpu = memory_or_gpu_error(PREFIX + message, subject="the model", on_gpu=True)
    assert isinstance(on_gpu, GpuFailed)
    assert on_gpu.message == "the GPU failed on the model"
    assert memory_or_gpu_error(PREFIX + message, subject="the model", on_gpu=False) is None


@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize("message", ["Got invalid dimensions for input: x", "Foo is not a registered function/op", ""])
def test_other_messages_are_not_classified(message: str, on_gpu: bool) -> None:
    assert memory_or_gpu_error(message, subject="the model", on_gpu=on_gpu) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "/o/cuda_call.cc:129 std::conditional_t<THRW, void, Status> onnxruntime::CudaCall(ERR, const char*) "
            "[with ERR = cudaError; THRW = true] CUDA failure 100: no CUDA-capable device ; GPU=-1 ; hostname=x",
            "CUDA failure 100: no CUDA-capable device",
        ),
        ("/o/state.cc:534 void f(PySessionOptions&, const Options&) Please install it.\n", "Please install it."),
        ("nothing of that kind", "nothing of that kind"),
    ],
    ids=["cuda", "tensorrt", "plain"],
)
def test_a_short_message_has_no_source_location(text: str, expected: str) -> None:
    assert short_message(text) == expected
