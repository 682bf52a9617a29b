"""Many files as one input. Zips are unpacked so that nothing in one can do harm: as numbered files, within limits.

No name, size or ratio that an archive states about itself is believed.
"""

import errno
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from inference_service.core.errors import InputCorrupt, InputTooLarge, UnsupportedFormat
from inference_service.core.files import MAX_FILES

_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")
_ENCRYPTED = 0x1
_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
_CHUNK_BYTES = 2**20
# The list of entries is read at once; so long a one has ten times the files that are allowed.
_MOST_BYTES_AT_ONCE = 2**24
# What macOS adds to every archive.
_FOREIGN_FOLDER = "__MACOSX/"
# What the standard library raises on archives that were made up or damaged.
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


def looks_like_zip(path: Path) -> bool:
    """Whether the file's content begins as a zip does."""
    with path.open("rb") as file:
        return file.read(4) in _MAGIC


def unpack(source: Path, folder: Path, *, max_bytes: int) -> list[Path]:
    """Writes the files of a zip into a folder, each under a number: names in an archive are never used.

    A link becomes a file that holds its target's name. An archive within the archive stays one file.

    Args:
        source: The zip.
        folder: Made here.
        max_bytes: More are not written, all files together.

    Returns:
        The files, in the archive's order.

    Raises:
        InputTooLarge: It holds more bytes or files than that.
        InputCorrupt: It is damaged.
        UnsupportedFormat: It is encrypted, or packed in another way than deflate.
    """
    folder.mkdir(mode=0o700)
    left = max_bytes
    paths = []
    with _mapped_errors(), _Bounded(source) as file, zipfile.ZipFile(file) as archive:
        entries = [entry for entry in archive.infolist() if not _is_foreign(entry)]
        if len(entries) > MAX_FILES:
            raise InputTooLarge(f"the zip holds {len(entries)} files; this service takes at most {MAX_FILES}")
        for number, entry in enumerate(entries):
            _check(entry)
            path = folder / f"{number:06}"
            with archive.open(entry) as packed, path.open("xb") as target:
                while chunk := packed.read(_CHUNK_BYTES):
                    left -= len(chunk)
                    if left < 0:
                        raise InputTooLarge(f"the zip unpacks to more than the {max_bytes} bytes that are taken")
                    target.write(chunk)
            paths.append(path)
    return paths


def _is_foreign(entry: zipfile.ZipInfo) -> bool:
    return entry.filename.endswith("/") or entry.filename.startswith(_FOREIGN_FOLDER)


def _check(entry: zipfile.ZipInfo) -> None:
    if entry.flag_bits & _ENCRYPTED:
        raise UnsupportedFormat("the zip is encrypted: send it without a password")
    if entry.compress_type not in _METHODS:
        raise UnsupportedFormat(f"the zip is packed by method {entry.compress_type}; only deflate is read")


class _Bounded(FileIO):
    """A file that nobody reads much of at once, whatever sizes an archive claims."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _MOST_BYTES_AT_ONCE:
            raise InputTooLarge(f"the zip's list of files takes {size} bytes; at most {_MOST_BYTES_AT_ONCE} are read")
        return super().read(size) or b""


@contextmanager
def _mapped_errors() -> Iterator[None]:
    try:
        yield
    except NotImplementedError as error:
        raise UnsupportedFormat("the zip needs a feature of its format that is not read") from error
    except OSError as error:
        # What comes of seeking to where no file has a place is the archive's fault, all else the file system's.
        if error.errno != errno.EINVAL:
            raise
        raise InputCorrupt("the zip is truncated or damaged") from error
    except _ZIP_ERRORS as error:
        raise InputCorrupt("the zip is truncated or damaged") from error
