"""Maps values of channels to the intensities that a network was trained on. Pure numerics."""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import zip_longest
from math import sqrt

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from inference_service.contract.intensity import (
    ClipIntensity,
    ClipPercentilesIntensity,
    CtIntensity,
    FixedRangeIntensity,
    Intensity,
    LinearIntensity,
    MinMaxIntensity,
    NoIntensity,
    PercentilesIntensity,
    ZScoreIntensity,
)
from inference_service.imaging.resampling import IntensityTransform, slow_axes

Mappings = Sequence[Intensity]
"""Mappings of one channel, which are applied one after the other."""

# Lower bound of divisors, so that a constant volume is not divided by zero (nnU-Net).
_MIN_SPREAD = 1e-8
_NOTHING = NoIntensity(kind="none")
_WITHOUT_STATISTICS = (CtIntensity, FixedRangeIntensity, ClipIntensity, LinearIntensity, NoIntensity)


def normalise(
    images: Sequence[NDArray[np.float32]], mappings: Sequence[Mappings], mask: NDArray[np.bool_] | None = None
) -> None:
    """Maps channels in place, each mapping by the statistics of the values before it.

    Args:
        images: The channels, of one shape; their values are finite.
        mappings: The mappings of each channel.
        mask: The voxels that mappings with `fill_holes` count and change; see `filled_mask`.
    """
    for stage in zip_longest(*mappings, fillvalue=_NOTHING):
        # The statistics of all channels are taken before any of them changes.
        transforms = [
            _transform(images if needs_all_channels([[mapping]]) else [image], mapping, mask)
            for image, mapping in zip(images, stage, strict=True)
        ]
        for image, transform in zip(images, transforms, strict=True):
            transform(image)


def maps_planes(mappings: Mappings) -> bool:
    """Returns True if the mappings of a channel can be applied plane by plane, by statistics of the channel.

    They cannot where a later mapping needs statistics of values that earlier ones changed, or where the places of
    voxels or other channels count.
    """
    return not (needs_statistics(mappings[1:]) or needs_all_channels([mappings]) or _fills_holes(mappings))


def plane_transform(scan: NDArray[np.generic], mappings: Mappings) -> IntensityTransform:
    """Returns the mappings of a channel, for which `maps_planes` is true, as one function.

    Args:
        scan: Gives the statistics: any shape and real dtype, finite values.
        mappings: The mappings of the channel.
    """
    transforms = [_transform([scan], mapping, None) for mapping in mappings]

    def apply(values: NDArray[np.float32]) -> None:
        for transform in transforms:
            transform(values)

    return apply


def needs_statistics(mappings: Mappings) -> bool:
    """Returns True if a mapping depends on statistics of the values."""
    return any(not isinstance(mapping, _WITHOUT_STATISTICS) for mapping in mappings)


def needs_all_channels(mappings: Sequence[Mappings]) -> bool:
    """Returns True if statistics are taken over all channels together."""
    return any(getattr(mapping, "statistics", "channel") == "all_channels" for each in mappings for mapping in each)


def keeps_values(mappings: Mappings) -> bool:
    """Returns True if the mappings change nothing."""
    return all(isinstance(mapping, NoIntensity) for mapping in mappings)


def filled_mask(channels: Sequence[NDArray[np.generic]], mappings: Sequence[Mappings]) -> NDArray[np.bool_] | None:
    """Returns the voxels that mappings with `fill_holes` count and change: nnU-Net's mask for normalisation.

    Args:
        channels: All channels of the image, before any mapping.
        mappings: The mappings of each channel.

    Returns:
        True at voxels that are not 0 in all channels, and where such voxels enclose others: no path over voxel faces
        leads from these to the border of the volume. None if no mapping fills holes.
    """
    return filled_nonzero(channels) if any(map(_fills_holes, mappings)) else None


def filled_nonzero(channels: Sequence[NDArray[np.generic]]) -> NDArray[np.bool_]:
    """Returns the voxels that are not 0 in all channels, and those that they enclose; takes three masks of memory."""
    mask: NDArray[np.bool_] = np.not_equal(channels[0], 0)
    for channel in channels[1:]:
        mask |= channel != 0
    ndimage.binary_fill_holes(mask, output=mask)
    return mask


def working_bytes(mappings: Sequence[Mappings], voxels: int) -> int:
    """Memory that mapping the channels takes beside them.

    Args:
        mappings: The mappings of each channel.
        voxels: Voxels of each channel.
    """
    together = len(mappings) if needs_all_channels(mappings) else 1
    sorts = any(isinstance(each, PercentilesIntensity | ClipPercentilesIntensity) for some in mappings for each in some)
    # Holes are filled with three masks.
    masks = 3 if any(map(_fills_holes, mappings)) else int(any(map(_skips_zeros, mappings)))
    return voxels * (4 * together * sorts + masks)


def _skips_zeros(mappings: Mappings) -> bool:
    return any(isinstance(each, ZScoreIntensity) and each.nonzero_only for each in mappings)


