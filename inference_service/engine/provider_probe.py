"""The trial of the execution providers, run by `providers` as a process of its own: one line for each result."""

import ctypes
import json
import sys
from base64 import b64decode
from pathlib import Path

import numpy as np
import onnxruntime

from inference_service.core.errors import ServiceError
from inference_service.core.execution import CPU
from inference_service.engine.providers import RESULT_MARK
from inference_service.engine.runtime_errors import gist
from inference_service.engine.session import Session

# Compiled into the CPU wheel, but only a stub for calls to a remote service.
_NEVER_USABLE = "AzureExecutionProvider"
_LIBRARIES = Path(onnxruntime.__file__).parent / "capi"
# An ONNX graph of one 1×1×1 convolution on (1, 1, 2, 2, 2): small, yet it makes CUDA load cuDNN too.
_NETWORK = b64decode(
    "CAg6cQoPCgF4CgF3EgF5IgRDb252EgVwcm9iZSoVCAEIAQgBCAEIARABQgF3SgQAAIA/Wh8KAXgSGgoYCAESFAoCCAEKAggBCgIIAgoCCAIKAggC"
    "Yh8KAXkSGgoYCAESFAoCCAEKAggBCgIIAgoCCAIKAggCQgQKABAN"
)


def main() -> None:
    """Tries every provider of the installed ONNX Runtime, the CPU first, as it is sure not to crash."""
    installed = [name for name in onnxruntime.get_available_providers() if name != _NEVER_USABLE]
    for provider in sorted(installed, key=lambda name: name != CPU):
        result = json.dumps({"provider": provider, "reason": _try(provider)})
        sys.stdout.write(f"\n{RESULT_MARK}{result}\n")
        sys.stdout.flush()


def _try(provider: str) -> str | None:
    """Gives the reason why the provider cannot be used, None where it can."""
    try:
        session = Session(_NETWORK, providers=[provider])
        session.run(np.ones((1, 1, 2, 2, 2), dtype=np.float32))
    except ServiceError as error:
        return gist(str(error.__cause__))
    if session.providers[0] != provider:
        reason = _why_not_loaded(provider) or gist(session.refusal or "it does not say why")
        return f"ONNX Runtime fell back to {session.providers}: {reason}"
    return None


def _why_not_loaded(provider: str) -> str | None:
    """What the loader misses of a provider's library, such as cuDNN, which ONNX Runtime tells its log alone."""
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
