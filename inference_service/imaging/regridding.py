"""Resampling of a volume to the grid of another one, as for the channels of a study. Pure numerics."""

from itertools import product
from typing import cast

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from inference_service.core.threads import SINGLE_THREAD, ThreadPool
from inference_service.imaging.geometry import Affine, Shape, Volume

# Voxels by which the places of two grids' corners may differ if they count as one: rounding in headers.
_SAME_GRID_VOXELS = 1e-2
# A volume ends half a voxel beyond the centres of its outermost voxels. With room for rounding, so that a grid with the
# same edges lies inside.
_RIM_VOXELS = 0.5 + 1e-6


def same_grid(first: Volume, second: Volume) -> bool:
    """Returns True if two volumes have one shape, and their voxels lie at the same places but for rounding."""
    if first.shape != second.shape:
        return False
    corners = np.array([(*corner, 1.0) for corner in product(*((0, size - 1) for size in first.shape))])
    moved = corners @ _index_map(first.affine, second.affine).T
    return bool(np.abs(moved - corners).max() < _SAME_GRID_VOXELS)


def regrid(
    volume: Volume, affine: Affine, shape: Shape, *, threads: ThreadPool = SINGLE_THREAD
) -> tuple[Volume, float]:
    """Interpolates a volume linearly on another grid in the same world.

    Args:
        volume: Any real dtype; its values are finite.
        affine: The other grid: voxel index to RAS+ mm.
        shape: Voxels of the other grid.
        threads: Share the work.

    Returns:
        The volume on the other grid, float32 in Fortran order, with its lowest value outside of its extent; and the
        share of the other grid's voxels that lie within it.

    >>> ramp = Volume(np.arange(4, dtype=np.float32).reshape(4, 1, 1), np.eye(4))
    >>> shifted = np.eye(4)
    >>> shifted[0, 3] = 1.5
    >>> moved, share = regrid(ramp, shifted, (4, 1, 1))
    >>> moved.voxels.ravel().tolist(), share
    ([1.5, 2.5, 3.0, 0.0], 0.75)
    """
    to_source = _index_map(affine, volume.affine)
    # Plane by plane along the last axis, whose planes lie together in memory; so all axes are in reverse order.
    matrix = to_source[2::-1, 2::-1]
    offset = to_source[2::-1, 3]
    source = cast("NDArray[np.number]", volume.voxels.T)
    fill = volume.voxels.min()
    resampled = np.empty(shape, dtype=np.float32, order="F")
    planes = resampled.T
    inside = np.zeros(len(planes), dtype=np.int64)

    def work(part: slice) -> None:
        for k in range(part.start, part.stop):
            start = offset + matrix[:, 0] * k
            ndimage.affine_transform(
                source, matrix, start, output=planes[k : k + 1], output_shape=(1, *planes.shape[1:]), order=1,
                mode="nearest", prefilter=False,
            )  # fmt: skip
            outside = _outside(matrix[:, 1:], start, planes.shape[1:], source.shape)
            planes[k][outside] = fill
            inside[k] = outside.size - np.count_nonzero(outside)

    threads.for_each_slice(len(planes), work)
    return Volume(resampled, affine), float(inside.sum() / resampled.size)


def _outside(
    steps: NDArray[np.float64], start: NDArray[np.float64], plane_shape: tuple[int, ...], source_shape: tuple[int, ...]
) -> NDArray[np.bool_]:
    """Finds the voxels of a plane that lie outside of the source.

    Args:
        steps: Shape (3, 2): voxels of the source along each of its axes for one voxel along each axis of the plane.
        start: Index in the source of the plane's first voxel.
        plane_shape: Voxels of the plane.
        source_shape: Voxels of the source.
    """
    outside = np.zeros(plane_shape, dtype=bool)
    rows, columns = (np.arange(size, dtype=np.float64) for size in plane_shape)
    for (along_rows, along_columns), first, size in zip(steps, start, source_shape, strict=True):
        place = (first + along_rows * rows)[:, np.newaxis] + along_columns * columns
        outside |= (place < -_RIM_VOXELS) | (place > size - 1 + _RIM_VOXELS)
    return outside


def _index_map(source: Affine, target: Affine) -> Affine:
    """From voxel indices of one grid to those of another, shape (4, 4)."""
    return cast("Affine", np.linalg.solve(target, source))
