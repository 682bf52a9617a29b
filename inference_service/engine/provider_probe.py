"""Probes the execution providers; `providers` runs it as a separate process. Prints one line for each provider."""

import ctypes
import json
import sys
from base64 import b64decode
from pathlib import Path

import numpy as np
import onnxruntime

from inference_service.core.errors import ServiceError
from inference_service.core.execution import CPU
from inference_service.engine.onnx_file import NetworkContent
from inference_service.engine.providers import RESULT_PREFIX
from inference_service.engine.runtime_errors import short_message
from inference_service.engine.session import Session

# Part of the CPU wheel, but only a stub that calls a remote service.
_NEVER_USABLE = "AzureExecutionProvider"
_LIBRARIES = Path(onnxruntime.__file__).parent / "capi"
# An ONNX graph with one 1×1×1 convolution on (1, 1, 2, 2, 2): small, and it makes CUDA load cuDNN.
_NETWORK = b64decode(
    "CAg6cQoPCgF4CgF3EgF5IgRDb252EgVwcm9iZSoVCAEIAQgBCAEIARABQgF3SgQAAIA/Wh8KAXgSGgoYCAESFAoCCAEKAggBCgIIAgoCCAIKAggC"
    "Yh8KAXkSGgoYCAESFAoCCAEKAggBCgIIAgoCCAIKAggCQgQKABAN"
)


def main() -> None:
    """Probes every provider of the installed ONNX Runtime; the CPU first, because the CPU's probe does not crash."""
    installed = [name for name in onnxruntime.get_available_providers() if name != _NEVER_USABLE]
    for provider in sorted(installed, key=lambda name: name != CPU):
        result = json.dumps({"provider": provider, "reason": _obstacle(provider)})
        sys.stdout.write(f"\n{RESULT_PREFIX}{result}\n")
        sys.stdout.flush()


def _obstacle(provider: str) -> str | None:
    """Returns the reason why a provider is not usable; None if it is usable."""
    try:
        session = Session(NetworkContent(_NETWORK), providers=[provider])
        session.run(np.ones((1, 1, 2, 2, 2), dtype=np.float32))
    except ServiceError as error:
        return short_message(str(error.__cause__))
    if session.providers[0] != provider:
        reason = _load_error(provider) or short_message(session.fallback_reason or "it gives no reason")
        return f"ONNX Runtime fell back to {session.providers}: {reason}"
    return None


def _load_error(provider: str) -> str | None:
    """Returns the dynamic loader's error for a provider's library, such as a missing cuDNN, if any."""
    # ONNX Runtime writes the loader's error to its own log only.
    name = provider.removesuffix("ExecutionProvider").lower()
    library = _LIBRARIES / f"libonnxruntime_providers_{name}.so"
    try:
        if library.exists():
            ctypes.CDLL(str(library))
    except OSError as error:
        return str(error)
    return None


if __name__ == "__main__":
    main()
