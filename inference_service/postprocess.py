"""Cleaning a mask by connected components, as the manifest says."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from inference_service.manifest import LargestComponent, PostProcessing

# 26-connected: voxels that share a corner belong together.
_NEIGHBOURS = np.ones((3, 3, 3), dtype=bool)

# Bounds the memory of counting, which takes 8 bytes a voxel.
_VOXELS_AT_A_TIME = 2**22


def clean(mask: NDArray[np.unsignedinteger], steps: Sequence[PostProcessing], *, voxel_volume_ml: float) -> None:
    """Applies post-processing steps in order; what they drop becomes 0, or what the step says.

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
    sizes = _sizes(components, count)
    sizes[0] = 0
    if isinstance(step, LargestComponent):
        dropped = np.arange(count + 1) != sizes.argmax()
    else:
        dropped = sizes * voxel_volume_ml < step.min_volume_ml
    dropped[0] = False
    if step.becomes == "surroundings":
        _dissolve(inside, components, np.flatnonzero(dropped))
    else:
        inside[dropped[components]] = step.becomes


def _dissolve(
    inside: NDArray[np.unsignedinteger], components: NDArray[np.signedinteger], dropped: NDArray[np.intp]
) -> None:
    """Gives each of these components the value that is most frequent around it."""
    places = ndimage.find_objects(components)
    for number in dropped:
        near = tuple(slice(max(0, side.start - 1), side.stop + 1) for side in places[number - 1])
        component = components[near] == number
        ring = ndimage.binary_dilation(component, _NEIGHBOURS) & ~component
        inside[near][component] = np.bincount(inside[near][ring], minlength=1).argmax()


def _sizes(components: NDArray[np.signedinteger], count: int) -> NDArray[np.intp]:
    """Voxels of each component, the background's first."""
    flat = components.ravel(order="K")
    sizes = np.zeros(count + 1, dtype=np.intp)
    for start in range(0, flat.size, _VOXELS_AT_A_TIME):
        sizes += np.bincount(flat[start : start + _VOXELS_AT_A_TIME], minlength=count + 1)
    return sizes


def _bounding_box(where: NDArray[np.bool_]) -> tuple[slice, ...] | None:
    """What holds all of it and the voxels around it."""
    across_k = np.asarray(where.any(axis=2))
    spans = [np.flatnonzero(line) for line in (across_k.any(axis=1), across_k.any(axis=0), where.any(axis=(0, 1)))]
    if not spans[0].size:
        return None
    return tuple(slice(max(0, int(span[0]) - 1), int(span[-1]) + 2) for span in spans)
