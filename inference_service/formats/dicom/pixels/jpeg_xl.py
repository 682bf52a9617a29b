"""The headers of a JPEG XL codestream (ISO/IEC 18181-1), and the file of boxes that may surround it (18181-2).

A decoder allocates memory for each channel and frame, whatever data follow. Only the form that DICOM needs is let
through: one frame of one channel of integers, as large as the image. Pure parsing.
"""

from collections.abc import Iterator

from inference_service.core.errors import InputCorrupt, UnsupportedFormat
from inference_service.formats.dicom.pixels.codestream import CodestreamHeader

MAX_BITS = 16
"""The most bits of a pixel that are decoded to integers."""

_START = b"\xff\x0a"
_CONTAINER_START = b"\0\0\0\x0cJXL \r\n\x87\n"
# More than the longest header that is let through.
_MAX_HEADER_BYTES = 256
# An integer of variable length: two bits select an offset, and the number of bits to add to it.
_Forms = tuple[tuple[int, int], ...]
_SIZE: _Forms = ((1, 9), (1, 13), (1, 18), (1, 30))
_ENUM: _Forms = ((0, 0), (1, 0), (2, 4), (18, 6))
_BITS: _Forms = ((8, 0), (10, 0), (12, 0), (1, 6))
_EXTRA_CHANNELS: _Forms = ((0, 0), (1, 0), (2, 4), (1, 12))
_CHROMATICITY: _Forms = ((0, 19), (524288, 19), (1048576, 20), (2097152, 21))
# The fourth form has more bits than there are flags.
_FLAGS: _Forms = ((0, 0), (1, 4), (17, 8), (2**32, 0))
_PASSES: _Forms = ((1, 0), (2, 0), (3, 0), (4, 3))
_DOWNSAMPLINGS: _Forms = ((0, 0), (1, 0), (2, 0), (3, 1))
_LAST_PASS: _Forms = ((0, 0), (1, 0), (2, 0), (0, 3))
# Ratio of columns to rows, which a header may state in place of the columns.
_RATIOS = {1: (1, 1), 2: (12, 10), 3: (4, 3), 4: (3, 2), 5: (16, 9), 6: (5, 4), 7: (2, 1)}
_GREY = 1
_CUSTOM_WHITE_POINT = 2
# Noise, and a filter that is switched off. The others are patches, splines and a frame of low frequencies before.
_PLAIN_FLAGS = 1 | 128


def unwrap(data: bytes) -> bytes:
    """Returns a codestream without the file of boxes that may surround it; other data as they are."""
    if not data.startswith(_CONTAINER_START):
        return data
    return b"".join(_codestream_parts(data))


def read_header(codestream: bytes) -> CodestreamHeader | None:
    """The image that a codestream states; None where it is none.

    Raises:
        InputCorrupt: It ends within its headers.
        UnsupportedFormat: It is something else than one frame of one channel of integers.

    >>> read_header(bytes.fromhex("ff0af80efec3a06811080201"))
    CodestreamHeader(rows=480, columns=512, components=1, bits=12)
    """
    if not codestream.startswith(_START):
        return None
    bits = _Bits(codestream[len(_START) : _MAX_HEADER_BYTES])
    rows, columns = _read_size(bits)
    depth, is_xyb = _read_metadata(bits)
    bits.align()
    _check_frame(bits, is_xyb=is_xyb)
    return CodestreamHeader(rows, columns, 1, depth)


class _Bits:
    """Reads the bits of each byte from the lowest to the highest."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data, "little")
        self._size = 8 * len(data)
        self._at = 0

    def read(self, count: int) -> int:
        """Returns the integer in the next bits, of which the first is the lowest."""
        start = self._at
        self._at += count
        if self._at > self._size:
            raise InputCorrupt("a DICOM file is truncated: a JPEG XL codestream ends within its headers")
        return self._value >> start & (1 << count) - 1

    def choose(self, forms: _Forms) -> int:
        """Returns the next integer of variable length."""
        offset, count = forms[self.read(2)]
        return offset + self.read(count)

    def align(self) -> None:
        """Skips the rest of a byte."""
        self._at = -(-self._at // 8) * 8


def _codestream_parts(data: bytes) -> Iterator[bytes]:
    """The codestream's boxes: one `jxlc`, or several `jxlp`, each of which begins with a number of four bytes."""
    at = 0
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4])
        kind = data[at + 4 : at + 8]
        content_at = at + 8
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16])
            content_at += 8
        # The last box may state no size.
        end = at + size if size else len(data)
        if end < content_at:
            return
        if kind in (b"jxlc", b"jxlp"):
            yield data[content_at + 4 * (kind == b"jxlp") : end]
        at = end


