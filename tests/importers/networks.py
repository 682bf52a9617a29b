"""Small networks and files for the tests of importers."""

import json
import warnings
from pathlib import Path
from typing import Any

import torch

from benchmarks.monai_bundle import inference_config, metadata, write_bundle_files

METADATA = metadata(["background", "bone"])
NETWORK = {
    "_target_": "UNet",
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 2,
    "channels": [4, 8],
    "strides": [2],
}
CONFIG: dict[str, Any] = inference_config(
    NETWORK, 3.0, (-500, 500, -1, 1), {"roi_size": [16, 16, 16], "mode": "gaussian"}
)


class Threshold(torch.nn.Module):  # type: ignore[misc]
    """Gives the logits of bone or not by the value of each voxel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv3d(1, 2, 1)
        with torch.no_grad():
            self.conv.weight.copy_(torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1, 1))
            self.conv.bias.copy_(torch.tensor([0.0, -0.2]))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Returns logits, shape (batch, 2, *window)."""
        return self.conv(image)


def make_unet(seed: int = 0, channels: tuple[int, ...] = (4, 8)) -> torch.nn.Module:
    """The network of `CONFIG`, with random weights."""
    from monai.networks.nets import UNet

    torch.manual_seed(seed)
    return UNet(spatial_dims=3, in_channels=1, out_channels=2, channels=channels, strides=(2,)).eval()


def write_bundle(folder: Path, checkpoint: object, config: dict[str, Any] = CONFIG) -> Path:
    """Writes a bundle with a checkpoint, saved by torch.save unless it is bytes."""
    write_bundle_files(folder, config, METADATA, checkpoint)
    return folder


def write_torchscript(path: Path, *, extra: bool = False, network: torch.nn.Module | None = None) -> Path:
    """Writes a TorchScript file, with the configs of a bundle if `extra`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch calls TorchScript deprecated
        script = torch.jit.trace(network or Threshold().eval(), torch.zeros(1, 1, 16, 16, 16), check_trace=False)
        files = {"inference.json": json.dumps(CONFIG), "metadata.json": json.dumps(METADATA)} if extra else {}
        torch.jit.save(script, str(path), _extra_files=files)
    return path
