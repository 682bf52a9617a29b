import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from inference_service.core.errors import GpuFailed, GpuOutOfMemory, ModelInvalid, OutOfMemory, ServiceError
from inference_service.core.execution import CPU, CUDA, OPENVINO, TENSORRT, GpuOptions, Precision
from inference_service.engine import provider_probe
from inference_service.engine import session as session_module
from inference_service.engine.onnx_file import NetworkContent
from inference_service.engine.provider_options import provider_options
from inference_service.engine.session import Session

WINDOW: NDArray[np.float32] = np.arange(24, dtype=np.float32).reshape(1, 1, 2, 3, 4)
# Larger than any address space, so that the allocation fails at once.
ENORMOUS = [1 << 20, 1 << 20, 1 << 4, 2, 2]


def network(
    nodes: Sequence[onnx.NodeProto],
    *,
    inputs: Sequence[str] = ("x",),
    outputs: Sequence[str] = ("y",),
    constants: Sequence[onnx.TensorProto] = (),
    batch: int | str = 1,
    kind: int = TensorProto.FLOAT,
) -> bytes:
    """An ONNX file with inputs and outputs of free size."""
    free: list[str | int | None] = [batch, 1, "i", "j", "k"]
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info(name, kind, free) for name in inputs],
        [helper.make_tensor_value_info(name, kind, [None] * 5) for name in outputs],
        list(constants),
    )
    opsets = [helper.make_opsetid("", 13)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())


def shape_constant(values: Sequence[int]) -> onnx.TensorProto:
    return helper.make_tensor("s", TensorProto.INT64, [len(values)], values)


DOUBLE = network([helper.make_node("Add", ["x", "x"], ["y"])])


def test_a_session_runs_its_network() -> None:
    session = Session(NetworkContent(DOUBLE), providers=[CPU], threads=1)
    logits = session.run(WINDOW)
    np.testing.assert_array_equal(logits, 2 * WINDOW)
    assert logits.dtype == np.float32
    assert session.providers == [CPU]


def test_a_float16_network_takes_and_returns_float32() -> None:
    session = Session(
        NetworkContent(network([helper.make_node("Add", ["x", "x"], ["y"])], kind=TensorProto.FLOAT16)), providers=[CPU]
    )
    given = WINDOW + np.float32(1 / 3)
    logits = session.run(given)
    assert logits.dtype == given.dtype == np.float32
    np.testing.assert_array_equal(logits, 2 * given.astype(np.float16).astype(np.float32))
    logits += 1


@pytest.mark.parametrize(
    "network",
    [
        DOUBLE[:-10],
        DOUBLE.replace(b"Add", b"Odd"),
        DOUBLE.replace(b"Add", b"\xff\xff\xff"),
        DOUBLE.replace(b"\x01x", b"\x01\xff"),
        DOUBLE.replace(b"\x01y", b"\x01x"),
    ],
    ids=["truncated", "unknown operator", "operator not Unicode", "input not Unicode", "output is the input"],
)
def test_a_damaged_network_is_refused(network: bytes) -> None:
    with pytest.raises(ModelInvalid):
        Session(NetworkContent(network), providers=[CPU])


def test_a_network_of_another_type_is_refused() -> None:
    doubles = network([helper.make_node("Add", ["x", "x"], ["y"])], kind=TensorProto.DOUBLE)
    with pytest.raises(
        ModelInvalid, match=r"expects input of tensor\(double\); supported: tensor\(float\) or tensor\(float16\)"
    ):
        Session(NetworkContent(doubles), providers=[CPU])


PROBE_AND_WAIT = """
import time
from inference_service.engine.provider_probe import main

main()
time.sleep(2)
"""


def test_no_telemetry_is_written(tmp_path: Path) -> None:
    """ONNX Runtime's telemetry would leave an identifier and a database in the home folder with the first session."""
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    environment = {**environment, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", PROBE_AND_WAIT], env=environment, capture_output=True, text=True, check=True
    )
    assert '"reason": null' in done.stdout
    assert list(tmp_path.rglob("*")) == []


def test_free_dimensions_are_none() -> None:
    session = Session(NetworkContent(DOUBLE), providers=[CPU])
    assert session.input_shapes == [[1, 1, None, None, None]]
    assert session.output_shape == [1, 1, None, None, None]


def test_fixed_dimensions_are_numbers() -> None:
    session = Session(NetworkContent(provider_probe._NETWORK), providers=[CPU])
    assert session.input_shapes == [session.output_shape] == [[1, 1, 2, 2, 2]]


