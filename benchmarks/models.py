"""The model folders of the sides that run the service's engine: each case's manifest, and the exported network."""

import hashlib
import shutil
from pathlib import Path

from benchmarks.measurement import CaseName
from benchmarks.networks import UNet
from inference_service.contract.manifest import Manifest
from inference_service.contract.part import NETWORK_FILE
from inference_service.engine.model_registry import MANIFEST_FILE

SPACING_MM = 1.5
# Larger than all scans of the benchmark.
MAX_VOXELS = 10**10
# Intensity statistics as nnU-Net takes them from a data set of CTs.
CT_CLIP = (-1000.0, 1000.0)
CT_MEAN = 0.0
CT_STD = 400.0
SEPARATE_AXIS_ABOVE = 3

_CT = {"kind": "ct", "clip": CT_CLIP, "mean": CT_MEAN, "std": CT_STD}
_ARRAY: dict[str, object] = {
    # MONAI's inferer takes an array as it is.
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
    # nnU-Net's defaults: arrays (z, y, x) of an LPS file, normalised before they are resampled, windows at equal steps.
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
    """Writes the model folder of a case."""
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
