"""The number of tiles and packets that a JPEG 2000 codestream states (ISO/IEC 15444-1). Pure parsing.

A decoder allocates memory for each of them, whatever data follow: an image of 512 × 512 pixels may state 262,144 tiles
in a hundred bytes.
"""

import struct
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

# Start of codestream and the marker of image and tile size, which follows at once (A.4.1, A.5.1).
START = b"\xff\x4f\xff\x51"
"""The first bytes of a codestream."""
# The codestream may be wrapped in a file of boxes; a few boxes precede it.
_MAX_BOX_BYTES = 2**16
_SIZE_FIELDS = struct.Struct(">8I")
_SIZE_FIELDS_AT = 8
# Start of a tile-part with the length of its segment (A.4.2).
_TILE_PART = b"\xff\x90\x00\x0a"
_TILE_PART_BYTES = 12
_CODING_STYLE = b"\xff\x52"
_COMPONENT_STYLE = b"\xff\x53"
# The markers of headers that have a segment (A.2, and parts 2 and 15).
_SEGMENTS = {bytes((0xFF, code)) for code in (
    *range(0x50, 0x54), 0x55, *range(0x57, 0x5A), *range(0x5C, 0x62), 0x63, 0x64, 0x74, 0x75, 0x77, 0x78,
)}  # fmt: skip
_MAX_LEVELS = 32
_WHOLE = 15
"""Exponent of the size of precincts where a header states none: 32,768 pixels."""


class _Axis(NamedTuple):
    """The extent of an image and of its tiles along an axis of the reference grid (B.2, B.3)."""

    end: int
    start: int
    tile_size: int
    first_tile: int

    @property
    def tiles(self) -> int:
        """Number of tiles."""
        return -(-(self.end - self.first_tile) // self.tile_size)


def unwrap(data: bytes) -> bytes:
    """Returns a codestream without the file of boxes that may surround it; other data as they are."""
    return data[max(0, data.find(START, 0, _MAX_BOX_BYTES)) :]


def count_tiles(codestream: bytes) -> int:
    """Number of tiles; 0 where the codestream states no valid one.

    >>> size = struct.pack(">10x8I", 255, 100, 0, 0, 64, 64, 0, 0)[2:]
    >>> count_tiles(size)
    8
    """
    axes = _axes(codestream)
    return axes[0].tiles * axes[1].tiles if axes else 0


def count_packets(codestream: bytes) -> int:
    """Upper bound of the packets that a decoder keeps account of: layers × resolutions × precincts of all tiles.

    Args:
        codestream: Its tiles are few: `count_tiles` is limited.

    Returns:
        0 where the headers are invalid.
    """
    axes = _axes(codestream)
    if axes is None:
        return 0
    layers = 0
    most = 0
    for marker, segment in _coding_segments(codestream):
        # Both have a coding style, then decomposition levels, code-blocks and precincts (A.6.1, A.6.2).
        style_at, levels_at = (0, 5) if marker == _CODING_STYLE else (1, 2)
        if len(segment) < levels_at + 5 or segment[levels_at] > _MAX_LEVELS:
            return 0
        if marker == _CODING_STYLE:
            layers = max(layers, int.from_bytes(segment[2:4]))
        levels = segment[levels_at]
        sizes = segment[levels_at + 5 :] if segment[style_at] & 1 else bytes([_WHOLE * 0x11]) * (levels + 1)
        if len(sizes) <= levels:
            return 0
        most = max(most, (levels + 1) * _most_precincts(axes, levels, sizes))
    return axes[0].tiles * axes[1].tiles * (layers + 1) * most if layers else 0


def _most_precincts(axes: tuple[_Axis, _Axis], levels: int, sizes: Sequence[int]) -> int:
    """Largest number of precincts of a resolution of a tile."""
    horizontal, vertical = axes
    return max(
        _precincts(horizontal, levels - resolution, sizes[resolution] & 0xF)
        * _precincts(vertical, levels - resolution, sizes[resolution] >> 4)
        for resolution in range(levels + 1)
    )


@lru_cache(maxsize=2**12)
def _precincts(axis: _Axis, reduction: int, exponent: int) -> int:
    """Largest number of precincts of a tile along an axis (B.6).

    Args:
        axis: The extent of image and tiles.
        reduction: Number of times that the resolution is halved.
        exponent: The size of a precinct is this power of two.
    """
    most = 0
    for tile in range(axis.tiles):
        start = max(axis.start, axis.first_tile + tile * axis.tile_size)
        end = min(axis.end, axis.first_tile + (tile + 1) * axis.tile_size)
        low, high = (-(-place // 2**reduction) for place in (start, end))
        most = max(most, -(-high // 2**exponent) - low // 2**exponent)
    return most


def _axes(codestream: bytes) -> tuple[_Axis, _Axis] | None:
    """The horizontal and the vertical axis; None where they make no sense."""
    if len(codestream) < _SIZE_FIELDS_AT + _SIZE_FIELDS.size:
        return None
    fields = _SIZE_FIELDS.unpack_from(codestream, _SIZE_FIELDS_AT)
    axes = (_Axis(*fields[0::2]), _Axis(*fields[1::2]))
    valid = all(axis.tile_size and axis.first_tile <= axis.start < axis.end for axis in axes)
    return axes if valid else None


def _coding_segments(codestream: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The segments of coding styles in the main header and in the headers of all tile-parts."""
    at = len(START) + int.from_bytes(codestream[len(START) : len(START) + 2])
    in_main_header = True
    while at >= 0:
        while at + 4 <= len(codestream):
            marker = codestream[at : at + 2]
            if marker in _SEGMENTS:
                next_at = at + 2 + int.from_bytes(codestream[at + 2 : at + 4])
                if marker in (_CODING_STYLE, _COMPONENT_STYLE):
                    yield marker, codestream[at + 4 : next_at]
                at = next_at
            elif in_main_header and marker != _TILE_PART[:2]:
                # As OpenJPEG does in the main header alone, this searches for the next marker that it knows.
                at += 2
            else:
                break
        # The marker does not occur in coded data.
        found = codestream.find(_TILE_PART, at)
        at = found + _TILE_PART_BYTES if found >= 0 else -1
        in_main_header = False
