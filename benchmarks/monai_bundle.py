"""A MONAI bundle, with random weights: MONAI's DynUNet, which has the layers of nnU-Net's PlainConvUNet."""

import json
from pathlib import Path

from benchmarks.models import CT_CLIP, SPACING_MM
from benchmarks.networks import SEED, UNet


def write_monai_bundle(folder: Path, unet: UNet) -> None:
    """Writes the configs and the checkpoint."""
    import torch
    from monai.networks.nets import DynUNet

    network = _network(unet)
    torch.manual_seed(SEED)
    weights = DynUNet(**{name: value for name, value in network.items() if name != "_target_"}).state_dict()
    for name, content in (("inference.json", _inference(unet, network)), ("metadata.json", _metadata(unet))):
        path = folder / "configs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=1), encoding="utf-8")
    (folder / "models").mkdir()
    torch.save({"model": weights}, folder / "models" / "model.pt")


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


def _inference(unet: UNet, network: dict[str, object]) -> dict[str, object]:
    """The transforms and the inferer that most bundles for CT have."""
    low, high = CT_CLIP
    preprocessing = [
        {"_target_": "LoadImaged", "keys": "image", "ensure_channel_first": True},
        {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
        {"_target_": "Spacingd", "keys": "image", "pixdim": [SPACING_MM] * 3, "mode": "bilinear"},
        {
            "_target_": "ScaleIntensityRanged",
            "keys": "image",
            "a_min": low,
            "a_max": high,
            "b_min": 0.0,
            "b_max": 1.0,
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
        "network_def": network,
        "preprocessing": {"_target_": "Compose", "transforms": preprocessing},
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": [unet.window] * 3,
            "sw_batch_size": 1,
            "overlap": 0.5,
            "mode": "gaussian",
        },
        "postprocessing": {"_target_": "Compose", "transforms": postprocessing},
    }


def _metadata(unet: UNet) -> dict[str, object]:
    image = {"modality": "CT", "num_channels": 1, "channel_def": {"0": "CT"}}
    labels = {str(value): f"label {value}" if value else "background" for value in range(unet.labels)}
    pred = {"num_channels": unet.labels, "channel_def": labels}
    return {"network_data_format": {"inputs": {"image": image}, "outputs": {"pred": pred}}}
