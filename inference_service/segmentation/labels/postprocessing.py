"""Postprocessing of a mask by connected components, as the manifest asks for it."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from inference_service.contract.labels import (
    Connectivity,
    FillHoles,
    LargestComponent,
    PostProcessing,
    RemoveSmallComponents,
)

# The voxels that are connected to the one in the middle.
_NEIGHBOURS: Mapping[Connectivity, NDArray[np.bool_]] = {
    "faces": ndimage.generate_binary_structure(3, 1),
    "edges": ndimage.generate_binary_structure(3, 2),
    "corners": ndimage.generate_binary_structure(3, 3),
}

# Bounds memory: counting components takes 8 bytes a voxel, counting faces some 60.
_VOXELS_AT_A_TIME = 2**22


def postprocess(mask: NDArray[np.unsignedinteger], steps: Sequence[PostProcessing], *, voxel_volume_ml: float) -> None:
    """Applies steps in order. The voxels of a component that a step drops get the value of `step.becomes`.

    Args:
        mask: Shape (i, j, k), changed in place; fastest in Fortran order.
        steps: Steps of the manifest, all on the mask's grid.
        voxel_volume_ml: Volume of one voxel in millilitres.
    """
    # SciPy scans lines of the last axis. Where they are not contiguous, this takes two to three times as long.
    lines_last = mask.T
    for step in steps:
        together = isinstance(step, LargestComponent) and step.together
        for labels in [step.labels] if together else [(label,) for label in step.labels]:
            box = _bounding_box(_is_one_of(lines_last, labels))
            if box is None:
                continue
            inside = lines_last[box]
            if isinstance(step, FillHoles):
                _fill_holes(inside, labels[0], _NEIGHBOURS[step.connectivity])
            else:
                _drop_components(inside, labels, step, voxel_volume_ml)


def _fill_holes(inside: NDArray[np.unsignedinteger], label: int, neighbours: NDArray[np.bool_]) -> None:
    """Gives a label the voxels that it encloses (MONAI's fill_holes)."""
    # A border of a voxel, by which all that is outside holds together.
    others, _ = ndimage.label(np.pad(inside != label, 1, constant_values=True), structure=neighbours)
    within = others[1:-1, 1:-1, 1:-1]
    inside[(within != 0) & (within != others[0, 0, 0])] = label


def _drop_components(
    inside: NDArray[np.unsignedinteger],
    labels: Sequence[int],
    step: LargestComponent | RemoveSmallComponents,
    voxel_volume_ml: float,
) -> None:
    """Drops components of a label, or of several as one structure."""
    components, count = ndimage.label(_is_one_of(inside, labels), structure=_NEIGHBOURS[step.connectivity])
    sizes = _sizes(components, count)
    sizes[0] = 0
    if isinstance(step, LargestComponent):
        dropped = sizes < sizes.max()
    else:
        dropped = (sizes * voxel_volume_ml < step.min_volume_ml) | (sizes / sizes.max() < step.min_share)
    dropped[0] = False
    if step.becomes == "surroundings":
        _replace_by_surroundings(inside, components, dropped)
    else:
        inside[dropped[components]] = step.becomes


def _is_one_of(mask: NDArray[np.unsignedinteger], labels: Sequence[int]) -> NDArray[np.bool_]:
    first, *others = labels
    where: NDArray[np.bool_] = mask == first
    for label in others:
        where |= mask == label
    return where


def _replace_by_surroundings(
    inside: NDArray[np.unsignedinteger], components: NDArray[np.signedinteger], dropped: NDArray[np.bool_]
) -> None:
    """Gives each dropped component the neighbouring value that it shares the most faces with.

    Of values that tie, the smallest is taken. A component without neighbouring values becomes 0.

    Args:
        inside: Shape (i, j, k), changed in place.
        components: Same shape: the number of each component of one label, 0 elsewhere.
        dropped: Whether each component is dropped, by its number.
    """
    where = dropped[components]
    places = np.flatnonzero(where)
    width = int(inside.max()) + 1
    parts = [
        _shared_faces(inside, components, places[start : start + _VOXELS_AT_A_TIME], axis, step, width)
        for start in range(0, places.size, _VOXELS_AT_A_TIME)
        for axis in range(inside.ndim)
        for step in (-1, 1)
    ]
    values = np.zeros(dropped.size, dtype=inside.dtype)
    if parts:
        pairs, which = np.unique(np.concatenate([pairs for pairs, _ in parts]), return_inverse=True)
        faces = np.bincount(which, np.concatenate([faces for _, faces in parts]))
        numbers, shared = np.divmod(pairs, width)
        # NumPy assigns in order, so the last of the equal indices counts.
        order = np.lexsort((-shared, faces))
        values[numbers[order]] = shared[order]
    inside[where] = values[components[where]]


def _shared_faces(
    inside: NDArray[np.unsignedinteger],
    components: NDArray[np.signedinteger],
    places: NDArray[np.intp],
    axis: int,
    step: int,
    width: int,
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Counts the faces that components share with values outside of them, along one axis in one direction.

    Args:
        inside: Shape (i, j, k).
        components: Same shape: the number of each component, 0 elsewhere.
        places: Flat indices of voxels of components.
        axis: The axis.
        step: The direction, -1 or 1.
        width: Greater than all values.

    Returns:
        Keys: number of a component · width + value, each once; and the number of faces of each key.
    """
    voxels = list(np.unravel_index(places, inside.shape))
    numbers = components[tuple(voxels)].astype(np.intp)
    # At the edge of the mask the neighbour is the voxel itself, which is not outside.
    voxels[axis] = np.clip(voxels[axis] + step, 0, inside.shape[axis] - 1)
    outside = components[tuple(voxels)] == 0
    shared = inside[tuple(index[outside] for index in voxels)]
    return np.unique(numbers[outside] * width + shared, return_counts=True)


def _sizes(components: NDArray[np.signedinteger], count: int) -> NDArray[np.intp]:
    """Number of voxels of each component, that of the background first."""
    flat = components.ravel(order="K")
    sizes = np.zeros(count + 1, dtype=np.intp)
    for start in range(0, flat.size, _VOXELS_AT_A_TIME):
        sizes += np.bincount(flat[start : start + _VOXELS_AT_A_TIME], minlength=count + 1)
    return sizes


def _bounding_box(where: NDArray[np.bool_]) -> tuple[slice, ...] | None:
    """The smallest box around true voxels, with a margin of one voxel; None where there are none."""
    across_k = np.asarray(where.any(axis=2))
    spans = [np.flatnonzero(line) for line in (across_k.any(axis=1), across_k.any(axis=0), where.any(axis=(0, 1)))]
    if not spans[0].size:
        return None
    return tuple(slice(max(0, int(span[0]) - 1), int(span[-1]) + 2) for span in spans)
