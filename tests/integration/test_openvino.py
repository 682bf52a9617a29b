"""Tests with the real OpenVINO provider; `make test ENGINE=openvino` installs it."""

import hashlib
import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from inference_service.contract.manifest import Manifest
from inference_service.core.execution import CPU, OPENVINO, ExecutionOptions, Precision
from inference_service.core.host import has_bfloat16
from inference_service.core.settings import Settings
from inference_service.engine.model_registry import Model
from inference_service.engine.onnx_file import NetworkContent
from inference_service.engine.providers import probe_providers
from inference_service.engine.session import Session
from inference_service.engine.session_cache import SessionCache, load_model
from inference_service.formats.nifti import write_volume
from inference_service.formats.read_limits import ReadLimits
from inference_service.formats.scan_reader import read_scan
from inference_service.imaging.geometry import Volume
from inference_service.segmentation.model_checks import compare_precisions
from inference_service.segmentation.pipeline import ModelRun, segment_file
from inference_service.segmentation.resources import StageMonitor

pytestmark = pytest.mark.skipif(
    # With ENGINE=openvino a missing provider is a failure.
    OPENVINO not in onnxruntime.get_available_providers() and os.environ.get("ENGINE") != "openvino",
    reason="the extra `openvino` is not installed: make test ENGINE=openvino",
)
needs_bfloat16 = pytest.mark.skipif(not has_bfloat16(), reason="this CPU has no bfloat16: neither AVX512-BF16 nor AMX")

WINDOW = (16, 16, 16)
LABELS = 3


def network(last_operator: str = "Identity", batch: int | str = "batch") -> bytes:
    """Two convolutions with random weights and a normalisation between them, as in a U-Net."""
    random = np.random.default_rng(0)
    first = random.normal(size=(8, 1, 3, 3, 3)).astype(np.float32)
    second = random.normal(size=(LABELS, 8, 3, 3, 3)).astype(np.float32)
    ones = np.ones(8, dtype=np.float32)
    zeros = np.zeros(8, dtype=np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "first"], ["a"], kernel_shape=[3, 3, 3], pads=[1] * 6),
            helper.make_node("InstanceNormalization", ["a", "ones", "zeros"], ["b"]),
            helper.make_node("LeakyRelu", ["b"], ["c"]),
            helper.make_node("Conv", ["c", "second"], ["d"], kernel_shape=[3, 3, 3], pads=[1] * 6),
            helper.make_node(last_operator, ["d"], ["y"]),
        ],
        "convolutions",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 1, *WINDOW])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [
            numpy_helper.from_array(array, name)
            for name, array in {"first": first, "second": second, "ones": ones, "zeros": zeros}.items()
        ],
    )
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    return bytes(model.SerializeToString())


@pytest.fixture(scope="module")
def windows() -> NDArray[np.float32]:
    return np.random.default_rng(1).normal(size=(2, 1, *WINDOW)).astype(np.float32)


@pytest.fixture(params=["batch", 2])
def model(tmp_path: Path, request: pytest.FixtureRequest) -> Model:
    """An installed model with a free and with a fixed batch dimension."""
    folder = tmp_path / "models" / "convolutions" / "1"
    folder.mkdir(parents=True)
    content = network(batch=request.param)
    (folder / "model.onnx").write_bytes(content)
    manifest = Manifest.model_validate(
        {
            "name": "convolutions",
            "version": "1",
            "description": "Labels for tests.",
            "licence": "Apache-2.0",
            "intended_use": "Tests.",
            "modality": "CT",
            "sha256": hashlib.sha256(content).hexdigest(),
            "channels": [{"name": "CT", "intensity": {"kind": "z_score"}}],
            "orientation": "RAS",
            "spacing_mm": (1.5, 1.5, 1.5),
            "window": WINDOW,
            "activation": "softmax",
            "labels": [{"name": f"label {value}", "value": value} for value in range(LABELS)],
            "precisions": ["fp32", "bf16"],
        }
    )
    (folder / "manifest.json").write_text(manifest.model_dump_json())
    return Model(manifest, "0" * 64, folder)