def _fills_holes(mappings: Mappings) -> bool:
    return any(isinstance(each, ZScoreIntensity) and each.nonzero_only and each.fill_holes for each in mappings)


def _transform(
    counted: Sequence[NDArray[np.generic]], mapping: Intensity, mask: NDArray[np.bool_] | None
) -> IntensityTransform:
    """Returns a mapping as a function.

    Args:
        counted: The arrays that statistics are taken over.
        mapping: The mapping.
        mask: The voxels that are counted and changed, for a mapping that fills holes.
    """
    match mapping:
        case CtIntensity():
            return partial(_standardise, mean=mapping.mean, spread=mapping.std, clip=mapping.clip)
        case ZScoreIntensity():
            where = mask if _fills_holes([mapping]) else None
            nonzero_only = mapping.nonzero_only and where is None
            mean, spread = _moments(counted, where, nonzero_only=nonzero_only)
            return partial(_standardise, mean=mean, spread=spread, where=where, nonzero_only=nonzero_only)
        case PercentilesIntensity():
            source = _percentiles(counted, mapping.percentiles)
            return partial(_rescale_range, source=source, target=mapping.output, clip=mapping.clip)
        case ClipPercentilesIntensity():
            return partial(_clip, bounds=_percentiles(counted, mapping.percentiles))
        case MinMaxIntensity():
            source = float(min(image.min() for image in counted)), float(max(image.max() for image in counted))
            return partial(_rescale_extremes, source=source, target=mapping.output)
        case FixedRangeIntensity():
            return partial(_rescale_range, source=mapping.input, target=mapping.output, clip=mapping.clip)
        case ClipIntensity():
            return partial(_clip, bounds=mapping.range)
        case LinearIntensity():
            return partial(_scale, scale=mapping.scale, offset=mapping.offset)
    return lambda image: None


def _moments(
    images: Sequence[NDArray[np.generic]], mask: NDArray[np.bool_] | None, *, nonzero_only: bool
) -> tuple[float, float]:
    """Mean and standard deviation, by two passes over planes: the whole image in float64 would take too much memory."""

    def counted() -> Iterator[NDArray[np.float64]]:
        for image in images:
            axis = max(range(image.ndim), key=lambda axis: abs(image.strides[axis]))
            wheres = [...] * image.shape[axis] if mask is None else np.moveaxis(mask, axis, 0)
            for plane, where in zip(np.moveaxis(image, axis, 0), wheres, strict=True):
                yield np.asarray(plane[plane != 0] if nonzero_only else plane[where], dtype=np.float64)

    count = sum(plane.size for plane in counted())
    if not count:
        return 0.0, 1.0
    mean = sum(float(plane.sum()) for plane in counted()) / count
    return mean, sqrt(sum(float(np.square(plane - mean).sum()) for plane in counted()) / count)


def _percentiles(images: Sequence[NDArray[np.generic]], percentiles: tuple[float, float]) -> tuple[float, float]:
    """Percentiles of all values together, interpolated linearly (np.percentile, torch.quantile)."""
    values = np.empty(sum(image.size for image in images), dtype=np.result_type(*images))
    start = 0
    for image in images:
        in_memory = image.transpose(slow_axes(image))
        values[start : start + image.size].reshape(in_memory.shape)[...] = in_memory
        start += image.size
    low, high = np.percentile(values, percentiles, overwrite_input=True)
    return float(low), float(high)


def _standardise(
    image: NDArray[np.float32],
    *,
    mean: float,
    spread: float,
    clip: tuple[float, float] | None = None,
    where: NDArray[np.bool_] | None = None,
    nonzero_only: bool = False,
) -> None:
    changed: NDArray[np.bool_] | bool = image != 0 if nonzero_only else True if where is None else where
    if clip is not None:
        np.clip(image, *clip, out=image)
    np.subtract(image, np.float32(mean), out=image, where=changed)
    np.divide(image, np.float32(max(spread, _MIN_SPREAD)), out=image, where=changed)


def _rescale_range(
    image: NDArray[np.float32], *, source: tuple[float, float], target: tuple[float, float], clip: bool
) -> None:
    low, high = source
    if low == high:
        # MONAI's ScaleIntensityRange then neither scales nor clips.
        image -= low
        image += target[0]
        return
    image -= low
    image *= (target[1] - target[0]) / max(high - low, _MIN_SPREAD)
    image += target[0]
    if clip:
        np.clip(image, min(target), max(target), out=image)


def _rescale_extremes(image: NDArray[np.float32], *, source: tuple[float, float], target: tuple[float, float]) -> None:
    if source[0] == source[1]:
        # MONAI's ScaleIntensity of a constant image.
        image *= target[0]
        return
    _rescale_range(image, source=source, target=target, clip=False)


def _clip(image: NDArray[np.float32], *, bounds: tuple[float, float]) -> None:
    np.clip(image, *bounds, out=image)


def _scale(image: NDArray[np.float32], *, scale: float, offset: float) -> None:
    image *= scale
    image += offset
