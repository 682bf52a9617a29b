"""Voxels in every plane and connected components of each label of a mask. Pure numerics."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from inference_service.imaging.run_length import RunLengthEncoding

Counts = NDArray[np.int64]
PlaneCounts = tuple[Counts, Counts, Counts]

_VOXELS_PER_SLAB = 2**21
# A slab of noise has five times as many runs: its components would take minutes and gigabytes to find.
_MAX_RUNS_PER_SLAB = 2**18


@dataclass(frozen=True)
class LabelComponents:
    """Where the labels of a mask lie, and how many connected components each has.

    Attributes:
        voxels_per_plane: For each array axis, shape (labels, size): number of voxels of each label in each plane across
            that axis.
        counts: Number of 26-connected components of each label; None where the mask is too noisy to count them.
    """

    voxels_per_plane: PlaneCounts
    counts: list[int] | None


@dataclass(frozen=True)
class _SlabComponents:
    """The components of one slab and of the plane after it, which is the first plane of the next slab.

    Attributes:
        number: Number of components, of all labels together.
        counts: Shape (labels,): number of components of each label.
        first_plane: Component of each run in the slab's first plane.
        next_plane: Component of each run in the plane after the slab.
        next_plane_labels: Label index of each of those runs.
    """

    number: int
    counts: Counts
    first_plane: Counts
    next_plane: Counts
    next_plane_labels: Counts


def find_components(mask: NDArray[np.unsignedinteger], values: Sequence[int]) -> LabelComponents:
    """Counts the voxels in each plane and the connected components of each label.

    The mask is cut into slabs along its third axis, which are counted one by one and then joined.

    Args:
        mask: Shape (i, j, k). Copied unless it is in Fortran order.
        values: The labels to count; other values in the mask are ignored.

    >>> found = find_components(np.array([[[1]], [[0]], [[1]]], dtype=np.uint8), [1])
    >>> [counts.tolist() for counts in found.voxels_per_plane], found.counts
    ([[[1, 0, 1]], [[2]], [[2]]], [2])
    """
    flat = mask.ravel(order="F")
    width, height, depth = mask.shape
    label_index = np.full(np.iinfo(mask.dtype).max + 1, len(values))
    label_index[list(values)] = np.arange(len(values))
    thickness = max(1, _VOXELS_PER_SLAB // (width * height))
    plane_counts = []
    slabs = []
    for start in range(0, depth, thickness):
        stop = min(depth, start + thickness + 1)
        voxels = flat[start * width * height : stop * width * height]
        runs = RunLengthEncoding.encode(voxels, (width, height, stop - start))
        slab_runs = runs.first_planes(min(thickness, stop - start))
        plane_counts.append(_count_voxels(slab_runs, label_index, len(values)))
        slabs.append(_find_in_slab(runs, len(slab_runs), label_index, len(values)))
    along_i, along_j, along_k = zip(*plane_counts, strict=True)
    counted = [slab for slab in slabs if slab is not None]
    return LabelComponents(
        (np.sum(along_i, axis=0), np.sum(along_j, axis=0), np.concatenate(along_k, axis=1)),
        _join(counted) if len(counted) == len(slabs) else None,
    )


def _count_voxels(runs: RunLengthEncoding, label_index: NDArray[np.intp], labels: int) -> PlaneCounts:
    """Number of voxels of each label in each plane."""
    width, height, depth = runs.shape
    j, k = runs.lines
    indices = label_index.take(runs.labels)
    lengths = runs.ends - runs.starts
    starts = runs.starts % width

    def count(size: int, planes: NDArray[np.intp], weights: NDArray[np.intp] | None = None) -> Counts:
        table = np.bincount(indices * size + planes, weights, (labels + 1) * size)
        return table.astype(np.int64).reshape(labels + 1, size)[:labels]

    # The runs that cover a plane across the first axis: those that have started, less those that have ended.
    started = count(width + 1, starts)
    ended = count(width + 1, starts + lengths)
    return np.cumsum(started - ended, axis=1)[:, :width], count(height, j, lengths), count(depth, k, lengths)


def _find_in_slab(
    runs: RunLengthEncoding, slab_runs: int, label_index: NDArray[np.intp], labels: int
) -> _SlabComponents | None:
    """Finds the components of a slab and the plane after it; None where there are too many runs.

    Args:
        runs: The runs of the slab and of the plane after the slab.
        slab_runs: Number of runs in the slab; the others lie in the plane after the slab.
        label_index: Index of each label value; `labels` for values that are ignored.
        labels: Number of labels.
    """
    if len(runs) > _MAX_RUNS_PER_SLAB:
        return None
    number, components = runs.connected_components()
    label_of_component = np.empty(number, dtype=np.intp)
    label_of_component[components] = label_index.take(runs.labels)
    first_plane_runs = len(runs.first_planes(1))
    return _SlabComponents(
        number,
        np.bincount(label_of_component, minlength=labels + 1)[:labels].astype(np.int64),
        components[:first_plane_runs].astype(np.int64),
        components[slab_runs:].astype(np.int64),
        label_of_component[components[slab_runs:]],
    )


def _join(slabs: Sequence[_SlabComponents]) -> list[int]:
    """Number of components of each label in the whole mask.

    It is the sum over the slabs, less those components that are counted again in the next slab or are joined there:
    components that share a run in a plane between two slabs are one.
    """
    counts = np.sum([slab.counts for slab in slabs], axis=0)
    offsets = np.cumsum([0, *(slab.number for slab in slabs)])
    shared_planes = list(zip(pairwise(slabs), pairwise(offsets), strict=False))
    if not shared_planes:
        return [int(count) for count in counts]
    edges = np.concatenate(
        [
            (slab.next_plane + offset, next_slab.first_plane + next_offset)
            for (slab, next_slab), (offset, next_offset) in shared_planes
        ],
        axis=1,
    )
    labels = np.concatenate([slab.next_plane_labels for (slab, _), _ in shared_planes])
    nodes, (first, second) = np.unique(edges, return_inverse=True)
    graph = sparse.coo_array((np.ones(len(labels), dtype=bool), (first, second)), shape=(len(nodes), len(nodes)))
    joined, joined_of_node = sparse.csgraph.connected_components(graph, directed=False)
    label_of_node = np.empty(len(nodes), dtype=np.intp)
    label_of_node[second] = labels
    label_of_node[first] = labels
    label_of_joined = np.empty(joined, dtype=np.intp)
    label_of_joined[joined_of_node] = label_of_node
    surplus = np.bincount(label_of_node, minlength=len(counts)) - np.bincount(label_of_joined, minlength=len(counts))
    return [int(count) for count in counts - surplus[: len(counts)]]
