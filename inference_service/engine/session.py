"""A network loaded into ONNX Runtime, its errors mapped to ours. Knows nothing of settings, manifests or volumes."""

import ctypes
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache, partial
from typing import Any, TypeAlias

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state

from inference_service.core.errors import ModelInvalid, OutOfMemory, ServiceError
from inference_service.core.execution import CPU, CUDA, GPUS, OPENVINO, TENSORRT, GpuOptions, Precision
from inference_service.engine.runtime_errors import shortage_or_failure

# An array in whichever memory the network uses.
DeviceArray: TypeAlias = onnxruntime.OrtValue

_ERRORS: tuple[type[Exception], ...] = (
    MemoryError,
    *(
        kind
        for kind in vars(onnxruntime_pybind11_state).values()
        if isinstance(kind, type) and issubclass(kind, Exception)
    ),
)
# A bound run's are none of ONNX Runtime's own.
_RUN_ERRORS: tuple[type[Exception], ...] = (*_ERRORS, RuntimeError)
# What ONNX Runtime raises besides where a provider cannot even be made.
_REFUSALS: tuple[type[Exception], ...] = (*_ERRORS, RuntimeError, ValueError)
_FATAL = 4
_INPUT_TYPES: dict[str, type[np.floating[Any]]] = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_OPENVINO_PRECISIONS: dict[Precision, str] = {"fp32": "f32", "bf16": "bf16"}


NO_GPU_OPTIONS = GpuOptions()
RUNTIME_VERSION: str = onnxruntime.__version__


