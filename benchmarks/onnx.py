"""ONNX Runtime alone, without the service's engine."""

import json
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks.measurement import Precision, Provider

PROVIDERS: dict[Provider, str] = {
    "cpu": "CPUExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "cuda": "CUDAExecutionProvider",
}
_OPENVINO_PRECISIONS: dict[Precision, str] = {"fp32": "f32", "bf16": "bf16"}


class Forward(Protocol):
    """A network on one window: returns logits (1, labels, *window) of a window (1, 1, *window)."""

    def __call__(self, window: NDArray[np.float32]) -> NDArray[np.float32]: ...


def load_forward(onnx: Path, provider: Provider, precision: Precision, threads: int) -> Forward:
    """Loads a network.

    Raises:
        RuntimeError: The network does not run on the provider.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    name = PROVIDERS[provider]
    session = onnxruntime.InferenceSession(onnx, options, providers=[(name, _options(provider, precision, threads))])
    if session.get_providers()[0] != name:
        raise RuntimeError(f"expected the network on {name}, got {session.get_providers()}")
    image = session.get_inputs()[0].name

    def forward(window: NDArray[np.float32]) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = session.run(None, {image: np.ascontiguousarray(window)})[0]
        return logits

    return forward


def _options(provider: Provider, precision: Precision, threads: int) -> dict[str, str]:
    if provider != "openvino":
        return {}
    config = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": _OPENVINO_PRECISIONS[precision]}
    return {"device_type": "CPU", "load_config": json.dumps({"CPU": config})}
