"""The entry of each label in `report.json`: name, colour, size, intensities, bounding box, centroid, components."""

import numpy as np
from numpy.typing import NDArray

from inference_service.contract.manifest import Manifest
from inference_service.contract.palette import label_colours
from inference_service.contract.report import CentroidReport, LabelReport
from inference_service.core.threads import SINGLE_THREAD, ThreadPool
from inference_service.imaging.components import LabelComponents
from inference_service.imaging.geometry import Affine, Volume

# Statistics are computed for slabs of voxels, and then merged.
_VOXELS_PER_SLAB = 2**20
# Statistics of integers are computed from a histogram of at most this many bins.
_MAX_BINS = 2**20
# Other statistics are computed for as many voxels at a time as fit into the cache.
_VOXELS_AT_A_TIME = 2**15
# Voxels are spread over several bins of each label: an addition to the bin that was just added to is slow, and
# neighbouring voxels mostly have the same label.
_LANES = 8


def measure_labels(
    mask: NDArray[np.unsignedinteger],
    volume: Volume,
    manifest: Manifest,
    components: LabelComponents,
    *,
    threads: ThreadPool = SINGLE_THREAD,
) -> list[LabelReport]:
    """Computes the figures of each label: size, intensities of the scan, position and number of components.

    Args:
        mask: Shape (i, j, k), on the scan's grid. Copied unless in Fortran order.
        volume: The scan. Its voxels are copied unless in Fortran order, as readers return them.
        manifest: Gives values and names of the labels.
        components: Position and components of the labels, in the manifest's order.
        threads: Share the work; the result does not depend on their number.

    Returns:
        One report for each label of the manifest, in its order.
    """
    values = mask.ravel(order="F")
    intensities = volume.voxels.ravel(order="F")
    # Index of each label in the manifest; all other values share one index beyond.
    indices = np.full(np.iinfo(mask.dtype).max + 1, len(manifest.labels))
    indices[[label.value for label in manifest.labels]] = np.arange(len(manifest.labels))
    starts = range(0, mask.size, _VOXELS_PER_SLAB)
    slabs = np.empty((len(starts), 3, len(manifest.labels) + 1))

    def work(part: slice) -> None:
        for slab, start in zip(slabs[part], starts[part], strict=True):
            voxels = slice(start, start + _VOXELS_PER_SLAB)
            slab[:] = _moments(indices.take(values[voxels]), intensities[voxels], len(manifest.labels) + 1)

    threads.for_each_slice(len(slabs), work)
    counts, means, squares = _merge_moments(slabs)
    colours = label_colours(manifest.labels)
    return [
        LabelReport(
            value=label.value,
            name=label.name,
            colour=colours.get(label.value),
            voxels=int(count),
            volume_ml=int(count) * volume.voxel_volume_ml,
            intensity_mean=float(mean) if count else None,
            intensity_std=float(np.sqrt(square / count)) if count else None,
            bounding_box=_bounding_box(components, index) if count else None,
            centroid_mm=_centroid(components, index, volume.affine) if count else None,
            components=components.counts[index] if components.counts else None,
        )
        for index, (label, count, mean, square) in enumerate(zip(manifest.labels, counts, means, squares, strict=False))
    ]


def _bounding_box(components: LabelComponents, label: int) -> list[tuple[int, int]]:
    occupied = [np.flatnonzero(profile[label]) for profile in components.voxels_per_plane]
    return [(int(planes[0]), int(planes[-1]) + 1) for planes in occupied]


def _centroid(components: LabelComponents, label: int, affine: Affine) -> CentroidReport:
    index = [np.average(np.arange(profile.shape[1]), weights=profile[label]) for profile in components.voxels_per_plane]
    x, y, z = (affine[:3, :3] @ index + affine[:3, 3]).tolist()
    return CentroidReport(ras=(x, y, z), lps=(-x, -y, z))


def _moments(indices: NDArray[np.intp], intensities: NDArray[np.generic], size: int) -> NDArray[np.float64]:
    """Count, mean and sum of squared deviations of the intensities of each label.

    Args:
        indices: Index of each voxel's label, shape (n,); overwritten.
        intensities: Shape (n,).
        size: Number of labels.

    Returns:
        Shape (3, size).
    """
    if np.issubdtype(intensities.dtype, np.integer) and intensities.dtype.itemsize < indices.dtype.itemsize:
        least = int(intensities.min())
        levels = int(intensities.max()) - least + 1
        if levels * size <= _MAX_BINS:
            return _integer_moments(indices, intensities, size, least, levels)
    lanes = np.resize(np.arange(_LANES) * size, _VOXELS_AT_A_TIME)
    parts = []
    for start in range(0, len(indices), _VOXELS_AT_A_TIME):
        bins = indices[start : start + _VOXELS_AT_A_TIME]
        bins += lanes[: len(bins)]
        deviations = intensities[start : start + _VOXELS_AT_A_TIME].astype(np.float64)
        counts = np.bincount(bins, minlength=_LANES * size)
        means = np.bincount(bins, deviations, _LANES * size) / np.maximum(counts, 1)
        deviations -= means.take(bins)
        deviations *= deviations
        parts.append([counts, means, np.bincount(bins, deviations, _LANES * size)])
    return _merge_moments(np.asarray(parts).reshape(-1, 3, _LANES, size).swapaxes(1, 2).reshape(-1, 3, size))


def _integer_moments(
    indices: NDArray[np.intp], intensities: NDArray[np.generic], size: int, least: int, levels: int
) -> NDArray[np.float64]:
    """`_moments` by one histogram of labels and intensities, which are in range(least, least + levels)."""
    indices *= levels
    indices -= least
    np.add(indices, intensities, out=indices, casting="unsafe")
    histogram = np.bincount(indices, minlength=size * levels).reshape(size, levels).astype(np.float64)
    scale = np.arange(least, least + levels, dtype=np.float64)
    counts = histogram.sum(axis=1)
    means = histogram @ scale / np.maximum(counts, 1)
    return np.stack([counts, means, (histogram * (scale - means[:, np.newaxis]) ** 2).sum(axis=1)])


def _merge_moments(parts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Merges moments (parts, 3, labels) into those of all voxels (3, labels), by Chan, Golub and LeVeque (1983)."""
    counts, means, squares = parts.swapaxes(0, 1)
    count = counts.sum(axis=0)
    mean = (counts * means).sum(axis=0) / np.maximum(count, 1)
    return np.stack([count, mean, (squares + counts * (means - mean) ** 2).sum(axis=0)])
