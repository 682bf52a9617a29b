"""Puts a scan on another grid: turned, at another spacing, in a round field of view."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from inference_service.imaging.geometry import Volume
from training.ct_chest.labels import BACKGROUND, NAMES
from training.ct_chest.synthetic.canvas import Spacing
from training.ct_chest.synthetic.scanner import outside_round_view


def ras(volume: Volume) -> Volume:
    """Returns the scan with axes that run to the right, the front and the head (RAS+)."""
    return turned(volume, *_to_ras(volume))


def turned(volume: Volume, axes: tuple[int, ...], flips: tuple[bool, ...]) -> Volume:
    """Reorders and flips the axes of a scan; the affine follows, so its place in the world stays."""
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
    """Resamples a scan by averaging, and its mask to the label with the largest share of each new voxel.

    Nearest-neighbour labels would break a rib that is thinner than a voxel into holes and lumps.
    """
    steps = _steps(scan.spacing_mm, spacing)
    change = np.diag([*steps, 1.0])
    change[:3, 3] = [_first_centre(step) for step in steps]
    voxels = np.rint(_averaged(scan.voxels, steps)).astype(np.int16)
    labels = np.argmax(shares(mask, scan.spacing_mm, spacing), axis=0)
    return Volume(voxels, scan.affine @ change), labels.astype(mask.dtype)


def shares(mask: NDArray[np.unsignedinteger], spacing_mm: Spacing, target_mm: Spacing) -> list[NDArray[np.float32]]:
    """Estimates each label's share of the voxels of another grid; coarser voxels are blurred over their width.

    Args:
        mask: Shape (i, j, k).
        spacing_mm: Spacing of the mask.
        target_mm: Spacing of the other grid.

    Returns:
        One array for each label of the model, of the other grid's shape; values from 0 to 1 that add up to 1.
    """
    return [_averaged(mask == label, _steps(spacing_mm, target_mm)) for label in range(len(NAMES))]


def _steps(spacing_mm: Spacing, target_mm: Spacing) -> list[float]:
    """Ratio of target to source spacing, along each axis."""
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
    """The centre of the first voxel that is `step` times as wide, in source voxels; the grids' outer edges coincide."""
    return (step - 1) / 2


def in_round_view(
    scan: Volume, mask: NDArray[np.unsignedinteger], padding_hu: int, margins: tuple[int, int, int] = (10, 10, 4)
) -> tuple[Volume, NDArray[np.unsignedinteger]]:
    """Blanks a scan outside a round field of view in the plane of the first two axes, and pads all sides.

    Args:
        scan: The field of view is as wide as its longer side.
        mask: On the scan's grid; becomes background outside the field of view.
        padding_hu: Value outside the field of view.
        margins: Voxels added on either side of each axis.
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
