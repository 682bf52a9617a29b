"""Cleaning a mask by connected components, as the manifest says."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from inference_service.manifest import LargestComponent, PostProcessing

# 26-connected: voxels that share a corner belong together.
_NEIGHBOURS = np.ones((3, 3, 3), dtype=bool)


def clean(mask: NDArray[np.unsignedinteger], steps: Sequence[PostProcessing], *, voxel_volume_ml: float) -> None:
    """Applies post-processing steps in order; what they drop becomes 0.

    Args:
        mask: Shape (i, j, k), changed in place.
        steps: From the manifest.
        voxel_volume_ml: Volume of one voxel.
    """
    for step in steps:
        for label in step.labels:
            _clean_label(mask, label, step, voxel_volume_ml)


def _clean_label(mask: NDArray[np.unsignedinteger], label: int, step: PostProcessing, voxel_volume_ml: float) -> None:
    box = _bounding_box(mask == label)
    if box is None:
        return
    inside = mask[box]
    components, count = ndimage.label(inside == label, structure=_NEIGHBOURS)
    sizes = np.bincount(components.ravel(), minlength=count + 1)
    sizes[0] = 0
    if isinstance(step, LargestComponent):
        dropped = np.arange(count + 1) != sizes.argmax()
    else:
        dropped = sizes * voxel_volume_ml < step.min_volume_ml
    dropped[0] = False
    inside[dropped[components]] = 0


def _bounding_box(where: NDArray[np.bool_]) -> tuple[slice, ...] | None:
    boxes = ndimage.find_objects(where.view(np.uint8))
    return boxes[0] if boxes and boxes[0] is not None else None
