"""Sessions as the networks of a sliding window."""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from inference_service.core.execution import CPU, ExecutionOptions
from inference_service.engine.model_registry import Model
from inference_service.engine.session import Session
from inference_service.engine.session_cache import load_model
from inference_service.imaging.geometry import Volume
from inference_service.segmentation.loaded_networks import loaded_networks
from inference_service.segmentation.volume_segmentation import segment_volume
from inference_service.segmentation.windows.device_aggregator import DeviceSession
from inference_service.segmentation.windows.network import Batching

MakeModel = Callable[..., Model]

EXECUTION = ExecutionOptions((CPU,), threads=1)


def nearest(sides: Sequence[int | str], batch: int | str = "batch") -> bytes:
    """The logits of labels 0…3 by the nearest value, and a second output with those of the reversed order."""
    weights = np.zeros((4, 1, *[1] * len(sides)), dtype=np.float32)
    weights[:, 0] = np.arange(4).reshape(4, *[1] * len(sides))
    biases = -(np.arange(4, dtype=np.float32) ** 2) / 2
    shape = [batch, 4, *sides]
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w", "b"], ["logits"], kernel_shape=[1] * len(sides)),
            helper.make_node("Gather", ["logits", "reverse"], ["reversed"], axis=1),
        ],
        "nearest",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 1, *sides])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("logits", "reversed")],
        [
            numpy_helper.from_array(weights, "w"),
            numpy_helper.from_array(biases, "b"),
            numpy_helper.from_array(np.arange(4)[::-1].copy(), "reverse"),
        ],
    )
    made = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    return bytes(made.SerializeToString())


def label_scan() -> NDArray[np.float32]:
    return np.random.default_rng(0).integers(0, 4, (7, 6, 8)).astype(np.float32)


def segment(model: Model) -> NDArray[np.unsignedinteger]:
    networks = loaded_networks(load_model(model, EXECUTION), 4)
    return segment_volume([Volume(label_scan(), np.eye(4))], model.manifest, networks, max_voxels=10**6).mask


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("batch", ["batch", 3])
def test_a_network_for_planes_runs_along_its_axis(make_model: MakeModel, axis: int, batch: int | str) -> None:
    window: list[int | None] = [None, None, None]
    window[axis] = 1
    model = make_model(network=nearest(["h", "w"], batch), window=window)
    assert np.array_equal(segment(model), label_scan())


def test_the_output_that_the_manifest_names_gives_the_logits(make_model: MakeModel) -> None:
    content = nearest([5, 4, 3])
    for output, expected in ((None, label_scan()), ("logits", label_scan()), ("reversed", 3 - label_scan())):
        network = {"file": "model.onnx", "sha256": hashlib.sha256(content).hexdigest(), "output": output}
        model = make_model(network=content, sha256=None, networks=[network])
        assert np.array_equal(segment(model), expected)


@pytest.mark.parametrize(("batch", "expected"), [("batch", Batching(4)), (3, Batching(3, may_shrink=False))])
def test_the_batch_size_follows_the_network(make_model: MakeModel, batch: int | str, expected: Batching) -> None:
    loaded = load_model(make_model(batch=batch), EXECUTION)
    assert loaded_networks(loaded, 4)["model.onnx"].batching == expected


@pytest.mark.parametrize("average", ["logits", "probabilities"])
def test_masks_of_a_network_whose_logits_stay_on_its_device_are_equal(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, average: str
) -> None:
    model = make_model(average=average)
    monkeypatch.setattr(Session, "aggregates_on_device", True)
    networks = loaded_networks(load_model(model, EXECUTION), 1)
    assert isinstance(networks["model.onnx"].network, DeviceSession)
    assert np.array_equal(segment(model), label_scan())
