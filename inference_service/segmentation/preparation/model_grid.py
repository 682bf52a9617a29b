"""The grid of a model on a scan, and the way back from it to the scan's own grid. Pure numerics."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from inference_service.contract.part import Part
from inference_service.core.errors import InputTooLarge
from inference_service.imaging.geometry import Box, Reorientation, Shape, Sides, Spacing, Volume, box, reorientation
from inference_service.imaging.interpolation import (
    EQUAL_CENTRES,
    EQUAL_EXTENTS,
    Interpolations,
    Steps,
    Taps,
    axis_interpolations,
    axis_taps,
    keeps_axis,
)
from inference_service.imaging.resampling import resized_shape, stepped_shape, zoomed_shape
from inference_service.segmentation.windows.tiling import window_shape

# Longer than the axes of any real scan.
_MAX_AXIS_VOXELS = 4096
# Spacings in mm, or their ratios, that differ by less are equal (MONAI's AFFINE_TOL).
_EQUAL_SPACING = 1e-3


@dataclass(frozen=True)
class ModelGrid:
    """The grid on which a network gets a scan. All triples are along the model's axes.

    Attributes:
        reorientation: From the scan's axes to the model's.
        scan_shape: Voxels of the scan.
        shape: Voxels of the grid.
        steps: How the grid lies on the scan.
        steps_back: How the scan lies on the grid.
        image_interpolations: Interpolation of the scan to the grid.
        label_interpolations: Interpolation of labels to the grid.
        logits_interpolations: Interpolation of logits to the scan.
    """

    reorientation: Reorientation
    scan_shape: Shape
    shape: Shape
    steps: Steps
    steps_back: Steps
    image_interpolations: Interpolations
    label_interpolations: Interpolations
    logits_interpolations: Interpolations

    @property
    def is_scan_grid(self) -> bool:
        """True if the grid is the scan's own, up to the order and direction of axes."""
        return all(map(keeps_axis, self.scan_shape, self.shape, self.steps))

    @property
    def voxels_of_scan(self) -> float:
        """Volume of a voxel of the grid, in voxels of the scan."""
        return prod(
            step if isinstance(step, float) else old / new
            for step, old, new in zip(self.steps, self.scan_shape, self.shape, strict=True)
        )

    def placement(self, sides: Sides) -> "Placement":
        """Places the logits of a box of the grid on the scan."""
        axes = map(axis_taps, self.shape, self.scan_shape, self.logits_interpolations, self.steps_back)
        placed = (_place(taps, side, size) for taps, side, size in zip(axes, sides, self.shape, strict=True))
        taps, borders, region = zip(*placed, strict=True)
        return Placement(taps, borders, box(region))


@dataclass(frozen=True)
class Placement:
    """The place on the scan of the logits of a box of the model's grid, along the model's axes.

    Attributes:
        taps: The samples of the logits with their border, for each voxel of the region.
        borders: Voxels outside the box, before and after it, that voxels of the region are interpolated from.
        region: The part of the scan that depends on logits of the box.
    """

    taps: tuple[Taps, Taps, Taps]
    borders: Sides
    region: Box

    def bordered(
        self, planes: Iterable[NDArray[np.float32]], axes: tuple[int, int, int], value: float
    ) -> Iterator[NDArray[np.float32]]:
        """Surrounds the logits of a box by a border.

        Args:
            planes: Planes of logits along the axis `axes[0]`, each of shape (labels, h, w).
            axes: The axes of the planes' order, and of h and w.
            value: Value of the border.
        """
        before, after = self.borders[axes[0]]
        within = ((0, 0), self.borders[axes[1]], self.borders[axes[2]])
        if not any(sum(side) for side in self.borders):
            yield from planes
            return
        border = None
        for plane in planes:
            wider = np.pad(plane, within, constant_values=value)
            if border is None:
                border = np.full_like(wider, value)
                yield from [border] * before
            yield wider
        if border is not None:
            yield from [border] * after


def model_grid(volume: Volume, part: Part) -> ModelGrid:
    """Lays the grid of a part on a scan.

    Args:
        volume: A channel of the scan.
        part: Gives orientation, spacing, alignment and interpolation.
    """
    change = _orient(volume, part)
    scan_shape = change.apply_triple(volume.shape)
    scan_mm = change.apply_triple(volume.spacing_mm)
    i, j, k = (wanted or given for wanted, given in zip(part.spacing_mm, scan_mm, strict=True))
    spacing: Spacing = (i, j, k)
    if part.size_voxels is not None:
        shape = part.size_voxels
        i, j, k = (mm * old / new for mm, old, new in zip(scan_mm, scan_shape, shape, strict=True))
        spacing = (i, j, k)
        steps = steps_back = EQUAL_EXTENTS
    elif part.grid == "edges":
        shape = resized_shape(scan_shape, scan_mm, spacing)
        steps = steps_back = EQUAL_EXTENTS
    elif part.grid == "centres":
        shape = zoomed_shape(scan_shape, scan_mm, spacing)
        steps = steps_back = EQUAL_CENTRES
    else:
        spacing = _first_centre_spacing(scan_shape, scan_mm, spacing)
        shape = stepped_shape(scan_shape, scan_mm, spacing)
        steps = _ratios(spacing, scan_mm)
        steps_back = _ratios(scan_mm, spacing)
    separate = part.separate_axis_above
    return ModelGrid(
        change,
        scan_shape,
        shape,
        steps,
        steps_back,
        image_interpolations=axis_interpolations(scan_mm, spacing, part.interpolation, separate),
        label_interpolations=axis_interpolations(scan_mm, spacing, "linear", separate),
        logits_interpolations=axis_interpolations(spacing, scan_mm, part.logits_interpolation, separate),
    )


