"""Preprocessing: brings a scan to the orientation, spacing and intensities that the network expects."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import cast

import numpy as np
from numpy.typing import NDArray

from inference_service.contract.crops import ForegroundCrop, NonzeroCrop
from inference_service.contract.part import Part
from inference_service.core.memory_budget import RequireMemory, no_memory_limit
from inference_service.core.threads import SINGLE_THREAD, ThreadPool
from inference_service.imaging.geometry import Shape, Sides, Volume
from inference_service.imaging.hounsfield import AIR_HU
from inference_service.imaging.interpolation import Interpolations
from inference_service.imaging.resampling import IntensityTransform, resize, slow_axes
from inference_service.segmentation.preparation.crop import foreground_sides, nonzero_sides
from inference_service.segmentation.preparation.intensities import (
    filled_mask,
    keeps_values,
    maps_planes,
    needs_all_channels,
    needs_statistics,
    normalise,
    plane_transform,
    working_bytes,
)
from inference_service.segmentation.preparation.model_grid import (
    ModelGrid,
    centred_sides,
    check_image_size,
    check_size,
    model_grid,
    padded_shape,
)

# Keeps whole numbers, which three sums in float32 may have made a little smaller, from losing their last unit.
_ROUNDING = np.float32(1 + 2**-21)


@dataclass(frozen=True)
class PreprocessedImage:
    """A scan ready for the network.

    Attributes:
        image: Shape (channels, i, j, k) along the model's axes, on a box of the model's grid, normalised; the channels
            of a first stage's labels come last; `write_label_channels` fills them. A view of the scan where it has one
            channel and only its axes change.
        grid: The model's grid.
        sides: The box of the grid that the image covers; it may exceed the grid.
    """

    image: NDArray[np.float32]
    grid: ModelGrid
    sides: Sides

    def write_label_channels(
        self,
        mask: NDArray[np.unsignedinteger],
        values: Sequence[int],
        *,
        inside: NDArray[np.bool_] | None = None,
        threads: ThreadPool = SINGLE_THREAD,
    ) -> None:
        """Writes a mask on the scan's grid to the last channels of the image: 0 and 1 for each label.

        Each label is interpolated linearly, and a voxel gets the one with the largest share, as in nnU-Net's resampling
        of segmentations. Of equal shares, that of the nearest voxel counts, or else the lowest label. The background
        has two shares, within `inside` and outside of it, of which the larger one counts.

        Args:
            mask: Shape (i, j, k), on the grid of the scan.
            values: The labels, ascending.
            inside: Shape (i, j, k); None: all voxels are inside.
            threads: Share the resampling.
        """
        grid = self.grid

        def resized(voxels: NDArray[np.generic], kinds: Interpolations) -> NDArray[np.float32]:
            return resize(voxels, grid.shape, kinds, steps=grid.steps, threads=threads)

        scan = grid.reorientation.apply(mask)
        nearest = resized(scan, ("nearest", "nearest", "nearest"))
        labels = np.zeros(grid.shape, dtype=mask.dtype)
        background = scan == 0
        within = True if inside is None else grid.reorientation.apply(inside)
        largest = resized(background & within, grid.label_interpolations)
        if inside is not None:
            np.maximum(largest, resized(background & ~within, grid.label_interpolations), out=largest)
        for value in values:
            share = resized(scan == value, grid.label_interpolations)
            wins = (share > largest) | ((share == largest) & (nearest == value))
            labels[wins] = value
            np.maximum(largest, share, out=largest)
        labels = _within(labels[np.newaxis], self.sides)[0]
        for channel, value in zip(self.image[len(self.image) - len(values) :], values, strict=True):
            np.equal(labels, value, out=channel)


def preprocess(
    channels: Sequence[Volume],
    part: Part,
    *,
    of_ct: bool = False,
    max_voxels: int,
    require_memory: RequireMemory = no_memory_limit,
    threads: ThreadPool = SINGLE_THREAD,
) -> PreprocessedImage:
    """Reorients, resamples and normalises a scan, and crops it where the crop is that of the prepared scan.

    Args:
        channels: A volume for each channel of the part, all on one grid; their values are finite.
        part: Gives orientation, spacing, interpolation, window and intensities of the network's input.
        of_ct: Whether the values are HU, so that `air_floor` has an effect.
        max_voxels: Larger grids are refused before they are allocated.
        require_memory: Called with the bytes that the image is about to take. An exception that it raises ends the job.
        threads: Share the resampling.

    Raises:
        InputTooLarge: An axis of the scan, or its grid at the model's spacing, padded to a window, is too large.
    """
    grid = model_grid(channels[0], part)
    check_size(grid, part, max_voxels)
    scans = [grid.reorientation.apply(channel.voxels) for channel in channels]
    if of_ct and part.air_floor:
        scans = [
            _without_padding(scan, require_memory) if needs_statistics(channel.intensities) else scan
            for scan, channel in zip(scans, part.channels, strict=True)
        ]
    image = _own_image(scans[0], grid, part)
    if image is None:
        require_memory(_bytes(grid, part))
        image = _new_image(scans[0], grid, part)
        _fill(image, scans, grid, part, threads)
    else:
        require_memory(_padded_bytes(grid.shape, part))
    whole: Sides = ((0, grid.shape[0]), (0, grid.shape[1]), (0, grid.shape[2]))
    sides = _sides_of_resampled(image[: len(scans)], grid, part) or whole
    if sides != whole:
        _check_sides(sides, grid, part, max_voxels, require_memory)
        image = _within(image, sides)
    if not part.intensity_before_resampling:
        _normalise(image[: len(scans)], part)
    if isinstance(part.prepared_crop, ForegroundCrop):
        sides = foreground_sides(image[: len(scans)], part.prepared_crop) or whole
        _check_sides(sides, grid, part, max_voxels, require_memory)
        image = _within(image, sides)
    return PreprocessedImage(image, grid, sides)


def _sides_of_resampled(image: NDArray[np.float32], grid: ModelGrid, part: Part) -> Sides | None:
    """The box to which a resampled scan is brought before its intensities are mapped; None: it stays as it is."""
    if part.box_voxels is not None:
        return centred_sides(grid, part.box_voxels)
    return nonzero_sides(image) if isinstance(part.prepared_crop, NonzeroCrop) else None


def _normalise(image: NDArray[np.float32], part: Part) -> None:
    """Maps the channels of the resampled scan to the intensities of a part, in place."""
    mappings = [channel.intensities for channel in part.channels]
    if not all(map(keeps_values, mappings)):
        normalise(list(image), mappings, filled_mask(list(image), mappings))


def _without_padding(scan: NDArray[np.generic], require_memory: RequireMemory) -> NDArray[np.generic]:
    """Sets the padding of a CT outside its circle of reconstruction, such as −2000 or −3024, to air."""
    if scan.min() >= AIR_HU:
        return scan
    require_memory(scan.nbytes)
    raised: NDArray[np.generic] = np.maximum(scan, scan.dtype.type(AIR_HU))
    return raised


def _own_image(scan: NDArray[np.generic], grid: ModelGrid, part: Part) -> NDArray[np.float32] | None:
    """The only channel of a scan, if it is the network's input as it is."""
    if not grid.is_scan_grid or scan.dtype != np.float32 or part.input_channels > 1:
        return None
    return cast("NDArray[np.float32]", scan[np.newaxis]) if keeps_values(part.channels[0].intensities) else None


