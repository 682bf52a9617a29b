"""Fixtures shared by the unit tests."""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import settings
from nibabel.orientations import axcodes2ornt
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from scipy.spatial.transform import Rotation

from inference_service.contract.manifest import Manifest
from inference_service.engine.model_registry import Model

# Every machine runs the same examples, without a deadline that a slow one could exceed.
settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("repeatable")

# Less than 45° in total, so that the nearest orientation is unambiguous.
_OBLIQUE_DEGREES = (8, -11, 14)
MODEL_WINDOW = (5, 4, 3)


@pytest.fixture(scope="session")
def make_manifest() -> Callable[..., Manifest]:
    """Builds a manifest with some fields replaced; `values` are the values of its labels."""

    def make(*, values: Sequence[int] = (0, 1, 2, 3), **fields: object) -> Manifest:
        plain = {
            "name": "test",
            "version": "1",
            "description": "Labels for tests.",
            "licence": "Apache-2.0",
            "intended_use": "Tests.",
            "modality": "other",
            "sha256": "0" * 64,
            "channels": [{"name": "CT", "intensity": {"kind": "none"}}],
            "orientation": "RAS",
            "spacing_mm": (1.0, 1.0, 1.0),
            "window": (5, 4, 3),
            "activation": "softmax",
            "labels": [{"name": f"label {value}", "value": value} for value in values],
        }
        return Manifest.model_validate(plain | fields)

    return make


@pytest.fixture(scope="session")
def oblique_affine() -> Callable[[str, Sequence[float]], NDArray[np.float64]]:
    """Builds the affine of a rotated grid from its orientation and the spacing of its axes, in mm."""

    def make(orientation: str, spacing_mm: Sequence[float]) -> NDArray[np.float64]:
        directions = np.zeros((3, 3))
        for axis, (world_axis, sign) in enumerate(axcodes2ornt(orientation)):
            directions[int(world_axis), axis] = sign
        affine = np.eye(4)
        affine[:3, :3] = Rotation.from_euler("xyz", _OBLIQUE_DEGREES, degrees=True).as_matrix() @ directions
        affine[:3, :3] *= spacing_mm
        affine[:3, 3] = -91.5, 40.25, 700.125
        return affine

    return make


@pytest.fixture(scope="session")
def make_model(
    tmp_path_factory: pytest.TempPathFactory, make_manifest: Callable[..., Manifest]
) -> Callable[..., Model]:
    """Installs a model with a given network, or a convolution of one voxel; its label is the nearest of 0…3."""

    def make(
        *,
        input_channels: int = 1,
        labels: int = 4,
        batch: int | str = "batch",
        network: bytes | None = None,
        **fields: object,
    ) -> Model:
        values = np.arange(labels, dtype=np.float32)
        weights = np.zeros((labels, input_channels, 1, 1, 1), dtype=np.float32)
        weights[:, 0, 0, 0, 0] = values
        graph = helper.make_graph(
            [helper.make_node("Conv", ["volume", "weights", "biases"], ["logits"], kernel_shape=[1, 1, 1])],
            "nearest",
            [helper.make_tensor_value_info("volume", TensorProto.FLOAT, [batch, input_channels, *MODEL_WINDOW])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, labels, *MODEL_WINDOW])],
            [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(-(values**2) / 2, "biases")],
        )
        made = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
        content = bytes(made.SerializeToString()) if network is None else network
        folder = tmp_path_factory.mktemp("model")
        (folder / "model.onnx").write_bytes(content)
        sha256 = hashlib.sha256(content).hexdigest()
        return Model(make_manifest(**{"sha256": sha256, "window": MODEL_WINDOW, **fields}), "0" * 64, folder)

    return make