def relative_error(got: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    return float(np.abs(got - expected).max() / np.abs(expected).max())


def test_openvino_is_usable_and_effective() -> None:
    assert [probe.reason for probe in probe_providers() if probe.provider == OPENVINO] == [None]
    assert Settings(onnx_providers=[OPENVINO]).effective_onnx_providers == [OPENVINO, CPU]


def test_a_whole_network_runs_on_openvino_with_the_results_of_the_cpu(windows: NDArray[np.float32]) -> None:
    session = Session(NetworkContent(network()), providers=[OPENVINO, CPU], threads=2)
    assert session.single_provider
    assert session.providers == [OPENVINO, CPU]
    assert relative_error(session.run(windows), Session(NetworkContent(network()), providers=[CPU]).run(windows)) < 1e-4


def test_an_operator_that_openvino_lacks_is_detected(windows: NDArray[np.float32]) -> None:
    session = Session(NetworkContent(network("Det")), providers=[OPENVINO, CPU], threads=1)
    assert not session.single_provider
    assert session.run(windows).shape == (2, LABELS, WINDOW[0])


def test_external_data_are_read_from_memory(windows: NDArray[np.float32]) -> None:
    model = onnx.load_from_string(network())
    held = b""
    for tensor in model.graph.initializer:
        content = tensor.raw_data
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", "weights.bin"), ("offset", str(len(held))), ("length", str(len(content)))):
            tensor.external_data.add(key=key, value=value)
        held += content
    split = NetworkContent(model.SerializeToString(), {"weights.bin": held})
    session = Session(split, providers=[OPENVINO, CPU], threads=2)
    assert session.single_provider
    whole = Session(NetworkContent(network()), providers=[CPU])
    assert relative_error(session.run(windows), whole.run(windows)) < 1e-4


@needs_bfloat16
def test_bf16_results_are_close_to_fp32(windows: NDArray[np.float32]) -> None:
    exact = Session(NetworkContent(network()), providers=[CPU]).run(windows)
    session = Session(NetworkContent(network()), providers=[OPENVINO, CPU], threads=1, precision="bf16")
    assert session.single_provider
    assert 1e-4 < relative_error(session.run(windows), exact) < 5e-2


@needs_bfloat16
def test_compare_precisions_reports_agreement_and_dice(tmp_path: Path, model: Model) -> None:
    voxels = np.random.default_rng(2).integers(-1000, 1000, (40, 30, 50), dtype=np.int16)
    write_volume(tmp_path / "scan.nii.gz", Volume(voxels, np.diag([1.0, 1.0, 2.0, 1.0])))
    settings = Settings(onnx_providers=[OPENVINO], models_path=tmp_path / "models")
    compared = compare_precisions(
        settings, model.manifest.name, None, precision="bf16", source=tmp_path / "scan.nii.gz"
    )
    assert compared["precision"] == "bf16"
    agreement = compared["label_agreement"]
    dice = compared["dice"]
    assert isinstance(agreement, float)
    assert isinstance(dice, dict)
    assert 0.97 < agreement < 1
    assert set(dice) == {"label 0", "label 1", "label 2"}
    assert all(0.9 < value < 1 for value in dice.values())


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=needs_bfloat16)])
def test_a_scan_is_segmented_on_openvino(tmp_path: Path, model: Model, precision: Precision) -> None:
    voxels = np.random.default_rng(2).integers(-1000, 1000, (40, 30, 50), dtype=np.int16)
    write_volume(tmp_path / "scan.nii.gz", Volume(voxels, np.diag([1.0, 1.0, 2.0, 1.0])))
    executions = {
        CPU: ExecutionOptions((CPU,)),
        OPENVINO: ExecutionOptions((OPENVINO, CPU), threads=2, precision=precision, batch_size=2),
    }
    masks = {}
    for name, execution in executions.items():
        target = tmp_path / name
        target.mkdir()
        report = segment_file(
            tmp_path / "scan.nii.gz",
            target,
            ModelRun(model, execution, SessionCache()),
            limits=ReadLimits(10**6),
            monitor=StageMonitor(),
        )
        assert report.providers[0] == name
        assert report.warnings == []
        masks[name] = read_scan(target / "mask.nii.gz", target, ReadLimits(10**6)).volume.voxels
    assert report.precision == precision
    assert load_model(model, executions[OPENVINO]).single_provider
    assert np.mean(masks[CPU] == masks[OPENVINO]) > (0.999 if precision == "fp32" else 0.97)
