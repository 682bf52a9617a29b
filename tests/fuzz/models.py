"""Targets that read models: manifests, the structure of ONNX files, networks loaded by ONNX Runtime."""

import json
from collections.abc import Iterator

import onnx
from manifests import VALID_MANIFEST
from onnx import TensorProto, helper

from fuzz.target import Target, scratch_folder
from inference_service.contract.manifest import MANIFEST_FILE
from inference_service.core.errors import ModelInvalid
from inference_service.core.execution import CPU
from inference_service.engine.model_registry import read_model
from inference_service.engine.onnx_file import NetworkContent, check_self_contained
from inference_service.engine.session import Session

_ALL_FIELDS = {
    **VALID_MANIFEST,
    "channels": [{"name": "CT", "intensity": {"kind": "ct", "clip": [-1000, 400], "mean": 0.5, "std": 2}}],
    "crop": {"kind": "body", "threshold": -400, "margin_mm": 5},
    "mirror_axes": [0, 2],
    "precisions": ["fp32", "bf16"],
    "postprocessing": [{"step": "remove_small", "labels": [1], "min_volume_ml": 0.5, "becomes": "surroundings"}],
}


def _read_manifest(data: bytes) -> None:
    folder = scratch_folder() / "ct-lung" / "1"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST_FILE).write_bytes(data)
    read_model(folder)


def _manifest_seeds() -> list[bytes]:
    return [json.dumps(manifest).encode() for manifest in (VALID_MANIFEST, _ALL_FIELDS)]


def _check_network(data: bytes) -> None:
    """Checks a network's structure. What is accepted has no part elsewhere, by the parser of the package onnx."""
    check_self_contained(data)
    try:
        model = onnx.load_model_from_string(data)
    except Exception:  # a damaged file: the parser raises errors of many kinds
        raise ModelInvalid("the reference parser refuses the network") from None
    assert not any(_is_elsewhere(tensor) for tensor in _tensors(model)), "a tensor with external data was accepted"
    assert "EPContext" not in {node.op_type for node in _nodes(model)}, "a compiled part was accepted"


def _is_elsewhere(tensor: TensorProto) -> bool:
    return bool(tensor.external_data) or tensor.data_location == TensorProto.EXTERNAL


def _messages(message: object) -> Iterator[object]:
    """A protocol buffer and all messages within it."""
    yield message
    for field, value in message.ListFields():  # type: ignore[attr-defined]
        if field.message_type is not None:
            for each in value if field.is_repeated else [value]:
                yield from _messages(each)


def _tensors(model: onnx.ModelProto) -> Iterator[TensorProto]:
    return (each for each in _messages(model) if isinstance(each, TensorProto))


def _nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    return (each for each in _messages(model) if isinstance(each, onnx.NodeProto))


def _network(*, external: bool = False, op: str = "Conv") -> onnx.ModelProto:
    weights = helper.make_tensor("w", TensorProto.FLOAT, [2, 1, 1, 1, 1], [1.0, -1.0])
    if external:
        weights.ClearField("float_data")
        weights.data_location = TensorProto.EXTERNAL
        weights.external_data.add(key="location", value="weights.bin")
    volume = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 2, 2, 2])
    logits = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2, 2, 2, 2])
    graph = helper.make_graph([helper.make_node(op, ["x", "w"], ["y"])], "g", [volume], [logits], [weights])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def _network_seeds() -> list[bytes]:
    models = [_network(), _network(external=True), _network(op="EPContext")]
    return [model.SerializeToString() for model in models]


def _load_network(data: bytes) -> None:
    session = Session(NetworkContent(data), providers=[CPU], threads=1)
    assert session.input_shapes


TARGETS = (
    Target("manifest", _read_manifest, _manifest_seeds),
    Target("onnx", _check_network, _network_seeds),
    Target("network", _load_network, _network_seeds),
)
