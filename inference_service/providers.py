"""ONNX Runtime: which execution providers really work here, and sessions on them.

ONNX Runtime falls back to the CPU silently where a provider's libraries are missing or its options are wrong, so
nothing here is believed before a session shows it. Knows nothing of settings, models' manifests or volumes.
"""

import json
import logging
import subprocess
import sys
from base64 import b64decode
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from inference_service.errors import InternalError, ModelInvalid, OutOfMemory

logger = logging.getLogger(__name__)

CPU = "CPUExecutionProvider"
GPUS = ("CUDAExecutionProvider", "TensorrtExecutionProvider", "ROCMExecutionProvider", "MIGraphXExecutionProvider")
# Compiled into the CPU wheel, but only a stub for calls to a remote service.
_NEVER_USABLE = "AzureExecutionProvider"

_PROBE_TIMEOUT_S = 120
# An ONNX graph of one 1×1×1 convolution on (1, 1, 2, 2, 2): small, yet it makes CUDA load cuDNN too.
_PROBE_NETWORK = b64decode(
    "CAg6cQoPCgF4CgF3EgF5IgRDb252EgVwcm9iZSoVCAEIAQgBCAEIARABQgF3SgQAAIA/Wh8KAXgSGgoYCAESFAoCCAEKAggBCgIIAgoCCAIKAggC"
    "Yh8KAXkSGgoYCAESFAoCCAEKAggBCgIIAgoCCAIKAggCQgQKABAN"
)


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
        import onnxruntime  # costs 0.1 s and is absent where only the client is installed

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        # Workers share their machine: a thread that waits must not burn its neighbour's core.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._errors = _runtime_errors()
        try:
            self._session = onnxruntime.InferenceSession(network, options, providers=list(providers))
        except self._errors as error:
            if _is_allocation_failure(error):
                raise OutOfMemory("the model does not fit into this worker's memory") from error
            raise ModelInvalid("ONNX Runtime cannot load the model's network") from error
        self._input_name: str = self._session.get_inputs()[0].name

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
        except self._errors as error:
            if _is_allocation_failure(error):
                raise OutOfMemory("a window of this model does not fit into this worker's memory") from error
            raise ModelInvalid("the model's network fails on a window of its declared shape") from error
        return np.asarray(logits, dtype=np.float32)


@dataclass(frozen=True)
class Probe:
    """What one provider's trial showed.

    Attributes:
        provider: The execution provider.
        reason: Why it cannot be used; None where it can.
    """

    provider: str
    reason: str | None


@cache
def probe_providers() -> tuple[Probe, ...]:
    """Tries every provider of the installed ONNX Runtime, once per process, in a short-lived subprocess.

    The subprocess keeps CUDA out of a worker's parent, which must not touch it before it forks, and survives a provider
    that crashes: those tried before it count, and it is reported with the rest as unusable.
    """
    command = [sys.executable, "-m", "inference_service.providers"]
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=_PROBE_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise InternalError(f"the trial of the ONNX providers did not end within {_PROBE_TIMEOUT_S} s") from None
    probes = [Probe(**json.loads(line)) for line in process.stdout.splitlines()]
    if not probes:
        raise InternalError("no ONNX Runtime works here: install one with pip install 'inference-service[cpu]'")
    if process.returncode != 0:
        logger.warning("the trial of the ONNX providers ended with status %d", process.returncode)
        logger.debug("the trial's last words: %s", process.stderr[-2000:])
    return tuple(probes)


def usable_providers() -> list[str]:
    """The providers that a session really runs on here, CPU last."""
    usable = [probe.provider for probe in probe_providers() if probe.reason is None]
    return sorted(usable, key=lambda name: name == CPU)


def log_providers(requested: Sequence[str], using: Sequence[str]) -> None:
    """Logs the three lines that operators look for, and a warning for each requested provider that is not usable."""
    logger.info("ONNX providers requested: %s", list(requested))
    logger.info("ONNX providers available: %s", usable_providers())
    logger.info("ONNX providers using: %s", list(using))
    reasons = {probe.provider: probe.reason for probe in probe_providers()}
    for name in requested:
        if name not in using:
            reason = reasons.get(name, "the installed ONNX Runtime does not have it")
            logger.warning("ONNX provider %s is requested but not usable here: %s", name, reason)


def _try_provider(provider: str) -> str | None:
    try:
        session = Session(_PROBE_NETWORK, providers=[provider])
        session.run(np.ones((1, 1, 2, 2, 2), dtype=np.float32))
    except (ModelInvalid, OutOfMemory) as error:
        return str(error.__cause__)
    if session.providers[0] != provider:
        return f"ONNX Runtime fell back to {session.providers}"
    return None


def _probe_all() -> None:
    import onnxruntime

    installed = [name for name in onnxruntime.get_available_providers() if name != _NEVER_USABLE]
    for provider in sorted(installed, key=lambda name: name != CPU):
        sys.stdout.write(json.dumps({"provider": provider, "reason": _try_provider(provider)}) + "\n")
        sys.stdout.flush()


def _runtime_errors() -> tuple[type[Exception], ...]:
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    return tuple(kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception))


def _is_allocation_failure(error: Exception) -> bool:
    text = str(error).lower()
    return "allocate memory" in text or "bad_alloc" in text or "bad allocation" in text or "out of memory" in text


def _shape(dimensions: Sequence[int | str | None]) -> list[int | None]:
    return [dimension if isinstance(dimension, int) else None for dimension in dimensions]


if __name__ == "__main__":
    _probe_all()
