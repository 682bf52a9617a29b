"""Unpacks a tar from a stream, block by block: ustar, GNU, pax and older ones.

Python's tarfile holds extended headers of any length in memory, and its older versions loop on forged ones. Here no
more than a bounded header is held, no byte is read twice, and a name is read for its ending alone.
Source: POSIX.1-2017, pax; the manual of GNU tar.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from inference_service.core.errors import InputCorrupt, InputTooLarge, UnsupportedFormat
from inference_service.core.files import MAX_FILES
from inference_service.formats.archives.unpacked_files import UnpackedFiles

BLOCK_BYTES = 512
_CHUNK_BYTES = 2**20
_MAX_EXTENSION_BYTES = 2**20
# Headers, padding and everything that is skipped, for each file that is allowed.
_OVERHEAD_BYTES = 4096
_SIZE = slice(124, 136)
_CHECKSUM = slice(148, 156)
_KIND = slice(156, 157)
_NAME = slice(0, 100)
_OCTAL = re.compile(rb" *([0-7]+)[ \0]*")
_DECIMAL = re.compile(rb"[0-9]{1,19}")

_OLD_FILE = b"\0"
_SYMBOLIC_LINK = b"2"
# Further names of files before them, devices, folders and FIFOs, and the name of the archive: no data follows.
_WITHOUT_DATA = (b"1", b"3", b"4", b"5", b"6", b"V")
# Long links, old long names, headers for all files, and lists of a folder's files.
_SKIPPED = (b"K", b"N", b"g", b"D")
# The header of the next entry goes on in these.
_LONG_NAME = b"L"
_PAX = (b"x", b"X")
_SPARSE = b"S"
_CONTINUED = b"M"


@dataclass(frozen=True)
class _Header:
    """The header of an entry: its kind, the size of the data that follow, and its name."""

    kind: bytes
    size: int
    name: bytes


def is_tar(start: bytes) -> bool:
    """Returns True if a file that begins with these 512 bytes or more is a tar with an entry."""
    return len(start) >= BLOCK_BYTES and _has_checksum(start[:BLOCK_BYTES])


def unpack_tar(stream: BinaryIO, target: UnpackedFiles) -> list[Path]:
    """Unpacks the files of a tar. Other entries are left out, and symbolic links are counted.

    Several archives, one after the other, are unpacked as one.

    Returns:
        The files, in the archive's order.

    Raises:
        InputTooLarge: They exceed the limits.
        InputCorrupt: The archive is damaged, or ends without the zeros that mark its end.
        UnsupportedFormat: It has sparse files, or is one of several volumes.
    """
    archive = _Archive(stream, target.max_bytes + _OVERHEAD_BYTES * MAX_FILES)
    paths = []
    while (header := archive.next_header()) is not None:
        if header.kind == _SYMBOLIC_LINK:
            target.links += 1
        elif header.kind not in _WITHOUT_DATA:
            paths.append(target.add(archive.data(header.size), header.name.decode("latin-1")))
    return paths


class _Archive:
    """The blocks of a tar, up to a number of bytes."""

    def __init__(self, stream: BinaryIO, max_bytes: int) -> None:
        self._stream = stream
        self._max_bytes = max_bytes
        self._remaining_bytes = max_bytes

    def next_header(self) -> _Header | None:
        """Reads up to the next header but those that extend others; None at the end."""
        stated_size: int | None = None
        stated_name: bytes | None = None
        at_end = False
        while block := self._read(BLOCK_BYTES):
            if not any(block):
                at_end = True
                continue
            if len(block) < BLOCK_BYTES or not _has_checksum(block):
                raise InputCorrupt("the tar is truncated or damaged: expected a header with a valid checksum")
            header = _parse(block)
            if header.kind in _SKIPPED:
                self._skip(header.size)
            elif header.kind == _LONG_NAME:
                stated_name = self._extension(header).split(b"\0")[0]
            elif header.kind in _PAX:
                pax = _parse_pax(self._extension(header))
                stated_size = pax.size
                stated_name = pax.name or stated_name
            else:
                size = header.size if stated_size is None else stated_size
                return _Header(header.kind, size, stated_name or header.name)
            at_end = False
        if not at_end:
            raise InputCorrupt("the tar is truncated: it ends without a block of zeros")
        return None

    def data(self, size: int) -> Iterator[bytes]:
        """Reads the data of an entry, piece by piece."""
        padding = -size % BLOCK_BYTES
        while size:
            chunk = self._read(min(size, _CHUNK_BYTES))
            if not chunk:
                raise InputCorrupt(f"the tar is truncated: it ends {size} bytes before the end of a file")
            size -= len(chunk)
            yield chunk
        self._read(padding)

    def _skip(self, size: int) -> None:
        """Reads over the data of an entry."""
        for _ in self.data(size):
            pass

    def _extension(self, header: _Header) -> bytes:
        """Reads the data of an entry that belongs to the header of the next one."""
        if header.size > _MAX_EXTENSION_BYTES:
            raise InputCorrupt(
                f"the tar has an extended header of {header.size} bytes; at most {_MAX_EXTENSION_BYTES} are read"
            )
        return b"".join(self.data(header.size))

    def _read(self, size: int) -> bytes:
        self._remaining_bytes -= size
        if self._remaining_bytes < 0:
            raise InputTooLarge(
                f"the tar has more than {self._max_bytes} bytes, which is the most that this service reads"
            )
        return self._stream.read(size)


@dataclass(frozen=True)
class _Pax:
    """The fields of the next entry that an extended header states; None for a field that it leaves out."""

    size: int | None
    name: bytes | None


def _parse_pax(data: bytes) -> _Pax:
    size: int | None = None
    name: bytes | None = None
    for key, value in _pax_records(data):
        if key.startswith(b"GNU.sparse."):
            raise _sparse()
        if key == b"size":
            if not _DECIMAL.fullmatch(value):
                raise _invalid_header()
            size = int(value)
        if key == b"path":
            name = value
    return _Pax(size, name)


def _pax_records(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The records of an extended header, `LENGTH KEY=VALUE` and a line end, of LENGTH bytes together."""
    at = 0
    while at < len(data) and data[at]:
        length, space, _ = data[at : at + 20].partition(b" ")
        end = at + int(length) if _DECIMAL.fullmatch(length) else 0
        record = data[at + len(length) + 1 : end]
        if not space or not at < end <= len(data) or not record.endswith(b"\n"):
            raise _invalid_header()
        key, _, value = record[:-1].partition(b"=")
        yield key, value
        at = end


