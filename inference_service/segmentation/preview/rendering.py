"""Scan and labels as colours: the window of grey values, a palette, labels over the scan. Pure numerics."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Grey = NDArray[np.uint8]


_FILL = 0.28

# Emptier than this is no tissue, and says nothing of what a reader wants to see.
_AIR_HU, _LUNG_HU, _BONE_HU = -950, -400, 250
_PERCENTILES = (0.5, 99.5)


@dataclass(frozen=True)
class IntensityWindow:
    """The intensities that are shown from black to white."""

    low: float
    high: float
    unit: str

    def __str__(self) -> str:
        return f"Window {self.high - self.low:.4g} / level {(self.low + self.high) / 2:.4g}{self.unit}"

    def grey(self, plane: NDArray[np.generic]) -> Grey:
        """Maps intensities to 0…255."""
        share = (plane.astype(np.float32) - np.float32(self.low)) / np.float32(self.high - self.low)
        return np.asarray(np.clip(share, 0, 1) * 255 + 0.5).astype(np.uint8)


LUNG, BONE, SOFT_TISSUE = (
    IntensityWindow(-1350, 150, " HU"),
    IntensityWindow(-500, 1300, " HU"),
    IntensityWindow(-160, 240, " HU"),
)


def ct_intensity_window(labels: Sequence[tuple[float, int]]) -> IntensityWindow:
    """The window for what most of the segmented tissue is.

    Args:
        labels: Of each label the mean in HU and the number of voxels.
    """
    tissue = [(mean, voxels) for mean, voxels in labels if mean > _AIR_HU]
    half = sum(voxels for _, voxels in tissue) / 2
    if sum(voxels for mean, voxels in tissue if mean < _LUNG_HU) > half:
        return LUNG
    if sum(voxels for mean, voxels in tissue if mean > _BONE_HU) > half:
        return BONE
    return SOFT_TISSUE


def percentile_intensity_window(planes: Sequence[NDArray[np.generic]]) -> IntensityWindow:
    """The range of nearly all that is seen in some planes but for their least value, which is mostly what surrounds."""
    values = np.concatenate([plane.ravel() for plane in planes]).astype(np.float64)
    inside = values[values > values.min()]
    low, high = np.percentile(inside, _PERCENTILES) if inside.size else (values[0], values[0])
    return IntensityWindow(float(low), float(high) if high > low else float(low) + max(1.0, abs(float(low)) * 1e-3), "")


def overlay(grey: Grey, places: NDArray[np.intp], colours: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Paints labels over a scan: a light fill, and a full outline within each label's border.

    Args:
        grey: Shape (h, w).
        places: Shape (h, w): 0 for no label, otherwise the row of its colour.
        colours: Shape (labels + 1, 3).

    Returns:
        Shape (h, w, 3).
    """
    painted = np.repeat(grey[..., np.newaxis], 3, axis=2)
    labelled = places > 0
    over = colours[places[labelled]]
    painted[labelled] = (painted[labelled] * (1 - _FILL) + over * _FILL + 0.5).astype(np.uint8)
    outline = labelled & _bordering(places)
    painted[outline] = colours[places[outline]]
    return painted


def _bordering(places: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Where one of the four neighbours has another label; a picture's edge is no border."""
    borders = np.zeros(places.shape, dtype=bool)
    down, right = places[1:] != places[:-1], places[:, 1:] != places[:, :-1]
    borders[1:] |= down
    borders[:-1] |= down
    borders[:, 1:] |= right
    borders[:, :-1] |= right
    return borders
