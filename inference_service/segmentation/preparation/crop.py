"""The part of a scan that is segmented, as the manifest asks: the box around the body, the foreground, or a finding."""

from collections.abc import Callable, Mapping, Sequence
from math import ceil
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from inference_service.contract.crops import BodyCrop, Crop, ForegroundCrop, ModelCrop, NonzeroCrop
from inference_service.core.errors import ModelInvalid
from inference_service.imaging.geometry import Box, Sides, Volume, box

Channels = Sequence[NDArray[np.generic]] | NDArray[np.generic]
"""Arrays (i, j, k), or one array (channels, i, j, k)."""
FindLabels = Callable[[ModelCrop], NDArray[np.unsignedinteger]]
"""Returns the mask of the model that a crop names, on the grid of the scan."""

# The body is found on a grid of about this spacing: fine enough to separate it from the table, and fast.
_BODY_STEP_MM = 4.0


class SegmentBy(Protocol):
    """Segments a scan with the model that a crop names."""

    def __call__(self, crop: ModelCrop, channels: Mapping[str, Volume]) -> NDArray[np.unsignedinteger]:
        """Returns the mask, shape (i, j, k), on the grid of the channels, which have names."""


def refuse_model(crop: ModelCrop) -> NDArray[np.unsignedinteger]:
    """A `FindLabels` where no other model can run."""
    raise ModelInvalid(f"the scan is cropped to what model {crop.model} finds, which cannot run here")


def crop_box(channels: Sequence[Volume], crop: Crop | None, find_labels: FindLabels = refuse_model) -> Box:
    """Finds the box that a crop keeps.

    Args:
        channels: The channels of the scan, on one grid; their values are finite.
        crop: The manifest's crop of the scan; None keeps the whole scan.
        find_labels: Segments the scan by another model.

    Returns:
        A slice for each axis; the whole scan where the crop would keep nothing; an empty box where a model finds
        nothing and the crop asks for that.

    Raises:
        ModelInvalid: The crop names another model, which cannot run.
    """
    volume = channels[0]
    found: Sides | None = None
    match crop:
        case BodyCrop():
            found = _body(volume, crop.threshold)
        case NonzeroCrop():
            found = nonzero_sides([channel.voxels for channel in channels])
        case ForegroundCrop():
            found = foreground_sides([channel.voxels for channel in channels], crop)
        case ModelCrop():
            mask = find_labels(crop)
            found = _bounds(np.isin(mask, crop.labels) if crop.labels else mask != 0, crop.min_plane_share)
    if found is None:
        nothing = isinstance(crop, ModelCrop) and crop.if_empty == "nothing"
        return box((0, 0 if nothing else size) for size in volume.shape)
    share = getattr(crop, "margin_share", 0.0)
    margins = (
        _margin(crop, mm) + round(share * (stop - start))
        for mm, (start, stop) in zip(volume.spacing_mm, found, strict=True)
    )
    return box(
        (max(0, start - margin), min(size, stop + margin))
        for (start, stop), margin, size in zip(found, margins, volume.shape, strict=True)
    )


def _margin(crop: Crop | None, mm: float) -> int:
    """The margin of a crop in voxels: rounded up, or down as in TotalSegmentator for the labels of a model."""
    voxels = getattr(crop, "margin_mm", 0.0) / mm
    return int(voxels) if isinstance(crop, ModelCrop) else ceil(round(voxels, 6))


def nonzero_sides(channels: Channels) -> Sides | None:
    """Finds the box around the voxels that are not 0 in all channels; None where there are none."""
    return _bounds(_any(channels, lambda voxels: voxels != 0))


def foreground_sides(channels: Channels, crop: ForegroundCrop) -> Sides | None:
    """Finds the box around the foreground as MONAI's CropForeground does, with its margin and divisor.

    Args:
        channels: All channels.
        crop: The manifest's crop.

    Returns:
        The box, which may exceed the grid; None where there is no foreground.
    """
    chosen = channels if crop.channel is None else [channels[crop.channel]]
    found = _bounds(_any(chosen, lambda voxels: np.greater(voxels, crop.threshold)))
    if found is None:
        return None
    i, j, k = (_widened(start - crop.margin_voxels, stop + crop.margin_voxels, crop.divisor) for start, stop in found)
    return i, j, k


def _widened(start: int, stop: int, divisor: int) -> tuple[int, int]:
    """Widens a side to a multiple of a divisor, by the smaller half before it."""
    size = -(-(stop - start) // divisor) * divisor
    start -= (size - (stop - start)) // 2
    return start, start + size


def _any(
    channels: Channels,
    test: Callable[[NDArray[np.generic]], NDArray[np.bool_]],
) -> NDArray[np.bool_]:
    """True where a test holds for any channel."""
    where = test(channels[0])
    for channel in channels[1:]:
        where |= test(channel)
    return where


def _body(volume: Volume, threshold: float) -> Sides | None:
    """The box around the largest 6-connected region above a threshold, found on a coarse grid and widened by a step."""
    steps = [max(1, int(_BODY_STEP_MM / mm)) for mm in volume.spacing_mm]
    coarse = volume.voxels[tuple(slice(None, None, step) for step in steps)]
    regions, count = ndimage.label(np.greater(coarse, threshold))
    if not count:
        return None
    sizes = np.bincount(regions.ravel())
    sizes[0] = 0
    body = _bounds(regions == sizes.argmax())
    if body is None:
        return None
    i, j, k = (
        (max(0, (start - 1) * step + 1), min(size, stop * step))
        for (start, stop), step, size in zip(body, steps, volume.shape, strict=True)
    )
    return i, j, k


def _bounds(where: NDArray[np.bool_], min_plane_share: float = 0.0) -> Sides | None:
    """The smallest box around planes with more true voxels than a share of them; None where there are none."""
    others = ((1, 2), (0, 2), (0, 1))
    if min_plane_share:
        found = [np.flatnonzero(where.mean(axis=axes) > min_plane_share) for axes in others]
    else:
        found = [np.flatnonzero(where.any(axis=axes)) for axes in others]
    if not all(indices.size for indices in found):
        return None
    i, j, k = ((int(indices[0]), int(indices[-1]) + 1) for indices in found)
    return i, j, k