class Session:
    """A network loaded on execution providers, ready to run.

    Args:
        network: The ONNX file's content.
        providers: Execution providers, best first.
        threads: Threads that one run may use; None leaves it to ONNX Runtime.
        precision: What the network computes in; only OpenVINO knows another than fp32.
        spin: Whether threads that wait for one another burn their cores: a little faster where nobody else needs them.
        gpu: For NVIDIA's.

    Attributes:
        precision: As asked for; a network whose own tensors are float16 computes in that all the same.
        whole: Whether all of the network runs on the first provider, no part of it on the CPU provider instead.
        refusal: What ONNX Runtime says why not; None where it does.

    Raises:
        ModelInvalid: ONNX Runtime cannot load the network.
        OutOfMemory: There is not enough memory for it.
        GpuError: The GPU has not enough memory for it, or failed.
    """

    def __init__(
        self,
        network: bytes,
        *,
        providers: Sequence[str],
        threads: int | None = None,
        precision: Precision = "fp32",
        spin: bool = False,
        gpu: GpuOptions = NO_GPU_OPTIONS,
    ) -> None:
        self.precision = precision
        self._gpu = gpu
        self._beside: dict[bytes, onnxruntime.InferenceSession] = {}
        if any(provider in GPUS for provider in providers):
            _load_cuda()
        self._open = partial(_open, providers=list(providers), threads=threads, precision=precision, spin=spin, gpu=gpu)
        try:
            self._session, self.refusal = self._open(network)
        except _ERRORS as error:
            otherwise = "ONNX Runtime cannot load the model's network"
            on_gpu = providers[0] in GPUS
            raise _mapped(error, what="the model", otherwise=otherwise, on_gpu=on_gpu) from error
        self.whole = self.refusal is None
        # A run that fails would move to the CPU for good, and say so to nobody but the terminal.
        self._session.disable_fallback()
        _give_back_free_memory()
        inputs = self._session.get_inputs()
        if not inputs:
            raise ModelInvalid("the model's network takes no input")
        self._input_name: str = inputs[0].name
        if inputs[0].type not in _INPUT_TYPES:
            raise ModelInvalid(f"the model's network takes {inputs[0].type}, expected {' or '.join(_INPUT_TYPES)}")
        self._input_type = _INPUT_TYPES[inputs[0].type]

    @property
    def providers(self) -> list[str]:
        """The execution providers really in use, best first."""
        return list(self._session.get_providers())

    @property
    def on_gpu(self) -> bool:
        """Whether the CPU is free while the network runs."""
        return self.providers[0] in GPUS

    @property
    def input_shapes(self) -> list[list[int | None]]:
        """Shape of each input, None where a dimension is free."""
        return [_shape(argument.shape) for argument in self._session.get_inputs()]

    @property
    def output_shapes(self) -> list[list[int | None]]:
        """Shape of each output, None where a dimension is free."""
        return [_shape(argument.shape) for argument in self._session.get_outputs()]

    @property
    def batch(self) -> int | None:
        """The number of windows that each run takes; None where it is free."""
        return self.input_shapes[0][0]

    def run(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Runs the network.

        Args:
            windows: Shape (batch, channels, *window); halved in precision where the network takes float16.

        Returns:
            Logits, shape (batch, labels, *window): a new array, the caller's to change.

        Raises:
            OutOfMemory: A run needs more memory than there is.
            GpuOutOfMemory: A run needs more memory than the GPU has.
            GpuFailed: The GPU failed; all further runs in this process may fail too.
            ModelInvalid: The network fails on its declared input.
        """
        with self._mapping_errors():
            given = windows.astype(self._input_type, copy=False)
            (logits,) = self._session.run(None, {self._input_name: given})
        return np.asarray(logits, dtype=np.float32)

    @property
    def sums_on_device(self) -> bool:
        """Whether logits are to be added up on the GPU that computes them."""
        # TensorRT would build an engine for each place that a window is added at.
        (output, *_) = self._session.get_outputs()
        return self._gpu.sums_on_device and self.providers[0] == CUDA and output.type in _INPUT_TYPES

    def run_on_device(self, windows: NDArray[np.float32]) -> DeviceArray:
        """The same as `run`, but for the logits, which stay where the network runs, in its own precision."""
        with self._mapping_errors():
            given = np.ascontiguousarray(windows, dtype=self._input_type)
            return _run_bound(self._session, {self._input_name: given}, self._device)

    def run_beside(
        self, graph: bytes, given: Mapping[str, NDArray[Any] | DeviceArray], into: DeviceArray | None = None
    ) -> DeviceArray:
        """Runs another graph, of one output, where the network runs.

        Args:
            graph: An ONNX file's content; its session stays as long as the network's.
            given: By the inputs' names: from the worker's memory, or what is on the device.
            into: What the output is written to; None: a new array in the worker's memory.

        Raises:
            OutOfMemory: It needs more memory than there is.
            GpuOutOfMemory: It needs more memory than the GPU has.
            GpuFailed: The GPU failed.
        """
        with self._mapping_errors():
            if graph not in self._beside:
                self._beside[graph] = self._open(graph)[0]
                self._beside[graph].disable_fallback()
            return _run_bound(self._beside[graph], given, "cpu" if into is None else into)

    def to_device(self, values: NDArray[Any]) -> DeviceArray:
        """Copies an array to where the network runs."""
        with self._mapping_errors():
            return DeviceArray.ortvalue_from_numpy(np.ascontiguousarray(values), self._device)

    def empty_on_device(self, shape: Sequence[int]) -> DeviceArray:
        """Memory for float32 where the network runs, of any content."""
        with self._mapping_errors():
            return DeviceArray.ortvalue_from_shape_and_type(list(shape), np.float32, self._device)

    def to_host(self, values: DeviceArray) -> NDArray[np.float32]:
        """What lies on the device, or a view of it where that is the worker's memory."""
        with self._mapping_errors():
            return np.asarray(values.numpy(), dtype=np.float32)

    @property
    def _device(self) -> str:
        """What ONNX Runtime calls the memory where the network runs."""
        return "cuda" if self.on_gpu else "cpu"

    @contextmanager
    def _mapping_errors(self) -> Iterator[None]:
        try:
            yield
        except _RUN_ERRORS as error:
            otherwise = "the model's network fails on a window of its declared shape"
            raise _mapped(error, what="a window of this model", otherwise=otherwise, on_gpu=self.on_gpu) from error


def _run_bound(
    session: onnxruntime.InferenceSession, given: Mapping[str, NDArray[Any] | DeviceArray], into: str | DeviceArray
) -> DeviceArray:
    """Runs a session of one output, which goes into an array, or a new one on a device."""
    binding = session.io_binding()
    for name, value in given.items():
        bind = binding.bind_cpu_input if isinstance(value, np.ndarray) else binding.bind_ortvalue_input
        bind(name, value)
    bind = binding.bind_output if isinstance(into, str) else binding.bind_ortvalue_output
    bind(session.get_outputs()[0].name, into)
    session.run_with_iobinding(binding)
    (output,) = binding.get_outputs()
    # An output keeps its binding, which would keep the inputs.
    binding.clear_binding_inputs()
    return output


@cache
def _load_cuda() -> None:
    """Loads CUDA and cuDNN from NVIDIA's wheels: ONNX Runtime's own library looks in the system's folders only."""
    onnxruntime.preload_dlls()


def _open(
    network: bytes, providers: list[str], threads: int | None, precision: Precision, spin: bool, gpu: GpuOptions
) -> tuple[onnxruntime.InferenceSession, str | None]:
    """Opens a session, and says why a part of the network is not on the first provider, if so."""
    chosen = [(name, _provider_options(name, threads, precision, gpu)) for name in providers]
    refusal = None
    if providers[0] != CPU:
        # ONNX Runtime names a provider as in use even where it has nothing to do: this way it must have all of it.
        options = _session_options(threads, spin)
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        options.log_severity_level = _FATAL
        try:
            session = onnxruntime.InferenceSession(network, options, providers=chosen[:1], enable_fallback=0)
            return session, None
        except _REFUSALS as error:
            refusal = str(error)
    session = onnxruntime.InferenceSession(network, _session_options(threads, spin), providers=chosen)
    return session, refusal


def _give_back_free_memory() -> None:
    """Loading leaves as much free memory in the C library's heap as the network is large (seen with OpenVINO)."""
    with suppress(AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


def _session_options(threads: int | None, spin: bool) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    # Planned ahead, a network's buffers take a quarter more memory, and it runs no faster on a CPU.
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spin)))
    return options


