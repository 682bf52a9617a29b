"""The structure of ONNX files: whether they are whole, and whether a part of them lies elsewhere."""

import io
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from inference_service.core.errors import ModelInvalid
from inference_service.core.execution import CPU
from inference_service.engine.model_registry import Model
from inference_service.engine.onnx_file import NetworkContent, check_self_contained, is_truncated
from inference_service.engine.session import Session

INPUT = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
OUTPUT = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])


def inside() -> onnx.TensorProto:
    return numpy_helper.from_array(np.ones(2, np.float32), "w")


def outside() -> onnx.TensorProto:
    """A tensor whose values are those of a file, as ONNX Runtime finds it below the working directory."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "proc/self/environ"), ("length", "8")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def model(graph: onnx.GraphProto, **parts: object) -> onnx.ModelProto:
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)], **parts)


def with_initializer(tensor: onnx.TensorProto) -> onnx.ModelProto:
    node = helper.make_node("Add", ["x", "w"], ["y"])
    return model(helper.make_graph([node], "g", [INPUT], [OUTPUT], [tensor]))


def with_constant(tensor: onnx.TensorProto) -> onnx.ModelProto:
    nodes = [helper.make_node("Constant", [], ["w"], value=tensor), helper.make_node("Add", ["x", "w"], ["y"])]
    return model(helper.make_graph(nodes, "g", [INPUT], [OUTPUT]))


def with_subgraph(tensor: onnx.TensorProto) -> onnx.ModelProto:
    branch = helper.make_graph([helper.make_node("Identity", ["w"], ["b"])], "branch", [], [OUTPUT], [tensor])
    node = helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)
    return model(helper.make_graph([node], "g", [INPUT], [OUTPUT]))


def with_sparse_initializer(tensor: onnx.TensorProto) -> onnx.ModelProto:
    indices = numpy_helper.from_array(np.arange(2), "i")
    sparse = [helper.make_sparse_tensor(tensor, indices, [4])]
    return model(helper.make_graph([], "g", [INPUT], [OUTPUT], sparse_initializer=sparse))


def with_function(tensor: onnx.TensorProto) -> onnx.ModelProto:
    opsets = [helper.make_opsetid("", 17)]
    body = [helper.make_node("Constant", [], ["y"], value=tensor)]
    function = helper.make_function("local", "f", [], ["y"], body, opsets)
    return model(helper.make_graph([], "g", [INPUT], [OUTPUT]), functions=[function])


def with_training(tensor: onnx.TensorProto) -> onnx.ModelProto:
    made = model(helper.make_graph([], "g", [INPUT], [OUTPUT]))
    made.training_info.add().algorithm.initializer.append(tensor)
    return made


PLACES = [with_initializer, with_constant, with_subgraph, with_sparse_initializer, with_function, with_training]


@pytest.mark.parametrize("place", PLACES)
def test_external_data_are_refused_wherever_they_are(place: Callable[[onnx.TensorProto], onnx.ModelProto]) -> None:
    check_self_contained(place(inside()).SerializeToString())
    with pytest.raises(ModelInvalid, match="external data"):
        check_self_contained(place(outside()).SerializeToString())


def test_external_data_are_refused_by_session_and_registry(make_model: Callable[..., Model]) -> None:
    network = with_initializer(outside()).SerializeToString()
    with pytest.raises(ModelInvalid, match="external data"):
        Session(NetworkContent(network), providers=[CPU])
    installed = make_model(network=network)
    with pytest.raises(ModelInvalid, match="external data"):
        installed.read_network(installed.manifest.networks[0])


def stored_in(file: str, **fields: str) -> onnx.TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": file, **fields}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


@pytest.mark.parametrize("place", [with_initializer, with_constant])
@pytest.mark.parametrize("length", [{}, {"offset": "0", "length": "8"}])
def test_listed_external_data_come_from_the_verified_bytes(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: Callable[[onnx.TensorProto], onnx.ModelProto],
    length: dict[str, str],
) -> None:
    """Not from the file of that name below the working directory, which ONNX Runtime would read otherwise."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights.bin").write_bytes(np.array([7, 7], dtype=np.float32).tobytes())
    network = place(stored_in("weights.bin", **length)).SerializeToString()
    given = np.array([1, 2], dtype=np.float32)
    content = NetworkContent(network, {"weights.bin": np.array([10, 20], dtype=np.float32).tobytes()})
    assert Session(content, providers=[CPU]).run(given).tolist() == [11, 22]


