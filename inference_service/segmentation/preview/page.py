"""Draws `preview.png`, which shows a scan and its mask at a glance. It contains nothing that identifies a patient."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from io import BytesIO
from math import floor, log10

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from inference_service.contract.report import LabelReport
from inference_service.imaging.components import LabelComponents
from inference_service.imaging.geometry import Volume
from inference_service.segmentation.preview.legend import BLACK, PAGE, TEXT, draw_legend, draw_text
from inference_service.segmentation.preview.planes import (
    AXIAL,
    VIEWS,
    PlaneExtractor,
    View,
    evenly_spaced_planes,
    middle_plane,
)
from inference_service.segmentation.preview.rendering import (
    IntensityWindow,
    ct_intensity_window,
    overlay,
    percentile_intensity_window,
)

# Layout in pixels: a row of large square panels and the legend, above a row of small square slices.
_MARGIN = 16
_GAP = 12
_PANEL_SIZE = 384
_SLICE_SIZE = 173
_LEGEND_WIDTH = 280
_TEXT_INSET = 6
_SLICES = 8
_WIDTH = 2 * _MARGIN + 3 * (_PANEL_SIZE + _GAP) + _LEGEND_WIDTH
_HEIGHT = 2 * _MARGIN + _PANEL_SIZE + _GAP + _SLICE_SIZE

# Samples of the scan for each pixel along each axis, which are averaged; of finer scans some are left out.
_SAMPLES_PER_PIXEL = 2
# Upper bound of a scale bar's length as a share of its picture's width.
_MAX_BAR_SHARE = 0.3
# Smaller tilts are not mentioned.
_MIN_TILT_DEGREES = 5.0
_DISCLAIMER = "Not for diagnosis"


def draw_preview(
    volume: Volume,
    mask: NDArray[np.unsignedinteger],
    labels: Sequence[LabelReport],
    components: LabelComponents,
    *,
    modality: str,
) -> bytes:
    """Draws three planes through the middle of the segmented labels, a strip of axial slices, and a legend.

    It reads single planes and does not copy the volume.

    Args:
        volume: The scan.
        mask: Shape (i, j, k), on the scan's grid.
        labels: Figures of the manifest's labels, in its order; one without a colour is not drawn.
        components: Positions of the same labels.
        modality: A CT is shown in an intensity window in HU, any other scan in the range of its values.

    Returns:
        A PNG, of the same size for every scan.
    """
    extractor = PlaneExtractor.of(volume)
    colours = {label.value: label.colour for label in labels if label.colour is not None}
    shown = [label for label in labels if label.value in colours]
    is_shown = [label.value in colours for label in labels]
    counts = [profile[is_shown].sum(axis=0) for profile in components.voxels_per_plane]
    middles = {view: middle_plane(extractor.profile(counts, view)) for view in VIEWS}
    if modality == "CT":
        window = ct_intensity_window([(label.intensity_mean or 0.0, label.voxels) for label in shown])
    else:
        planes = [extractor.plane(volume.voxels, view, index) for view, index in middles.items()]
        window = percentile_intensity_window(planes)
    renderer = _PanelRenderer(
        extractor,
        volume.voxels,
        mask,
        window,
        _colour_indices(mask.dtype, colours),
        np.array([BLACK, *colours.values()], dtype=np.uint8),
    )

    page = Image.new("RGB", (_WIDTH, _HEIGHT), PAGE)
    for column, (view, index) in enumerate(middles.items()):
        page.paste(renderer.panel(view, index), (_MARGIN + column * (_PANEL_SIZE + _GAP), _MARGIN))
    for column, index in enumerate(evenly_spaced_planes(extractor.profile(counts, AXIAL), _SLICES)):
        axial = renderer.slice(index, with_bar=column == 0)
        page.paste(axial, (_MARGIN + column * (_SLICE_SIZE + _GAP), _MARGIN + _PANEL_SIZE + _GAP))
    notes = [_DISCLAIMER, str(window)]
    if extractor.tilt_degrees > _MIN_TILT_DEGREES:
        notes.insert(0, f"Scan oblique by {extractor.tilt_degrees:.0f}°: sides are approximate")
    legend = draw_legend(shown, colours, notes, (_LEGEND_WIDTH, _PANEL_SIZE))
    page.paste(legend, (_WIDTH - _MARGIN - _LEGEND_WIDTH, _MARGIN))
    file = BytesIO()
    page.save(file, "PNG")
    return file.getvalue()


@dataclass(frozen=True)
class _PanelRenderer:
    """Draws planes of one scan with its mask.

    Attributes:
        extractor: Cuts planes out of the scan and the mask.
        voxels: The scan.
        mask: The mask, on the same grid.
        window: The intensity window of the scan.
        colour_indices: Row of each label's colour, by the label's value; 0 for labels that are not drawn.
        colours: Shape (labels + 1, 3).
    """

    extractor: PlaneExtractor
    voxels: NDArray[np.generic]
    mask: NDArray[np.unsignedinteger]
    window: IntensityWindow
    colour_indices: NDArray[np.intp]
    colours: NDArray[np.uint8]

    def panel(self, view: View, index: int) -> Image.Image:
        """Draws a large square picture with the view's name, the plane's position, the patient's sides and a scale."""
        panel, mm_per_pixel = self._fitted(view, index, _PANEL_SIZE)
        draw = ImageDraw.Draw(panel)
        middle = _PANEL_SIZE // 2
        far = _PANEL_SIZE - _TEXT_INSET
        ends = ((_TEXT_INSET, middle, "lm"), (far, middle, "rm"), (middle, _TEXT_INSET, "ma"), (middle, far, "md"))
        for letter, (x, y, anchor) in zip(view.sides, ends, strict=True):
            draw_text(draw, (x, y), letter, anchor, bold=True)
        draw_text(draw, (_TEXT_INSET, _TEXT_INSET), view.name, "la")
        draw_text(draw, (far, _TEXT_INSET), self.extractor.position(view, index), "ra")
        _draw_bar(draw, _PANEL_SIZE, mm_per_pixel)
        return panel

    def slice(self, index: int, *, with_bar: bool) -> Image.Image:
        """Draws a small axial picture with the plane's position."""
        panel, mm_per_pixel = self._fitted(AXIAL, index, _SLICE_SIZE)
        draw = ImageDraw.Draw(panel)
        draw_text(draw, (_TEXT_INSET, _TEXT_INSET), self.extractor.position(AXIAL, index), "la")
        if with_bar:
            _draw_bar(draw, _SLICE_SIZE, mm_per_pixel)
        return panel

    def _fitted(self, view: View, index: int, side: int) -> tuple[Image.Image, float]:
        """Draws a plane in the middle of a black square of `side` pixels; returns it and the millimetres per pixel."""
        width_mm, height_mm = self.extractor.size_mm(view)
        shear = self.extractor.shear(view)
        mm_per_pixel = max(width_mm + abs(shear) * height_mm, height_mm) / side
        width, height = (max(1, round(mm / mm_per_pixel)) for mm in (width_mm, height_mm))
        scan = self.extractor.plane(self.voxels, view, index)
        i, j = (
            max(1, size // (_SAMPLES_PER_PIXEL * pixels))
            for size, pixels in zip(scan.shape, (height, width), strict=True)
        )
        grey = Image.fromarray(self.window.grey(scan[::i, ::j])).resize((width, height), Image.Resampling.BILINEAR)
        mask = self.extractor.plane(self.mask, view, index)
        labels = mask[np.ix_(_nearest_samples(mask.shape[0], height), _nearest_samples(mask.shape[1], width))]
        painted = overlay(np.asarray(grey), self.colour_indices[labels], self.colours)
        sheared = Image.fromarray(_shear(painted, shear))
        panel = Image.new("RGB", (side, side), BLACK)
        panel.paste(sheared, ((side - sheared.width) // 2, (side - sheared.height) // 2))
        return panel, mm_per_pixel


def _shear(painted: NDArray[np.uint8], shear: float) -> NDArray[np.uint8]:
    """Shifts each row of a picture (h, w, 3) by `shear` pixels to the right of the row above; left where negative."""
    height, width = painted.shape[:2]
    shifts = np.rint((np.arange(height) - (height if shear < 0 else 0)) * shear).astype(np.intp)
    sheared = np.zeros((height, width + int(shifts.max()), 3), dtype=np.uint8)
    columns = shifts[:, np.newaxis] + np.arange(width)
    sheared[np.arange(height)[:, np.newaxis], columns] = painted
    return sheared


def _nearest_samples(size: int, pixels: int) -> NDArray[np.intp]:
    """Index of the sample that each pixel along an axis shows."""
    return (2 * np.arange(pixels) + 1) * size // (2 * pixels)


def _draw_bar(draw: ImageDraw.ImageDraw, side: int, mm_per_pixel: float) -> None:
    length_mm = round_length(_MAX_BAR_SHARE * side * mm_per_pixel)
    length = round(length_mm / mm_per_pixel)
    bottom = side - _TEXT_INSET
    draw.rectangle((_TEXT_INSET - 1, bottom - 4, _TEXT_INSET + length + 1, bottom), BLACK)
    draw.rectangle((_TEXT_INSET, bottom - 3, _TEXT_INSET + length, bottom - 1), TEXT)
    draw_text(draw, (_TEXT_INSET, bottom - 7), f"{length_mm:g} mm", "ld")


def round_length(max_mm: float) -> float:
    """Length of a scale bar: the largest of 1, 2, 5, 10, 20 … that does not exceed a length.

    >>> round_length(123.0), round_length(7.9), round_length(0.3)
    (100.0, 5.0, 0.2)
    """
    power = 10.0 ** floor(log10(max_mm))
    return max(step * power for step in (1, 2, 5) if step * power <= max_mm)


def _colour_indices(dtype: np.dtype[np.unsignedinteger], values: Collection[int]) -> NDArray[np.intp]:
    indices = np.zeros(np.iinfo(dtype).max + 1, dtype=np.intp)
    indices[list(values)] = np.arange(1, len(values) + 1)
    return indices
