"""From a fetched file, of whatever kind, to a volume: each kind has a reader, chosen by content and never by name."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from inference_service.errors import InputCorrupt, UnsupportedFormat
from inference_service.nifti import Header, Require, looks_like_nifti, read_nifti
from inference_service.volume import Volume


@dataclass(frozen=True)
class Scan:
    """What a reader makes of a file.

    Attributes:
        volume: All values finite.
        grid: The NIfTI header that a mask on the scan's grid takes its geometry from.
        replaced_voxels: Voxels that were NaN or infinite, and got the volume's least finite value.
    """

    volume: Volume
    grid: Header
    replaced_voxels: int


@dataclass(frozen=True)
class Reader:
    """Reads one kind of file.

    Attributes:
        kind: What it reads, in words.
        accepts: Whether a file's content is of that kind; what is wrong inside it is for `read` to say.
        read: Gives the volume and its grid, or raises the InputError that says why not. Is given the most voxels, and
            what is to be told how many bytes it is about to take.
    """

    kind: str
    accepts: Callable[[Path], bool]
    read: Callable[[Path, int, Require], tuple[Volume, Header]]


READERS = (Reader("NIfTI-1 or NIfTI-2, plain or gzipped", looks_like_nifti, read_nifti),)


def read_scan(path: Path, *, max_voxels: int, require: Require = lambda size_bytes: None) -> Scan:
    """Reads a volume with the first reader that accepts the file.

    Args:
        path: The file.
        max_voxels: More are refused before anything is allocated.
        require: Told how many bytes are about to be taken; what it raises ends the reading.

    Raises:
        InputError: No reader accepts the file, or the one that does refuses it.
    """
    for reader in READERS:
        if reader.accepts(path):
            volume, grid = reader.read(path, max_voxels, require)
            return Scan(volume, grid, _replace_non_finite(volume))
    raise UnsupportedFormat(
        f"the file is none of the kinds that are read: {'; '.join(reader.kind for reader in READERS)}"
    )


def _replace_non_finite(volume: Volume) -> int:
    voxels = volume.voxels
    if not np.issubdtype(voxels.dtype, np.floating):
        return 0
    finite = np.isfinite(voxels)
    replaced = int(voxels.size - np.count_nonzero(finite))
    if replaced == voxels.size:
        raise InputCorrupt("the volume holds no finite value")
    if replaced:
        voxels[~finite] = voxels[finite].min()
    return replaced
