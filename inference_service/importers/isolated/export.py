"""Exports a network to ONNX, and keeps what PyTorch computes for random windows."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch

from inference_service.core.errors import ModelInvalid
from inference_service.importers.isolated import Arguments
from inference_service.importers.isolated.builders import build, first_output
from inference_service.importers.isolated.instance_norm import summed_by_axis
from inference_service.importers.isolated.report import tell_progress

# The exporter by TorchScript takes TorchScript files too. It exports a Swin transformer in a tenth of the time that the
# exporter by torch.export takes (20 s and 197 s), with the same error.
OPSET = 18
_INPUT, _OUTPUT = "image", "logits"
_SEED = 20_240_117
# Values from which on float32 sums in one go are too inexact. With exact ones a network takes 5 % more time, and up to
# 20 % with OpenVINO.
_MANY_VALUES = 2**17
# nnU-Net adds logits in half precision, which hides the difference up to windows of so many voxels.
_NNUNET_BUILDERS = frozenset({"mean", "nnunet_network"})
_NNUNET_VOXELS = 2**22
_MAX_ONNX_BYTES = 2**31 - 1
_MAX_TEXT = 300


def export(task: Arguments) -> dict[str, object]:
    """Exports a network.

    Args:
        task: `builder` and `arguments` as in `build`; `input_shape`, (channels, *window); `free_axes`, spatial axes of
            any size; `target`, path of the ONNX file; `windows` and `logits`, paths of arrays that are written: random
            windows and PyTorch's logits of them, (count, channels, *window); `count`; and `float16`, whether the ONNX
            file is converted.

    Returns:
        `opset`, `exporter`, `outputs` (the output channels) and `versions`.

    Raises:
        ModelInvalid: The network fails, or cannot be exported.
    """
    tell_progress("building", 0.0)
    torch.manual_seed(_SEED)
    network = build(str(task["builder"]), cast("Arguments", task["arguments"]))
    shape = [int(size) for size in cast("Sequence[int]", task["input_shape"])]
    free = [int(axis) for axis in cast("Sequence[int]", task["free_axes"])]
    windows = _windows(int(cast("int", task["count"])), shape)
    np.save(str(task["windows"]), windows)
    tell_progress("running PyTorch", 0.1)
    logits = run(network, windows)
    np.save(str(task["logits"]), logits)
    tell_progress("exporting", 0.4)
    target = Path(str(task["target"]))
    hidden = task["builder"] in _NNUNET_BUILDERS and windows[0, 0].size <= _NNUNET_VOXELS
    many = _NNUNET_VOXELS if hidden else _MANY_VALUES
    _export(network, torch.from_numpy(windows[:1]), target, [0, *(axis + 2 for axis in free)], many)
    if target.stat().st_size > _MAX_ONNX_BYTES or len(list(target.parent.glob(f"{target.name}*"))) > 1:
        raise ModelInvalid("the network exceeds 2 GiB, which is the most that an ONNX file holds")
    if task["float16"]:
        tell_progress("converting to float16", 0.9)
        _convert(target)
    tell_progress("exported", 1.0)
    return {
        "opset": OPSET,
        "exporter": "torch.onnx (TorchScript)",
        "outputs": logits.shape[1],
        "versions": {"torch": torch.__version__, **_versions()},
    }


def _windows(count: int, shape: Sequence[int]) -> np.ndarray:
    """Random windows: noise in the first, and in others smooth values of other scales."""
    random = np.random.default_rng(_SEED)
    windows = random.standard_normal((count, *shape), dtype=np.float32)
    for number in range(1, count):
        ramp = np.linspace(-1, 1, shape[-1], dtype=np.float32)
        windows[number] = 0.3 * windows[number] + number * ramp
    return windows


def run(network: torch.nn.Module, windows: np.ndarray) -> np.ndarray:
    """Returns the logits of windows, which run one after the other.

    Raises:
        ModelInvalid: The network fails, or its output has another size than its input.
    """
    found = []
    for window in windows:
        try:
            with torch.inference_mode():
                output = first_output(network(torch.from_numpy(window[np.newaxis])))
        except (RuntimeError, ValueError, TypeError, AssertionError) as error:
            if "memory" in str(error):
                raise
            raise ModelInvalid(
                f"the network fails on a window of shape {list(window.shape)}: {first_line(error)}"
            ) from error
        if not isinstance(output, torch.Tensor) or output.ndim != windows.ndim:
            raise ModelInvalid("the network's first output is not an array with channels and the axes of its input")
        if output.shape[2:] != windows.shape[2:]:
            raise ModelInvalid(
                f"the network's output has the size {list(output.shape[2:])} for a window of {list(windows.shape[2:])}"
            )
        found.append(output.float().numpy()[0])
    logits = np.stack(found)
    if not np.isfinite(logits).all():
        raise ModelInvalid("the network gives values that are not finite")
    return logits


def _export(network: torch.nn.Module, example: torch.Tensor, target: Path, free: Sequence[int], many: int) -> None:
    names = {axis: "batch" if axis == 0 else f"size{axis - 2}" for axis in free}
    try:
        with torch.inference_mode(), summed_by_axis(OPSET, above=many):
            torch.onnx.export(
                network,
                (example,),
                str(target),
                input_names=[_INPUT],
                output_names=[_OUTPUT],
                dynamic_axes={_INPUT: names, _OUTPUT: names},
                opset_version=OPSET,
                dynamo=False,
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        if "memory" in str(error):
            raise
        raise ModelInvalid(f"the network cannot be exported to ONNX: {first_line(error)}") from error


def _convert(path: Path) -> None:
    """Converts the weights, inputs and outputs of an ONNX file to float16, but for operators that need more."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(str(path))), str(path))


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's text, for a sentence; its type where there is none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:_MAX_TEXT]


def _versions() -> Mapping[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("monai", "nnunetv2", "onnx"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
