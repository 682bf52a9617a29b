"""Files on disk: lists a folder within limits, and computes checksums of files and of inputs."""

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

from inference_service.core.errors import InputNotFound, InputTooLarge

MAX_FILES = 20_000
"""Upper limit of the files of one input; no study has as many slices."""
MAX_CHANNELS = 16
"""Upper limit of the channels of one input; no model of the field takes as many."""
Sources: TypeAlias = Path | Mapping[str, Path]
"""An input on disk: one file or folder, or one for each channel by the channel's name."""
_CHUNK_BYTES = 2**20
# Formats that keep header and voxels in two files of the same name: the endings of one, and of the other.
_PARTS = {".hdr": (".img",), ".img": (".hdr",), ".nhdr": (".raw",), ".mhd": (".raw", ".zraw")}
_GZIP_ENDING = ".gz"
# The end of a name by which nnU-Net tells the channels of a case, such as _0001.nii.gz. Other numbers could be a year.
_CHANNEL_ENDING = re.compile(r"_(00[0-9]{2})(?:\.[A-Za-z0-9]{1,8}){0,3}\Z")


class Readable(Protocol):
    """A stream of bytes."""

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
    def of(cls, stream: Readable) -> "Checksum":
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
        InputNotFound: There are no files, a link leads to none, or a folder cannot be read.
        InputTooLarge: There are more files or bytes than allowed.
    """
    files = sorted(_files(folder))
    if not files:
        raise InputNotFound("the folder holds no file")
    size = sum(found.stat().st_size for found in files)
    if size > max_bytes:
        raise InputTooLarge(f"the folder holds {size} bytes; this service takes at most {max_bytes}")
    return files


def channel_number(name: str) -> int | None:
    """Returns the number of the channel that a file's name ends in, as nnU-Net writes it; None where there is none.

    >>> channel_number("case_12_0001.nii.gz"), channel_number("000003_0001"), channel_number("slice_1961.dcm")
    (1, 1, None)
    """
    ending = _CHANNEL_ENDING.search(name)
    number = MAX_CHANNELS if ending is None else int(ending[1])
    return number if number < MAX_CHANNELS else None


def numbered_name(number: int, name: str) -> str:
    """Returns the name of a file of an input in a folder of ours: a number, and of its own name the channel alone.

    >>> numbered_name(3, "MUELLER/case_12_0001.nii.gz"), numbered_name(3, "slice_1961.dcm")
    ('000003_0001', '000003')
    """
    return f"{number:06}{_ending(name)}"


def _ending(name: str) -> str:
    channel = channel_number(name)
    return "" if channel is None else f"_{channel:04}"


def input_sha256(sources: Sources, channels: Sequence[str] = ()) -> str:
    """Identifies the content of an input.

    For a file it is the sha256, for a folder the sha256 of the sorted sha256 values of its files, and for several
    channels the sha256 of their values in the model's order. In one folder for a model of several channels, the endings
    of the names count too.

    Args:
        sources: The input.
        channels: Names of the model's channels; they matter for several ones.

    Raises:
        InputNotFound: A link leads to no file, or a folder cannot be read.
        InputTooLarge: A folder holds more than `MAX_FILES` files.
    """
    if not isinstance(sources, Path):
        digests = [input_sha256(sources[name], [name]) for name in channels]
        return digests[0] if len(digests) == 1 else _combined(digests)
    if sources.is_dir():
        return _combined(sorted(_sha256(file) + _ending(file.name) * (len(channels) > 1) for file in _files(sources)))
    return files_sha256([sources, *_other_parts(sources)])


def files_sha256(files: Sequence[Path]) -> str:
    """Returns the sha256 of one file, or for several files the sha256 of their sorted sha256 values."""
    digests = sorted(map(_sha256, files))
    return digests[0] if len(digests) == 1 else _combined(digests)


def _combined(digests: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def other_names(name: str) -> set[str]:
    """Returns the names, in small letters, of files that hold the voxels of a header, or the header of voxels.

    >>> sorted(other_names("A.hdr"))
    ['a.img', 'a.img.gz']
    """
    plain = name.lower().removesuffix(_GZIP_ENDING)
    endings = next((others for ending, others in _PARTS.items() if plain.endswith(ending)), ())
    stem = plain.rpartition(".")[0]
    return {f"{stem}{ending}{gzipped}" for ending in endings for gzipped in ("", _GZIP_ENDING)}


def _other_parts(path: Path) -> list[Path]:
    """The files beside a file that differ in the ending alone, and hold its header or its voxels."""
    names = other_names(path.name)
    return sorted(each for each in path.parent.iterdir() if each.name.lower() in names) if names else []


def _files(folder: Path) -> Iterator[Path]:
    """The files below a folder.

    Raises:
        InputNotFound: A link leads to no file, or a folder cannot be read.
        InputTooLarge: There are more than `MAX_FILES`.
    """
    visited: set[str] = set()
    found: set[str] = set()
    for parent, folder_names, names in os.walk(folder, onerror=_fail, followlinks=True):
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
                if len(found) == MAX_FILES:
                    raise InputTooLarge(
                        f"the folder holds more than {MAX_FILES} files, which is the most that this service takes"
                    )
                found.add(real_path)
                yield path


def _fail(error: OSError) -> None:
    """Refuses a folder that cannot be read, which a walk would leave out."""
    raise InputNotFound(f"a folder in the input cannot be read: {error.strerror}") from error
