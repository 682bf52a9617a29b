"""Replaces voxels that hold no measurement: NaN, infinity, huge numbers and the lowest 16-bit integer."""

from collections.abc import Sequence
from math import inf
from typing import cast

import numpy as np
from numpy.typing import NDArray

from inference_service.core.errors import InputCorrupt
from inference_service.imaging.geometry import Volume
from inference_service.imaging.hounsfield import AIR_HU, may_be_hu, sample

Voxels = NDArray[np.integer | np.floating]

# The highest 32-bit integer. No scanner measures as much, and networks in half precision overflow long before.
_MIN_FILL = 2**31 - 1
_LOWEST_INT16 = -(2**15)
# Every body has some.
_FAT_HU = -50


def replace_fill_values(volume: Volume) -> int:
    """Gives voxels that hold no measurement the lowest value of the others, in place; returns their number.

    Tools fill the space outside the field of view with huge numbers, such as the lowest one of a data type. The lowest
    16-bit integer is one where no other voxel is below half of it. Where the others may be HU, fill values become air:
    the lowest value of a CT without air is fat.

    Raises:
        InputCorrupt: No voxel holds a measurement.
    """
    voxels = cast("Voxels", volume.voxels)
    if voxels.dtype.itemsize == 1:
        return 0
    # Plane by plane, so that no further array of the volume's size is held.
    planes = [voxels[:, :, k] for k in range(voxels.shape[2])]
    suspects = [plane for plane in planes if _may_hold_fill(plane)]
    if not suspects:
        return 0
    lowest = _lowest(planes, with_int16=True)
    with_int16 = lowest >= _LOWEST_INT16 / 2
    if not with_int16:
        lowest = _lowest(planes, with_int16=False)
    if lowest == inf:
        raise InputCorrupt("all voxels of the volume are NaN, infinite or a fill value: expected measured values")
    sampled = sample(voxels)
    is_ct = AIR_HU < lowest < _FAT_HU and may_be_hu(sampled[~_is_fill(sampled, with_int16=with_int16)])
    background = AIR_HU if is_ct else lowest
    replaced = 0
    for plane in suspects:
        is_fill = _is_fill(plane, with_int16=with_int16)
        plane[is_fill] = background
        replaced += int(np.count_nonzero(is_fill))
    return replaced


def _may_hold_fill(plane: Voxels) -> bool:
    # Most integers cannot be as high. Comparisons with NaN are false.
    can_be_high = plane.dtype.kind == "f" or plane.dtype.itemsize > 2
    return not (plane.min() > _LOWEST_INT16 and (not can_be_high or plane.max() < _MIN_FILL))


def _is_fill(values: Voxels, *, with_int16: bool) -> NDArray[np.bool_]:
    is_measured = (values > -_MIN_FILL) & (values < _MIN_FILL)
    if with_int16:
        is_measured &= values != _LOWEST_INT16
    return ~is_measured


def _lowest(planes: Sequence[Voxels], *, with_int16: bool) -> float:
    """The lowest value that is no fill value; infinity where there is none."""
    lowest = inf
    for plane in planes:
        measured = plane[~_is_fill(plane, with_int16=with_int16)]
        lowest = min(lowest, float(measured.min())) if measured.size else lowest
    return lowest