def _new_image(scan: NDArray[np.generic], grid: ModelGrid, part: Part) -> NDArray[np.float32]:
    """Allocates an image whose axes lie in memory as those of the scan; its channels of labels are 0."""
    order = slow_axes(scan)
    shape = (part.input_channels, *(grid.shape[axis] for axis in order))
    image = np.empty(shape, dtype=np.float32).transpose(0, *(1 + np.argsort(order)))
    image[len(part.channels) :] = 0
    return image


def _fill(
    image: NDArray[np.float32],
    scans: Sequence[NDArray[np.generic]],
    grid: ModelGrid,
    part: Part,
    threads: ThreadPool,
) -> None:
    """Writes the scans to an image on the model's grid, normalised if that precedes resampling."""
    mappings = [channel.intensities for channel in part.channels]

    def resample(scan: NDArray[np.generic], number: int, transform: IntensityTransform | None = None) -> None:
        kinds = grid.image_interpolations
        resize(scan, grid.shape, kinds, steps=grid.steps, transform=transform, out=image[number], threads=threads)

    if not part.intensity_before_resampling:
        for number, scan in enumerate(scans):
            resample(scan, number)
            if part.truncate_resampled and not grid.is_scan_grid:
                image[number] *= _ROUNDING
                np.trunc(image[number], out=image[number])
        return
    mask = filled_mask(scans, mappings)
    if needs_all_channels(mappings):
        copies = [np.array(scan, dtype=np.float32, order="K") for scan in scans]
        normalise(copies, mappings, mask)
        for number, copy in enumerate(copies):
            resample(copy, number)
        return
    for number, (scan, each) in enumerate(zip(scans, mappings, strict=True)):
        if maps_planes(each):
            resample(scan, number, plane_transform(scan, each))
        else:
            copy = np.array(scan, dtype=np.float32, order="K")
            normalise([copy], [each], mask)
            resample(copy, number)


def _check_sides(sides: Sides, grid: ModelGrid, part: Part, max_voxels: int, require_memory: RequireMemory) -> None:
    """Checks the size of a box of the grid, which may exceed it, and requires the memory of copies of its image."""
    i, j, k = (stop - start for start, stop in sides)
    check_image_size((i, j, k), part, max_voxels)
    exceeds = any(start < 0 or stop > size for (start, stop), size in zip(sides, grid.shape, strict=True))
    copied = 4 * part.input_channels * i * j * k if exceeds else 0
    working = working_bytes([channel.intensities for channel in part.channels], i * j * k) if exceeds else 0
    if required := copied + max(working, _padded_bytes((i, j, k), part)):
        require_memory(required)


def _within(image: NDArray[np.float32], sides: Sides) -> NDArray[np.float32]:
    """The part of an image within a box: a view, or a copy padded with 0 where the box exceeds the image."""
    shape = image.shape[1:]
    inside = tuple(slice(max(0, start), stop) for start, stop in sides)
    pads = [(max(0, -start), max(0, stop - size)) for (start, stop), size in zip(sides, shape, strict=True)]
    image = image[:, *inside]
    return np.pad(image, [(0, 0), *pads]) if any(map(any, pads)) else image


def _bytes(grid: ModelGrid, part: Part) -> int:
    """Memory of the image on the model's grid, and of the arrays that are held beside it at one time."""
    mappings = [channel.intensities for channel in part.channels]
    voxels = prod(grid.scan_shape if part.intensity_before_resampling else grid.shape)
    working = working_bytes(mappings, voxels)
    if part.intensity_before_resampling:
        copies = len(mappings) if needs_all_channels(mappings) else int(not all(map(maps_planes, mappings)))
        working += 4 * copies * voxels
    return 4 * part.input_channels * prod(grid.shape) + max(working, _padded_bytes(grid.shape, part))


def _padded_bytes(shape: Shape, part: Part) -> int:
    """Memory of the padded copy of an image that is smaller than a window."""
    padded = padded_shape(shape, part)
    return 4 * part.input_channels * prod(padded) if padded != shape else 0
