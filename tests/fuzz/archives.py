"""Targets that read archives and compressed files: zips, tars, one within another, streams of each format."""

import bz2
import gzip
import io
import lzma
import sys
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count

import nibabel
import numpy as np
from pydicom.uid import ExplicitVRLittleEndian

from fuzz.scans import CORPUS, read, series_in, written
from fuzz.target import Pieces, Target

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_BLOCK_BYTES = 512
_COMPRESSIONS: tuple[Callable[[bytes], bytes], ...] = (
    lambda data: data,
    partial(gzip.compress, compresslevel=1, mtime=0),
    partial(bz2.compress, compresslevel=1),
    partial(lzma.compress, preset=0),
    partial(zstd.compress, level=1),
)
_GZIP = 1

Files = Sequence[tuple[str, bytes]]


def _zipped(files: Files, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in files:
            archive.writestr(zipfile.ZipInfo(name), content)
    return buffer.getvalue()


def _tarred(files: Files) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def _files(pieces: Pieces) -> Files:
    """The files that the pieces describe: a name, a length and a content each."""
    files = []
    for number in count():
        if not pieces:
            break
        name = f"{number}{pieces.piece().decode('latin-1')}"
        files.append((name, pieces.take(int.from_bytes(pieces.take(2)))))
    return files


def _series() -> Files:
    return [(f"../{n}", each) for n, each in enumerate(written(partial(series_in, ExplicitVRLittleEndian)))]


def _described(files: Files) -> bytes:
    """The pieces that describe some files."""
    return b"".join(b"\1" + b"abc"[n : n + 1] + len(each).to_bytes(2) + each for n, (_, each) in enumerate(files))


def _hostile(pattern: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted(CORPUS.glob(pattern)) if path.stat().st_size < 4000]


def _read_zip(data: bytes) -> None:
    """Reads a zip: the input itself, or its pieces packed into a valid one."""
    pieces = Pieces(data)
    kind = pieces.byte()
    method = zipfile.ZIP_DEFLATED if kind & 2 else zipfile.ZIP_STORED
    read([_zipped(_files(pieces), method) if kind & 1 else pieces.rest()])


def _zip_seeds() -> list[bytes]:
    raw = [_zipped(_series()), *_hostile("*.zip")]
    return [*(b"\0" + content for content in raw), b"\3" + _described(_series())]


def _read_tar(data: bytes) -> None:
    """Reads a tar, compressed or not: the input itself, or entries with valid checksums, whatever else they state."""
    pieces = Pieces(data)
    kind = pieces.byte()
    compress = _COMPRESSIONS[(kind >> 1) % len(_COMPRESSIONS)]
    read([compress(_entries(pieces) if kind & 1 else pieces.rest())])


def _entries(pieces: Pieces) -> bytes:
    entries = []
    while pieces:
        kind = pieces.take(1)
        stated = pieces.piece()[:12]
        content = pieces.take(int.from_bytes(pieces.take(2)))
        header = bytearray(_BLOCK_BYTES)
        header[124:136] = (stated or f"{len(content):011o}".encode()).ljust(12, b"\0")
        header[148:156] = b" " * 8
        header[156:157] = kind
        header[148:156] = f"{sum(header):06o}\0 ".encode()
        entries.append(bytes(header) + content + bytes(-len(content) % _BLOCK_BYTES))
    return b"".join(entries) + bytes(2 * _BLOCK_BYTES)


def _tar_seeds() -> list[bytes]:
    series = _series()
    entries = [b"0\0" + len(each).to_bytes(2) + each for _, each in series]
    extended = b"x\0" + (13).to_bytes(2) + b"13 size=1000\n"
    sizes = [
        b"0\x0b00000001000\0\0",
        b"0\x0c\x80" + bytes(9) + b"\2\0\0\0",
        b"L\0\0\3abc",
        b"2\0\0\0",
        b"S\0\0\0",
        b"M\0\0\0",
    ]
    raw = [bytes([2 * n]) + _tarred(series) for n in range(len(_COMPRESSIONS))]
    return [*raw, b"\1" + b"".join(entries), b"\1" + extended + b"".join(entries), *(b"\1" + size for size in sizes)]


def _read_nested(data: bytes) -> None:
    """Reads an archive within an archive, of which the inner one or both are made of the pieces."""
    pieces = Pieces(data)
    kind = pieces.byte()
    pack = (_zipped, _tarred)
    packed = pack[kind & 1](_files(pieces)) if kind & 4 else pieces.rest()
    compress = _COMPRESSIONS[(kind >> 3) % len(_COMPRESSIONS)]
    read([pack[kind >> 1 & 1]([("README", b"text"), ("inner", compress(packed)), ("copy", b"\x1f\x8b")])])


def _nested_seeds() -> list[bytes]:
    series = _series()
    made = [bytes([4 + forms + 8 * compression]) + _described(series) for forms in range(4) for compression in range(5)]
    return [*made, b"\0" + _zipped(series), b"\2" + _COMPRESSIONS[_GZIP](_tarred(series))]


def _compressed_seeds() -> list[bytes]:
    content = bytes(nibabel.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.eye(4)).to_bytes())
    series = _series()[0][1]
    once = [compress(each) for compress in _COMPRESSIONS[1:] for each in (content, series)]
    twice = [compress(each) for compress in _COMPRESSIONS[1:] for each in once[::2]]
    halves = [compress(content[:200]) + compress(content[200:]) for compress in _COMPRESSIONS[1:]]
    return [*once, *twice, *halves]


TARGETS = (
    Target("zip", _read_zip, _zip_seeds),
    Target("tar", _read_tar, _tar_seeds, max_input_bytes=12288),
    Target("nested", _read_nested, _nested_seeds),
    Target("compressed", lambda data: read([data]), _compressed_seeds),
)