def _parse(block: bytes) -> _Header:
    kind = block[_KIND]
    if kind == _SPARSE:
        raise _sparse()
    if kind == _CONTINUED:
        raise UnsupportedFormat("the tar is one of several volumes: send all files in one archive")
    size = _number(block[_SIZE])
    if size is None:
        raise _invalid_header()
    name = block[_NAME].split(b"\0")[0]
    is_folder = kind == _OLD_FILE and name.endswith(b"/")
    return _Header(b"5" if is_folder else kind, size, name)


def _has_checksum(block: bytes) -> bool:
    """Returns True if a block states the sum of its bytes, with the sum itself taken for spaces."""
    stated = _number(block[_CHECKSUM])
    if stated is None:
        return False
    unsigned = sum(block) - sum(block[_CHECKSUM]) + 8 * ord(" ")
    # Some old programs add up signed bytes.
    signed = unsigned - 256 * sum(byte > 127 for byte in block[: _CHECKSUM.start] + block[_CHECKSUM.stop :])
    return stated in (unsigned, signed)


def _number(field: bytes) -> int | None:
    """A number in octal digits, or with the first bit set in base 256; None if it is neither, or negative."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:])
    found = _OCTAL.fullmatch(field)
    return int(found[1], 8) if found else None


def _sparse() -> UnsupportedFormat:
    return UnsupportedFormat("the tar has sparse files: pack it without --sparse")


def _invalid_header() -> InputCorrupt:
    return InputCorrupt("the tar is damaged: it has an invalid header")
