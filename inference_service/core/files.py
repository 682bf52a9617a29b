"""Files on disk: lists a folder within limits, and computes checksums of files and of inputs."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from inference_service.core.errors import InputNotFound, InputTooLarge

MAX_FILES = 20_000
"""Upper limit of the files of one input; no study has as many slices."""
_CHUNK_BYTES = 2**20


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes:
        """Returns the next bytes, at most `size`; none at the end."""


@dataclass(frozen=True)
class Checksum:
    """Identifies the content of a file.

    Attributes:
        sha256: Its SHA-256, in hexadecimal digits.
        size_bytes: Its size.
    """

    sha256: str
    size_bytes: int

    @classmethod
    def of(cls, stream: _Readable) -> "Checksum":
        """Reads a stream to its end."""
        digest = hashlib.sha256()
        size_bytes = 0
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
            size_bytes += len(chunk)
        return cls(digest.hexdigest(), size_bytes)

    @classmethod
    def of_file(cls, path: Path) -> "Checksum":
        """Reads a file."""
        with path.open("rb") as file:
            return cls.of(file)


def list_files(folder: Path, *, max_bytes: int) -> list[Path]:
    """Lists the files of a folder and its subfolders, sorted by path; symbolic links are skipped.

    Raises:
        InputNotFound: There are no files.
        InputTooLarge: There are more files or bytes than allowed.
    """
    files = sorted(_files(folder))
    if not files:
        raise InputNotFound("the folder holds no file")
    if len(files) > MAX_FILES:
        raise InputTooLarge(f"the folder holds {len(files)} files; this service takes at most {MAX_FILES}")
    size = sum(found.stat().st_size for found in files)
    if size > max_bytes:
        raise InputTooLarge(f"the folder holds {size} bytes; this service takes at most {max_bytes}")
    return files


def input_sha256(source: Path) -> str:
    """Returns the sha256 of a file, or for a folder the sha256 of the sorted sha256 values of its files."""
    if source.is_dir():
        digests = sorted(input_sha256(path) for path in _files(source))
        return hashlib.sha256("\n".join(digests).encode()).hexdigest()
    with source.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
