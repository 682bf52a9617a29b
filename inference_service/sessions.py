"""A network loaded into ONNX Runtime, its errors mapped to ours. Knows nothing of settings, manifests or volumes."""

from collections.abc import Sequence

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state

from inference_service.errors import ModelInvalid, OutOfMemory, ServiceError

_ERRORS: tuple[type[Exception], ...] = (
    MemoryError,
    *(
        kind
        for kind in vars(onnxruntime_pybind11_state).values()
        if isinstance(kind, type) and issubclass(kind, Exception)
    ),
)
_ALLOCATION_FAILURES = ("allocate memory", "bad_alloc", "bad allocation", "out of memory")


class Session:
    """A network loaded on execution providers, ready to run.

    Args:
        network: The ONNX file's content.
        providers: Execution providers, best first.
        threads: Threads that one run may use; None leaves it to ONNX Runtime.

    Raises:
        ModelInvalid: ONNX Runtime cannot load the network.
        OutOfMemory: There is not enough memory for it.
    """

    def __init__(self, network: bytes, *, providers: Sequence[str], threads: int | None = None) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        # Workers share their machine: a thread that waits must not burn its neighbour's core.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(network, options, providers=list(providers))
        except _ERRORS as error:
            otherwise = "ONNX Runtime cannot load the model's network"
            raise _mapped(error, what="the model", otherwise=otherwise) from error
        inputs = self._session.get_inputs()
        if not inputs:
            raise ModelInvalid("the model's network takes no input")
        self._input_name: str = inputs[0].name

    @property
    def providers(self) -> list[str]:
        """The execution providers really in use, best first."""
        return list(self._session.get_providers())

    @property
    def input_shapes(self) -> list[list[int | None]]:
        """Shape of each input, None where a dimension is free."""
        return [_shape(argument.shape) for argument in self._session.get_inputs()]

    @property
    def output_shapes(self) -> list[list[int | None]]:
        """Shape of each output, None where a dimension is free."""
        return [_shape(argument.shape) for argument in self._session.get_outputs()]

    def run(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Runs the network.

        Args:
            windows: Shape (batch, channels, *window).

        Returns:
            Logits, shape (batch, labels, *window).

        Raises:
            OutOfMemory: A run needs more memory than there is.
            ModelInvalid: The network fails on its declared input.
        """
        try:
            (logits,) = self._session.run(None, {self._input_name: windows})
        except _ERRORS as error:
            otherwise = "the model's network fails on a window of its declared shape"
            raise _mapped(error, what="a window of this model", otherwise=otherwise) from error
        return np.asarray(logits, dtype=np.float32)


def _mapped(error: Exception, *, what: str, otherwise: str) -> ServiceError:
    text = str(error).lower()
    if isinstance(error, MemoryError) or any(failure in text for failure in _ALLOCATION_FAILURES):
        return OutOfMemory(f"{what} does not fit into this worker's memory")
    return ModelInvalid(otherwise)


def _shape(dimensions: Sequence[int | str | None]) -> list[int | None]:
    return [dimension if isinstance(dimension, int) else None for dimension in dimensions]
