"""The files of a source: what they are by content, an unpacked zip, and the licence beside them."""

import os
import re
import shutil
import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from inference_service.core.errors import InputCorrupt, InputNotFound, InputTooLarge
from inference_service.core.files import MAX_FILES, input_sha256, list_input
from inference_service.formats.archives.zip_archive import is_zip, opened_zip, require_readable

_MAX_SOURCE_BYTES = 2**36
_CHUNK_BYTES = 2**20
# Of the disk with temporary files, for what else the machine does.
_KEPT_FREE_BYTES = 2**26
_MAX_NAME = 1024
_MAX_LEVELS = 16
_OF_A_MAC = ("__MACOSX", ".")
# The entry of all files that PyTorch writes, and the further one of TorchScript: the constants of its modules.
_PICKLE = "data.pkl"
_SCRIPT_ENTRY = "constants.pkl"
_CHECKPOINT_SUFFIXES = (".pth", ".pt", ".ckpt")
_CODE_SUFFIX = ".py"
_MAX_CODE_BYTES = 2**26
# Wherever they stand as a name: an attribute may be that of an alias of torch. Text in an escaped form hides a name.
_FILE_OPERATORS = re.compile(rb"\b(save|from_file)\b|\bgetattr\s*\([^)]*\\")
_ONNX_SUFFIX = ".onnx"
_MAX_LICENCE_BYTES = 2**16
_LICENCE_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE")
# The beginning of a licence's text, without spaces, and its SPDX identifier.
_LICENCES = (
    ("apachelicenseversion2.0", "Apache-2.0"),
    ("mitlicense", "MIT"),
    ("bsd3-clauselicense", "BSD-3-Clause"),
)


def _looks_like_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return is_zip(file.read(4))


def is_archive(path: Path) -> bool:
    """Returns True for a zip whose files are the source; PyTorch's own files are zips too."""
    return path.is_file() and _looks_like_zip(path) and _PICKLE not in _inner_names(path)


def is_checkpoint(path: Path) -> bool:
    """Returns True for a file with weights alone, as its name or its content says."""
    if not path.is_file() or is_torchscript(path):
        return False
    return path.suffix.lower() in _CHECKPOINT_SUFFIXES or (_looks_like_zip(path) and _PICKLE in _inner_names(path))


def _inner_names(path: Path) -> set[str]:
    """The names of a zip's files within its folders."""
    with opened_zip(path) as archive:
        return {name.partition("/")[2] for name in archive.namelist()}


def hash_source(path: Path) -> str:
    """Returns the sha256 of a file, or of all files of a folder as in `input_sha256`.

    Raises:
        InputNotFound: A link leads to no file, or a file cannot be read.
        InputTooLarge: A folder has more files or bytes than are imported.
    """
    try:
        list_input(path, max_bytes=_MAX_SOURCE_BYTES)
        return input_sha256(path)
    except InputTooLarge as error:
        raise InputTooLarge(f"{error}: give a folder with the files of the model alone") from error
    except OSError as error:
        raise _unreadable(error) from error


def _unreadable(error: OSError) -> InputNotFound:
    return InputNotFound(f"{Path(str(error.filename)).name} of the source cannot be read: {error.strerror}")


