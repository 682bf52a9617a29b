"""Drops the offset tables of encapsulated pixel data where they do not tell frames apart (PS3.5 A.4).

Some tables have an entry for each fragment instead of each frame, or offsets at which no fragment begins. Without a
table frames are told apart by the number of fragments, or by the end markers of codestreams.
"""

from io import BytesIO
from itertools import pairwise

from pydicom.dataset import Dataset
from pydicom.encaps import parse_basic_offsets, parse_fragments

from inference_service.core.errors import InputCorrupt

_EMPTY_TABLE = b"\xfe\xff\x00\xe0\x00\x00\x00\x00"


def drop_wrong_offsets(dataset: Dataset, frames: int, *, with_end_markers: bool) -> None:
    """Removes the extended offset table, and a basic one that is wrong.

    The extended table is dispensable: with it, each frame is one fragment (PS3.3 C.7.6.3.1.8).

    Args:
        dataset: Has encapsulated pixel data.
        frames: The number of frames.
        with_end_markers: Whether codestreams have end markers.

    Raises:
        InputCorrupt: Frames cannot be told apart.
    """
    for keyword in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths"):
        if keyword in dataset:
            del dataset[keyword]
    buffer = BytesIO(dataset.PixelData)
    offsets = parse_basic_offsets(buffer)
    start = buffer.tell()
    _, positions = parse_fragments(buffer)
    is_right = (
        len(offsets) == frames
        and offsets[0] == 0
        and all(offset < following for offset, following in pairwise(offsets))
        and {offset + start for offset in offsets} <= set(positions)
    )
    if is_right:
        return
    if not with_end_markers and 1 < frames < len(positions):
        raise InputCorrupt(
            f"a DICOM file has {len(positions)} fragments of pixel data for {frames} frames, and no valid offset table "
            "that tells them apart: expected one fragment for each frame"
        )
    if offsets:
        dataset.PixelData = _EMPTY_TABLE + dataset.PixelData[start:]