def test_the_logits_are_the_first_output_or_the_one_named() -> None:
    """A network with deep supervision has further outputs."""
    nodes = [helper.make_node("Add", ["x", "x"], ["y"]), helper.make_node("ReduceSum", ["x"], ["z"], keepdims=1)]
    content = NetworkContent(network(nodes, outputs=("y", "z")))
    first = Session(content, providers=[CPU])
    named = Session(content, output="z", providers=[CPU])
    assert (first.run(WINDOW) == 2 * WINDOW).all()
    assert named.run(WINDOW).tolist() == [[[[[WINDOW.sum()]]]]]
    assert (first.to_host(first.run_on_device(WINDOW)) == 2 * WINDOW).all()
    assert named.to_host(named.run_on_device(WINDOW)).tolist() == [[[[[WINDOW.sum()]]]]]
    with pytest.raises(ModelInvalid, match="the model's network has no output 'x'; it has y, z"):
        Session(content, output="x", providers=[CPU])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"garbage",
        provider_probe._NETWORK[:-20],
        network([helper.make_node("NoSuchOperator", ["x"], ["y"])]),
        network([helper.make_node("Identity", ["missing"], ["y"])]),
        network(
            [helper.make_node("Identity", ["w"], ["y"])],
            inputs=(),
            constants=[helper.make_tensor("w", TensorProto.FLOAT, [1] * 5, [1.0])],
        ),
    ],
    ids=["empty", "garbage", "truncated", "unknown operator", "missing input", "no input"],
)
def test_a_file_that_is_not_a_network_is_an_invalid_model(content: bytes) -> None:
    with pytest.raises(ModelInvalid):
        Session(NetworkContent(content), providers=[CPU])


@pytest.mark.parametrize(
    ("content", "window"),
    [
        (provider_probe._NETWORK, WINDOW),
        (DOUBLE, WINDOW[0]),
        (
            network([helper.make_node("Reshape", ["x", "s"], ["y"])], constants=[shape_constant([1, 1, 5, 5, 5])]),
            WINDOW,
        ),
    ],
    ids=["other shape", "other rank", "failing operator"],
)
def test_a_run_that_fails_is_an_invalid_model(content: bytes, window: NDArray[np.float32]) -> None:
    session = Session(NetworkContent(content), providers=[CPU])
    with pytest.raises(ModelInvalid) as caught:
        session.run(window)
    assert caught.value.__cause__ is not None


def test_a_window_that_exceeds_memory_is_out_of_memory() -> None:
    expand = network([helper.make_node("Expand", ["x", "s"], ["y"])], constants=[shape_constant(ENORMOUS)])
    session = Session(NetworkContent(expand), providers=[CPU])
    with pytest.raises(OutOfMemory):
        session.run(np.ones((1, 1, 1, 1, 1), dtype=np.float32))


def test_the_cpu_provider_runs_the_whole_network() -> None:
    assert Session(NetworkContent(DOUBLE), providers=[CPU]).single_provider


def test_a_failed_run_does_not_move_the_session_to_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(NetworkContent(DOUBLE), providers=[CPU])

    failing = Mock()
    failing.is_webgpu_graph_capture_enabled.return_value = False
    failing.run.side_effect = onnxruntime.capi.onnxruntime_pybind11_state.EPFail("CUDA failure 700")
    monkeypatch.setattr(session._session, "_sess", failing)
    with pytest.raises(ModelInvalid):
        session.run(WINDOW)


def test_the_batch_size_is_free_or_fixed() -> None:
    assert Session(NetworkContent(DOUBLE), providers=[CPU]).fixed_batch_size == 1
    free = network([helper.make_node("Add", ["x", "x"], ["y"])], batch="n")
    assert Session(NetworkContent(free), providers=[CPU]).fixed_batch_size is None


@pytest.mark.parametrize(("providers", "loads"), [([CPU], 0), (["CUDAExecutionProvider", CPU], 1)])
def test_cuda_is_loaded_from_its_wheels_once_before_the_session(
    monkeypatch: pytest.MonkeyPatch, providers: list[str], loads: int
) -> None:
    loaded: list[str] = []

    def opened(*_: object, **__: object) -> onnxruntime.InferenceSession:
        assert len(loaded) == loads
        return InferenceSession(DOUBLE, providers=[CPU])

    InferenceSession = onnxruntime.InferenceSession  # noqa: N806
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: loaded.append("cuda"))
    monkeypatch.setattr(onnxruntime, "InferenceSession", opened)
    session_module._load_cuda.cache_clear()
    for _ in range(2):
        Session(NetworkContent(DOUBLE), providers=providers)
    session_module._load_cuda.cache_clear()


