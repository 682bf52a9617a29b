"""Hounsfield units: the value of air, and whether values may be HU."""

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Value = TypeVar("Value", bound=np.generic)

AIR_HU = -1024
"""The lowest value that CT scanners store for air. Lower values are padding."""

# Fat and air are below 0 HU (water): at least this share of a CT's voxels is.
_MIN_SHARE_BELOW_0 = 1e-3
# Values below air (-1000 HU) are padding and do not count.
_MIN_HU = -1100.0
# A normalised image has a narrower range; a wider one does not occur.
_MIN_RANGE_HU = 50.0
_MAX_RANGE_HU = 2.0**17
_MAX_SAMPLES = 2**21


def sample(voxels: NDArray[Value]) -> NDArray[Value]:
    """At most about two million values of an image, from an even grid of its voxels; a view."""
    step = max(1, round((voxels.size / _MAX_SAMPLES) ** (1 / voxels.ndim)))
    return voxels[(slice(None, None, step),) * voxels.ndim]


def may_be_hu(voxels: NDArray[np.generic]) -> bool:
    """Returns True if values may be HU by their range, and by the share of them that is below water.

    Args:
        voxels: The values, of any shape, finite.
    """
    values = sample(voxels).astype(np.float32)
    values = values[values >= _MIN_HU]
    if not values.size or np.mean(values < 0) < _MIN_SHARE_BELOW_0:
        return False
    return _MIN_RANGE_HU <= float(voxels.max()) - float(values.min()) <= _MAX_RANGE_HU
