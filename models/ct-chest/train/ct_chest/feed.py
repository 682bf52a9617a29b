"""What the network is fed with: windows of clipped HU, shifted and scaled. The manifest tells the service."""

import numpy as np
from numpy.typing import NDArray

SPACING_MM = (3.0, 3.0, 3.0)
WINDOW = (96, 96, 80)
CLIP_HU = (-1024.0, 976.0)
MEAN_HU = -400.0
STD_HU = 500.0


def normalised(hu: NDArray[np.float32]) -> NDArray[np.float32]:
    """Maps HU of any shape to the network's input."""
    mapped: NDArray[np.float32] = (np.clip(hu, *CLIP_HU) - np.float32(MEAN_HU)) / np.float32(STD_HU)
    return mapped
