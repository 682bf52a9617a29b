"""One colour for each label: the same in the preview, its legend and the DICOM segmentation."""

from collections.abc import Mapping
from colorsys import hsv_to_rgb
from types import MappingProxyType

Rgb = tuple[int, int, int]
NO_COLOURS: Mapping[int, Rgb] = MappingProxyType({})
"""The colours of labels that have none of their own."""

# Okabe and Ito (2008), without black: distinguishable with any colour vision. Sky blue and orange come first, as they
# contrast most with grey.
_FIRST_COLOURS: tuple[Rgb, ...] = (
    (86, 180, 233), (230, 159, 0), (0, 158, 115), (204, 121, 167), (240, 228, 66), (213, 94, 0), (0, 114, 178),
)  # fmt: skip
# Multiples of the golden angle never repeat a hue; three pairs of saturation and value separate neighbouring hues.
_HUE_STEP = 0.381966
_SATURATION_AND_VALUE = ((0.75, 0.95), (0.45, 1.0), (0.9, 0.7))


def label_colour(index: int, own: Rgb | None = None) -> Rgb:
    """Colour of a label: its own, or one by its index among a model's labels, from 0.

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
