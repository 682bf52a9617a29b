"""Normalisation in exported networks: exact where it adds up many equal values."""

import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from inference_service.importers.isolated.instance_norm import summed_by_axis

OPSET = 18


def export(network: torch.nn.Module, image: torch.Tensor, path: Path, *, above: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch calls the exporter by TorchScript deprecated
        with summed_by_axis(OPSET, above=above):
            torch.onnx.export(network, (image,), str(path), input_names=["image"], opset_version=OPSET, dynamo=False)


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (torch.nn.GroupNorm(2, 4), (1, 4, 40, 48, 44)),
        (torch.nn.GroupNorm(2, 4, affine=False), (2, 4, 6, 5, 7)),
        (torch.nn.InstanceNorm3d(4, affine=True), (1, 4, 40, 48, 44)),
        (torch.nn.InstanceNorm3d(4), (2, 4, 6, 5, 7)),
        (torch.nn.GroupNorm(3, 6), (2, 6, 9, 8)),
    ],
    ids=["groups", "groups-plain", "instances", "instances-plain", "groups-of-planes"],
)
def test_sums_of_many_equal_values_are_exact(network: torch.nn.Module, shape: tuple[int, ...], tmp_path: Path) -> None:
    torch.manual_seed(5)
    for parameter in network.parameters():
        torch.nn.init.uniform_(parameter, 0.5, 1.5)
    image = torch.full(shape, 3.3)
    image[..., : shape[-1] // 4] += torch.rand(*shape[:-1], shape[-1] // 4)
    path = tmp_path / "model.onnx"
    export(network.eval(), image, path, above=10)
    found = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(
        None, {"image": image.numpy()}
    )
    with torch.inference_mode():
        exact = network.double()(image.double()).numpy()
    assert float(np.abs(found[0] - exact).max()) <= 2e-6 * float(np.ptp(exact))


def test_few_values_are_left_to_the_operator_of_onnx_runtime(tmp_path: Path) -> None:
    network = torch.nn.Sequential(torch.nn.GroupNorm(2, 4), torch.nn.InstanceNorm3d(4)).eval()
    for above, operators in ((2 * 6**3, 2), (6**3, 1), (6**3 - 1, 0)):
        export(network, torch.zeros(1, 4, 6, 6, 6), tmp_path / "model.onnx", above=above)
        kinds = [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node]
        assert kinds.count("InstanceNormalization") == operators
