"""Loads an exported or copied network into ONNX Runtime, in place of the process that imports."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inference_service.core.errors import ModelInvalid
from inference_service.core.execution import CPU, ExecutionOptions
from inference_service.core.host import usable_cpus
from inference_service.engine.model_registry import read_model
from inference_service.engine.onnx_file import NetworkContent
from inference_service.engine.session import RUNTIME_VERSION, Session
from inference_service.engine.session_cache import load_model
from inference_service.importers.isolated import Arguments


def check_model(task: Arguments) -> dict[str, object]:
    """Loads the networks of a model as a worker would, on the CPU.

    Args:
        task: `folder`, that of the version.

    Raises:
        ModelInvalid: A network does not load, or is another one than the manifest describes.
    """
    load_model(read_model(Path(str(task["folder"]))), ExecutionOptions((CPU,), usable_cpus()))
    return {}


def measure(task: Arguments) -> dict[str, object]:
    """Measures how far ONNX Runtime's logits are from PyTorch's.

    Args:
        task: `file`, the path of an ONNX file; `windows` and `logits`, paths of arrays as in `export`.

    Returns:
        `error`, as in `measure_error`, and `onnxruntime`, its version.
    """
    windows, logits = np.load(str(task["windows"])), np.load(str(task["logits"]))
    return {"error": measure_error(Path(str(task["file"])), windows, logits), "onnxruntime": RUNTIME_VERSION}


def measure_error(file: Path, windows: NDArray[np.float32], logits: NDArray[np.float32]) -> float:
    """Measures how far ONNX Runtime's logits are from given ones.

    Args:
        file: The ONNX file.
        windows: Shape (count, channels, *window).
        logits: Shape (count, labels, *window).

    Returns:
        The largest difference as a share of the range of the given logits.

    Raises:
        ModelInvalid: ONNX Runtime's logits have another shape, or are not finite.
    """
    session = Session(NetworkContent(file.read_bytes()), providers=[CPU], threads=usable_cpus())
    # All windows at once where the batch is free, so that this is tried too.
    step = session.fixed_batch_size or len(windows)
    largest = 0.0
    for start in range(0, len(windows), step):
        computed = session.run(windows[start : start + step])
        expected = logits[start : start + step]
        if computed.shape != expected.shape:
            raise ModelInvalid(f"ONNX Runtime gives logits of shape {computed.shape}, PyTorch of {expected.shape}")
        if not np.isfinite(computed).all():
            # A maximum would skip them.
            raise ModelInvalid("ONNX Runtime gives values that are not finite for random windows")
        largest = max(largest, float(np.abs(computed - expected).max()))
    spread = float(logits.max() - logits.min())
    return largest / spread if spread > 0 else largest
