"""Preprocessing: brings a scan to the orientation, spacing and intensities that the network expects."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from math import prod, sqrt
from typing import cast

import numpy as np
from numpy.typing import NDArray

from inference_service.contract.manifest import (
    CtIntensity,
    FixedRangeIntensity,
    Intensity,
    Manifest,
    MinMaxIntensity,
    NoIntensity,
    PercentilesIntensity,
    ZScoreIntensity,
)
from inference_service.core.errors import InputTooLarge
from inference_service.core.memory_budget import RequireMemory, no_memory_limit
from inference_service.core.threads import SINGLE_THREAD, ThreadPool
from inference_service.imaging.geometry import Reorientation, Shape, Volume, reorientation
from inference_service.imaging.hounsfield import AIR_HU
from inference_service.imaging.interpolation import Interpolations, axis_interpolations
from inference_service.imaging.resampling import (
    IntensityTransform,
    resize,
    resized_shape,
)

# Lower bound of divisors, so that a constant volume is not divided by zero (nnU-Net).
_MIN_SPREAD = 1e-8
# Longer than the axes of any real scan.
_MAX_AXIS_VOXELS = 4096
# Normalisations whose parameters depend on all of an image's values.
_OWN_STATISTICS = (ZScoreIntensity, PercentilesIntensity, MinMaxIntensity)


@dataclass(frozen=True)
class PreprocessedImage:
    """A volume ready for the network.

    Attributes:
        image: Shape (i, j, k) along the model's axes, on the model's grid, normalised. A view of the scan where only
            its axes change.
        reorientation: From the scan's axes to the model's.
        logits_interpolations: Interpolation of logits to the scan's grid, along the model's axes.
    """

    image: NDArray[np.float32]
    reorientation: Reorientation
    logits_interpolations: Interpolations


def preprocess(
    volume: Volume,
    manifest: Manifest,
    *,
    max_voxels: int,
    require_memory: RequireMemory = no_memory_limit,
    threads: ThreadPool = SINGLE_THREAD,
) -> PreprocessedImage:
    """Reorients, resamples and normalises a volume.

    Args:
        volume: The scan; its values are finite.
        manifest: Gives orientation, spacing, interpolation, window and intensities of the network's input.
        max_voxels: Larger grids are refused before they are allocated.
        require_memory: Called with the bytes that the image is about to take. An exception that it raises ends the job.
        threads: Share the resampling.

    Raises:
        InputTooLarge: An axis of the scan, or its grid at the model's spacing, padded to a window, is too large.
    """
    change = reorientation(volume.orientation, manifest.orientation)
    scan = change.apply(volume.voxels)
    scan_spacing = change.apply_triple(volume.spacing_mm)
    scan_shape = change.apply_triple(volume.shape)
    shape = resized_shape(scan_shape, scan_spacing, manifest.spacing_mm)
    _check_size(scan_shape, shape, manifest, max_voxels)
    require_memory(_image_bytes(shape, manifest))
    interpolations = axis_interpolations(
        scan_spacing, manifest.spacing_mm, manifest.interpolation, manifest.separate_axis_above
    )
    intensity = manifest.channels[0].intensity
    if manifest.modality == "CT" and isinstance(intensity, _OWN_STATISTICS):
        scan = _without_padding(scan, require_memory)
    if shape == scan_shape and scan.dtype == np.float32 and isinstance(intensity, NoIntensity):
        image = cast("NDArray[np.float32]", scan)
    elif manifest.intensity_before_resampling:
        image = resize(scan, shape, interpolations, transform=intensity_transform(scan, intensity), threads=threads)
    else:
        image = resize(scan, shape, interpolations, threads=threads)
        normalise(image, intensity)
    back = axis_interpolations(manifest.spacing_mm, scan_spacing, "linear", manifest.separate_axis_above)
    return PreprocessedImage(image, change, back)


def _without_padding(scan: NDArray[np.generic], require_memory: RequireMemory) -> NDArray[np.generic]:
    """Sets the padding of a CT outside its circle of reconstruction, such as −2000 or −3024, to air."""
    if scan.min() >= AIR_HU:
        return scan
    require_memory(scan.nbytes)
    raised: NDArray[np.generic] = np.maximum(scan, scan.dtype.type(AIR_HU))
    return raised


def _check_size(scan: Shape, grid: Shape, manifest: Manifest, max_voxels: int) -> None:
    if max(scan) > _MAX_AXIS_VOXELS:
        raise InputTooLarge(
            f"the scan has an axis of {max(scan)} voxels; this service takes at most {_MAX_AXIS_VOXELS}"
        )
    spacing = f"at the model's spacing of {' × '.join(f'{mm:g}' for mm in manifest.spacing_mm)} mm"
    padded = _padded(grid, manifest)
    if max(padded) > _MAX_AXIS_VOXELS:
        raise InputTooLarge(
            f"the scan gets an axis of {max(padded)} voxels {spacing}; this service takes at most {_MAX_AXIS_VOXELS}"
        )
    if prod(padded) > max_voxels:
        raise InputTooLarge(
            f"the scan becomes a grid of {prod(padded)} voxels {spacing}; this service takes at most {max_voxels}"
        )


def _padded(grid: Shape, manifest: Manifest) -> Shape:
    i, j, k = (max(size, extent) for size, extent in zip(grid, manifest.window, strict=True))
    return i, j, k


def _image_bytes(grid: Shape, manifest: Manifest) -> int:
    """Memory of the image on the model's grid, and of its padded copy where it is smaller than a window."""
    padded = _padded(grid, manifest)
    return 4 * (prod(grid) + (prod(padded) if padded != grid else 0))