def _provider_options(provider: str, threads: int | None, precision: Precision, gpu: GpuOptions) -> dict[str, str]:
    if provider == CUDA:
        return _cuda_options(gpu)
    if provider == TENSORRT:
        return _tensorrt_options(gpu)
    if provider != OPENVINO:
        return {}
    # The session's own options do not reach OpenVINO. It pins its threads unless told not to, those of two workers to
    # the same cores.
    options: dict[str, str | int] = {
        "INFERENCE_PRECISION_HINT": _OPENVINO_PRECISIONS[precision],
        "ENABLE_CPU_PINNING": False,
    }
    if threads:
        options["INFERENCE_NUM_THREADS"] = threads
    return {"device_type": "CPU", "load_config": json.dumps({"CPU": options})}


def _cuda_options(gpu: GpuOptions) -> dict[str, str]:
    options = {
        # What is allocated is what is needed, as other sessions and processes share the card; otherwise it doubles.
        "arena_extend_strategy": "kSameAsRequested",
        # Measured on the first window of a shape, with the workspace that each takes, and kept as long as the session.
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


def _mapped(error: Exception, *, what: str, otherwise: str, on_gpu: bool) -> ServiceError:
    if isinstance(error, MemoryError):
        return OutOfMemory(f"{what} does not fit into this worker's memory")
    return shortage_or_failure(str(error), what=what, on_gpu=on_gpu) or ModelInvalid(otherwise)


def _shape(dimensions: Sequence[int | str | None]) -> list[int | None]:
    return [dimension if isinstance(dimension, int) else None for dimension in dimensions]
