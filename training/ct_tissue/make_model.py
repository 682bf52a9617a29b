"""Writes `model.onnx` and `manifest.json` of ct-tissue: `python -m training.ct_tissue.make_model`.

The network is a smoothing and five thresholds; its weights are computed here, not trained, and each
run writes the same bytes.
"""

import hashlib
import json
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, checker, helper, numpy_helper

NAME = "ct-tissue"
VERSION = "1"
FOLDER = Path(__file__).parents[2] / "models" / NAME / VERSION
LABELS = ("background", "air", "lung", "fat", "soft_tissue", "bone")
# Category and type of each label but the background, in SNOMED CT as by DICOM PS3.16 CID 7150, 7155 and 7166.
_SUBSTANCE = ("105590001", "Substance")
_STRUCTURE = ("123037004", "Anatomical Structure")
_TISSUE = ("85756007", "Tissue")
CODES = {
    "air": (_SUBSTANCE, ("15158005", "Air")),
    "lung": (_STRUCTURE, ("39607008", "Lung")),
    "fat": (_TISSUE, ("55603005", "Fat")),
    "soft_tissue": (_TISSUE, ("87784001", "Soft tissue")),
    "bone": (_TISSUE, ("3138006", "Bone")),
}
# Where label c - 1 ends and label c begins; the model's card gives the reasons.
THRESHOLDS_HU = (-1150, -940, -350, -25, 180)
WINDOW = (128, 128, 96)
SPACING_MM = (1.5, 1.5, 1.5)
AIR_HU = -1000.0

# Powers of two, so that bfloat16 and TF32 hold the weights exactly; the offset and the slopes around 0 keep the leading
# logits within ±3 between the first threshold and the last, where rounding would move a boundary.
LOGIT_HU = 128
OFFSET_HU = 2560

# Old enough for ONNX Runtime 1.18 and for the TensorRT and OpenVINO releases of its time.
OPSET = 17
IR_VERSION = 8


def smoothing_kernel() -> NDArray[np.float32]:
    """The binomial kernel [1 2 1]³ / 64, shape (1, 1, 3, 3, 3): it leaves 0.23 of white noise's standard deviation."""
    line = np.array([1, 2, 1], np.float32)
    cube = np.multiply.outer(np.multiply.outer(line, line), line) / 64
    return cube.reshape(1, 1, 3, 3, 3).astype(np.float32)


def logit_weights() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Slope and bias of each label's logit, a line over x HU, such that the highest line changes at the thresholds.

    l_c(x) = ((c - 2.5)·x - Σ_{i≤c} t_i - OFFSET_HU) / LOGIT_HU, so l_c - l_{c-1} = (x - t_c) / LOGIT_HU.

    Returns:
        Weights of shape (labels, 1, 1, 1, 1) and biases of shape (labels,).
    """
    middle = (len(LABELS) - 1) / 2
    slopes = np.arange(len(LABELS)) - middle
    sums = np.array(list(accumulate(THRESHOLDS_HU, initial=0)))
    weights = (slopes / LOGIT_HU).reshape(-1, 1, 1, 1, 1)
    biases = -(sums + OFFSET_HU) / LOGIT_HU
    return weights.astype(np.float32), biases.astype(np.float32)


def make_network() -> ModelProto:
    """Builds the network: volume (batch, 1, *WINDOW), HU, to logits (batch, labels, *WINDOW)."""
    weights, biases = logit_weights()
    constants: dict[str, NDArray[np.float32 | np.int64]] = {
        "margins": np.array([0, 0, 1, 1, 1] * 2, np.int64),
        "kernel": smoothing_kernel(),
        "weights": weights,
        "biases": biases,
    }
    nodes = [
        # Repeating the border keeps a window's edge in its tissue, where zeros would pull it towards water.
        helper.make_node("Pad", ["volume", "margins"], ["padded"], name="pad", mode="edge"),
        helper.make_node("Conv", ["padded", "kernel"], ["smoothed"], name="smooth", kernel_shape=[3, 3, 3]),
        helper.make_node("Conv", ["smoothed", "weights", "biases"], ["logits"], name="lines", kernel_shape=[1, 1, 1]),
    ]
    graph = helper.make_graph(
        nodes,
        NAME,
        [helper.make_tensor_value_info("volume", TensorProto.FLOAT, ["batch", 1, *WINDOW])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(LABELS), *WINDOW])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    network = helper.make_model(
        graph,
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET)],
        producer_name=f"{NAME}/make_model.py",
        producer_version=VERSION,
    )
    checker.check_model(network, full_check=True)
    return network


def codes(label: str) -> dict[str, dict[str, str]]:
    """The DICOM codes of a label in the manifest; none for the background."""
    return {
        field: {"scheme": "SCT", "value": value, "meaning": meaning}
        for field, (value, meaning) in zip(("category", "type"), CODES.get(label, ()), strict=False)
    }


def network_bytes() -> bytes:
    """The content of `model.onnx`."""
    network: bytes = make_network().SerializeToString(deterministic=True)
    return network


def manifest_text(network: bytes) -> str:
    """The content of `manifest.json` for this network."""
    manifest: dict[str, object] = {
        "name": NAME,
        "version": VERSION,
        "description": "Air, lung, fat, soft tissue and bone by smoothed CT number. Five thresholds, not trained.",
        "licence": "Apache-2.0",
        "intended_use": "Demonstration and tests of the service, on CT without contrast. Not a medical device.",
        "modality": "CT",
        "sha256": hashlib.sha256(network).hexdigest(),
        "channels": [{"name": "CT", "intensity": {"kind": "none"}}],
        "orientation": "RAS",
        "spacing_mm": SPACING_MM,
        "window": WINDOW,
        "overlap": 0.25,
        "blending": "gaussian",
        "padding_value": AIR_HU,
        "activation": "softmax",
        "labels": [{"name": name, "value": value, **codes(name)} for value, name in enumerate(LABELS)],
    }
    return json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"


def main() -> None:
    """Writes both files."""
    network = network_bytes()
    (FOLDER / "model.onnx").write_bytes(network)
    (FOLDER / "manifest.json").write_text(manifest_text(network), encoding="utf-8")


if __name__ == "__main__":
    main()
