"""The network's input: windows of clipped HU, shifted and scaled. The manifest describes it to the service."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from inference_service.imaging.geometry import Shape
from inference_service.imaging.interpolation import Interpolations

SPACING_MM = (2.5, 2.5, 2.5)
# A coarse voxel is the mean of the fine ones it covers, so its CT number shows where in it an edge lies.
INTERPOLATION: Literal["area"] = "area"
KINDS: Interpolations = (INTERPOLATION,) * 3
WINDOW = (96, 96, 80)
CLIP_HU = (-1024.0, 976.0)
MEAN_HU = -400.0
STD_HU = 500.0


def shape_of(volume: NDArray[np.generic]) -> Shape:
    """The shape as a triple, which `ndarray.shape` is not typed as."""
    i, j, k = volume.shape
    return i, j, k


def normalised(hu: NDArray[np.float32]) -> NDArray[np.float32]:
    """Maps HU of any shape to the network's input."""
    mapped: NDArray[np.float32] = (np.clip(hu, *CLIP_HU) - np.float32(MEAN_HU)) / np.float32(STD_HU)
    return mapped
