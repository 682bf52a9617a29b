"""A network loaded into ONNX Runtime, with its errors mapped to ours. Knows no settings, manifests or volumes."""

import ctypes
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache, partial
from typing import Any, NamedTuple, Self, TypeAlias

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state

from inference_service.core.errors import ModelInvalid, OutOfMemory, ServiceError
from inference_service.core.execution import CPU, CUDA, DEFAULT_GPU_OPTIONS, GPU_PROVIDERS, GpuOptions, Precision
from inference_service.engine.onnx_file import NetworkContent, check_self_contained
from inference_service.engine.provider_options import provider_options
from inference_service.engine.runtime_errors import memory_or_gpu_error

DeviceArray: TypeAlias = onnxruntime.OrtValue
"""An array in the memory of the device that the network runs on."""

# Loading or running a network may also raise plain RuntimeErrors, and ValueErrors for texts that are not Unicode.
_ERRORS: tuple[type[Exception], ...] = (
    MemoryError,
    RuntimeError,
    ValueError,
    *(
        kind
        for kind in vars(onnxruntime_pybind11_state).values()
        if isinstance(kind, type) and issubclass(kind, Exception)
    ),
)
_LOG_FATAL_ONLY = 4
_INPUT_TYPES: dict[str, type[np.floating[Any]]] = {"tensor(float)": np.float32, "tensor(float16)": np.float16}

RUNTIME_VERSION: str = onnxruntime.__version__


class _Argument(NamedTuple):
    """An input or output of a network; None in its shape is a free dimension."""

    name: str
    type: str
    shape: list[int | None]

    @classmethod
    def of(cls, argument: onnxruntime.NodeArg) -> Self:
        """Copies ONNX Runtime's description."""
        return cls(argument.name, argument.type, [size if isinstance(size, int) else None for size in argument.shape])


