"""The network: a small 3-D U-Net."""

from itertools import pairwise

import torch
from torch import nn

CHANNELS = (16, 32, 48, 80, 112)
# Levels that contribute to the loss: with deep supervision the coarse ones learn the anatomy early.
SUPERVISED = 3


class Block(nn.Sequential):  # type: ignore[misc]
    """Convolution, instance norm, leaky ReLU.

    The finest level has no norm: a CT number means the same whatever else is in the window.
    """

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1, norm: bool = True) -> None:
        super().__init__(
            nn.Conv3d(inputs, outputs, 3, stride=stride, padding=1, bias=not norm),
            nn.InstanceNorm3d(outputs, affine=True) if norm else nn.Identity(),
            nn.LeakyReLU(0.01, inplace=True),
        )


class UNet(nn.Module):  # type: ignore[misc]
    """After O. Cicek et al., "3D U-Net", MICCAI 2016, with strided convolutions and few channels.

    The finest level, which takes most of the time, has one convolution on either side only.
    """

    def __init__(self, labels: int) -> None:
        super().__init__()
        self.stem = Block(1, CHANNELS[0], norm=False)
        self.down = nn.ModuleList(
            nn.Sequential(Block(fine, coarse, stride=2), Block(coarse, coarse)) for fine, coarse in pairwise(CHANNELS)
        )
        self.up = nn.ModuleList(nn.ConvTranspose3d(coarse, fine, 2, stride=2) for fine, coarse in pairwise(CHANNELS))
        self.merge = nn.ModuleList(Block(2 * fine, fine, norm=fine != CHANNELS[0]) for fine in CHANNELS[:-1])
        self.heads = nn.ModuleList(nn.Conv3d(width, labels, 1) for width in CHANNELS[:SUPERVISED])

    def forward(self, volume: torch.Tensor) -> torch.Tensor:
        """Volume (batch, 1, i, j, k), multiples of 16, to logits (batch, labels, i, j, k)."""
        return self.scales(volume)[0]

    def scales(self, volume: torch.Tensor) -> list[torch.Tensor]:
        """Logits at full, half and quarter resolution; only training uses the coarser ones."""
        levels = [self.stem(volume)]
        for down in self.down:
            levels.append(down(levels[-1]))
        outs = [levels.pop()]
        for up, merge in zip(reversed(self.up), reversed(self.merge), strict=True):
            outs.append(merge(torch.cat([up(outs[-1]), levels.pop()], 1)))
        return [head(out) for head, out in zip(self.heads, reversed(outs), strict=False)]


def loss(scales: list[torch.Tensor], truth: torch.Tensor) -> torch.Tensor:
    """The mean loss of all scales, each weighted half as much as the next finer one.

    Args:
        scales: Logits from `UNet.scales`.
        truth: Shape (batch, labels, i, j, k): each label's share of each voxel, at the finest scale.
    """
    weights = [2.0**-level for level in range(len(scales))]
    total = torch.zeros(())
    for weight, logits in zip(weights, scales, strict=True):
        total = total + weight * _loss(logits, truth)
        truth = nn.functional.avg_pool3d(truth, 2)
    return total / sum(weights)


def _loss(logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Cross-entropy and soft Dice of the labels that occur, shapes (batch, labels, i, j, k)."""
    logarithms = logits.float().log_softmax(1)
    entropy = -(truth * logarithms).sum() / truth[:, 0].numel()
    shares = logarithms.exp()
    axes = (0, 2, 3, 4)
    sizes = truth.sum(axes)
    dice = (2 * torch.minimum(shares, truth).sum(axes) + 1) / (shares.sum(axes) + sizes + 1)
    return entropy + 1 - dice[sizes > 0].mean()