@contextmanager
def opened_source(path: Path, scratch: Path) -> Iterator[Path]:
    """Opens a source: a folder or file as it is, a zip unpacked.

    Args:
        path: The source.
        scratch: A folder for the content of a zip, which is removed in the end.

    Yields:
        The folder, or the file.

    Raises:
        InputNotFound: There is no such file or folder, or a link in the folder leads to none.
        InputCorrupt: A link in the folder leads out of it.
        InputTooLarge, InputCorrupt, UnsupportedFormat: The zip cannot be unpacked within the limits.
    """
    if not path.exists():
        raise InputNotFound("there is no such file or folder to import")
    if not is_archive(path):
        if path.is_dir():
            require_confined(path)
        yield path
        return
    folder = scratch / "source"
    try:
        unpack_named(path, folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def require_confined(folder: Path) -> None:
    """Checks that what is read below a folder lies there: a link of another's making could name any file.

    Raises:
        InputCorrupt: A link leads out of the folder.
        InputNotFound: A link leads to no file, or a folder cannot be read.
    """
    root = os.path.realpath(folder)
    below = [root]
    try:
        while below:
            with os.scandir(below.pop()) as entries:
                for entry in entries:
                    if entry.is_symlink():
                        _check_link(entry.path, root)
                    elif entry.is_dir():
                        below.append(entry.path)
    except OSError as error:
        raise _unreadable(error) from error


def _check_link(path: str, root: str) -> None:
    target, name = os.path.realpath(path), os.path.relpath(path, root)
    if not Path(target).is_relative_to(root):
        raise InputCorrupt(
            f"{name} is a link that leads out of the folder; a copy with the files that links lead to can be imported: "
            "cp -rL"
        )
    if not os.path.exists(target):
        raise InputNotFound(f"{name} is a link that leads to no file")


def unpack_named(source: Path, folder: Path, *, max_bytes: int = _MAX_SOURCE_BYTES) -> None:
    """Unpacks a zip with the names of its files, none of which may lead out of the folder.

    Args:
        source: The zip.
        folder: Created here.
        max_bytes: Limit on the unpacked files together.

    Raises:
        InputTooLarge: The zip has more bytes or files than allowed.
        InputCorrupt: The zip is damaged, or a name leads out of the folder or occurs twice.
        UnsupportedFormat: The zip is encrypted, or compressed by another method than deflate.
    """
    folder.mkdir(mode=0o700)
    max_bytes = min(max_bytes, shutil.disk_usage(folder).free - _KEPT_FREE_BYTES)
    remaining_bytes = max_bytes
    with opened_zip(source) as archive:
        entries = [entry for entry in archive.infolist() if not entry.is_dir()]
        if len(entries) > MAX_FILES:
            raise InputTooLarge(f"the zip has {len(entries)} files; at most {MAX_FILES} are unpacked")
        for entry in entries:
            require_readable(entry)
            with archive.open(entry) as compressed, _created(folder / _confined(entry)) as target:
                while chunk := compressed.read(_CHUNK_BYTES):
                    remaining_bytes -= len(chunk)
                    if remaining_bytes < 0:
                        raise InputTooLarge(f"the zip unpacks to more than {max(0, max_bytes)} bytes, which fit here")
                    target.write(chunk)


def _created(path: Path) -> BinaryIO:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return path.open("xb")
    except (FileExistsError, NotADirectoryError) as error:
        raise InputCorrupt("the zip has two files of one name") from error


def _confined(entry: zipfile.ZipInfo) -> PurePosixPath:
    path = PurePosixPath(entry.filename.replace("\\", "/"))
    is_link = stat.S_ISLNK(entry.external_attr >> 16)
    leads_out = not path.parts or path.is_absolute() or ".." in path.parts or ":" in path.parts[0]
    if leads_out or is_link or len(entry.filename) > _MAX_NAME:
        raise InputCorrupt("a file of the zip is a link, or its name leads out of the folder")
    return path


def only_folders(source: Path) -> list[Path]:
    """Returns a source, and the only folder in it, as archives often have one, and so on."""
    found = [source]
    while source.is_dir() and len(found) < _MAX_LEVELS:
        children = [child for child in source.iterdir() if not child.name.startswith(_OF_A_MAC)]
        if len(children) != 1 or not children[0].is_dir():
            break
        (source,) = children
        found.append(source)
    return found


def is_torchscript(path: Path) -> bool:
    """Returns True for a file that torch.jit.save has written."""
    if not path.is_file() or not _looks_like_zip(path):
        return False
    return _inner_names(path) >= {_PICKLE, _SCRIPT_ENTRY}


def is_onnx(path: Path) -> bool:
    """Returns True for a file that is called an ONNX file; its content is checked when it is read."""
    return path.is_file() and path.suffix.lower() == _ONNX_SUFFIX


def torchscript_extra(path: Path, name: str, max_bytes: int) -> bytes | None:
    """Returns an extra file of a TorchScript archive, cut after `max_bytes`; None if there is none."""
    with opened_zip(path) as archive:
        for entry in archive.infolist():
            if entry.filename.partition("/")[2] == f"extra/{name}":
                require_readable(entry)
                with archive.open(entry) as file:
                    return file.read(max_bytes)
    return None


def forbidden_in_torchscript(path: Path) -> str | None:
    """Returns the name of an operator in the code of a TorchScript archive that reads or writes files; None: none.

    Raises:
        InputCorrupt: The archive is damaged.
        InputTooLarge: Its code is larger than any network's.
    """
    remaining_bytes = _MAX_CODE_BYTES
    with opened_zip(path) as archive:
        for entry in archive.infolist():
            if not entry.filename.endswith(_CODE_SUFFIX):
                continue
            require_readable(entry)
            with archive.open(entry) as file:
                code = file.read(remaining_bytes + 1)
            remaining_bytes -= len(code)
            if remaining_bytes < 0:
                raise InputTooLarge(f"the code of {path.name} has more than {_MAX_CODE_BYTES} bytes")
            if found := _FILE_OPERATORS.search(code):
                return found[1].decode() if found[1] else "getattr"
    return None


def licence_of(source: Path) -> str | None:
    """Returns the SPDX identifier of the licence in a folder; None if there is none that is known."""
    for name in _LICENCE_FILES:
        path = source / name
        if source.is_dir() and path.is_file():
            with path.open("rb") as file:
                text = "".join(file.read(_MAX_LICENCE_BYTES).decode(errors="replace").lower().split())
            return next((spdx for start, spdx in _LICENCES if start in text[:400].replace(",", "")), None)
    return None
