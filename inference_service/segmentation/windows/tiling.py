"""Where the windows of sliding-window inference lie, and how much each of their voxels counts. Pure numerics."""

from dataclasses import dataclass
from itertools import product
from math import ceil, prod
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from inference_service.contract.part import Blending, Gaussian, Part
from inference_service.core.errors import InputTooLarge
from inference_service.imaging.geometry import Shape

Placement = Literal["snap", "even"]
Corner = tuple[int, int, int]
"""Index (i, j, k) of a window's first voxel."""

MAX_WINDOWS = 2**18
"""Upper limit of the windows of one scan: 512 million voxels in windows of 32³ that overlap by half have fewer."""
# Lower bound of the weights, so that the total weight of a voxel that only a window's corner covers is not 0 (MONAI).
_MIN_WEIGHT = 1e-3
# Standard deviations from the centre beyond which nnU-Net's Gaussian is 0 (SciPy's gaussian_filter).
_TRUNCATED_AT_SIGMA = 4


@dataclass(frozen=True)
class WindowPlan:
    """Where the windows of one volume lie.

    Attributes:
        window: Voxels of a window along each axis.
        axes: The volume's axes, `stream_axis` first.
        pads: Voxels added before and after each axis, so that a window fits.
        starts: Along each axis, the first index of each window in the padded volume.
    """

    window: Shape
    axes: tuple[int, int, int]
    pads: tuple[tuple[int, int], ...]
    starts: tuple[list[int], ...]

    @property
    def stream_axis(self) -> int:
        """The axis along which the windows advance last, and along which finished planes leave."""
        return self.axes[0]

    @property
    def count(self) -> int:
        """Number of windows."""
        return prod(len(starts) for starts in self.starts)

    def corners(self) -> list[Corner]:
        """Returns the corners of all windows in the padded volume, ordered by their start along `stream_axis`."""
        ordered = product(*(self.starts[axis] for axis in self.axes))
        i, j, k = (self.axes.index(axis) for axis in range(3))
        return [(corner[i], corner[j], corner[k]) for corner in ordered]


