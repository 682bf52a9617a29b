"""Where the labels of a mask lie: their voxels in every plane, and their connected parts. Pure numerics."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from inference_service.imaging.run_length import Runs

Counts = NDArray[np.int64]
Profiles = tuple[Counts, Counts, Counts]

_VOXELS_OF_A_SLAB = 2**21
# Of a slab; noise has five times as many, and would take minutes and gigabytes to link.
_MOST_RUNS = 2**18


@dataclass(frozen=True)
class Regions:
    """Where some labels lie.

    Attributes:
        profiles: For each array axis, shape (labels, size): the voxels of each label in each plane across the axis.
        components: How many 26-connected parts each label has; None where the mask is little but noise.
    """

    profiles: Profiles
    components: list[int] | None


@dataclass(frozen=True)
class _Parts:
    """The components of some adjoining planes and the plane after them.

    Attributes:
        number: How many there are.
        counts: Shape (labels,): how many each label has.
        first: The component of each run in the first plane.
        last: The same of the plane after them, which the next parts have as their first.
        labels: Shape as `last`: the runs' labels.
    """

    number: int
    counts: Counts
    first: Counts
    last: Counts
    labels: Counts


def find_regions(mask: NDArray[np.unsignedinteger], values: Sequence[int]) -> Regions:
    """Finds where each label lies.

    Args:
        mask: Shape (i, j, k). What is not in Fortran order is copied.
        values: The labels; what else is in the mask is passed over.
    """
    flat = mask.ravel(order="F")
    width, height, depth = mask.shape
    places = np.full(np.iinfo(mask.dtype).max + 1, len(values))
    places[list(values)] = np.arange(len(values))
    thickness = max(1, _VOXELS_OF_A_SLAB // (width * height))
    profiles, parts = [], []
    for start in range(0, depth, thickness):
        stop = min(depth, start + thickness + 1)
        runs = Runs.of(flat[start * width * height : stop * width * height], (width, height, stop - start))
        own = runs.first_planes(min(thickness, stop - start))
        profiles.append(_profiles(own, places, len(values)))
        parts.append(_parts(runs, len(own), places, len(values)))
    along_i, along_j, along_k = zip(*profiles, strict=True)
    counted = [part for part in parts if part is not None]
    return Regions(
        (np.sum(along_i, axis=0), np.sum(along_j, axis=0), np.concatenate(along_k, axis=1)),
        _components(counted) if len(counted) == len(parts) else None,
    )


def _profiles(runs: Runs, places: NDArray[np.intp], count: int) -> Profiles:
    """The voxels of each label in each plane; a run counts where it starts, and no more where it has ended."""
    width, height, depth = runs.shape
    j, k = runs.lines
    labels, lengths = places.take(runs.labels), runs.ends - runs.starts
    starts = runs.starts % width

    def sums(size: int, where: NDArray[np.intp], weights: NDArray[np.intp] | None = None) -> Counts:
        table = np.bincount(labels * size + where, weights, (count + 1) * size)
        return table.astype(np.int64).reshape(count + 1, size)[:count]

    begun, ended = sums(width + 1, starts), sums(width + 1, starts + lengths)
    return np.cumsum(begun - ended, axis=1)[:, :width], sums(height, j, lengths), sums(depth, k, lengths)


def _parts(runs: Runs, own: int, places: NDArray[np.intp], count: int) -> _Parts | None:
    """The components of some runs, of which so many are not those of the plane after them; None for too many."""
    if len(runs) > _MOST_RUNS:
        return None
    number, parts = runs.components()
    labels = np.empty(number, dtype=np.intp)
    labels[parts] = places.take(runs.labels)
    first = len(runs.first_planes(1))
    return _Parts(
        number,
        np.bincount(labels, minlength=count + 1)[:count].astype(np.int64),
        parts[:first].astype(np.int64),
        parts[own:].astype(np.int64),
        labels[parts[own:]],
    )


def _components(parts: Sequence[_Parts]) -> list[int]:
    """The components of the whole: those of all slabs, less one for each time that two of them prove to be one."""
    counts = np.sum([part.counts for part in parts], axis=0)
    offsets = np.cumsum([0, *(part.number for part in parts)])
    shared = list(zip(pairwise(parts), pairwise(offsets), strict=False))
    if not shared:
        return [int(count) for count in counts]
    ends = np.concatenate([(above.last + one, below.first + two) for (above, below), (one, two) in shared], axis=1)
    labels = np.concatenate([above.labels for (above, _), _ in shared])
    met, (first, second) = np.unique(ends, return_inverse=True)
    links = sparse.coo_array((np.ones(len(labels), dtype=bool), (first, second)), shape=(len(met), len(met)))
    joined, whole = sparse.csgraph.connected_components(links, directed=False)
    label_of_part, label_of_whole = np.empty(len(met), dtype=np.intp), np.empty(joined, dtype=np.intp)
    label_of_part[second] = label_of_part[first] = labels
    label_of_whole[whole] = label_of_part
    saved = np.bincount(label_of_part, minlength=len(counts)) - np.bincount(label_of_whole, minlength=len(counts))
    return [int(count) for count in counts - saved[: len(counts)]]
