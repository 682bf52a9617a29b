"""From the scan to what the network expects: orientation, resolution and intensities as the manifest says."""

from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from inference_service.errors import InputTooLarge
from inference_service.manifest import (
    CtIntensity,
    FixedRangeIntensity,
    Intensity,
    Manifest,
    MinMaxIntensity,
    PercentilesIntensity,
    ZScoreIntensity,
)
from inference_service.resample import Kinds, Shape, axis_kinds, resize, resized_shape
from inference_service.volume import Reorientation, Volume, reorientation

# Keeps a constant volume from dividing by zero, as in nnU-Net.
_LEAST_SPREAD = 1e-8
# Bounds the matrices of resampling, which are as large as an axis of the scan times one of the grid: 64 MiB each.
_LONGEST_AXIS = 4096


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


def prepare(volume: Volume, manifest: Manifest, *, max_voxels: int) -> Prepared:
    """Reorients, resamples and normalises a volume.

    Args:
        volume: The scan; its values are finite.
        manifest: Says what the network expects.
        max_voxels: Larger grids are refused before they are allocated.

    Raises:
        InputTooLarge: An axis or the grid that the scan becomes, filled up to the window, is too large.
    """
    change = reorientation(volume.orientation, manifest.orientation)
    scan = change.apply(volume.voxels)
    scan_spacing = change.apply_triple(volume.spacing_mm)
    scan_shape = change.apply_triple(volume.shape)
    shape = resized_shape(scan_shape, scan_spacing, manifest.spacing_mm)
    _check_size(scan_shape, shape, manifest, max_voxels)
    kinds = axis_kinds(scan_spacing, manifest.interpolation, manifest.separate_axis_above)
    image = resize(scan, shape, kinds)
    normalise(image, manifest.channels[0].intensity)
    return Prepared(image, change, axis_kinds(scan_spacing, "linear", manifest.separate_axis_above))


def _check_size(scan: Shape, grid: Shape, manifest: Manifest, max_voxels: int) -> None:
    if max(scan) > _LONGEST_AXIS:
        raise InputTooLarge(f"the scan has an axis of {max(scan)} voxels; this service takes at most {_LONGEST_AXIS}")
    spacing = f"at the model's spacing of {' × '.join(f'{mm:g}' for mm in manifest.spacing_mm)} mm"
    padded = [max(size, extent) for size, extent in zip(grid, manifest.window, strict=True)]
    if max(padded) > _LONGEST_AXIS:
        raise InputTooLarge(
            f"the scan gets an axis of {max(padded)} voxels {spacing}; this service takes at most {_LONGEST_AXIS}"
        )
    # Resizing goes by way of a grid that still has the scan's last axis.
    voxels = max(prod(padded), prod(grid[:2]) * scan[2])
    if voxels > max_voxels:
        raise InputTooLarge(
            f"the scan becomes a grid of {voxels} voxels {spacing}; this service takes at most {max_voxels}"
        )


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
