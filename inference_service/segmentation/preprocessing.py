"""Preprocessing: brings a scan to the orientation, spacing and intensities that the network expects."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod, sqrt
from typing import cast

import numpy as np
from numpy.typing import NDArray

from inference_service.contract.intensity import (
    CtIntensity,
    FixedRangeIntensity,
    Intensity,
    MinMaxIntensity,
    NoIntensity,
    PercentilesIntensity,
    ZScoreIntensity,
)
from inference_service.contract.part import Part
from inference_service.core.errors import InputTooLarge
from inference_service.core.memory_budget import RequireMemory, no_memory_limit
from inference_service.core.threads import SINGLE_THREAD, ThreadPool
from inference_service.imaging.geometry import Reorientation, Shape, Spacing, Volume, reorientation
from inference_service.imaging.hounsfield import AIR_HU
from inference_service.imaging.interpolation import Interpolations, axis_interpolations
from inference_service.imaging.resampling import (
    IntensityTransform,
    resize,
    resized_shape,
)
from inference_service.segmentation.windows.tiling import window_shape

# Lower bound of divisors, so that a constant volume is not divided by zero (nnU-Net).
_MIN_SPREAD = 1e-8
# Share of a label at which a voxel gets it.
_HALF = 0.5
# Longer than the axes of any real scan.
_MAX_AXIS_VOXELS = 4096
# Normalisations whose parameters depend on all of an image's values.
_OWN_STATISTICS = (ZScoreIntensity, PercentilesIntensity, MinMaxIntensity)


@dataclass(frozen=True)
class PreprocessedImage:
    """A scan ready for the network.

    Attributes:
        image: Shape (channels, i, j, k) along the model's axes, on the model's grid, normalised. A view of the scan
            where it has one channel and only its axes change. The channels of a first stage's labels are the last ones;
            `write_label_channels` fills them.
        reorientation: From the scan's axes to the model's.
        logits_interpolations: Interpolation of logits to the scan's grid, along the model's axes.
        label_interpolations: Interpolation of labels from the scan's grid to the model's, along the model's axes.
    """

    image: NDArray[np.float32]
    reorientation: Reorientation
    logits_interpolations: Interpolations
    label_interpolations: Interpolations

    def write_label_channels(
        self, mask: NDArray[np.unsignedinteger], values: Sequence[int], threads: ThreadPool = SINGLE_THREAD
    ) -> None:
        """Brings a mask on the scan's grid to the model's grid, into the last channels: 0 and 1 for each label.

        Each label is interpolated linearly, and a voxel gets the last label with a weight of at least one half, as in
        nnU-Net's resampling of segmentations.

        Args:
            mask: Shape (i, j, k), on the grid of the scan.
            values: The labels, ascending.
            threads: Share the resampling.
        """
        scan = self.reorientation.apply(mask)
        labels = np.zeros(self.image.shape[1:], dtype=mask.dtype)
        for value in values:
            share = resize(scan == value, labels.shape, self.label_interpolations, threads=threads)
            labels[share >= _HALF] = value
        for channel, value in zip(self.image[-len(values) :], values, strict=True):
            np.equal(labels, value, out=channel, casting="unsafe")


def preprocess(
    channels: Sequence[Volume],
    part: Part,
    *,
    of_ct: bool = False,
    max_voxels: int,
    require_memory: RequireMemory = no_memory_limit,
    threads: ThreadPool = SINGLE_THREAD,
) -> PreprocessedImage:
    """Reorients, resamples and normalises a scan.

    Args:
        channels: A volume for each channel of the part, all on one grid; their values are finite.
        part: Gives orientation, spacing, interpolation, window and intensities of the network's input.
        of_ct: Whether the values are HU, so that padding below air does not count in statistics.
        max_voxels: Larger grids are refused before they are allocated.
        require_memory: Called with the bytes that the image is about to take. An exception that it raises ends the job.
        threads: Share the resampling.

    Raises:
        InputTooLarge: An axis of the scan, or its grid at the model's spacing, padded to a window, is too large.
    """
    volume = channels[0]
    change = _orient(volume, part)
    scans = [change.apply(channel.voxels) for channel in channels]
    scan_spacing = change.apply_triple(volume.spacing_mm)
    scan_shape = change.apply_triple(volume.shape)
    spacing = _spacing(scan_spacing, part)
    shape = resized_shape(scan_shape, scan_spacing, spacing)
    _check_size(scan_shape, shape, part, max_voxels)
    require_memory(_image_bytes(shape, part))
    interpolations = axis_interpolations(scan_spacing, spacing, part.interpolation, part.separate_axis_above)
    # A single channel is not copied.
    image = np.empty((part.input_channels, *shape), dtype=np.float32) if part.input_channels > 1 else None
    for index, (scan, channel) in enumerate(zip(scans, part.channels, strict=True)):
        (intensity,) = channel.intensities
        if of_ct and isinstance(intensity, _OWN_STATISTICS):
            scan = _without_padding(scan, require_memory)
        if shape == scan_shape and scan.dtype == np.float32 and isinstance(intensity, NoIntensity):
            prepared = cast("NDArray[np.float32]", scan)
        elif part.intensity_before_resampling:
            transform = intensity_transform(scan, intensity)
            prepared = resize(scan, shape, interpolations, transform=transform, threads=threads)
        else:
            prepared = resize(scan, shape, interpolations, threads=threads)
            normalise(prepared, intensity)
        if image is None:
            image = prepared[np.newaxis]
        else:
            image[index] = prepared
    back = axis_interpolations(spacing, scan_spacing, part.logits_interpolation, part.separate_axis_above)
    labels = axis_interpolations(scan_spacing, spacing, "linear", part.separate_axis_above)
    return PreprocessedImage(cast("NDArray[np.float32]", image), change, back, labels)


def _without_padding(scan: NDArray[np.generic], require_memory: RequireMemory) -> NDArray[np.generic]:
    """Sets the padding of a CT outside its circle of reconstruction, such as −2000 or −3024, to air."""
    if scan.min() >= AIR_HU:
        return scan
    require_memory(scan.nbytes)
    raised: NDArray[np.generic] = np.maximum(scan, scan.dtype.type(AIR_HU))
    return raised


def _orient(volume: Volume, part: Part) -> Reorientation:
    if part.axes_of_file:
        i, j, k = ("ijk".index(axis) for axis in part.orientation)
        return Reorientation((i, j, k), (False, False, False))
    return reorientation(volume.orientation, part.orientation)


def _spacing(scan_mm: Spacing, part: Part) -> Spacing:
    """The spacing of the model's grid; that of the scan along axes where the part states none."""
    i, j, k = (wanted or given for wanted, given in zip(part.spacing_mm, scan_mm, strict=True))
    return i, j, k


