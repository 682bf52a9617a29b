"""Recognises archives by content, and unpacks them: a zip, or a tar, also compressed."""

from collections.abc import Sequence
from pathlib import Path

from inference_service.core.errors import InputCorrupt, UnsupportedFormat
from inference_service.formats.archives.tar_archive import BLOCK_BYTES, is_tar, unpack_tar
from inference_service.formats.archives.unpacked_files import UnpackedFiles, chunks
from inference_service.formats.archives.zip_archive import is_zip, unpack_zip
from inference_service.formats.decompression import (
    MAX_LAYERS,
    find_layers,
    is_compressed,
    open_decompressed,
    read_start,
)

MAX_DEPTH = 2
"""Archives are unpacked, and the archives in them, but none deeper."""
# Other formats that contain files, by their first bytes.
_OTHER_FORMATS = (
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!\x1a\x07", "a RAR archive"),
    (b"MSCF\0\0\0\0", "a cabinet archive"),
    (b"\x04\x22\x4d\x18", "compressed by LZ4"),
    (b"LZIP", "compressed by lzip"),
    (b"\x1f\x9d", "compressed by compress (.Z)"),
    (b"Salted__", "encrypted by OpenSSL"),
    (b"-----BEGIN PGP MESSAGE", "encrypted by PGP"),
)
# ISO 9660 begins with 16 empty sectors.
_ISO_START = 32769
_ISO_MAGIC = b"CD001"
_MAX_MAGIC_BYTES = 32


def is_archive(path: Path) -> bool:
    """Returns True for a zip or a tar, also compressed; a file that cannot be decompressed is none."""
    try:
        start = read_start(path, BLOCK_BYTES)
    except (InputCorrupt, UnsupportedFormat):
        return False
    return is_zip(start) or is_tar(start)


def unpack(path: Path, target: UnpackedFiles) -> list[Path]:
    """Unpacks an archive.

    Raises:
        InputError: It is damaged, has a feature that is not supported, or exceeds the limits.
    """
    if is_zip(read_start(path, BLOCK_BYTES)):
        return unpack_zip(decompress(path, target), target)
    with open_decompressed(path) as stream:
        return unpack_tar(stream, target)


def decompress(path: Path, target: UnpackedFiles) -> Path:
    """Returns a file with the decompressed content of a file: the file itself, unless it is compressed.

    Raises:
        InputError: It is damaged, or exceeds the limits.
    """
    if not find_layers(path):
        return path
    with open_decompressed(path) as stream:
        return target.add(chunks(stream), path.name)


def refuse_other_formats(files: Sequence[Path]) -> None:
    """Raises UnsupportedFormat with the name of a container that is not read, if one of the files is one."""
    for path in files:
        name = _container(path)
        if name:
            raise UnsupportedFormat(f"the input is {name}: send a zip, a tar, or the files in it")


def _container(path: Path) -> str | None:
    with path.open("rb") as file:
        start = file.read(_MAX_MAGIC_BYTES)
        file.seek(_ISO_START)
        if file.read(len(_ISO_MAGIC)) == _ISO_MAGIC:
            return "an image of a disc (ISO 9660)"
    found = next((name for magic, name in _OTHER_FORMATS if start.startswith(magic)), None)
    if found is None and is_archive(path):
        return f"an archive within archives, {MAX_DEPTH + 1} deep"
    if found is None and is_compressed(read_start(path, _MAX_MAGIC_BYTES)):
        return f"compressed more than {MAX_LAYERS} times, or twice by xz or Zstandard"
    return found