def _require(condition: bool) -> None:
    if not condition:
        raise UnsupportedFormat(
            "a DICOM file's JPEG XL codestream has several frames, layers or channels, colours, a colour profile, a "
            f"preview, a rotation, or another number format: expected one frame of grey values of up to {MAX_BITS} bits"
        )


def _read_size(bits: _Bits) -> tuple[int, int]:
    """Rows and columns."""
    is_multiple_of_8 = bits.read(1)
    rows = 8 * (bits.read(5) + 1) if is_multiple_of_8 else bits.choose(_SIZE)
    ratio = bits.read(3)
    if ratio:
        numerator, denominator = _RATIOS[ratio]
        return rows, rows * numerator // denominator
    return rows, 8 * (bits.read(5) + 1) if is_multiple_of_8 else bits.choose(_SIZE)


def _read_metadata(bits: _Bits) -> tuple[int, bool]:
    """Bits of each pixel, and whether its values are in the colour space of lossy compression."""
    # The default is an image of colours.
    _require(not bits.read(1))
    has_extra_fields = bits.read(1)
    if has_extra_fields:
        orientation = bits.read(3)
        has_other_size_preview_or_animation = bits.read(3)
        _require(not orientation and not has_other_size_preview_or_animation)
    is_floating_point = bits.read(1)
    _require(not is_floating_point)
    depth = bits.choose(_BITS)
    _needs_16_bits_at_most = bits.read(1)
    extra_channels = bits.choose(_EXTRA_CHANNELS)
    _require(depth <= MAX_BITS and not extra_channels)
    is_xyb = bits.read(1)
    _check_colours(bits)
    if has_extra_fields:
        has_default_brightness = bits.read(1)
        bits.read(0 if has_default_brightness else 49)
    extensions = bits.choose(_FLAGS)
    has_default_transform = bits.read(1)
    _require(not extensions and has_default_transform == 1)
    return depth, bool(is_xyb)


def _check_colours(bits: _Bits) -> None:
    is_default = bits.read(1)
    _require(not is_default)
    has_profile = bits.read(1)
    _require(not has_profile and bits.choose(_ENUM) == _GREY)
    if bits.choose(_ENUM) == _CUSTOM_WHITE_POINT:
        for _ in "xy":
            bits.choose(_CHROMATICITY)
    has_gamma = bits.read(1)
    _transfer_function = bits.read(24) if has_gamma else bits.choose(_ENUM)
    _rendering_intent = bits.choose(_ENUM)


def _check_frame(bits: _Bits, *, is_xyb: bool) -> None:
    """Refuses a frame that is not the only one, or of another size than the image."""
    is_default = bits.read(1)
    if is_default:
        return
    frame_type = bits.read(2)
    is_modular = bits.read(1)
    flags = bits.choose(_FLAGS)
    _require(not frame_type and not flags & ~_PLAIN_FLAGS)
    if not is_xyb and bits.read(1):
        _subsampling = bits.read(6)
    _upsampling = bits.read(2)
    if is_modular:
        _group_size = bits.read(2)
    elif is_xyb:
        _scales = bits.read(6)
    _skip_passes(bits)
    has_own_size = bits.read(1)
    blend_mode = bits.read(2)
    is_last = bits.read(1)
    _require(not has_own_size and not blend_mode and is_last == 1)


def _skip_passes(bits: _Bits) -> None:
    passes = bits.choose(_PASSES)
    if passes == 1:
        return
    downsamplings = bits.choose(_DOWNSAMPLINGS)
    bits.read(2 * (passes - 1))
    bits.read(2 * downsamplings)
    for _ in range(downsamplings):
        bits.choose(_LAST_PASS)
