"""Text of the preview: the legend of the labels, and the text on panels."""

from collections.abc import Mapping, Sequence
from functools import cache

from PIL import Image, ImageDraw, ImageFont

from inference_service.contract.labels import Rgb
from inference_service.contract.report import LabelReport

PAGE = (24, 24, 27)
TEXT = (240, 240, 240)
MUTED = (160, 160, 166)
BLACK = (0, 0, 0)

# In pixels.
_SMALL_FONT = 12
_NORMAL_FONT = 14
_ROW_HEIGHT = 22
_SWATCH_SIZE = 14
_ELLIPSIS = "…"


@cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Returns the font that comes with Pillow, so that previews do not depend on the machine's fonts."""
    return ImageFont.load_default(size)


def draw_text(
    draw: ImageDraw.ImageDraw, position: tuple[int, int], text: str, anchor: str, *, bold: bool = False
) -> None:
    """Writes light text with a dark outline, to be read on a scan.

    Args:
        draw: The picture.
        position: x and y of the anchor, in pixels.
        text: One line.
        anchor: The point of the text that lies at the position, as Pillow names it.
        bold: Whether the text is larger than usual.
    """
    size = _NORMAL_FONT + 2 if bold else _SMALL_FONT
    draw.text(position, text, TEXT, font(size), anchor, stroke_width=2, stroke_fill=BLACK)


def draw_legend(
    labels: Sequence[LabelReport], colours: Mapping[int, Rgb], notes: Sequence[str], size: tuple[int, int]
) -> Image.Image:
    """Draws the list of labels with their volumes, the largest first; labels that do not fit are counted.

    Args:
        labels: All labels but the background.
        colours: Colour of each label, by its value.
        notes: Lines at the bottom.
        size: Width and height in pixels.
    """
    legend = Image.new("RGB", size, PAGE)
    draw = ImageDraw.Draw(legend)
    width, height = size
    found = sorted((label for label in labels if label.voxels), key=lambda label: -label.voxels)
    room = (height - _ROW_HEIGHT * len(notes)) // _ROW_HEIGHT - 2
    listed = found if len(found) <= room else found[: room - 1]
    draw.text((0, 0), "Segmented" if found else "Nothing is segmented", TEXT, font(_NORMAL_FONT))
    for row, label in enumerate(listed, start=1):
        top = row * _ROW_HEIGHT
        draw.rectangle((0, top + 1, _SWATCH_SIZE, top + 1 + _SWATCH_SIZE), colours[label.value])
        volume = volume_text(label.volume_ml)
        left = 2 * _SWATCH_SIZE - 6
        name = fitting(label.name, width - left - round(font(_NORMAL_FONT).getlength(volume)) - 12)
        draw.text((left, top), name, TEXT, font(_NORMAL_FONT))
        draw.text((width, top), volume, TEXT, font(_NORMAL_FONT), "ra")
    rest = [f"{_ELLIPSIS} and {len(found) - len(listed)} more"] * (len(listed) < len(found))
    rest += [f"{len(labels) - len(found)} not found"] * (len(labels) > len(found))
    for row, text in enumerate(rest, start=len(listed) + 1):
        draw.text((0, row * _ROW_HEIGHT), text, MUTED, font(_NORMAL_FONT))
    for row, text in enumerate(reversed(notes)):
        draw.text((0, height - row * (_ROW_HEIGHT - 4)), text, MUTED, font(_SMALL_FONT), "ls")
    return legend


def volume_text(volume_ml: float) -> str:
    """Formats a volume with three digits at most, but whole millilitres in full.

    >>> volume_text(5275.04), volume_text(49.72), volume_text(0.0036)
    ('5275 mL', '49.7 mL', '0.0036 mL')
    """
    if volume_ml >= 100:
        return f"{volume_ml:.0f} mL"
    return f"{volume_ml:.1f} mL" if volume_ml >= 1 else f"{volume_ml:.2g} mL"


def fitting(text: str, width: int) -> str:
    """Cuts a label's name to one line of a width in pixels. Letters that the font lacks are drawn as boxes."""
    line = "".join(letter if letter.isprintable() else " " for letter in text)
    if font(_NORMAL_FONT).getlength(line) <= width:
        return line
    while line and font(_NORMAL_FONT).getlength(line + _ELLIPSIS) > width:
        line = line[:-1]
    return line + _ELLIPSIS
