"""A mask as runs of equal labels along its first axis, and how runs hang together. Pure numerics.

There are some forty times fewer runs than voxels, so that what is asked of all labels at once takes little more than
one look at the mask.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

Ints = NDArray[np.intp]

# The lines after a line that touch it, as steps along the second and the third axis. With the lines before it, and
# runs that end one voxel apart, these are all 26 neighbours of a voxel.
_NEXT_LINES = ((1, 0), (-1, 1), (0, 1), (1, 1))


@dataclass(frozen=True)
class Runs:
    """The runs of some adjoining planes, in the order of memory; each within one line.

    Attributes:
        shape: Voxels along (i, j, k).
        starts: Shape (n,): index of each run's first voxel in Fortran order.
        ends: Shape (n,): the one after its last.
        labels: Shape (n,).
    """

    shape: tuple[int, int, int]
    starts: Ints
    ends: Ints
    labels: NDArray[np.unsignedinteger]

    @classmethod
    def of(cls, flat: NDArray[np.unsignedinteger], shape: tuple[int, int, int]) -> Self:
        """Finds the runs of a mask.

        Args:
            flat: Shape (i·j·k,), in Fortran order.
            shape: (i, j, k).

        >>> runs = Runs.of(np.array([1, 1, 0, 0, 0, 2], dtype=np.uint8), (3, 2, 1))
        >>> runs.starts.tolist(), runs.ends.tolist(), runs.labels.tolist()
        ([0, 2, 3, 5], [2, 3, 5, 6], [1, 0, 0, 2])
        """
        begins = np.empty(flat.size, dtype=bool)
        np.not_equal(flat[1:], flat[:-1], out=begins[1:])
        begins[:: shape[0]] = True
        starts = np.flatnonzero(begins)
        return cls(shape, starts, np.append(starts[1:], flat.size), flat.take(starts))

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def lines(self) -> tuple[Ints, Ints]:
        """Index of each run's line along j and along k."""
        k, j = np.divmod(self.starts // self.shape[0], self.shape[1])
        return j, k

    def first_planes(self, count: int) -> "Runs":
        """The runs of the first planes alone."""
        planes = slice(np.searchsorted(self.starts, self.shape[0] * self.shape[1] * count))
        shape = (*self.shape[:2], count)
        return Runs(shape, self.starts[planes], self.ends[planes], self.labels[planes])

    def components(self) -> tuple[int, NDArray[np.int32]]:
        """Numbers the 26-connected parts of all labels.

        Returns:
            How many there are, and shape (n,): which one each run belongs to.
        """
        first, second = self._touching()
        links = sparse.coo_array((np.ones(len(first), dtype=bool), (first, second)), shape=(len(self), len(self)))
        count, parts = sparse.csgraph.connected_components(links, directed=False)
        return int(count), parts

    def _touching(self) -> tuple[Ints, Ints]:
        """Pairs of runs of one label that touch.

        Runs that overlap, stretched by a voxel at either end, do so where the one covers an end of the other, or lies
        within it and the other covers its start.
        """
        width, height, depth = self.shape
        j, k = self.lines
        run_of = np.repeat(np.arange(len(self), dtype=np.int32), self.ends - self.starts)
        line = self.starts // width * width
        before, after = np.maximum(self.starts - 1, line), np.minimum(self.ends, line + width - 1)
        firsts, seconds = [], []
        for dj, dk in _NEXT_LINES:
            step = (dk * height + dj) * width
            there = np.flatnonzero((j + dj >= 0) & (j + dj < height) & (k + dk < depth))
            back = np.flatnonzero((j - dj >= 0) & (j - dj < height) & (k >= dk))
            at_start, at_end = (run_of.take(end.take(there) + step) for end in (before, after))
            apart = at_end != at_start
            pairs = (
                (there, at_start),
                (there[apart], at_end[apart]),
                (back, run_of.take(self.starts.take(back) - step)),
            )
            for these, others in pairs:
                same = self.labels.take(others) == self.labels.take(these)
                firsts.append(these[same])
                seconds.append(others[same])
        return np.concatenate(firsts), np.concatenate(seconds)