class Session:
    """A network loaded on execution providers, ready to run.

    Args:
        content: The network's files.
        output: Name of the output with the logits; None: the first one.
        providers: Execution providers, best first.
        threads: Threads of one run; None: ONNX Runtime's own choice.
        precision: Precision that the network computes in; only OpenVINO supports another than fp32.
        spin: Whether waiting threads keep their cores busy: slightly faster on a machine that runs nothing else.
        gpu: Options for NVIDIA GPUs.
        read_again: Reads the network's files again; None: the session cannot be unloaded.

    Attributes:
        precision: The requested precision. A network with float16 tensors computes in float16 all the same.
        fallback_reason: ONNX Runtime's message why a part of the network does not run on the first provider; None
            where all of it does.

    Raises:
        ModelInvalid: A part of the network lies in another file, or ONNX Runtime cannot load it.
        OutOfMemory: There is not enough memory for the network.
        GpuError: The GPU has not enough memory for the network, or failed.
    """

    def __init__(
        self,
        content: NetworkContent,
        *,
        output: str | None = None,
        providers: Sequence[str],
        threads: int | None = None,
        precision: Precision = "fp32",
        spin: bool = False,
        gpu: GpuOptions = DEFAULT_GPU_OPTIONS,
        read_again: Callable[[], NetworkContent] | None = None,
    ) -> None:
        self.precision = precision
        self._gpu = gpu
        self._graphs: dict[bytes, onnxruntime.InferenceSession] = {}
        if any(provider in GPU_PROVIDERS for provider in providers):
            _load_cuda()
        self._read_again = read_again
        self._open = partial(_open, providers=list(providers), threads=threads, precision=precision, spin=spin, gpu=gpu)
        check_self_contained(content.network, external=content.external_data)
        self._asks_for_gpu = providers[0] in GPU_PROVIDERS
        self._loaded: onnxruntime.InferenceSession | None = None
        self._load(content)
        if not self._inputs:
            raise ModelInvalid("the model's network has no input")
        self._output = self._find_output(output)
        if self._inputs[0].type not in _INPUT_TYPES:
            raise ModelInvalid(
                f"the model's network expects input of {self._inputs[0].type}; supported: {' or '.join(_INPUT_TYPES)}"
            )
        self._input_name = self._inputs[0].name
        self._input_type = _INPUT_TYPES[self._inputs[0].type]

    def _find_output(self, name: str | None) -> _Argument:
        for argument in self._outputs:
            if name in (None, argument.name):
                return argument
        names = ", ".join(argument.name for argument in self._outputs)
        raise ModelInvalid(f"the model's network has no output {name!r}; it has {names or 'none'}")

    def load(self) -> None:
        """Loads the network again if it was unloaded; a run does so by itself.

        Raises:
            ModelInvalid, ModelNotFound, StorageUnavailable: Its files have changed, or cannot be read any more.
            OutOfMemory: There is not enough memory for the network.
        """
        if self._loaded is None and self._read_again is not None:
            self._load(self._read_again())

    def unload(self) -> None:
        """Frees the memory that the network and its runs take, except on a GPU, where loading it takes too long."""
        if self._read_again is not None and not self.on_gpu:
            self._loaded = None
            self._graphs.clear()
            _release_free_memory()

    def _load(self, content: NetworkContent) -> None:
        try:
            session, self.fallback_reason = self._open(content)
            self._providers: list[str] = session.get_providers()
            self._inputs = [_Argument.of(argument) for argument in session.get_inputs()]
            self._outputs = [_Argument.of(argument) for argument in session.get_outputs()]
        except _ERRORS as error:
            default_message = "ONNX Runtime cannot load the model's network"
            raise _mapped(
                error, subject="the model", default_message=default_message, on_gpu=self._asks_for_gpu
            ) from error
        # Otherwise ONNX Runtime moves the session to the CPU when a run fails, with a line on stderr only.
        session.disable_fallback()
        self._loaded = session
        _release_free_memory()

    @property
    def _session(self) -> onnxruntime.InferenceSession:
        self.load()
        assert self._loaded is not None
        return self._loaded

    @property
    def providers(self) -> list[str]:
        """The execution providers in use, best first."""
        return list(self._providers)

    @property
    def single_provider(self) -> bool:
        """True if the first provider runs the whole network."""
        return self.fallback_reason is None

    @property
    def on_gpu(self) -> bool:
        """True if the network runs on a GPU, which leaves the CPU free."""
        return self.providers[0] in GPU_PROVIDERS

    @property
    def input_shapes(self) -> list[list[int | None]]:
        """Shape of each input; None for a free dimension."""
        return [argument.shape for argument in self._inputs]

    @property
    def output_shape(self) -> list[int | None]:
        """Shape of the output with the logits; None for a free dimension."""
        return self._output.shape

    @property
    def fixed_batch_size(self) -> int | None:
        """Number of windows that every run must have; None where it is free."""
        return self.input_shapes[0][0]

    def run(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Runs the network.

        Args:
            windows: Shape (batch, channels, *window); converted to float16 where the network takes float16.

        Returns:
            Logits, shape (batch, labels, *window): a new array that the caller may change.

        Raises:
            OutOfMemory: A run needs more memory than there is.
            GpuOutOfMemory: A run needs more memory than the GPU has.
            GpuFailed: The GPU failed; all further runs in this process may fail too.
            ModelInvalid: The network fails on its declared input.
        """
        with self._mapping_errors():
            given = windows.astype(self._input_type, copy=False)
            (logits,) = self._session.run([self._output.name], {self._input_name: given})
        return np.asarray(logits, dtype=np.float32)

    @property
    def aggregates_on_device(self) -> bool:
        """True if the GPU that computes the logits also adds up those of overlapping windows."""
        # CUDA alone: TensorRT would build an engine for each position of a window.
        return self._gpu.aggregate_on_device and self.providers[0] == CUDA and self._output.type in _INPUT_TYPES

    def run_on_device(self, windows: NDArray[np.float32]) -> DeviceArray:
        """Runs the network like `run`; the logits stay on the device, in the precision of the network."""
        with self._mapping_errors():
            given = np.ascontiguousarray(windows, dtype=self._input_type)
            return _run_bound(self._session, {self._input_name: given}, self._device, self._output.name)

    def run_graph(
        self, graph: bytes, given: Mapping[str, NDArray[Any] | DeviceArray], into: DeviceArray | None = None
    ) -> DeviceArray:
        """Runs another graph with one output on the device of the network.

        Args:
            graph: An ONNX file's content; it stays loaded as long as the network.
            given: Inputs by name, in the worker's memory or on the device.
            into: Array that the output is written to; None: a new array in the worker's memory.

        Raises:
            OutOfMemory: It needs more memory than there is.
            GpuOutOfMemory: It needs more memory than the GPU has.
            GpuFailed: The GPU failed.
        """
        with self._mapping_errors():
            if graph not in self._graphs:
                self._graphs[graph] = self._open(NetworkContent(graph))[0]
                self._graphs[graph].disable_fallback()
            return _run_bound(self._graphs[graph], given, "cpu" if into is None else into)

    def to_device(self, values: NDArray[Any]) -> DeviceArray:
        """Copies an array to the device."""
        with self._mapping_errors():
            return DeviceArray.ortvalue_from_numpy(np.ascontiguousarray(values), self._device)

    def empty_on_device(self, shape: Sequence[int]) -> DeviceArray:
        """Allocates an uninitialised float32 array on the device."""
        with self._mapping_errors():
            return DeviceArray.ortvalue_from_shape_and_type(list(shape), np.float32, self._device)

    def to_host(self, values: DeviceArray) -> NDArray[np.float32]:
        """Copies an array from the device; returns a view where the device is the CPU."""
        with self._mapping_errors():
            return np.asarray(values.numpy(), dtype=np.float32)

    @property
    def _device(self) -> str:
        """ONNX Runtime's name of the device."""
        return "cuda" if self.on_gpu else "cpu"

    @contextmanager
    def _mapping_errors(self) -> Iterator[None]:
        try:
            yield
        except _ERRORS as error:
            default_message = "the model's network fails on a window of its declared shape"
            raise _mapped(
                error, subject="a window of this model", default_message=default_message, on_gpu=self.on_gpu
            ) from error


def _run_bound(
    session: onnxruntime.InferenceSession,
    given: Mapping[str, NDArray[Any] | DeviceArray],
    into: str | DeviceArray,
    output: str | None = None,
) -> DeviceArray:
    """Computes one output, the first by default, in an array or, for a device's name, in a new one there."""
    binding = session.io_binding()
    for name, value in given.items():
        bind = binding.bind_cpu_input if isinstance(value, np.ndarray) else binding.bind_ortvalue_input
        bind(name, value)
    bind = binding.bind_output if isinstance(into, str) else binding.bind_ortvalue_output
    bind(output or session.get_outputs()[0].name, into)
    session.run_with_iobinding(binding)
    (computed,) = binding.get_outputs()
    # The output keeps the binding alive, and the binding its inputs.
    binding.clear_binding_inputs()
    return computed


@cache
def _load_cuda() -> None:
    """Loads CUDA and cuDNN from NVIDIA's wheels; ONNX Runtime itself searches the system's folders only."""
    onnxruntime.preload_dlls()


def _open(
    content: NetworkContent,
    providers: list[str],
    threads: int | None,
    precision: Precision,
    spin: bool,
    gpu: GpuOptions,
) -> tuple[onnxruntime.InferenceSession, str | None]:
    """Opens a session; the second value is the reason why the first provider does not run the whole network."""
    chosen = [(name, provider_options(name, threads, precision, gpu)) for name in providers]
    fallback_reason = None
    if providers[0] != CPU:
        # ONNX Runtime lists a provider as in use even if it runs no part of the network; here it must run all of it.
        options = _session_options(content, threads, spin)
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        options.log_severity_level = _LOG_FATAL_ONLY
        try:
            session = onnxruntime.InferenceSession(content.network, options, providers=chosen[:1], enable_fallback=0)
            return session, None
        except _ERRORS as error:
            fallback_reason = str(error)
    session = onnxruntime.InferenceSession(content.network, _session_options(content, threads, spin), providers=chosen)
    return session, fallback_reason


def _release_free_memory() -> None:
    """Returns free heap memory to the system: loading leaves as much of it as the network is large (OpenVINO)."""
    with suppress(AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


def _session_options(content: NetworkContent, threads: int | None, spin: bool) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    # Memory patterns take a quarter more memory and make no network faster on a CPU.
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spin)))
    # Not ONNX Runtime's own format, whose structure is not checked.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    if content.external_data:
        files = content.external_data
        options.add_external_initializers_from_files_in_memory(
            list(files), list(files.values()), [len(file) for file in files.values()]
        )
    return options


def _mapped(error: Exception, *, subject: str, default_message: str, on_gpu: bool) -> ServiceError:
    if isinstance(error, MemoryError):
        return OutOfMemory(f"{subject} does not fit into this worker's memory")
    return memory_or_gpu_error(str(error), subject=subject, on_gpu=on_gpu) or ModelInvalid(default_message)
