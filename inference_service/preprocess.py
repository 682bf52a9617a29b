"""From the scan to what the network expects: orientation, resolution and intensities as the manifest says."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inference_service.models import (
    CtIntensity,
    FixedRangeIntensity,
    Intensity,
    Manifest,
    MinMaxIntensity,
    PercentilesIntensity,
    ZScoreIntensity,
)
from inference_service.resample import Kinds, axis_kinds, resize, resized_shape
from inference_service.volume import Reorientation, Volume, reorientation

# Keeps a constant volume from dividing by zero, as in nnU-Net.
_LEAST_SPREAD = 1e-8


@dataclass(frozen=True)
class Prepared:
    """A volume ready for the network.

    Attributes:
        image: Shape (i, j, k) along the model's axes, on its grid, normalised.
        reorientation: From the scan's axes to the model's.
        logits_kinds: Interpolation that brings logits back to the scan's grid, along the model's axes.
    """

    image: NDArray[np.float32]
    reorientation: Reorientation
    logits_kinds: Kinds


def prepare(volume: Volume, manifest: Manifest) -> Prepared:
    """Reorients, resamples and normalises a volume."""
    change = reorientation(volume.orientation, manifest.orientation)
    scan = change.apply(volume.voxels)
    scan_spacing = change.apply_triple(volume.spacing_mm)
    shape = resized_shape(change.apply_triple(volume.shape), scan_spacing, manifest.spacing_mm)
    kinds = axis_kinds(scan_spacing, manifest.interpolation, manifest.separate_axis_above)
    image = resize(scan, shape, kinds)
    normalise(image, manifest.channels[0].intensity)
    return Prepared(image, change, axis_kinds(scan_spacing, "linear", manifest.separate_axis_above))


def normalise(image: NDArray[np.float32], intensity: Intensity) -> None:
    """Maps an image's values in place to what the network was trained on.

    Args:
        image: Any shape, finite values.
        intensity: How.
    """
    match intensity:
        case CtIntensity():
            np.clip(image, *intensity.clip, out=image)
            image -= intensity.mean
            image /= max(intensity.std, _LEAST_SPREAD)
        case ZScoreIntensity():
            _z_score(image, nonzero_only=intensity.nonzero_only)
        case PercentilesIntensity():
            low, high = np.percentile(image, intensity.percentiles)
            _rescale(image, (float(low), float(high)), intensity.output, clip=intensity.clip)
        case MinMaxIntensity():
            _rescale(image, (float(image.min()), float(image.max())), intensity.output, clip=False)
        case FixedRangeIntensity():
            _rescale(image, intensity.input, intensity.output, clip=intensity.clip)


def _z_score(image: NDArray[np.float32], *, nonzero_only: bool) -> None:
    counted = image != 0 if nonzero_only else np.ones((), dtype=bool)
    values = image[counted]
    if values.size:
        mean, spread = values.mean(dtype=np.float64), values.std(dtype=np.float64)
        np.subtract(image, np.float32(mean), out=image, where=counted)
        np.divide(image, np.float32(max(spread, _LEAST_SPREAD)), out=image, where=counted)


def _rescale(
    image: NDArray[np.float32], source: tuple[float, float], target: tuple[float, float], *, clip: bool
) -> None:
    image -= source[0]
    image *= (target[1] - target[0]) / max(source[1] - source[0], _LEAST_SPREAD)
    image += target[0]
    if clip:
        np.clip(image, min(target), max(target), out=image)
