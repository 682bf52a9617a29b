"""The image size and bit depth that a codestream states in its own header, and whether it is complete. Pure parsing."""

from dataclasses import dataclass

from inference_service.formats.dicom.pixels import jpeg_2000

# JPEG (ISO/IEC 10918-1, B.1.1.3) and JPEG-LS (ISO/IEC 14495-1): markers of frame headers, and those without a segment.
_JPEG_START = b"\xff\xd8"
_FRAME_MARKERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
_BARE_MARKERS = {0x01, *range(0xD0, 0xD9)}
# EOI of JPEG and JPEG-LS, EOC of JPEG 2000.
_END = b"\xff\xd9"
# Zeros and a few other bytes may follow the end marker.
_MAX_TRAILING_BYTES = 64


@dataclass(frozen=True)
class CodestreamHeader:
    """The image that a codestream states.

    Attributes:
        rows: Number of pixels along a column.
        columns: Number of pixels along a row.
        components: Number of values for each pixel.
        bits: Bits of each value, of the first component.
    """

    rows: int
    columns: int
    components: int
    bits: int


def read_codestream_header(data: bytes) -> CodestreamHeader | None:
    """Header of a JPEG, JPEG-LS, JPEG 2000 or HTJ2K codestream; None where it has no valid one.

    A file of boxes around a JPEG 2000 codestream is removed before, see `jpeg_2000.unwrap`.

    >>> read_codestream_header(bytes.fromhex("ffd8 ffc3 000b 0c 0200 0100 01 000000"))
    CodestreamHeader(rows=512, columns=256, components=1, bits=12)
    """
    if data.startswith(_JPEG_START):
        return _jpeg_header(data)
    return _jpeg_2000_header(data[len(jpeg_2000.START) :]) if data.startswith(jpeg_2000.START) else None


def is_complete(data: bytes) -> bool:
    """Returns True if a codestream has its end marker. Decoders invent the missing rows of a truncated codestream.

    Entropy-coded data never contain the marker.

    >>> is_complete(bytes.fromhex("ffd8 ffd9 00")), is_complete(bytes.fromhex("ffd8 ffc3"))
    (True, False)
    """
    return _END in data.rstrip(b"\0")[-_MAX_TRAILING_BYTES:]


def _jpeg_2000_header(segment: bytes) -> CodestreamHeader | None:
    """Header by the segment of image and tile size (ISO/IEC 15444-1, A.5.1)."""
    if len(segment) < 39:
        return None
    right, bottom, left, top = (int.from_bytes(segment[start : start + 4]) for start in range(4, 20, 4))
    # The highest bit of Ssiz is the sign, the others are the number of bits less 1.
    return CodestreamHeader(bottom - top, right - left, int.from_bytes(segment[36:38]), (segment[38] & 0x7F) + 1)


def _jpeg_header(data: bytes) -> CodestreamHeader | None:
    """The first frame header; segments before it are skipped."""
    position = len(_JPEG_START)
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF or marker in _BARE_MARKERS:
            position += 1 if marker == 0xFF else 2
            continue
        if marker in _FRAME_MARKERS:
            if position + 9 >= len(data):
                return None
            rows, columns = (int.from_bytes(data[position + at : position + at + 2]) for at in (5, 7))
            return CodestreamHeader(rows, columns, data[position + 9], data[position + 4])
        position += 2 + int.from_bytes(data[position + 2 : position + 4])
    return None
