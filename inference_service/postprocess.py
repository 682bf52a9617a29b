"""Cleaning a mask by connected components, as the manifest says."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from inference_service.manifest import LargestComponent, PostProcessing

# 26-connected: voxels that share a corner belong together.
_NEIGHBOURS = np.ones((3, 3, 3), dtype=bool)
# To the six voxels that share a face.
_STEPS = np.concatenate((np.eye(3, dtype=np.intp), -np.eye(3, dtype=np.intp)))

# Bounds the memory of counting, which takes 8 bytes a voxel.
_VOXELS_AT_A_TIME = 2**22
# The same of looking around voxels, which takes some 400 bytes each.
_NEIGHBOURHOODS_AT_A_TIME = 2**17


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
        _dissolve(inside, components, dropped)
    else:
        inside[dropped[components]] = step.becomes


def _dissolve(
    inside: NDArray[np.unsignedinteger], components: NDArray[np.signedinteger], dropped: NDArray[np.bool_]
) -> None:
    """Gives each dropped component the value that it shares most faces with: of equals the smallest, of none 0.

    Args:
        inside: Shape (i, j, k), changed in place.
        components: Same shape: the number of each component of one label, 0 elsewhere.
        dropped: Which numbers are dropped.
    """
    where = dropped[components]
    places = np.flatnonzero(where)
    width = int(inside.max()) + 1
    parts = [
        _faces(inside, components, places[start : start + _NEIGHBOURHOODS_AT_A_TIME], width)
        for start in range(0, places.size, _NEIGHBOURHOODS_AT_A_TIME)
    ]
    values = np.zeros(dropped.size, dtype=inside.dtype)
    if parts:
        pairs, inverse = np.unique(np.concatenate([keys for keys, _ in parts]), return_inverse=True)
        counts = np.bincount(inverse, np.concatenate([counts for _, counts in parts]))
        numbers, touching = np.divmod(pairs, width)
        # Where a number occurs again the last one stays.
        order = np.lexsort((-touching, counts))
        values[numbers[order]] = touching[order]
    inside[where] = values[components[where]]


def _faces(
    inside: NDArray[np.unsignedinteger],
    components: NDArray[np.signedinteger],
    places: NDArray[np.intp],
    width: int,
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """What these flat places share faces with: components' numbers · width + values, and how many faces."""
    voxels = np.stack(np.unravel_index(places, inside.shape), axis=1)
    near = (voxels[:, np.newaxis] + _STEPS).reshape(-1, 3)
    numbers = np.repeat(components[tuple(voxels.T)].astype(np.intp), len(_STEPS))
    there = np.all((near >= 0) & (near < inside.shape), axis=1)
    touched = tuple(near[there].T)
    others = components[touched] == 0
    return np.unique(numbers[there][others] * width + inside[touched][others], return_counts=True)


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
