"""Writes `manifest.json`: how the service feeds the network and interprets its output."""

import hashlib
import json

from training.ct_chest.feed import CLIP_HU, INTERPOLATION, MEAN_HU, SPACING_MM, STD_HU, WINDOW
from training.ct_chest.labels import BODY, BONE, LUNG_LEFT, LUNG_RIGHT, NAMES, TRACHEA

NAME = "ct-chest"
VERSION = "1"

_STRUCTURE = {"scheme": "SCT", "value": "123037004", "meaning": "Anatomical Structure"}
_TISSUE = {"scheme": "SCT", "value": "85756007", "meaning": "Tissue"}
CODES = {
    "lung_left": (_STRUCTURE, "44029006", "Left lung"),
    "lung_right": (_STRUCTURE, "3341006", "Right lung"),
    "trachea": (_STRUCTURE, "44567001", "Trachea"),
    "bone": (_TISSUE, "3138006", "Bone"),
}


def manifest_text(network: bytes) -> str:
    """Returns the text of `manifest.json` for the bytes of `model.onnx`."""
    manifest: dict[str, object] = {
        "name": NAME,
        "version": VERSION,
        "description": "Lungs, trachea with main bronchi, bone and the rest of the body on CT of the chest. "
        "A 3-D U-Net trained on synthetic CT alone.",
        "licence": "Apache-2.0",
        "intended_use": "Demonstration and tests of the service on CT of adults that shows the chest or part of it. "
        "Not a medical device, not for clinical use.",
        "modality": "CT",
        "sha256": hashlib.sha256(network).hexdigest(),
        "channels": [{"name": "CT", "intensity": {"kind": "ct", "clip": CLIP_HU, "mean": MEAN_HU, "std": STD_HU}}],
        "orientation": "RAS",
        "spacing_mm": SPACING_MM,
        "interpolation": INTERPOLATION,
        # Padding of -3024 would darken the voxels beside it into lung.
        "intensity_before_resampling": True,
        "window": WINDOW,
        "overlap": 0.5,
        "blending": "gaussian",
        "padding_value": (CLIP_HU[0] - MEAN_HU) / STD_HU,
        "activation": "softmax",
        "labels": [{"name": name, "value": value, **_codes(name)} for value, name in enumerate(NAMES)],
        # Where a scan ends below the carina, the main bronchi are apart: the trachea is not one component.
        "postprocessing": [
            # Air under a blanket may be taken for 5 ml of lung; a base in a scan of the abdomen may be 9 ml. A lung is
            # in two parts around a dome whose top is not scanned, and on either side of padding.
            {
                "step": "remove_small",
                "labels": [LUNG_LEFT, LUNG_RIGHT],
                "min_volume_ml": 7.0,
                "min_share": 0.2,
                "becomes": "surroundings",
            },
            {"step": "remove_small", "labels": [TRACHEA], "min_volume_ml": 0.5, "becomes": "surroundings"},
            {"step": "remove_small", "labels": [BONE], "min_volume_ml": 0.3, "becomes": "surroundings"},
            {"step": "remove_small", "labels": [BODY], "min_volume_ml": 20.0, "becomes": "surroundings"},
        ],
    }
    return json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"


def _codes(label: str) -> dict[str, dict[str, str]]:
    if label not in CODES:
        return {}
    category, value, meaning = CODES[label]
    return {"category": category, "type": {"scheme": "SCT", "value": value, "meaning": meaning}}
