"""What is said about a finished mask: `report.json`, its model and its figures."""

import numpy as np
from numpy.typing import NDArray

from inference_service.contract.manifest import Manifest
from inference_service.contract.report import CentroidReport, LabelReport
from inference_service.core.threads import SINGLE_THREAD, ThreadPool
from inference_service.imaging.components import LabelComponents
from inference_service.imaging.geometry import Affine, Volume

# Statistics are taken slab by slab: of integers by a histogram while it is small, else in pieces that fit into a cache.
_VOXELS_OF_A_SLAB = 2**20
_MOST_BINS = 2**20
_VOXELS_AT_A_TIME = 2**15
_LANES = 8


def measure_labels(
    mask: NDArray[np.unsignedinteger],
    volume: Volume,
    manifest: Manifest,
    components: LabelComponents,
    *,
    threads: ThreadPool = SINGLE_THREAD,
) -> list[LabelReport]:
    """Counts each label's voxels, describes the intensities under it and says where it lies.

    Args:
        mask: Shape (i, j, k), on the scan's grid.
        volume: The scan. What is not in Fortran order, as read from a file, is copied.
        manifest: Names the labels.
        components: Where they lie, in the manifest's order.
        threads: Share the work; the result is the same for any number of them.
    """
    values, intensities = mask.ravel(order="F"), volume.voxels.ravel(order="F")
    places = np.full(np.iinfo(mask.dtype).max + 1, len(manifest.labels))
    places[[label.value for label in manifest.labels]] = np.arange(len(manifest.labels))
    starts = range(0, mask.size, _VOXELS_OF_A_SLAB)
    slabs = np.empty((len(starts), 3, len(manifest.labels) + 1))

    def work(part: slice) -> None:
        for slab, start in zip(slabs[part], starts[part], strict=True):
            here = slice(start, start + _VOXELS_OF_A_SLAB)
            slab[:] = _figures(places.take(values[here]), intensities[here], len(manifest.labels) + 1)

    threads.for_each_slice(len(slabs), work)
    counts, means, squares = _merged(slabs)
    return [
        LabelReport(
            value=label.value,
            name=label.name,
            voxels=int(count),
            volume_ml=int(count) * volume.voxel_volume_ml,
            intensity_mean=float(mean) if count else None,
            intensity_std=float(np.sqrt(square / count)) if count else None,
            bounding_box=_bounding_box(components, place) if count else None,
            centroid_mm=_centroid(components, place, volume.affine) if count else None,
            components=components.counts[place] if components.counts else None,
        )
        for place, (label, count, mean, square) in enumerate(zip(manifest.labels, counts, means, squares, strict=False))
    ]


def _bounding_box(components: LabelComponents, place: int) -> list[tuple[int, int]]:
    held = [np.flatnonzero(profile[place]) for profile in components.voxels_per_plane]
    return [(int(planes[0]), int(planes[-1]) + 1) for planes in held]


def _centroid(components: LabelComponents, place: int, affine: Affine) -> CentroidReport:
    index = [np.average(np.arange(profile.shape[1]), weights=profile[place]) for profile in components.voxels_per_plane]
    x, y, z = (affine[:3, :3] @ index + affine[:3, 3]).tolist()
    return CentroidReport(ras=(x, y, z), lps=(-x, -y, z))


def _figures(places: NDArray[np.intp], intensities: NDArray[np.generic], size: int) -> NDArray[np.float64]:
    """Count, mean and sum of squared deviations of the intensities at each place.

    Args:
        places: Shape (n,); changed.
        intensities: Shape (n,).
        size: How many places there are.

    Returns:
        Shape (3, size).
    """
    if np.issubdtype(intensities.dtype, np.integer) and intensities.dtype.itemsize < places.dtype.itemsize:
        least = int(intensities.min())
        levels = int(intensities.max()) - least + 1
        if levels * size <= _MOST_BINS:
            return _figures_of_integers(places, intensities, size, least, levels)
    # A bin that was just added to is slow to add to again, and neighbours have the same label mostly.
    lanes = np.resize(np.arange(_LANES) * size, _VOXELS_AT_A_TIME)
    figures = []
    for start in range(0, len(places), _VOXELS_AT_A_TIME):
        bins = places[start : start + _VOXELS_AT_A_TIME]
        bins += lanes[: len(bins)]
        here = intensities[start : start + _VOXELS_AT_A_TIME].astype(np.float64)
        counts = np.bincount(bins, minlength=_LANES * size)
        means = np.bincount(bins, here, _LANES * size) / np.maximum(counts, 1)
        here -= means.take(bins)
        here *= here
        figures.append([counts, means, np.bincount(bins, here, _LANES * size)])
    return _merged(np.asarray(figures).reshape(-1, 3, _LANES, size).swapaxes(1, 2).reshape(-1, 3, size))


def _figures_of_integers(
    places: NDArray[np.intp], intensities: NDArray[np.generic], size: int, least: int, levels: int
) -> NDArray[np.float64]:
    """The same by one histogram of places and intensities, which lie from `least` on at so many levels."""
    places *= levels
    places -= least
    np.add(places, intensities, out=places, casting="unsafe")
    histogram = np.bincount(places, minlength=size * levels).reshape(size, levels).astype(np.float64)
    scale = np.arange(least, least + levels, dtype=np.float64)
    counts = histogram.sum(axis=1)
    means = histogram @ scale / np.maximum(counts, 1)
    return np.stack([counts, means, (histogram * (scale - means[:, np.newaxis]) ** 2).sum(axis=1)])


def _merged(figures: NDArray[np.float64]) -> NDArray[np.float64]:
    """The figures, shape (3, labels), of all parts, shape (parts, 3, labels), as by Chan, Golub and LeVeque (1983)."""
    counts, means, squares = figures.swapaxes(0, 1)
    count = counts.sum(axis=0)
    mean = (counts * means).sum(axis=0) / np.maximum(count, 1)
    return np.stack([count, mean, (squares + counts * (means - mean) ** 2).sum(axis=0)])