@pytest.mark.parametrize("location", ["./weights.bin", "other.bin", "/etc/passwd", "../weights.bin", ""])
@pytest.mark.parametrize("place", PLACES)
def test_unlisted_external_data_are_refused(
    place: Callable[[onnx.TensorProto], onnx.ModelProto], location: str
) -> None:
    check_self_contained(place(stored_in("weights.bin")).SerializeToString(), external={"weights.bin"})
    with pytest.raises(ModelInvalid, match="external data that its manifest does not list"):
        check_self_contained(place(stored_in(location)).SerializeToString(), external={"weights.bin"})
    twice = stored_in("weights.bin")
    twice.external_data.add(key="location", value=location)
    with pytest.raises(ModelInvalid, match="external data that its manifest does not list"):
        check_self_contained(place(twice).SerializeToString(), external={"weights.bin"})


@pytest.mark.parametrize(
    "fields",
    [
        {"offset": "4", "length": "8"}, {"offset": "-8", "length": "8"}, {"offset": "9223372036854775807"},
        {"length": "4"}, {"length": "16"}, {"offset": "x"},
    ],
)  # fmt: skip
def test_external_data_beyond_their_file_are_refused(fields: dict[str, str]) -> None:
    network = with_initializer(stored_in("weights.bin", **fields)).SerializeToString()
    with pytest.raises(ModelInvalid):
        Session(NetworkContent(network, {"weights.bin": bytes(8)}), providers=[CPU])


@pytest.mark.parametrize("mark", ["data_location", "external_data"])
def test_each_mark_of_external_data_is_refused(mark: Literal["data_location", "external_data"]) -> None:
    tensor = outside()
    tensor.ClearField(mark)
    with pytest.raises(ModelInvalid, match="external data"):
        check_self_contained(with_initializer(tensor).SerializeToString())


def test_a_field_number_beyond_32_bits_hides_nothing() -> None:
    """Decoders in C++ keep the lower 32 bits of a field's key."""
    content = with_initializer(outside()).SerializeToString()
    hidden = content.replace(b"\x3a", b"\xba\x80\x80\x80\x10", 1)
    with pytest.raises(ModelInvalid, match="external data"):
        check_self_contained(hidden)


def test_a_compiled_part_is_refused() -> None:
    node = helper.make_node("EPContext", ["x"], ["y"], domain="com.microsoft", embed_mode=0, ep_cache_context="/etc/x")
    with pytest.raises(ModelInvalid, match="EPContext"):
        check_self_contained(model(helper.make_graph([node], "g", [INPUT], [OUTPUT])).SerializeToString())


@pytest.mark.parametrize("content", [b"no ONNX", b"\0", b"\xff" * 20, b"\x3a\x05abc", b"\x18\0\0\0ORTM\0\0\0\0"])
def test_other_files_are_refused(content: bytes) -> None:
    with pytest.raises(ModelInvalid, match="not a valid ONNX file"):
        check_self_contained(content)


@given(st.binary(max_size=60))
def test_any_content_is_checked_without_another_error(content: bytes) -> None:
    is_truncated(io.BytesIO(content), len(content))
    with suppress(ModelInvalid):
        check_self_contained(content)


def test_every_part_of_a_file_is_truncated_and_the_whole_is_not() -> None:
    content = with_initializer(inside()).SerializeToString()
    assert [size for size in range(len(content) + 1) if not is_truncated(io.BytesIO(content[:size]), size)] == [
        len(content)
    ]


def test_a_file_of_endless_small_fields_is_read_only_in_part() -> None:
    content = b"\x08\x08" * 1_000_000
    file = io.BytesIO(content)
    assert is_truncated(file, len(content))
    assert file.tell() < 100_000
