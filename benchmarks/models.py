"""The model folders of our sides: each case's manifest, and the network's exported file."""

import hashlib
import shutil
from pathlib import Path

from benchmarks.measurement import CaseName
from benchmarks.networks import UNet
from inference_service.contract.manifest import Manifest
from inference_service.engine.model_registry import MANIFEST_FILE, NETWORK_FILE

SPACING_MM = 1.5
# No scan here is too large.
MAX_VOXELS = 10**10
# A fingerprint such as nnU-Net takes from a data set of CTs.
CT_CLIP, CT_MEAN, CT_STD = (-1000.0, 1000.0), 0.0, 400.0
SEPARATE_AXIS_ABOVE = 3

_CT = {"kind": "ct", "clip": CT_CLIP, "mean": CT_MEAN, "std": CT_STD}
_ARRAY: dict[str, object] = {
    # As MONAI's inferer sees its input: an array, nothing done to it.
    "channels": [{"name": "noise", "intensity": {"kind": "none"}}],
    "orientation": "RAS",
    "placement": "snap",
}
_JOB: dict[str, object] = {"channels": [{"name": "CT", "intensity": _CT}], "orientation": "RAS", "placement": "snap"}
_BY_CASE: dict[CaseName, dict[str, object]] = {
    "sliding-window": _ARRAY,
    "gpu-agreement": _ARRAY,
    "gpu-window": _ARRAY,
    "gpu-window-31m": _ARRAY,
    "job": _JOB,
    "growth": _JOB,
    "gpu-job": _JOB,
    "gpu-queue": _JOB,
    # As nnU-Net reads and prepares by default: arrays z, y, x of an LPS file; normalised, then resampled; equal steps.
    "nnunet": {
        "channels": [{"name": "CT", "intensity": _CT}],
        "orientation": "SPL",
        "placement": "even",
        "interpolation": "cubic",
        "separate_axis_above": SEPARATE_AXIS_ABOVE,
        "intensity_before_resampling": True,
    },
}


def write_model(folder: Path, case: CaseName, unet: UNet, onnx: Path) -> None:
    """Writes the model that our sides of a case run."""
    folder.mkdir(parents=True)
    shutil.copyfile(onnx, folder / NETWORK_FILE)
    manifest = case_manifest(case, unet, hashlib.sha256(onnx.read_bytes()).hexdigest())
    (folder / MANIFEST_FILE).write_text(manifest.model_dump_json(indent=2), encoding="utf-8")


def case_manifest(case: CaseName, unet: UNet, sha256: str) -> Manifest:
    """The manifest of a case's model."""
    common: dict[str, object] = {
        "name": case,
        "version": "1",
        "description": "A U-Net with weights of a fixed seed.",
        "licence": "Apache-2.0",
        "intended_use": "Benchmarks.",
        "modality": "CT",
        "sha256": sha256,
        "spacing_mm": (SPACING_MM,) * 3,
        "window": (unet.window,) * 3,
        "overlap": 0.5,
        "blending": "gaussian",
        "activation": "softmax",
        "labels": [{"name": f"label {value}", "value": value} for value in range(unet.labels)],
        "precisions": ["fp32", "bf16"],
    }
    return Manifest.model_validate(common | _BY_CASE[case])