def window_shape(shape: Shape, part: Part) -> Shape:
    """Returns the window of a part; along an axis for which it states none, the whole image, padded to a multiple.

    Args:
        shape: Voxels of the image along each axis.
        part: Gives the window.
    """
    multiple = part.multiple_of
    i, j, k = (extent or -(-size // multiple) * multiple for extent, size in zip(part.window, shape, strict=True))
    return i, j, k


def plan_windows(
    shape: Shape, window: Shape, overlap: float, placement: Placement, padding_sides: Literal["both", "end"] = "both"
) -> WindowPlan:
    """Places windows so that they cover a volume.

    The windows advance last along the axis that is longest in windows, so that the fewest logits are held at a time.

    Args:
        shape: Voxels of the volume along each axis.
        window: Voxels of a window along each axis; may exceed the volume.
        overlap: Share of a window that its neighbour covers too, in [0, 1).
        placement: "snap" or "even", as `window_starts` describes them.
        padding_sides: Where a volume smaller than a window is padded.

    Raises:
        InputTooLarge: There are more than MAX_WINDOWS.

    >>> plan_windows((4, 10, 3), (4, 4, 4), 0.25, "snap")
    WindowPlan(window=(4, 4, 4), axes=(1, 0, 2), pads=((0, 0), (0, 0), (0, 1)), starts=([0], [0, 3, 6], [0]))
    """
    count = prod(
        count_windows(max(size, extent), extent, overlap, placement) for size, extent in zip(shape, window, strict=True)
    )
    if count > MAX_WINDOWS:
        raise InputTooLarge(
            f"{count} windows cover the scan on the model's grid; this service runs at most {MAX_WINDOWS}"
        )
    longest = max(range(3), key=lambda axis: shape[axis] / window[axis])
    second, third = (axis for axis in range(3) if axis != longest)
    pads = tuple(padding(size, extent, padding_sides) for size, extent in zip(shape, window, strict=True))
    starts = tuple(
        window_starts(max(size, extent), extent, overlap, placement) for size, extent in zip(shape, window, strict=True)
    )
    return WindowPlan(window, (longest, second, third), pads, starts)


def count_windows(size: int, window: int, overlap: float, placement: Placement) -> int:
    """Returns the number of windows along one axis without listing them; see `window_starts`."""
    return ceil((size - window) / _step(window, overlap, placement)) + 1


def window_starts(size: int, window: int, overlap: float, placement: Placement) -> list[int]:
    """Returns the first index of each window along one axis.

    Args:
        size: Voxels along the axis; at least `window` (a smaller volume is padded first, see `padding`).
        window: Voxels of a window.
        overlap: Share of a window that its neighbour covers too, in [0, 1).
        placement: "snap" takes a fixed step and moves the last window back inside the volume (MONAI's
            dense_patch_slices); "even" takes the fewest windows whose step does not exceed that one, at equal steps
            (nnU-Net's compute_steps_for_sliding_window).

    Raises:
        ValueError: The axis is shorter than a window.

    >>> window_starts(10, 4, 0.25, "snap"), window_starts(10, 4, 0.25, "even")
    ([0, 3, 6], [0, 3, 6])
    >>> window_starts(11, 4, 0.25, "snap"), window_starts(11, 4, 0.25, "even")
    ([0, 3, 6, 7], [0, 2, 5, 7])
    """
    if size < window:
        raise ValueError(f"expected an axis of at least one window ({window} voxels), got {size}")
    count = count_windows(size, window, overlap, placement)
    if placement == "snap":
        step = _step(window, overlap, placement)
        return [min(int(index * step), size - window) for index in range(count)]
    return [round((size - window) / (count - 1) * index) if count > 1 else 0 for index in range(count)]


def _step(window: int, overlap: float, placement: Placement) -> float:
    """Voxels between two windows; for "even" the upper limit of it. Windows of one voxel do not overlap."""
    if window == 1:
        return 1
    return max(1, int(window * (1 - overlap))) if placement == "snap" else window * (1 - overlap)


def padding(size: int, window: int, sides: Literal["both", "end"] = "both") -> tuple[int, int]:
    """Voxels to add before and after an axis so that a window fits; of both sides, the smaller half comes first.

    >>> padding(3, 8), padding(9, 8), padding(3, 8, "end")
    ((2, 3), (0, 0), (0, 5))
    """
    missing = max(0, window - size)
    before = missing // 2 if sides == "both" else 0
    return before, missing - before


def importance_map(window: Shape, blending: Blending) -> NDArray[np.float32]:
    """Returns the weight of each voxel of a window where windows overlap.

    Args:
        window: Voxels of a window along each axis.
        blending: "constant": equal weights. A Gaussian: around the window's middle (MONAI's compute_importance_map), or
            around the voxel at half of its size (nnU-Net's compute_gaussian, whose weights of 0 become the least other
            weight); "gaussian" is MONAI's with the standard deviation of an eighth of the window.

    Returns:
        Shape `window`, in (0, 1].
    """
    weights = np.ones(window, dtype=np.float32)
    if blending == "constant":
        return weights
    gaussian = Gaussian() if blending == "gaussian" else blending
    for axis, size in enumerate(window):
        sigma = size * gaussian.sigma
        offsets = np.arange(size) - ((size - 1) / 2 if gaussian.centre == "middle" else size // 2)
        profile = np.exp(-(offsets**2) / (2 * sigma**2)).astype(np.float32)
        if gaussian.centre == "voxel":
            profile[np.abs(offsets) > int(_TRUNCATED_AT_SIGMA * sigma + 0.5)] = 0
        weights *= np.moveaxis(np.broadcast_to(profile, (1, 1, size)), 2, axis)
    least = _MIN_WEIGHT if gaussian.centre == "middle" else weights[weights > 0].min()
    return np.maximum(weights, least, out=weights)
