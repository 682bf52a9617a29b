"""Run-length encoding of a mask along its first axis, and the connected components of runs. Pure numerics.

A mask has about forty times fewer runs than voxels: a question about all labels costs little more than one pass over
the mask.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from inference_service.imaging.geometry import Shape

Ints = NDArray[np.intp]

# Steps along the second and the third axis from a line to those of its neighbours that come after it in memory. With
# the lines before it, and runs that end one voxel apart, these cover all 26 neighbours of a voxel.
_NEXT_LINES = ((1, 0), (-1, 1), (0, 1), (1, 1))


@dataclass(frozen=True)
class RunLengthEncoding:
    """The runs of equal labels in adjoining planes, in the order of memory; no run leaves its line.

    Attributes:
        shape: Voxels along (i, j, k).
        starts: Shape (n,): index of each run's first voxel in Fortran order.
        ends: Shape (n,): index after each run's last voxel.
        labels: Shape (n,): label of each run.
    """

    shape: Shape
    starts: Ints
    ends: Ints
    labels: NDArray[np.unsignedinteger]

    @classmethod
    def encode(cls, flat: NDArray[np.unsignedinteger], shape: Shape) -> Self:
        """Encodes a mask.

        Args:
            flat: Shape (i·j·k,), in Fortran order.
            shape: Voxels along (i, j, k).

        >>> runs = RunLengthEncoding.encode(np.array([1, 1, 0, 0, 0, 2], dtype=np.uint8), (3, 2, 1))
        >>> runs.starts.tolist(), runs.ends.tolist(), runs.labels.tolist()
        ([0, 2, 3, 5], [2, 3, 5, 6], [1, 0, 0, 2])
        """
        is_start = np.empty(flat.size, dtype=bool)
        np.not_equal(flat[1:], flat[:-1], out=is_start[1:])
        is_start[:: shape[0]] = True
        starts = np.flatnonzero(is_start)
        return cls(shape, starts, np.append(starts[1:], flat.size), flat.take(starts))

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def lines(self) -> tuple[Ints, Ints]:
        """Index of each run's line along j and along k."""
        k, j = np.divmod(self.starts // self.shape[0], self.shape[1])
        return j, k

    def first_planes(self, count: int) -> "RunLengthEncoding":
        """The runs of the first `count` planes."""
        planes = slice(np.searchsorted(self.starts, self.shape[0] * self.shape[1] * count))
        shape = (*self.shape[:2], count)
        return RunLengthEncoding(shape, self.starts[planes], self.ends[planes], self.labels[planes])

    def connected_components(self) -> tuple[int, NDArray[np.int32]]:
        """Finds the 26-connected components of all labels.

        Returns:
            Their number, and shape (n,): the component of each run.
        """
        first, second = self._touching()
        edges = sparse.coo_array((np.ones(len(first), dtype=bool), (first, second)), shape=(len(self), len(self)))
        count, components = sparse.csgraph.connected_components(edges, directed=False)
        return int(count), components

    def _touching(self) -> tuple[Ints, Ints]:
        """Pairs of runs that have the same label and touch.

        Each run is widened by a voxel at either end. Two runs in neighbouring lines then touch where one contains an
        end of the other, or where it lies within the other, which contains its start.
        """
        width, height, depth = self.shape
        j, k = self.lines
        run_of_voxel = np.repeat(np.arange(len(self), dtype=np.int32), self.ends - self.starts)
        line_starts = self.starts // width * width
        before = np.maximum(self.starts - 1, line_starts)
        after = np.minimum(self.ends, line_starts + width - 1)
        firsts = []
        seconds = []
        for dj, dk in _NEXT_LINES:
            step = (dk * height + dj) * width
            has_next = np.flatnonzero((j + dj >= 0) & (j + dj < height) & (k + dk < depth))
            has_previous = np.flatnonzero((j - dj >= 0) & (j - dj < height) & (k >= dk))
            at_start, at_end = (run_of_voxel.take(end.take(has_next) + step) for end in (before, after))
            differs = at_end != at_start
            pairs = (
                (has_next, at_start),
                (has_next[differs], at_end[differs]),
                (has_previous, run_of_voxel.take(self.starts.take(has_previous) - step)),
            )
            for runs, neighbours in pairs:
                same = self.labels.take(neighbours) == self.labels.take(runs)
                firsts.append(runs[same])
                seconds.append(neighbours[same])
        return np.concatenate(firsts), np.concatenate(seconds)
