"""Unpacks a zip. Names, sizes and ratios that it states about itself are never believed."""

import errno
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import BinaryIO, cast

from inference_service.core.errors import InputCorrupt, InputTooLarge, UnsupportedFormat, redacted
from inference_service.formats.archives.unpacked_files import UnpackedFiles, chunks

# Signatures of a local file header and, in an empty archive, of the end of the central directory.
_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")
_ENCRYPTED_FLAG = 0x1
_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
# zipfile reads the central directory at once. One of this size lists ten times the files that are allowed.
_MAX_READ_BYTES = 2**24
# A file's header and its entry in the central directory: signature, size without the name, offset of the byte of flags
# that says whether the name is UTF-8, and in an entry the offset of the lengths of name, extra field and comment.
_FILE_HEADER = b"PK\x03\x04"
_FILE_HEADER_BYTES = 30
_FILE_HEADER_FLAGS = 7
_ENTRY = b"PK\x01\x02"
_ENTRY_BYTES = 46
_ENTRY_FLAGS = 9
_ENTRY_LENGTHS = 28
_UTF8_FLAG = 0x08
# Added to every archive by macOS.
_MACOS_FOLDER = "__MACOSX"
# The attribute of a folder in MS-DOS, where the name of an entry does not say that it is one.
_FOLDER_ATTRIBUTE = 0x10
# Errors that zipfile raises on damaged or forged archives.
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    ValueError,
    LookupError,
    OverflowError,
    RuntimeError,
)


def is_zip(start: bytes) -> bool:
    """Returns True if a file that begins with these four bytes or more is a zip."""
    return start.startswith(_MAGIC)


def unpack_zip(source: Path, target: UnpackedFiles) -> list[Path]:
    """Unpacks the files of a zip. Folders are left out, and so are symbolic links, which are counted.

    Returns:
        The files, in the archive's order.

    Raises:
        InputTooLarge: They exceed the limits.
        InputCorrupt: The zip is damaged.
        UnsupportedFormat: The zip is encrypted, or compressed by another method than deflate.
    """
    paths = []
    with opened_zip(source) as archive:
        for entry in archive.infolist():
            if not _is_input_file(entry):
                continue
            require_readable(entry)
            if stat.S_ISLNK(entry.external_attr >> 16):
                target.links += 1
                continue
            entry.orig_filename = _AnyName()
            with archive.open(entry) as stream:
                paths.append(target.add(chunks(cast("BinaryIO", stream)), entry.filename))
    return paths


def _is_input_file(entry: zipfile.ZipInfo) -> bool:
    # Archives made on Windows may have backslashes in names.
    name = entry.filename.replace("\\", "/")
    may_be_folder = name.endswith("/") or bool(entry.external_attr & _FOLDER_ATTRIBUTE)
    is_folder = entry.filename.endswith("/") or (may_be_folder and not entry.file_size)
    return not is_folder and name.split("/")[0] != _MACOS_FOLDER


@contextmanager
def opened_zip(source: Path) -> Iterator[zipfile.ZipFile]:
    """Opens a zip whose central directory is bounded.

    Raises:
        InputTooLarge: The central directory is too large.
        InputCorrupt: The zip is damaged.
        UnsupportedFormat: It has a feature that is not supported.
    """
    with _map_zip_errors(), _BoundedFile(source) as file, zipfile.ZipFile(file) as archive:
        yield archive


def require_readable(entry: zipfile.ZipInfo) -> None:
    """Raises UnsupportedFormat for a file that is encrypted, or compressed by another method than deflate."""
    if entry.flag_bits & _ENCRYPTED_FLAG:
        raise UnsupportedFormat("the zip is encrypted: send it without a password")
    if entry.compress_type not in _METHODS:
        raise UnsupportedFormat(f"the zip is compressed by method {entry.compress_type}: send it compressed by deflate")


class _AnyName(str):
    """Equal to every name: names are not used, so the one in a file's header may differ from that in the directory."""

    __slots__ = ()

    def __ne__(self, other: object) -> bool:
        return False

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = str.__hash__


class _BoundedFile(FileIO):
    """A file that refuses large reads, which an archive can cause by a false size.

    Headers are given with names in code page 437, which every byte is valid in: archives exist that call their names
    UTF-8 although they are not.
    """

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _MAX_READ_BYTES:
            raise InputTooLarge(
                f"the zip's central directory has {size} bytes; this service reads at most {_MAX_READ_BYTES}"
            )
        data = super().read(size) or b""
        if size == _FILE_HEADER_BYTES and data.startswith(_FILE_HEADER):
            return _clear_utf8_flags(data, [_FILE_HEADER_FLAGS])
        if data.startswith(_ENTRY):
            return _clear_utf8_flags(data, [start + _ENTRY_FLAGS for start in _entries(data)])
        return data


def _entries(directory: bytes) -> Iterator[int]:
    """Positions of the entries of a central directory."""
    position = 0
    while directory.startswith(_ENTRY, position) and position + _ENTRY_BYTES <= len(directory):
        yield position
        position += _ENTRY_BYTES + sum(struct.unpack_from("<3H", directory, position + _ENTRY_LENGTHS))


def _clear_utf8_flags(data: bytes, positions: Iterable[int]) -> bytes:
    cleared = bytearray(data)
    for position in positions:
        cleared[position] &= ~_UTF8_FLAG
    return bytes(cleared)


@contextmanager
def _map_zip_errors() -> Iterator[None]:
    """Maps the errors of zipfile, which quote the names of the archive's files."""
    try:
        yield
    except NotImplementedError as error:
        raise UnsupportedFormat(
            "the zip uses a feature that is not supported: send a plain deflated zip"
        ) from redacted(error)
    except OSError as error:
        # EINVAL comes from a seek to an impossible offset in the archive; other errors are the file system's.
        if error.errno != errno.EINVAL:
            raise
        raise InputCorrupt("the zip is truncated or damaged") from redacted(error)
    except _ZIP_ERRORS as error:
        raise InputCorrupt("the zip is truncated or damaged") from redacted(error)
