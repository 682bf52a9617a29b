"""The model folders of the sides that run the service's engine: each case's manifest, and the exported network."""

import hashlib
import shutil
from pathlib import Path

from benchmarks.measurement import CaseName
from benchmarks.networks import UNet
from inference_service.contract.manifest import MANIFEST_FILE, Manifest
from inference_service.contract.part import NETWORK_FILE

SPACING_MM = 1.5
# Larger than all scans of the benchmark.
MAX_VOXELS = 10**10
# Intensity statistics as nnU-Net takes them from a data set of CTs.
CT_CLIP = (-1000.0, 1000.0)
CT_MEAN = 0.0
CT_STD = 400.0
SEPARATE_AXIS_ABOVE = 3
# As TotalSegmentator has them.
_PARTS = 5

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


def write_parts(folder: Path, unet: UNet, onnx: Path) -> None:
    """Writes the model of the case of several parts: each a network of its own, with labels of its own."""
    folder.mkdir(parents=True)
    sha256 = hashlib.sha256(onnx.read_bytes()).hexdigest()
    parts: list[dict[str, object]] = []
    for number in range(_PARTS):
        name = f"part_{number + 1}.onnx"
        shutil.copyfile(onnx, folder / name)
        parts.append({"networks": [{"file": name, "sha256": sha256}], "outputs": _part_outputs(number, unet)})
    values = range(1 + _PARTS * (unet.labels - 1))
    fields = {"parts": parts, "labels": [{"name": f"label {value}", "value": value} for value in values]}
    manifest = Manifest.model_validate(_common("parts", unet) | _JOB | fields)
    (folder / MANIFEST_FILE).write_text(manifest.model_dump_json(indent=2), encoding="utf-8")


def _part_outputs(number: int, unet: UNet) -> list[dict[str, int]]:
    """The labels of a part: the background, and those that follow the labels of the parts before."""
    first = number * (unet.labels - 1)
    return [{"channel": channel, "value": first + channel if channel else 0} for channel in range(unet.labels)]


def case_manifest(case: CaseName, unet: UNet, sha256: str) -> Manifest:
    """The manifest of a case's model."""
    labels = [{"name": f"label {value}", "value": value} for value in range(unet.labels)]
    return Manifest.model_validate(_common(case, unet) | _BY_CASE[case] | {"sha256": sha256, "labels": labels})


def _common(name: str, unet: UNet) -> dict[str, object]:
    return {
        "name": name,
        "version": "1",
        "description": "A U-Net with weights of a fixed seed.",
        "licence": "Apache-2.0",
        "intended_use": "Benchmarks.",
        "modality": "CT",
        "spacing_mm": (SPACING_MM,) * 3,
        "window": (unet.window,) * 3,
        "overlap": 0.5,
        "blending": "gaussian",
        "activation": "softmax",
        "precisions": ["fp32", "bf16"],
    }