def centred_sides(grid: ModelGrid, size: Shape) -> Sides:
    """Returns the box of a size around the centre of a grid, which it may exceed: MONAI's ResizeWithPadOrCrop."""
    starts = (
        old // 2 - new // 2 if new < old else -((new - old) // 2) for old, new in zip(grid.shape, size, strict=True)
    )
    i, j, k = ((start, start + new) for start, new in zip(starts, size, strict=True))
    return i, j, k


def check_size(grid: ModelGrid, part: Part, max_voxels: int) -> None:
    """Checks that a scan and its grid, padded to a window, are not too large.

    Raises:
        InputTooLarge: An axis, or the grid as a whole, is too large.
    """
    if max(grid.scan_shape) > _MAX_AXIS_VOXELS:
        raise InputTooLarge(
            f"the scan has an axis of {max(grid.scan_shape)} voxels; this service takes at most {_MAX_AXIS_VOXELS}"
        )
    check_image_size(grid.shape, part, max_voxels)


def check_image_size(shape: Shape, part: Part, max_voxels: int) -> None:
    """Checks that an image on the model's grid, padded to a window, is not too large.

    Raises:
        InputTooLarge: An axis, or the image as a whole, is too large.
    """
    spacing = f"at the model's spacing of {' × '.join(f'{mm:g}' if mm else 'any' for mm in part.spacing_mm)} mm"
    padded = padded_shape(shape, part)
    if max(padded) > _MAX_AXIS_VOXELS:
        raise InputTooLarge(
            f"the scan gets an axis of {max(padded)} voxels {spacing}; this service takes at most {_MAX_AXIS_VOXELS}"
        )
    if prod(padded) > max_voxels:
        raise InputTooLarge(
            f"the scan becomes a grid of {prod(padded)} voxels {spacing}; this service takes at most {max_voxels}"
        )


def padded_shape(shape: Shape, part: Part) -> Shape:
    """Returns the shape of an image that is padded to a window of a part."""
    i, j, k = map(max, shape, window_shape(shape, part))
    return i, j, k


def _orient(volume: Volume, part: Part) -> Reorientation:
    if part.axes_of_file:
        i, j, k = ("ijk".index(axis) for axis in part.orientation)
        return Reorientation((i, j, k), (False, False, False))
    return reorientation(volume.orientation, part.orientation)


def _first_centre_spacing(shape: Shape, scan_mm: Spacing, wanted_mm: Spacing) -> Spacing:
    """The spacing that MONAI's Spacing gives: that of the scan along axes, or along all of them, where it is near."""
    i, j, k = (
        given if abs(given - wanted) <= _EQUAL_SPACING else wanted
        for given, wanted in zip(scan_mm, wanted_mm, strict=True)
    )
    near = all(abs(ratio - 1) <= _EQUAL_SPACING for ratio in _ratios((i, j, k), scan_mm))
    return scan_mm if near and stepped_shape(shape, scan_mm, (i, j, k)) == shape else (i, j, k)


def _ratios(numerators: Spacing, denominators: Spacing) -> Spacing:
    i, j, k = (one / other for one, other in zip(numerators, denominators, strict=True))
    return i, j, k


def _place(taps: Taps, side: tuple[int, int], size: int) -> tuple[Taps, tuple[int, int], tuple[int, int]]:
    """Restricts the taps of one axis to a side of a box.

    Returns:
        The taps of the scan's voxels that depend on the side, as indices of the logits with their border; the border
        before and after the side; the first such voxel of the scan and the one after the last.
    """
    start, stop = side
    border = (int(start > 0), int(stop < size))
    inside_first = (taps.first >= start) & (taps.first < stop)
    inside_second = (taps.second >= start) & (taps.second < stop) & (taps.weight > 0)
    (touched,) = np.nonzero(inside_first | inside_second)
    voxels = (int(touched[0]), int(touched[-1]) + 1) if touched.size else (0, 0)
    region = slice(*voxels)
    shift = border[0] - start
    placed = Taps(taps.first[region] + shift, taps.second[region] + shift, taps.weight[region])
    return placed, border, voxels
