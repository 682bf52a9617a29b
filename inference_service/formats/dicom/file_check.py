"""Checks of a DICOM file before it is parsed: whether it is one, its inflated size, its number of sequence items.

pydicom inflates and parses a file in one step and without limits; here it is read chunk by chunk.
"""

import re
import zlib
from dataclasses import dataclass
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag
from pydicom.uid import DeflatedExplicitVRLittleEndian

from inference_service.core.errors import InputCorrupt, InputTooLarge
from inference_service.formats.decompression import read_start
from inference_service.formats.dicom.attributes import read_text
from inference_service.formats.dicom.bounded_file import BoundedFile
from inference_service.formats.dicom.pydicom_errors import map_pydicom_errors, suppress_warnings

# PS3.10 7.1: a preamble, the prefix DICM, and the file meta information, whose first element takes 12 bytes.
_PREAMBLE_BYTES = 128
_PREFIX = b"DICM"
START_BYTES = _PREAMBLE_BYTES + len(_PREFIX)
"""The bytes of a file that `is_dicom` looks at."""
_GROUP_LENGTH_ELEMENT_BYTES = 12
_META_GROUP = 0x0002
# A file without a preamble begins with an element of group 0002 or 0008, in either byte order.
_FIRST_GROUPS = (b"\x02\x00", b"\x08\x00", b"\x00\x08")
_CHUNK_BYTES = 2**20
# The element Rows (0028,0010), which every image has, with a length of 2: explicit VR, big endian, implicit VR.
_ROWS = (b"\x28\0\x10\0US\2\0", b"\0\x28\0\x10US\0\2", b"\x28\0\x10\0\2\0\0\0")
_SEARCHED_BYTES = 2**18
# Tag of a sequence item (FFFE,E000), in either byte order (PS3.5 7.5).
_ITEM_TAGS = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")


@dataclass(frozen=True)
class FileSize:
    """The memory that a DICOM file takes once it is parsed.

    Attributes:
        inflated_bytes: Size of a deflated file after inflation; 0 for other files.
        items: Upper bound of the number of sequence items.
    """

    inflated_bytes: int
    items: int


def looks_like_dicom(path: Path) -> bool:
    """Returns True if the file starts like DICOM, with or without a preamble."""
    with path.open("rb") as file:
        return is_dicom(file.read(START_BYTES))


def is_dicom(start: bytes) -> bool:
    """Returns True if a file that begins with these 132 bytes or more starts like DICOM."""
    if start[_PREAMBLE_BYTES:START_BYTES] == _PREFIX:
        return True
    # After the tag of the first element comes its value representation or, with implicit VR, a short length.
    explicit = re.fullmatch(rb"[A-Z]{2}", start[4:6]) is not None
    implicit = start[5:8] == b"\0\0\0"
    return len(start) > 8 and start[:2] in _FIRST_GROUPS and b"\0" in start[2:4] and (explicit or implicit)


def may_be_damaged(path: Path) -> bool:
    """Returns True if a file that does not start like DICOM may be an image whose start was lost.

    It is empty, begins with zeros, has the element Rows, or cannot be decompressed.
    """
    try:
        start = read_start(path, _SEARCHED_BYTES)
    except InputCorrupt:
        return True
    return not any(start[:_PREAMBLE_BYTES]) or any(rows in start for rows in _ROWS)


def measure_file(path: Path, max_bytes: int) -> FileSize:
    """Measures the memory that a file takes once it is parsed.

    Args:
        path: A file that looks like DICOM.
        max_bytes: Limit on the inflated size of a deflated file.

    Raises:
        InputTooLarge: The file inflates to more than that.
        InputCorrupt: The file is damaged.
    """
    with suppress_warnings(), map_pydicom_errors(), path.open("rb") as file:
        start = _deflated_start(path)
        file.seek(start)
        inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        remaining = max_bytes
        items = 0
        tail = b""
        while chunk := file.read(_CHUNK_BYTES):
            while chunk:
                piece = inflate.decompress(chunk, _CHUNK_BYTES) if start else chunk
                chunk = inflate.unconsumed_tail
                remaining -= len(piece)
                if start and remaining < 0:
                    raise InputTooLarge(
                        f"deflated DICOM inflates to more than the {max_bytes} bytes that are left of the input's limit"
                    )
                # The tail of the piece before, so that a tag across the boundary is counted.
                items += sum((tail + piece).count(tag) for tag in _ITEM_TAGS)
                tail = (tail + piece)[-3:]
        return FileSize(max_bytes - remaining if start else 0, items)


def _follows_meta(tag: BaseTag, vr: str | None, length: int) -> bool:
    """Returns True if an element is the first one after the file meta information."""
    return tag.group != _META_GROUP


def read_file_meta(path: Path) -> Dataset | None:
    """Reads the file meta information; None for a file without a preamble."""
    with BoundedFile(path) as file:
        if file.read(START_BYTES)[_PREAMBLE_BYTES:] != _PREFIX:
            return None
        return read_dataset(file, is_implicit_VR=False, is_little_endian=True, stop_when=_follows_meta)


def _deflated_start(path: Path) -> int:
    """Offset of the deflated part of a file (PS3.5 A.5); 0 for a file that is not deflated."""
    meta = read_file_meta(path)
    if meta is None or read_text(meta, "TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return 0
    group_length = int(meta.FileMetaInformationGroupLength)
    return START_BYTES + _GROUP_LENGTH_ELEMENT_BYTES + group_length
