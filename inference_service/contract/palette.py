"""One colour for each label: the same in the preview, its legend, the report and the segmentations."""

from collections.abc import Iterable
from colorsys import hsv_to_rgb

from inference_service.contract.labels import Label, Rgb

# Okabe and Ito (2008), without black: distinguishable with any colour vision. Sky blue and orange come first, as they
# contrast most with grey.
_FIRST_COLOURS: tuple[Rgb, ...] = (
    (86, 180, 233), (230, 159, 0), (0, 158, 115), (204, 121, 167), (240, 228, 66), (213, 94, 0), (0, 114, 178),
)  # fmt: skip
# Multiples of the golden angle never repeat a hue; three pairs of saturation and value separate neighbouring hues.
_HUE_STEP = 0.381966
_SATURATION_AND_VALUE = ((0.75, 0.95), (0.45, 1.0), (0.9, 0.7))


def label_colours(labels: Iterable[Label]) -> dict[int, Rgb]:
    """Colours of a model's labels by value, in the order of its manifest; the background, 0, has none."""
    shown = (label for label in labels if label.value)
    return {label.value: label_colour(index, label.colour) for index, label in enumerate(shown)}


def label_colour(index: int, own: Rgb | None = None) -> Rgb:
    """Colour of a label: its own, or one by its index among a model's labels other than 0.

    >>> label_colour(0), label_colour(7)
    ((86, 180, 233), (145, 140, 255))
    """
    if own is not None:
        return own
    if index < len(_FIRST_COLOURS):
        return _FIRST_COLOURS[index]
    saturation, value = _SATURATION_AND_VALUE[index % len(_SATURATION_AND_VALUE)]
    red, green, blue = hsv_to_rgb(index * _HUE_STEP % 1, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)
