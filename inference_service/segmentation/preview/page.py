"""`preview.png`: a scan and its mask at a glance, made without a display. Holds nothing that could name a patient."""

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
from inference_service.imaging.palette import label_colour
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

_MARGIN, _GAP = 16, 12
_PANEL, _SLICE, _LEGEND_WIDTH = 384, 173, 280
_SLICES = 8
_WIDTH = 2 * _MARGIN + 3 * (_PANEL + _GAP) + _LEGEND_WIDTH
_HEIGHT = 2 * _MARGIN + _PANEL + _GAP + _SLICE
_EDGE = 6

# Samples of a plane for each pixel of its picture and along each axis, before they are averaged; more are passed over.
_SAMPLES = 2
# The most of a picture's width that a scale bar takes.
_MOST_BAR = 0.3
# Less is not worth a word.
_LEAST_TILT_DEGREES = 5.0
_DISCLAIMER = "Not for diagnosis"


def draw_preview(
    volume: Volume,
    mask: NDArray[np.unsignedinteger],
    labels: Sequence[LabelReport],
    components: LabelComponents,
    *,
    modality: str,
) -> bytes:
    """Draws three planes through the middle of what is segmented, a strip of axial slices from head to feet, a legend.

    Takes planes only, never a copy of the volume.

    Args:
        volume: The scan.
        mask: Shape (i, j, k), on the scan's grid.
        labels: Of the manifest, in its order, with their figures; 0 is the background, and not drawn.
        components: Of the same labels.
        modality: CT is shown in a window of HU, anything else in the range of its values.

    Returns:
        A PNG, of the same size for every scan.
    """
    extractor = PlaneExtractor.of(volume)
    shown = [label for label in labels if label.value != 0]
    drawn = [label.value != 0 for label in labels]
    counts = [profile[drawn].sum(axis=0) for profile in components.voxels_per_plane]
    middles = {view: middle_plane(extractor.profile(counts, view)) for view in VIEWS}
    if modality == "CT":
        window = ct_intensity_window([(label.intensity_mean or 0.0, label.voxels) for label in shown])
    else:
        window = percentile_intensity_window(
            [extractor.plane(volume.voxels, view, index) for view, index in middles.items()]
        )
    colours = {label.value: label_colour(place) for place, label in enumerate(shown)}
    renderer = _PanelRenderer(
        extractor, volume.voxels, mask, window, _places(mask.dtype, colours),
        np.array([BLACK, *colours.values()], dtype=np.uint8),
    )  # fmt: skip

    page = Image.new("RGB", (_WIDTH, _HEIGHT), PAGE)
    for place, (view, index) in enumerate(middles.items()):
        page.paste(renderer.panel(view, index), (_MARGIN + place * (_PANEL + _GAP), _MARGIN))
    for place, index in enumerate(evenly_spaced_planes(extractor.profile(counts, AXIAL), _SLICES)):
        slice_ = renderer.slice(index, with_bar=place == 0)
        page.paste(slice_, (_MARGIN + place * (_SLICE + _GAP), _MARGIN + _PANEL + _GAP))
    notes = [_DISCLAIMER, str(window)]
    if extractor.tilt_degrees > _LEAST_TILT_DEGREES:
        notes.insert(0, f"Scan oblique by {extractor.tilt_degrees:.0f}°: sides are the nearest")
    legend = draw_legend(shown, colours, notes, (_LEGEND_WIDTH, _PANEL))
    page.paste(legend, (_WIDTH - _MARGIN - _LEGEND_WIDTH, _MARGIN))
    file = BytesIO()
    page.save(file, "PNG")
    return file.getvalue()


