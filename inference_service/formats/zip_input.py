"""Unpacks a zip of input files safely: as numbered files in one folder, within limits.

Names, sizes and ratios that an archive states about itself are never believed.
"""

import errno
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from inference_service.core.errors import InputCorrupt, InputTooLarge, UnsupportedFormat, redacted
from inference_service.core.files import MAX_FILES

# Signatures of a local file header and, in an empty archive, of the end of the central directory.
_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")
_ENCRYPTED_FLAG = 0x1
_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
_CHUNK_BYTES = 2**20
# zipfile reads the central directory at once. One of this size lists ten times the files that are allowed.
_MAX_READ_BYTES = 2**24
# Added to every archive by macOS.
_MACOS_FOLDER = "__MACOSX/"
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


def looks_like_zip(path: Path) -> bool:
    """Returns True if the file starts with the signature of a zip."""
    with path.open("rb") as file:
        return file.read(4) in _MAGIC


def unpack(source: Path, folder: Path, *, max_bytes: int) -> list[Path]:
    """Unpacks the files of a zip into a folder, each named by its number: the archive's own names are not used.

    A symbolic link becomes a file with the path of its target. An archive within the archive stays one file.

    Args:
        source: The zip.
        folder: Created here.
        max_bytes: Limit on the unpacked files together.

    Returns:
        The files, in the archive's order.

    Raises:
        InputTooLarge: The archive holds more bytes or files than the limits allow.
        InputCorrupt: The zip is damaged.
        UnsupportedFormat: The zip is encrypted, or compressed by another method than deflate.
    """
    folder.mkdir(mode=0o700)
    remaining_bytes = max_bytes
    paths = []
    with _map_zip_errors(), _BoundedFile(source) as file, zipfile.ZipFile(file) as archive:
        entries = [entry for entry in archive.infolist() if _is_input_file(entry)]
        if len(entries) > MAX_FILES:
            raise InputTooLarge(f"the zip has {len(entries)} files; this service takes at most {MAX_FILES}")
        for number, entry in enumerate(entries):
            _check_readable(entry)
            path = folder / f"{number:06}"
            with archive.open(entry) as compressed, path.open("xb") as target:
                while chunk := compressed.read(_CHUNK_BYTES):
                    remaining_bytes -= len(chunk)
                    if remaining_bytes < 0:
                        raise InputTooLarge(
                            f"the zip unpacks to more than {max_bytes} bytes, which is the most that this service takes"
                        )
                    target.write(chunk)
            paths.append(path)
    return paths


def _is_input_file(entry: zipfile.ZipInfo) -> bool:
    return not entry.filename.endswith("/") and not entry.filename.startswith(_MACOS_FOLDER)


def _check_readable(entry: zipfile.ZipInfo) -> None:
    if entry.flag_bits & _ENCRYPTED_FLAG:
        raise UnsupportedFormat("the zip is encrypted: send it without a password")
    if entry.compress_type not in _METHODS:
        raise UnsupportedFormat(f"the zip is compressed by method {entry.compress_type}: send it compressed by deflate")


class _BoundedFile(FileIO):
    """A file that refuses large reads, which an archive can cause by a false size."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _MAX_READ_BYTES:
            raise InputTooLarge(
                f"the zip's central directory has {size} bytes; this service reads at most {_MAX_READ_BYTES}"
            )
        return super().read(size) or b""


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