@pytest.mark.parametrize(("precision", "hint"), [("fp32", "f32"), ("bf16", "bf16")])
def test_openvino_gets_threads_and_precision(monkeypatch: pytest.MonkeyPatch, precision: Precision, hint: str) -> None:
    opened: list[tuple[list[tuple[str, dict[str, str]]], str]] = []

    def open_session(
        content: bytes, options: onnxruntime.SessionOptions, providers: list[tuple[str, dict[str, str]]], **_: int
    ) -> None:
        try:
            fallback = options.get_session_config_entry("session.disable_cpu_ep_fallback")
        except RuntimeError:
            fallback = "0"
        opened.append((providers, fallback))
        raise onnxruntime.capi.onnxruntime_pybind11_state.Fail("no")

    monkeypatch.setattr(onnxruntime, "InferenceSession", open_session)
    with pytest.raises(ModelInvalid):
        Session(NetworkContent(DOUBLE), providers=[OPENVINO, CPU], threads=3, precision=precision)
    (alone, without_fallback), (both, with_fallback) = opened
    assert alone == both[:1]
    assert (without_fallback, with_fallback) == ("1", "0")
    (name, options), cpu = both
    assert (name, options["device_type"]) == (OPENVINO, "CPU")
    assert json.loads(options["load_config"]) == {
        "CPU": {"INFERENCE_PRECISION_HINT": hint, "ENABLE_CPU_PINNING": False, "INFERENCE_NUM_THREADS": 3}
    }
    assert cpu == (CPU, {})


@pytest.mark.parametrize("provider", [CUDA, TENSORRT])
def test_gpu_providers_get_their_options(monkeypatch: pytest.MonkeyPatch, provider: str) -> None:
    gpu = GpuOptions(tf32=False, memory_limit_bytes=2**33, tensorrt_cache=Path("kept"))
    opened: list[dict[str, str]] = []

    def open_session(*_: object, providers: list[tuple[str, dict[str, str]]], **__: object) -> None:
        opened.append(dict(providers)[provider])
        raise onnxruntime.capi.onnxruntime_pybind11_state.Fail("no")

    monkeypatch.setattr(session_module, "_load_cuda", lambda: None)
    monkeypatch.setattr(onnxruntime, "InferenceSession", open_session)
    with pytest.raises(ModelInvalid):
        Session(NetworkContent(DOUBLE), providers=[provider, CPU], gpu=gpu)
    expected = provider_options(provider, None, "fp32", gpu)
    assert expected
    assert opened == [expected, expected]


FAILED_ALLOCATIONS = [
    onnxruntime.capi.onnxruntime_pybind11_state.RuntimeException("Exception during initialization: std::bad_alloc"),
    onnxruntime.capi.onnxruntime_pybind11_state.Fail("CUDA failure 2: out of memory"),
    onnxruntime.capi.onnxruntime_pybind11_state.EPFail("Failed to allocate memory for requested buffer of size 8"),
    onnxruntime.capi.onnxruntime_pybind11_state.Fail(
        "Available memory of 19968 is smaller than requested bytes of 20000"
    ),
    onnxruntime.capi.onnxruntime_pybind11_state.RuntimeException(
        "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0"
    ),
    onnxruntime.capi.onnxruntime_pybind11_state.Fail("CUDNN failure 4: CUDNN_STATUS_ALLOC_FAILED ; GPU=0"),
    MemoryError("std::bad_alloc"),
]


@pytest.mark.parametrize("error", FAILED_ALLOCATIONS, ids=lambda error: type(error).__name__)
def test_failed_allocations_are_out_of_memory(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_args: object, **_kwargs: object) -> None:
        raise error

    session = Session(NetworkContent(DOUBLE), providers=[CPU])
    monkeypatch.setattr(onnxruntime.InferenceSession, "run", fail)
    with pytest.raises(OutOfMemory) as caught:
        session.run(WINDOW)
    assert caught.value.__cause__ is error
    monkeypatch.setattr(onnxruntime, "InferenceSession", fail)
    with pytest.raises(OutOfMemory):
        Session(NetworkContent(DOUBLE), providers=[CPU])


def test_gpu_memory_and_worker_memory_have_different_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: object, **_kwargs: object) -> None:
        raise onnxruntime.capi.onnxruntime_pybind11_state.Fail("CUDA failure 2: out of memory")

    session = Session(NetworkContent(DOUBLE), providers=[CPU])
    monkeypatch.setattr(session, "_providers", [CUDA, CPU])
    monkeypatch.setattr(onnxruntime.InferenceSession, "run", fail)
    with pytest.raises(GpuOutOfMemory, match="a window of this model does not fit into the GPU's memory"):
        session.run(WINDOW)
    monkeypatch.setattr(session_module, "_load_cuda", lambda: None)
    monkeypatch.setattr(onnxruntime, "InferenceSession", fail)
    with pytest.raises(GpuOutOfMemory, match="the model does not fit"):
        Session(NetworkContent(DOUBLE), providers=[CUDA, CPU])