@dataclass(frozen=True)
class _PanelRenderer:
    """Draws planes of one scan.

    Attributes:
        extractor: Cuts them out.
        voxels: The scan's.
        mask: On the same grid.
        window: What is shown of the scan.
        places: The row of each label's colour, by the label; 0 for none.
        colours: Shape (labels + 1, 3).
    """

    extractor: PlaneExtractor
    voxels: NDArray[np.generic]
    mask: NDArray[np.unsignedinteger]
    window: IntensityWindow
    places: NDArray[np.intp]
    colours: NDArray[np.uint8]

    def panel(self, view: View, index: int) -> Image.Image:
        """A large square picture: name, place, sides, scale."""
        panel, mm_per_pixel = self._fitted(view, index, _PANEL)
        draw = ImageDraw.Draw(panel)
        middle, far = _PANEL // 2, _PANEL - _EDGE
        ends = ((_EDGE, middle, "lm"), (far, middle, "rm"), (middle, _EDGE, "ma"), (middle, far, "md"))
        for letter, (x, y, anchor) in zip(view.sides, ends, strict=True):
            draw_text(draw, (x, y), letter, anchor, bold=True)
        draw_text(draw, (_EDGE, _EDGE), view.name, "la")
        draw_text(draw, (far, _EDGE), self.extractor.position(view, index), "ra")
        _draw_bar(draw, _PANEL, mm_per_pixel)
        return panel

    def slice(self, index: int, *, with_bar: bool) -> Image.Image:
        """A small axial picture: place, and scale where it is asked for."""
        panel, mm_per_pixel = self._fitted(AXIAL, index, _SLICE)
        draw = ImageDraw.Draw(panel)
        draw_text(draw, (_EDGE, _EDGE), self.extractor.position(AXIAL, index), "la")
        if with_bar:
            _draw_bar(draw, _SLICE, mm_per_pixel)
        return panel

    def _fitted(self, view: View, index: int, side: int) -> tuple[Image.Image, float]:
        """A plane in the middle of a black square, and the millimetres of a pixel."""
        width_mm, height_mm = self.extractor.size_mm(view)
        lean = self.extractor.lean(view)
        mm_per_pixel = max(width_mm + abs(lean) * height_mm, height_mm) / side
        width, height = (max(1, round(mm / mm_per_pixel)) for mm in (width_mm, height_mm))
        scan = self.extractor.plane(self.voxels, view, index)
        i, j = (max(1, pixels // (_SAMPLES * to)) for pixels, to in zip(scan.shape, (height, width), strict=True))
        grey = Image.fromarray(self.window.grey(scan[::i, ::j])).resize((width, height), Image.Resampling.BILINEAR)
        mask = self.extractor.plane(self.mask, view, index)
        places = self.places[mask[np.ix_(_nearest(mask.shape[0], height), _nearest(mask.shape[1], width))]]
        painted = Image.fromarray(_leaning(overlay(np.asarray(grey), places, self.colours), lean))
        panel = Image.new("RGB", (side, side), BLACK)
        panel.paste(painted, ((side - painted.width) // 2, (side - painted.height) // 2))
        return panel, mm_per_pixel


def _leaning(painted: NDArray[np.uint8], lean: float) -> NDArray[np.uint8]:
    """Moves each row, shape (h, w, 3), to the right of the one above by so many pixels, or to its left."""
    height, width = painted.shape[:2]
    moved = np.rint((np.arange(height) - (height if lean < 0 else 0)) * lean).astype(np.intp)
    leaning = np.zeros((height, width + int(moved.max()), 3), dtype=np.uint8)
    columns = moved[:, np.newaxis] + np.arange(width)
    leaning[np.arange(height)[:, np.newaxis], columns] = painted
    return leaning


def _nearest(size: int, pixels: int) -> NDArray[np.intp]:
    """The sample that each pixel shows."""
    return (2 * np.arange(pixels) + 1) * size // (2 * pixels)


def _draw_bar(draw: ImageDraw.ImageDraw, side: int, mm_per_pixel: float) -> None:
    length_mm = round_length(_MOST_BAR * side * mm_per_pixel)
    length, bottom = round(length_mm / mm_per_pixel), side - _EDGE
    draw.rectangle((_EDGE - 1, bottom - 4, _EDGE + length + 1, bottom), BLACK)
    draw.rectangle((_EDGE, bottom - 3, _EDGE + length, bottom - 1), TEXT)
    draw_text(draw, (_EDGE, bottom - 7), f"{length_mm:g} mm", "ld")


def round_length(most_mm: float) -> float:
    """The longest of 1, 2, 5, 10, 20 … that is not longer.

    >>> round_length(123.0), round_length(7.9), round_length(0.3)
    (100.0, 5.0, 0.2)
    """
    power = 10.0 ** floor(log10(most_mm))
    return max(step * power for step in (1, 2, 5) if step * power <= most_mm)


def _places(dtype: np.dtype[np.unsignedinteger], values: Collection[int]) -> NDArray[np.intp]:
    places = np.zeros(np.iinfo(dtype).max + 1, dtype=np.intp)
    places[list(values)] = np.arange(1, len(values) + 1)
    return places
