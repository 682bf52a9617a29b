"""One colour for each label, the same in the preview, the DICOM segmentation and the legend."""

from colorsys import hsv_to_rgb

Rgb = tuple[int, int, int]

# Okabe and Ito (2008), without black: told apart with any colour vision. Yellow and light blue come first, as they
# stand out most from grey.
_FIRST_COLOURS: tuple[Rgb, ...] = (
    (86, 180, 233), (230, 159, 0), (0, 158, 115), (204, 121, 167), (240, 228, 66), (213, 94, 0), (0, 114, 178),
)  # fmt: skip
# Steps of the golden angle never meet again; three strengths keep neighbouring hues apart.
_HUE_STEP = 0.381966
_STRENGTHS = ((0.75, 0.95), (0.45, 1.0), (0.9, 0.7))


def colour(place: int) -> Rgb:
    """The colour of the label at a place among a model's labels, 0 on; the same in every picture."""
    if place < len(_FIRST_COLOURS):
        return _FIRST_COLOURS[place]
    saturation, value = _STRENGTHS[place % len(_STRENGTHS)]
    red, green, blue = hsv_to_rgb(place * _HUE_STEP % 1, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)