def normalise(image: NDArray[np.float32], intensity: Intensity) -> None:
    """Normalises an image in place, by the `intensity_transform` that its own statistics give."""
    intensity_transform(image, intensity)(image)


def intensity_transform(image: NDArray[np.generic], intensity: Intensity) -> IntensityTransform:
    """Returns the function that maps intensities to those that the network was trained on.

    Args:
        image: Gives the statistics of mappings that depend on the image: any shape and real dtype, finite values.
        intensity: The mapping.

    Returns:
        A function that maps float32 values in place, all of the image's or a part of them.
    """
    match intensity:
        case CtIntensity():
            return partial(_standardise, mean=intensity.mean, spread=intensity.std, clip=intensity.clip)
        case ZScoreIntensity():
            mean, spread = _moments(image, nonzero_only=intensity.nonzero_only)
            return partial(_standardise, mean=mean, spread=spread, nonzero_only=intensity.nonzero_only)
        case PercentilesIntensity():
            low, high = np.percentile(cast("NDArray[np.float32]", image), intensity.percentiles)
            return partial(_rescale, source=(low, high), target=intensity.output, clip=intensity.clip)
        case MinMaxIntensity():
            return partial(_rescale, source=(image.min(), image.max()), target=intensity.output, clip=False)
        case FixedRangeIntensity():
            return partial(_rescale, source=intensity.input, target=intensity.output, clip=intensity.clip)
    return lambda image: None


def _moments(image: NDArray[np.generic], *, nonzero_only: bool) -> tuple[float, float]:
    """Mean and standard deviation, by two passes over planes: the whole image in float64 would take too much memory."""
    planes = np.moveaxis(image, max(range(image.ndim), key=lambda axis: abs(image.strides[axis])), 0)

    def counted() -> Iterator[NDArray[np.float64]]:
        for plane in planes:
            yield np.asarray(plane[plane != 0] if nonzero_only else plane, dtype=np.float64)

    count = sum(plane.size for plane in counted())
    if not count:
        return 0.0, 1.0
    mean = sum(float(plane.sum()) for plane in counted()) / count
    return mean, sqrt(sum(float(np.square(plane - mean).sum()) for plane in counted()) / count)


def _standardise(
    image: NDArray[np.float32],
    *,
    mean: float,
    spread: float,
    clip: tuple[float, float] | None = None,
    nonzero_only: bool = False,
) -> None:
    counted = image != 0 if nonzero_only else True
    if clip is not None:
        np.clip(image, *clip, out=image)
    np.subtract(image, np.float32(mean), out=image, where=counted)
    np.divide(image, np.float32(max(spread, _MIN_SPREAD)), out=image, where=counted)


def _rescale(
    image: NDArray[np.float32], *, source: tuple[float, float], target: tuple[float, float], clip: bool
) -> None:
    low = float(source[0])
    high = float(source[1])
    image -= low
    image *= (target[1] - target[0]) / max(high - low, _MIN_SPREAD)
    image += target[0]
    if clip:
        np.clip(image, min(target), max(target), out=image)
