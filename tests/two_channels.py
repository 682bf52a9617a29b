"""A small model of the channels T1 and FLAIR, whose label is the sum of both values, and scans for it."""

import hashlib
import json
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

NAME = "sums"
CHANNELS = ("T1", "FLAIR")
GRID = np.diag([1.0, 1.5, 2.0, 1.0])
_LABELS = 5
_WINDOW = [5, 4, 3]


def install_model(models: Path, **fields: object) -> Path:
    """Writes the model below a folder of models, with some fields of its manifest replaced; returns the folder."""
    folder = models / NAME / "1"
    folder.mkdir(parents=True)
    values = np.arange(_LABELS, dtype=np.float32)
    # The highest of v · sum - v² / 2 is that of the value v that is nearest to the sum.
    weights = np.broadcast_to(values[:, None, None, None, None], (_LABELS, len(CHANNELS), 1, 1, 1)).copy()
    graph = helper.make_graph(
        [helper.make_node("Conv", ["volume", "weights", "biases"], ["logits"], kernel_shape=[1, 1, 1])],
        "sums",
        [helper.make_tensor_value_info("volume", TensorProto.FLOAT, ["batch", len(CHANNELS), *_WINDOW])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", _LABELS, *_WINDOW])],
        [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(-(values**2) / 2, "biases")],
    )
    network = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString()
    (folder / "model.onnx").write_bytes(network)
    manifest = {
        "name": NAME,
        "version": "1",
        "description": "Sums for tests.",
        "licence": "Apache-2.0",
        "intended_use": "Tests.",
        "modality": "other",
        "sha256": hashlib.sha256(network).hexdigest(),
        "channels": [{"name": name, "intensity": {"kind": "none"}} for name in CHANNELS],
        "orientation": "RAS",
        "spacing_mm": [1.0, 1.5, 2.0],
        "window": _WINDOW,
        "activation": "softmax",
        "labels": [{"name": f"label {value}", "value": value} for value in range(_LABELS)],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest | fields))
    return folder


def values_of(channel: str, shape: tuple[int, int, int] = (8, 7, 6)) -> NDArray[np.int16]:
    """The values of a channel's scan: 0, 1 or 2."""
    return np.random.default_rng(CHANNELS.index(channel)).integers(0, 3, size=shape).astype(np.int16)


def write_scan(path: Path, channel: str, affine: NDArray[np.float64] = GRID) -> Path:
    """Writes the scan of a channel as NIfTI."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values_of(channel), affine), path)
    return path


def expected_mask() -> NDArray[np.int16]:
    """The mask of the two scans on one grid."""
    return values_of("T1") + values_of("FLAIR")


def labels_of(path: Path) -> NDArray[np.generic]:
    """The labels of a mask."""
    return np.asarray(nibabel.Nifti1Image.from_filename(path).dataobj)