def test_a_limited_arena_is_out_of_memory_and_still_runs_smaller_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """A limited arena of CPU memory stands in for a GPU's arena, which GPU_MEMORY_LIMIT_MB limits."""
    limited = onnxruntime.OrtArenaCfg({"max_mem": 2**20, "arena_extend_strategy": 1})
    kind = onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR
    memory = onnxruntime.OrtMemoryInfo("Cpu", kind, 0, onnxruntime.OrtMemType.DEFAULT)
    onnxruntime.create_and_register_allocator(memory, limited)

    def in_limits(content: NetworkContent, threads: int | None, spin: bool) -> onnxruntime.SessionOptions:
        options = session_options(content, threads, spin)
        options.add_session_config_entry("session.use_env_allocators", "1")
        return options

    session_options = session_module._session_options
    monkeypatch.setattr(session_module, "_session_options", in_limits)
    halves = [helper.make_node("Add", ["x", "x"], ["z"]), helper.make_node("Mul", ["z", "z"], ["y"])]
    session = Session(NetworkContent(network(halves, batch="n")), providers=[CPU])
    monkeypatch.setattr(session, "_providers", [CUDA, CPU])
    monkeypatch.setattr(Session, "_device", "cpu")
    window = np.ones((1, 1, 32, 32, 32), dtype=np.float32)

    def on_device(windows: NDArray[np.float32]) -> NDArray[np.float32]:
        return session.to_host(session.run_on_device(windows))

    def graph(windows: NDArray[np.float32]) -> NDArray[np.float32]:
        return session.to_host(session.run_graph(network(halves, batch="m"), {"x": windows}))

    for run in (session.run, on_device, graph):
        with pytest.raises(GpuOutOfMemory, match="a window of this model does not fit into the GPU's memory") as caught:
            run(np.repeat(window, 32, axis=0))
        assert "smaller than requested bytes" in str(caught.value.__cause__)
        np.testing.assert_array_equal(run(window), 4 * window)


def test_a_gpu_failure_is_not_an_invalid_model(monkeypatch: pytest.MonkeyPatch) -> None:
    message = "Non-zero status code returned: CUDA failure 700: an illegal memory access was encountered ; GPU=0"

    def run(provider: str, *, on_device: bool) -> ServiceError:
        session = Session(NetworkContent(DOUBLE), providers=[CPU])
        monkeypatch.setattr(session, "_providers", [provider])
        with pytest.raises(ServiceError) as caught:
            session.run_on_device(WINDOW) if on_device else session.run(WINDOW)
        return caught.value

    def fail(*_args: object, **_kwargs: object) -> None:
        raise onnxruntime.capi.onnxruntime_pybind11_state.Fail(message)

    def fail_bound(*_args: object, **_kwargs: object) -> None:
        raise RuntimeError(f"Error in execution: {message}")

    monkeypatch.setattr(Session, "_device", "cpu")
    monkeypatch.setattr(onnxruntime.InferenceSession, "run", fail)
    monkeypatch.setattr(onnxruntime.InferenceSession, "run_with_iobinding", fail_bound)
    for on_device in (False, True):
        failed = run(CUDA, on_device=on_device)
        assert (type(failed), failed.message) == (GpuFailed, "the GPU failed on a window of this model")
        assert type(run(CPU, on_device=on_device)) is ModelInvalid


def test_an_unloaded_network_is_read_again_before_its_next_run() -> None:
    reads: list[NetworkContent] = []

    def read() -> NetworkContent:
        reads.append(NetworkContent(DOUBLE))
        return reads[-1]

    session = Session(NetworkContent(DOUBLE), providers=[CPU], read_again=read)
    session.load()
    assert not reads
    session.unload()
    assert session._loaded is None
    assert (session.providers, session.single_provider, session.fixed_batch_size) == ([CPU], True, 1)
    assert not reads
    np.testing.assert_array_equal(session.run(WINDOW), 2 * WINDOW)
    np.testing.assert_array_equal(session.run(WINDOW), 2 * WINDOW)
    assert len(reads) == 1


def test_a_network_stays_loaded_on_a_gpu_or_without_its_files(monkeypatch: pytest.MonkeyPatch) -> None:
    for session in (
        Session(NetworkContent(DOUBLE), providers=[CPU]),
        Session(NetworkContent(DOUBLE), providers=[CPU], read_again=lambda: NetworkContent(DOUBLE)),
    ):
        if session._read_again is not None:
            monkeypatch.setattr(session, "_providers", [CUDA, CPU])
        session.unload()
        assert session._loaded is not None
