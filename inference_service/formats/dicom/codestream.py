"""The size that a compressed image states in its own header, which decoders allocate by. Pure parsing."""

from dataclasses import dataclass

# JPEG 2000 (ISO/IEC 15444-1, A.5.1): start of codestream, then at once its size.
_JPEG_2000_START = b"\xff\x4f\xff\x51"
# It may come in a file of boxes, of which a few are before it.
_MOST_BOX_BYTES = 2**16
# JPEG (ISO/IEC 10918-1, B.1.1.3) and JPEG-LS (14495-1): frames' headers, and markers without any length.
_FRAME_MARKERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
_BARE_MARKERS = {0x01, *range(0xD0, 0xD9)}
# Of JPEG 2000 codestreams too.
_END = b"\xff\xd9"
# Zeros may follow it, and some bytes of anything else.
_MOST_TRAILING_BYTES = 64


@dataclass(frozen=True)
class Size:
    """What a codestream says of its image."""

    rows: int
    columns: int
    components: int


def codestream_size(data: bytes) -> Size | None:
    """Size of a JPEG, JPEG-LS, JPEG 2000 or HTJ2K image; None where its header is none of these.

    >>> codestream_size(bytes.fromhex("ffd8 ffc3 000b 0c 0200 0100 01 000000"))
    Size(rows=512, columns=256, components=1)
    """
    if data[:2] == b"\xff\xd8":
        return _jpeg_size(data)
    start = data.find(_JPEG_2000_START, 0, _MOST_BOX_BYTES)
    return None if start < 0 else _jpeg_2000_size(data[start + 4 :])


def is_ended(data: bytes) -> bool:
    """Whether the end of an image is there: decoders make up what is missing before it.

    Its marker is found nowhere else, as data never hold one.

    >>> is_ended(bytes.fromhex("ffd8 ffd9 00")), is_ended(bytes.fromhex("ffd8 ffc3"))
    (True, False)
    """
    return _END in data.rstrip(b"\0")[-_MOST_TRAILING_BYTES:]


def _jpeg_2000_size(segment: bytes) -> Size | None:
    if len(segment) < 38:
        return None
    right, bottom, left, top = (int.from_bytes(segment[start : start + 4]) for start in range(4, 20, 4))
    return Size(bottom - top, right - left, int.from_bytes(segment[36:38]))


def _jpeg_size(data: bytes) -> Size | None:
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF or marker in _BARE_MARKERS:
            position += 1 if marker == 0xFF else 2
            continue
        if marker in _FRAME_MARKERS:
            rows, columns = (int.from_bytes(data[position + at : position + at + 2]) for at in (5, 7))
            return Size(rows, columns, data[position + 9]) if position + 9 < len(data) else None
        position += 2 + int.from_bytes(data[position + 2 : position + 4])
    return None
