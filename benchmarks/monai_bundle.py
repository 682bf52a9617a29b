"""MONAI bundles: their configs, and one with random weights for DynUNet, which has the layers of PlainConvUNet."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.models import CT_CLIP, SPACING_MM
from benchmarks.networks import SEED, UNet


def write_monai_bundle(folder: Path, unet: UNet) -> None:
    """Writes a bundle with random weights."""
    import torch
    from monai.networks.nets import DynUNet

    network = _network(unet)
    torch.manual_seed(SEED)
    weights = DynUNet(**{name: value for name, value in network.items() if name != "_target_"}).state_dict()
    inferer = {"roi_size": [unet.window] * 3, "sw_batch_size": 1, "overlap": 0.5, "mode": "gaussian"}
    labels = [f"label {value}" if value else "background" for value in range(unet.labels)]
    config = inference_config(network, SPACING_MM, (*CT_CLIP, 0.0, 1.0), inferer)
    write_bundle_files(folder, config, metadata(labels), {"model": weights})


def write_bundle_files(
    folder: Path, config: Mapping[str, object], content: Mapping[str, object], checkpoint: object
) -> None:
    """Writes the files of a bundle.

    Args:
        folder: Its folder.
        config: The content of inference.json.
        content: That of metadata.json.
        checkpoint: That of models/model.pt: bytes, or an object for torch.save.
    """
    import torch

    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    for name, values in (("inference.json", config), ("metadata.json", content)):
        (folder / "configs" / name).write_text(json.dumps(values, indent=1), encoding="utf-8")
    if isinstance(checkpoint, bytes):
        (folder / "models" / "model.pt").write_bytes(checkpoint)
    else:
        torch.save(checkpoint, folder / "models" / "model.pt")


def _network(unet: UNet) -> dict[str, object]:
    stages = len(unet.features)
    return {
        "_target_": "DynUNet",
        "spatial_dims": 3,
        "in_channels": 1,
        "out_channels": unet.labels,
        "kernel_size": [3] * stages,
        "strides": [1] + [2] * (stages - 1),
        "upsample_kernel_size": [2] * (stages - 1),
        "filters": list(unet.features),
    }


def inference_config(
    network: Mapping[str, object],
    spacing_mm: float,
    scaling: tuple[float, float, float, float],
    inferer: Mapping[str, object],
) -> dict[str, object]:
    """Returns the transforms and the inferer that most bundles for CT have.

    Args:
        network: `network_def`.
        spacing_mm: Of the network's grid.
        scaling: `a_min`, `a_max`, `b_min` and `b_max` of the intensities.
        inferer: Arguments of the SlidingWindowInferer.
    """
    low, high, becomes_low, becomes_high = scaling
    preprocessing = [
        {"_target_": "LoadImaged", "keys": "image", "ensure_channel_first": True},
        {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
        {"_target_": "Spacingd", "keys": "image", "pixdim": [spacing_mm] * 3, "mode": "bilinear"},
        {
            "_target_": "ScaleIntensityRanged",
            "keys": "image",
            "a_min": low,
            "a_max": high,
            "b_min": becomes_low,
            "b_max": becomes_high,
            "clip": True,
        },
    ]
    postprocessing = [
        {"_target_": "Activationsd", "keys": "pred", "softmax": True},
        {
            "_target_": "Invertd",
            "keys": "pred",
            "orig_keys": "image",
            "transform": "@preprocessing",
            "nearest_interp": False,
        },
        {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
    ]
    return {
        "network_def": dict(network),
        "preprocessing": {"_target_": "Compose", "transforms": preprocessing},
        "inferer": {"_target_": "SlidingWindowInferer", **inferer},
        "postprocessing": {"_target_": "Compose", "transforms": postprocessing},
    }


def metadata(labels: Sequence[str]) -> dict[str, object]:
    """Returns what metadata.json says of a CT and the labels, in the order of the outputs."""
    image = {"modality": "CT", "num_channels": 1, "channel_def": {"0": "CT"}}
    pred = {"num_channels": len(labels), "channel_def": {str(value): name for value, name in enumerate(labels)}}
    return {"network_data_format": {"inputs": {"image": image}, "outputs": {"pred": pred}}}
