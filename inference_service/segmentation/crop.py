"""The part of a scan that is segmented: the box around the body, or around nonzero voxels, as the manifest asks."""

from collections.abc import Sequence
from math import ceil

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from inference_service.contract.crops import BodyCrop, Crop
from inference_service.imaging.geometry import Box, Volume, box

# The body is found on a grid of about this spacing: fine enough to separate it from the table, and fast.
_BODY_STEP_MM = 4.0


def crop_box(channels: Sequence[Volume], crop: Crop | None) -> Box:
    """Finds the box that a crop keeps.

    Args:
        channels: The channels of the scan, on one grid; their values are finite.
        crop: The manifest's crop; None keeps the whole scan.

    Returns:
        A slice for each axis; the whole scan where the crop would keep nothing.
    """
    volume = channels[0]
    found: Box | None = None
    if isinstance(crop, BodyCrop):
        found = _body(volume, crop.threshold)
    elif crop is not None:
        found = _bounds(np.logical_or.reduce([channel.voxels != 0 for channel in channels]))
    if crop is None or found is None:
        return box((0, size) for size in volume.shape)
    margins = (ceil(round(getattr(crop, "margin_mm", 0.0) / mm, 6)) for mm in volume.spacing_mm)
    return box(
        (max(0, side.start - margin), min(size, side.stop + margin))
        for side, margin, size in zip(found, margins, volume.shape, strict=True)
    )


def _body(volume: Volume, threshold: float) -> Box | None:
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
    return box(
        (max(0, (side.start - 1) * step + 1), min(size, side.stop * step))
        for side, step, size in zip(body, steps, volume.shape, strict=True)
    )


def _bounds(where: NDArray[np.bool_]) -> Box | None:
    """The smallest box around true voxels; None where there are none."""
    sides = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        (found,) = np.nonzero(where.any(axis=others))
        if not found.size:
            return None
        sides.append((int(found[0]), int(found[-1]) + 1))
    return box(sides)
