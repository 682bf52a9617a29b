"""Describes the networks in ONNX and TorchScript files, as far as the files say what they take and give."""

from pathlib import Path, PurePosixPath

import numpy as np
import onnx

from inference_service.core.errors import ModelInvalid
from inference_service.importers.isolated import Arguments
from inference_service.importers.isolated.builders import build
from inference_service.importers.isolated.export import first_line, run

_DIMENSIONS = {4: 2, 5: 3}
# Characters of the list of labels in the metadata, which may have any size.
_MAX_LABELS = 2**20


def describe(task: Arguments) -> dict[str, object]:
    """Describes a network.

    Args:
        task: `file`, a path; `kind`, onnx or torchscript; and for the latter `input_shape` (channels, *window), if the
            number of its outputs is wanted.

    Returns:
        Of an ONNX file: `inputs` and `outputs`, with the `name`, `type` and `shape` of each; `opset`; `external_data`,
        the names of further files; and `labels`, the text of that name in its metadata. Of a TorchScript file:
        `channels`, `dimensions` and, if they are wanted, `outputs`; None is unknown.

    Raises:
        ModelInvalid: The file is damaged.
    """
    path = Path(str(task["file"]))
    return (
        _describe_torchscript(path, task.get("input_shape")) if task["kind"] == "torchscript" else _describe_onnx(path)
    )


def _describe_onnx(path: Path) -> dict[str, object]:
    try:
        model = onnx.load(str(path), load_external_data=False)
        onnx.checker.check_model(model, full_check=False)
    except Exception as error:
        if isinstance(error, MemoryError):
            raise
        raise ModelInvalid(f"{path.name} is not a valid ONNX file: {first_line(error)}") from error
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = [each for each in model.graph.input if each.name not in stored]
    return {
        "inputs": [_argument(each) for each in inputs],
        "outputs": [_argument(each) for each in model.graph.output],
        "opset": next((each.version for each in model.opset_import if each.domain in ("", "ai.onnx")), None),
        "external_data": sorted(_external_files(model)),
        "labels": next((each.value[:_MAX_LABELS] for each in model.metadata_props if each.key == "labels"), ""),
    }


def _argument(value: onnx.ValueInfoProto) -> dict[str, object]:
    tensor = value.type.tensor_type
    sizes = [size.dim_value if size.HasField("dim_value") and size.dim_value > 0 else None for size in tensor.shape.dim]
    return {"name": value.name, "type": onnx.TensorProto.DataType.Name(tensor.elem_type), "shape": sizes}


def _external_files(model: onnx.ModelProto) -> set[str]:
    """Names of the files that hold tensors, all beside the ONNX file."""
    found = set()
    for tensor in onnx.external_data_helper._get_all_tensors(model):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
        if not location or PurePosixPath(location).name != location:
            raise ModelInvalid("the ONNX file has tensors in a file that does not lie beside it")
        found.add(location)
    return found


def _describe_torchscript(path: Path, input_shape: object) -> dict[str, object]:
    network = build("torchscript", {"file": str(path)})
    # A convolution's weights have the shape (outputs, inputs, *kernel); the first one takes the network's input.
    shapes = [tuple(weights.shape) for weights in network.parameters() if weights.ndim in _DIMENSIONS]
    first = shapes[0] if shapes else ()
    described = {"channels": first[1] if first else None, "dimensions": _DIMENSIONS[len(first)] if first else None}
    if isinstance(input_shape, list):
        described["outputs"] = run(network, np.zeros((1, *input_shape), dtype=np.float32)).shape[1]
    return {**described}
