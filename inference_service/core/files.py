"""Files on disk: lists a folder within limits, and computes checksums of files and of inputs."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from inference_service.core.errors import InputNotFound, InputTooLarge

MAX_FILES = 20_000
"""Upper limit of the files of one input; no study has as many slices."""
_CHUNK_BYTES = 2**20
# Formats that keep header and voxels in two files of the same name: the endings of one, and of the other.
_PARTS = {".hdr": (".img",), ".img": (".hdr",), ".nhdr": (".raw",), ".mhd": (".raw", ".zraw")}
_GZIP_ENDING = ".gz"


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


def list_input(source: Path, *, max_bytes: int) -> list[Path]:
    """Lists the files of a folder; or a file, and beside a header the file with its voxels, or the other way round.

    Raises:
        InputNotFound: The folder holds no files, or a link leads to none.
        InputTooLarge: It holds more files or bytes than allowed.
    """
    return list_files(source, max_bytes=max_bytes) if source.is_dir() else [source, *_other_parts(source)]


def list_files(folder: Path, *, max_bytes: int) -> list[Path]:
    """Lists the files of a folder and its subfolders, sorted by path.

    Symbolic links to files and folders are followed. A file that several paths lead to is listed once.

    Raises:
        InputNotFound: There are no files, or a link leads to none.
        InputTooLarge: There are more files or bytes than allowed.
    """
    files = sorted(_files(folder))
    if not files:
        raise InputNotFound("the folder holds no file")
    if len(files) > MAX_FILES:
        raise InputTooLarge(f"the folder holds more than {MAX_FILES} files, which is the most that this service takes")
    size = sum(found.stat().st_size for found in files)
    if size > max_bytes:
        raise InputTooLarge(f"the folder holds {size} bytes; this service takes at most {max_bytes}")
    return files


def input_sha256(source: Path) -> str:
    """Returns the sha256 of a file, or for several files the sha256 of their sorted sha256 values."""
    files = list(_files(source)) if source.is_dir() else [source, *_other_parts(source)]
    digests = sorted(map(_sha256, files))
    if files == [source]:
        return digests[0]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _other_parts(path: Path) -> list[Path]:
    """The files beside a file that differ in the ending alone, and hold its header or its voxels."""
    name = path.name.lower().removesuffix(_GZIP_ENDING)
    endings = next((others for ending, others in _PARTS.items() if name.endswith(ending)), ())
    stem = name.rpartition(".")[0]
    names = {f"{stem}{ending}{gzipped}" for ending in endings for gzipped in ("", _GZIP_ENDING)}
    return sorted(each for each in path.parent.iterdir() if each.name.lower() in names) if names else []


def _files(folder: Path) -> Iterator[Path]:
    """The files below a folder, at most one more than `MAX_FILES`."""
    visited: set[str] = set()
    found: set[str] = set()
    for parent, folder_names, names in os.walk(folder, followlinks=True):
        real_parent = os.path.realpath(parent)
        if real_parent in visited:
            folder_names.clear()
            continue
        visited.add(real_parent)
        # The same names in every file system, where one file has several.
        folder_names.sort()
        for name in sorted(names):
            path = Path(parent, name)
            real_path = os.path.realpath(path) if path.is_symlink() else os.path.join(real_parent, name)
            if path.is_symlink() and not path.exists():
                raise InputNotFound("a symbolic link in the folder leads to no file: restore its target, or remove it")
            if path.is_file() and real_path not in found:
                found.add(real_path)
                yield path
                if len(found) > MAX_FILES:
                    return
