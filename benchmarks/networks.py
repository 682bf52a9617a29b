"""The three U-Nets, with random weights of a fixed seed: built in PyTorch, exported to ONNX."""

import pydoc
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.measurement import NetworkName

if TYPE_CHECKING:
    import torch

SEED = 0
_OPSET = 17
ARCHITECTURE = "dynamic_network_architectures.architectures.unet.PlainConvUNet"
# Arguments that nnU-Net's plans give as names of classes.
NAMED_ARGUMENTS = ("conv_op", "norm_op", "dropout_op", "nonlin")


@dataclass(frozen=True)
class UNet:
    """nnU-Net's PlainConvUNet for one channel, with two convolutions a stage.

    Attributes:
        features: Channels of each stage, from full resolution down.
        labels: Output channels.
        window: Edge length of its cubic window, in voxels.
    """

    features: tuple[int, ...]
    labels: int
    window: int


NETWORKS: dict[NetworkName, UNet] = {
    "0.35 M": UNet((8, 16, 32, 64), 8, 96),
    "5.6 M": UNet((16, 32, 64, 128, 256), 8, 96),
    "31 M": UNet((32, 64, 128, 256, 320, 320), 25, 128),
}


def architecture_arguments(unet: UNet) -> dict[str, object]:
    """Returns the arguments of the architecture as nnU-Net's plans contain them."""
    stages = len(unet.features)
    return {
        "n_stages": stages,
        "features_per_stage": list(unet.features),
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[3, 3, 3]] * stages,
        "strides": [[1, 1, 1]] + [[2, 2, 2]] * (stages - 1),
        "n_conv_per_stage": [2] * stages,
        "n_conv_per_stage_decoder": [2] * (stages - 1),
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }


def build(unet: UNet) -> "torch.nn.Module":
    """Builds a network with random weights of the fixed seed."""
    import torch
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    arguments = architecture_arguments(unet)
    arguments |= {name: pydoc.locate(str(arguments[name])) for name in NAMED_ARGUMENTS if arguments[name]}
    torch.manual_seed(SEED)
    network: torch.nn.Module = PlainConvUNet(
        input_channels=1, num_classes=unet.labels, deep_supervision=False, **arguments
    )
    return network.eval()


def load(unet: UNet, weights: Path) -> "torch.nn.Module":
    """Builds a network with the weights of a file."""
    import torch

    network = build(unet)
    network.load_state_dict(torch.load(weights, weights_only=True))
    return network


def save(unet: UNet, *, weights: Path, onnx: Path) -> None:
    """Writes a network's weights for PyTorch, and the network as ONNX with a fixed window."""
    import torch

    network = build(unet)
    torch.save(network.state_dict(), weights)
    window = torch.zeros(1, 1, unet.window, unet.window, unet.window)
    with torch.no_grad():
        torch.onnx.export(
            network,
            (window,),
            onnx,
            input_names=["image"],
            output_names=["logits"],
            opset_version=_OPSET,
            dynamo=False,
        )


def save_half(onnx: Path, half: Path) -> None:
    """Converts an exported network to fp16; its input and output stay in fp32."""
    import onnx as onnx_format
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx_format.save(convert_float_to_float16(onnx_format.load(onnx), keep_io_types=True), half)
