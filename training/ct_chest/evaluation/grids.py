"""The same scan on another grid: turned, at another spacing, in a round field of view."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from inference_service.imaging.geometry import Volume
from training.ct_chest.labels import BACKGROUND, NAMES
from training.ct_chest.synthetic.canvas import Spacing
from training.ct_chest.synthetic.scanner import outside_round_view


def ras(volume: Volume) -> Volume:
    """The same scan with axes that run to the right, the front and the head."""
    return turned(volume, *_to_ras(volume))


def turned(volume: Volume, axes: tuple[int, ...], flips: tuple[bool, ...]) -> Volume:
    """The same scan with its axes in another order and direction; its place in the world stays."""
    change = np.zeros((4, 4))
    change[3, 3] = 1
    for new, (old, flip) in enumerate(zip(axes, flips, strict=True)):
        change[old, new] = -1 if flip else 1
        change[old, 3] = volume.shape[old] - 1 if flip else 0
    voxels = volume.voxels.transpose(axes)[tuple(slice(None, None, -1 if flip else None) for flip in flips)]
    return Volume(voxels, volume.affine @ change)


def _to_ras(volume: Volume) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    axes = tuple(int(np.abs(volume.affine[world, :3]).argmax()) for world in range(3))
    return axes, tuple(bool(volume.affine[world, axis] < 0) for world, axis in enumerate(axes))


def resampled(
    scan: Volume, mask: NDArray[np.unsignedinteger], spacing: Spacing
) -> tuple[Volume, NDArray[np.unsignedinteger]]:
    """The scan at another spacing, averaged where that is coarser, and the labels that have most of each voxel there.

    The mask's nearest labels would not do: of a rib thinner than a voxel they have here a hole and there a lump.
    """
    steps = _steps(scan.spacing_mm, spacing)
    change = np.diag([*steps, 1.0])
    change[:3, 3] = [_first_centre(step) for step in steps]
    voxels = np.rint(_averaged(scan.voxels, steps)).astype(np.int16)
    labels = np.argmax(shares(mask, scan.spacing_mm, spacing), axis=0)
    return Volume(voxels, scan.affine @ change), labels.astype(mask.dtype)


def shares(mask: NDArray[np.unsignedinteger], spacing_mm: Spacing, target_mm: Spacing) -> list[NDArray[np.float32]]:
    """About how much of each voxel of another grid is of each label, by a blur as wide as voxels that are wider.

    Args:
        mask: Shape (i, j, k).
        spacing_mm: Of the mask.
        target_mm: Of the other grid.

    Returns:
        Of each of the model's labels, that grid's shape; 0 to 1, and 1 together.
    """
    return [_averaged(mask == label, _steps(spacing_mm, target_mm)) for label in range(len(NAMES))]


def _steps(spacing_mm: Spacing, target_mm: Spacing) -> list[float]:
    """How many times as wide the other grid's voxels are, along each axis."""
    return [target / spacing for target, spacing in zip(target_mm, spacing_mm, strict=True)]


def _averaged(values: NDArray[np.generic], steps: Sequence[float]) -> NDArray[np.float32]:
    places = [
        _first_centre(step) + np.arange(max(1, int(n / step))) * step
        for n, step in zip(values.shape, steps, strict=True)
    ]
    blurred = ndimage.gaussian_filter(values.astype(np.float32), [0.35 * max(0, step - 1) for step in steps])
    grid = np.meshgrid(*places, indexing="ij")
    averaged: NDArray[np.float32] = ndimage.map_coordinates(blurred, grid, order=1, mode="nearest")
    return averaged


def _first_centre(step: float) -> float:
    """The middle of the first voxel that is so many times as wide, in voxels: their edges lie in one place."""
    return (step - 1) / 2


def in_round_view(
    scan: Volume, mask: NDArray[np.unsignedinteger], padding_hu: int, margins: tuple[int, int, int] = (10, 10, 4)
) -> tuple[Volume, NDArray[np.unsignedinteger]]:
    """What a round field of view in the plane of the first two axes shows, with more padding on all sides.

    Args:
        scan: The field is as wide as its longer side.
        mask: On its grid; background outside.
        padding_hu: What lies outside.
        margins: Voxels on either side of each axis.
    """
    outside = outside_round_view(scan.shape, scan.spacing_mm, 1.0)
    voxels = scan.voxels.copy()
    labels = mask.copy()
    voxels[outside] = padding_hu
    labels[outside] = BACKGROUND
    pads = [(margin, margin) for margin in margins]
    change = np.eye(4)
    change[:3, 3] = [-margin for margin in margins]
    framed = np.pad(voxels, pads, constant_values=padding_hu)
    return Volume(framed, scan.affine @ change), np.pad(labels, pads, constant_values=BACKGROUND)
