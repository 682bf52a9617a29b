"""Text on a picture: the legend of its labels, and what stands on a panel."""

from collections.abc import Mapping, Sequence
from functools import cache

from PIL import Image, ImageDraw, ImageFont

from inference_service.contract.report import LabelReport
from inference_service.imaging.palette import Rgb

PAGE, TEXT, MUTED, BLACK = (24, 24, 27), (240, 240, 240), (160, 160, 166), (0, 0, 0)

_SMALL, _NORMAL = 12, 14
_ROW, _SWATCH = 22, 14
_CUT = "…"


@cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font that comes with Pillow, so that pictures do not depend on the machine's."""
    return ImageFont.load_default(size)


def draw_text(draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, anchor: str, *, bold: bool = False) -> None:
    """Writes on a scan: light, with a dark rim.

    Args:
        draw: The picture.
        place: Where.
        text: What.
        anchor: Pillow's: which point of the text lies there.
        bold: Whether it is to be seen first.
    """
    size = _NORMAL + 2 if bold else _SMALL
    draw.text(place, text, TEXT, font(size), anchor, stroke_width=2, stroke_fill=BLACK)


def draw_legend(
    labels: Sequence[LabelReport], colours: Mapping[int, Rgb], notes: Sequence[str], size: tuple[int, int]
) -> Image.Image:
    """Lists labels with their volumes, the largest first; what does not fit is counted.

    Args:
        labels: All but the background.
        colours: By label value.
        notes: Lines beneath.
        size: Width and height.
    """
    legend = Image.new("RGB", size, PAGE)
    draw = ImageDraw.Draw(legend)
    width, height = size
    found = sorted((label for label in labels if label.voxels), key=lambda label: -label.voxels)
    room = (height - _ROW * len(notes)) // _ROW - 2
    listed = found if len(found) <= room else found[: room - 1]
    draw.text((0, 0), "Segmented" if found else "Nothing is segmented", TEXT, font(_NORMAL))
    for row, label in enumerate(listed, start=1):
        top = row * _ROW
        draw.rectangle((0, top + 1, _SWATCH, top + 1 + _SWATCH), colours[label.value])
        volume = volume_text(label.volume_ml)
        left = 2 * _SWATCH - 6
        name = fitting(label.name, width - left - round(font(_NORMAL).getlength(volume)) - 12)
        draw.text((left, top), name, TEXT, font(_NORMAL))
        draw.text((width, top), volume, TEXT, font(_NORMAL), "ra")
    rest = [f"{_CUT} and {len(found) - len(listed)} more"] * (len(listed) < len(found))
    rest += [f"{len(labels) - len(found)} not found"] * (len(labels) > len(found))
    for row, text in enumerate(rest, start=len(listed) + 1):
        draw.text((0, row * _ROW), text, MUTED, font(_NORMAL))
    for row, text in enumerate(reversed(notes)):
        draw.text((0, height - row * (_ROW - 4)), text, MUTED, font(_SMALL), "ls")
    return legend


def volume_text(volume_ml: float) -> str:
    """A volume to what matters of it.

    >>> volume_text(5275.04), volume_text(49.72), volume_text(0.0036)
    ('5275 mL', '49.7 mL', '0.0036 mL')
    """
    if volume_ml >= 100:
        return f"{volume_ml:.0f} mL"
    return f"{volume_ml:.1f} mL" if volume_ml >= 1 else f"{volume_ml:.2g} mL"


def fitting(text: str, width: int) -> str:
    """A label's name on one line and within a width; what Pillow's font does not have is left to it."""
    line = "".join(letter if letter.isprintable() else " " for letter in text)
    if font(_NORMAL).getlength(line) <= width:
        return line
    while line and font(_NORMAL).getlength(line + _CUT) > width:
        line = line[:-1]
    return line + _CUT