def _check_size(scan: Shape, grid: Shape, part: Part, max_voxels: int) -> None:
    if max(scan) > _MAX_AXIS_VOXELS:
        raise InputTooLarge(
            f"the scan has an axis of {max(scan)} voxels; this service takes at most {_MAX_AXIS_VOXELS}"
        )
    spacing = f"at the model's spacing of {' × '.join(f'{mm:g}' if mm else 'any' for mm in part.spacing_mm)} mm"
    padded = _padded(grid, part)
    if max(padded) > _MAX_AXIS_VOXELS:
        raise InputTooLarge(
            f"the scan gets an axis of {max(padded)} voxels {spacing}; this service takes at most {_MAX_AXIS_VOXELS}"
        )
    if prod(padded) > max_voxels:
        raise InputTooLarge(
            f"the scan becomes a grid of {prod(padded)} voxels {spacing}; this service takes at most {max_voxels}"
        )


def _padded(grid: Shape, part: Part) -> Shape:
    i, j, k = (max(size, extent) for size, extent in zip(grid, window_shape(grid, part), strict=True))
    return i, j, k


def _image_bytes(grid: Shape, part: Part) -> int:
    """Memory of the image on the model's grid, and of its padded copy where it is smaller than a window."""
    padded = _padded(grid, part)
    channels = part.input_channels
    # Of several channels, each is resampled to an array of its own first.
    resampled = channels + 1 if channels > 1 else 1
    return 4 * (resampled * prod(grid) + (channels * prod(padded) if padded != grid else 0))


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
