"""Replaces voxels that hold no measurement: NaN, infinity and huge fill values."""

import numpy as np

from inference_service.core.errors import InputCorrupt
from inference_service.imaging.geometry import Volume

# No scanner measures more, and networks in half precision overflow long before.
_MAX_VALUE = 1e15


def replace_fill_values(volume: Volume) -> int:
    """Gives voxels that hold no measurement the lowest value of the others, in place; returns their number.

    Tools fill the space outside the field of view with huge numbers, such as the lowest one of single or double
    precision.

    Raises:
        InputCorrupt: No voxel holds a measurement.
    """
    voxels = volume.voxels
    if not np.issubdtype(voxels.dtype, np.floating):
        return 0
    # Plane by plane, so that no further array of the volume's size is held.
    planes = [voxels[:, :, k] for k in range(voxels.shape[2])]
    lowest = np.inf
    replaced = 0
    for plane in planes:
        measured = plane[np.abs(plane) <= _MAX_VALUE]
        replaced += plane.size - measured.size
        lowest = min(lowest, measured.min(initial=np.inf))
    if replaced == voxels.size:
        raise InputCorrupt(
            f"all voxels of the volume are NaN, infinite or beyond ±{_MAX_VALUE:g}: expected measured values"
        )
    for plane in planes if replaced else ():
        plane[~(np.abs(plane) <= _MAX_VALUE)] = lowest
    return replaced
