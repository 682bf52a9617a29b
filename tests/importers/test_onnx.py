"""ONNX files as other tools write them: old opsets, fixed batches, float16, planes and several outputs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from inference_service.core.errors import ModelInvalid
from inference_service.core.settings import Settings
from inference_service.importers.model_import import Imported
from inference_service.segmentation.local_run import segment_locally

Import = Callable[..., Imported]
LABELS = [{"name": "background", "value": 0}, {"name": "bright", "value": 1}]
CONFIG: dict[str, Any] = {"labels": LABELS, "overlap": 0.25}


def write_threshold(
    path: Path,
    *,
    opset: int = 11,
    batch: int | str = "batch",
    size: tuple[int | str, ...] = (8, 8, 8),
    dtype: type[np.floating[Any]] = np.float32,
    first_output: bool = False,
) -> Path:
    """Writes a network whose logits are 0 and the value of the voxel minus 0.5, and another output if asked for."""
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    kernel = (1,) * len(size)
    weights = [
        onnx.numpy_helper.from_array(np.array([0, 1], dtype=dtype).reshape(2, 1, *kernel), "weight"),
        onnx.numpy_helper.from_array(np.array([0, -0.5], dtype=dtype), "bias"),
    ]
    nodes = [onnx.helper.make_node("Conv", ["image", "weight", "bias"], ["logits"])]
    outputs = [onnx.helper.make_tensor_value_info("logits", kind, [batch, 2, *size])]
    if first_output:
        nodes.append(onnx.helper.make_node("Neg", ["image"], ["features"]))
        outputs.insert(0, onnx.helper.make_tensor_value_info("features", kind, [batch, 1, *size]))
    image = onnx.helper.make_tensor_value_info("image", kind, [batch, 1, *size])
    graph = onnx.helper.make_graph(nodes, "threshold", [image], outputs, weights)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=6)
    onnx.save(model, str(path))
    return path


def run(imported: Imported, folder: Path) -> tuple[NDArray[np.generic], NDArray[np.float32]]:
    """Segments noise; returns the mask and the noise."""
    values = np.random.default_rng(0).random((11, 9, 13), dtype=np.float32)
    scan, target = folder / "scan.nii.gz", folder / "mask.nii.gz"
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), scan)
    settings = Settings(models_path=imported.folder.parent.parent, onnx_providers=["CPUExecutionProvider"])
    segment_locally(scan, target, settings, model="test", version=None, progress=lambda stage, share: None)
    return np.asarray(nibabel.nifti1.load(target).dataobj), values


@pytest.mark.parametrize(
    ("network", "config"),
    [
        ({}, {}),
        ({"opset": 9, "batch": 1}, {}),
        ({"batch": 3}, {}),
        ({"dtype": np.float16}, {}),
        ({"size": ("d", "h", "w")}, {}),
        ({"size": (8, "h", "w")}, {}),
        ({"size": (8, 8)}, {"window": [8, 1, 8]}),
        ({"size": ("h", "w"), "dtype": np.float16, "batch": 2}, {"window": [16, 16, 1]}),
        ({"first_output": True}, {"output": "logits"}),
    ],
)
def test_an_onnx_file_segments_as_its_graph_says(
    run_import: Import, tmp_path: Path, network: dict[str, Any], config: dict[str, Any]
) -> None:
    path = tmp_path / "short.json"
    path.write_text(json.dumps(CONFIG | config))
    imported = run_import(write_threshold(tmp_path / "network.onnx", **network), config=path)
    mask, values = run(imported, tmp_path)
    certain = np.abs(values - 0.5) > 1e-3
    assert np.array_equal(mask[certain], (values > 0.5)[certain])


def test_the_output_with_the_logits_is_named(run_import: Import, tmp_path: Path) -> None:
    source = write_threshold(tmp_path / "network.onnx", first_output=True)
    path = tmp_path / "short.json"
    path.write_text(json.dumps({"output": "masks"}))
    with pytest.raises(ModelInvalid, match="no output 'masks'; it has features, logits"):
        run_import(source, config=path)
    path.write_text(json.dumps({"output": "logits"}))
    imported = run_import(source, config=path)
    assert imported.manifest.networks[0].output == "logits"
    assert [label.name for label in imported.manifest.labels] == ["background", "label 1"]
