"""Files on disk: listing a folder within limits, and the sha256 that identifies an input."""

import hashlib
from pathlib import Path

from inference_service.core.errors import InputNotFound, InputTooLarge

MAX_FILES = 20_000
"""Files that one input may consist of: more than the slices of any study."""


def list_files(folder: Path, *, max_bytes: int) -> list[Path]:
    """The files of a folder and of those within it, in the order of their paths; links are passed over.

    Raises:
        InputNotFound: There is none.
        InputTooLarge: There are more files or bytes than are taken.
    """
    files = sorted(found for found in folder.rglob("*") if found.is_file() and not found.is_symlink())
    if not files:
        raise InputNotFound("the folder holds no file")
    if len(files) > MAX_FILES:
        raise InputTooLarge(f"the folder holds {len(files)} files; this service takes at most {MAX_FILES}")
    size = sum(found.stat().st_size for found in files)
    if size > max_bytes:
        raise InputTooLarge(f"the folder holds {size} bytes; this service takes at most {max_bytes}")
    return files


def input_sha256(source: Path) -> str:
    """Names an input by its content: of a file its sha256, of a folder that of its files' sorted ones."""
    if source.is_dir():
        files = (path for path in source.rglob("*") if path.is_file() and not path.is_symlink())
        each = sorted(input_sha256(path) for path in files)
        return hashlib.sha256("\n".join(each).encode()).hexdigest()
    with source.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
