"""Rendering of planes: the intensity window of the scan, and the labels over it. Pure numerics."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Grey = NDArray[np.uint8]

# Opacity of a label's fill.
_FILL = 0.28
# Labels whose mean is below are air, and do not count in the choice of the window.
_AIR_HU = -950
# Labels whose mean is below are lung.
_LUNG_HU = -400
# Labels whose mean is above are bone.
_BONE_HU = 250
_PERCENTILES = (0.5, 99.5)


@dataclass(frozen=True)
class IntensityWindow:
    """The range of intensities that is shown from black to white.

    Attributes:
        low: Shown black.
        high: Shown white.
        unit: Follows the figures where the window is named, for example " HU".
    """

    low: float
    high: float
    unit: str

    def __str__(self) -> str:
        return f"Window {self.high - self.low:.4g} / level {(self.low + self.high) / 2:.4g}{self.unit}"

    def grey(self, plane: NDArray[np.generic]) -> Grey:
        """Maps intensities of any shape to grey values 0…255."""
        share = (plane.astype(np.float32) - np.float32(self.low)) / np.float32(self.high - self.low)
        return np.asarray(np.clip(share, 0, 1) * 255 + 0.5).astype(np.uint8)


LUNG = IntensityWindow(-1350, 150, " HU")
BONE = IntensityWindow(-500, 1300, " HU")
SOFT_TISSUE = IntensityWindow(-160, 240, " HU")


def ct_intensity_window(labels: Sequence[tuple[float, int]]) -> IntensityWindow:
    """Chooses the intensity window of lung, bone or soft tissue, by the segmented voxels' majority.

    Args:
        labels: Mean in HU and number of voxels of each label.
    """
    tissue = [(mean, voxels) for mean, voxels in labels if mean > _AIR_HU]
    half = sum(voxels for _, voxels in tissue) / 2
    if sum(voxels for mean, voxels in tissue if mean < _LUNG_HU) > half:
        return LUNG
    if sum(voxels for mean, voxels in tissue if mean > _BONE_HU) > half:
        return BONE
    return SOFT_TISSUE


def percentile_intensity_window(planes: Sequence[NDArray[np.generic]]) -> IntensityWindow:
    """The range of nearly all intensities in some planes; their lowest value, mostly background, is left out."""
    values = np.concatenate([plane.ravel() for plane in planes]).astype(np.float64)
    inside = values[values > values.min()]
    low, high = np.percentile(inside, _PERCENTILES) if inside.size else (values[0], values[0])
    return IntensityWindow(float(low), float(high) if high > low else float(low) + max(1.0, abs(float(low)) * 1e-3), "")


def overlay(grey: Grey, colour_indices: NDArray[np.intp], colours: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Paints labels over a scan: a transparent fill, and an opaque outline inside each label's border.

    Args:
        grey: Shape (h, w).
        colour_indices: Shape (h, w): 0 for no label, otherwise the row of the label's colour.
        colours: Shape (labels + 1, 3).

    Returns:
        Shape (h, w, 3).
    """
    painted = np.repeat(grey[..., np.newaxis], 3, axis=2)
    labelled = colour_indices > 0
    over = colours[colour_indices[labelled]]
    painted[labelled] = (painted[labelled] * (1 - _FILL) + over * _FILL + 0.5).astype(np.uint8)
    outline = labelled & _bordering(colour_indices)
    painted[outline] = colours[colour_indices[outline]]
    return painted


def _bordering(colour_indices: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Marks pixels with a different label in one of the four neighbours; the edge of the picture is not a border."""
    borders = np.zeros(colour_indices.shape, dtype=bool)
    down = colour_indices[1:] != colour_indices[:-1]
    right = colour_indices[:, 1:] != colour_indices[:, :-1]
    borders[1:] |= down
    borders[:-1] |= down
    borders[:, 1:] |= right
    borders[:, :-1] |= right
    return borders
