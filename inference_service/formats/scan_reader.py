"""From a fetched input, of whatever kind, to a volume: each kind has a reader, chosen by content and never by name."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Literal

import numpy as np

from inference_service.contract.input_options import DEFAULT_INPUT_OPTIONS, InputOptions
from inference_service.core.errors import (
    InconsistentGeometry,
    InputCorrupt,
    InputNotFound,
    InputTooLarge,
    UnsupportedFormat,
)
from inference_service.core.files import list_files
from inference_service.formats.dicom.header import looks_like_dicom
from inference_service.formats.dicom.series_geometry import Slice
from inference_service.formats.dicom.series_reader import read_series
from inference_service.formats.nifti import (
    Header,
    Require,
    geometry_warnings,
    grid_header,
    looks_like_nifti,
    read_nifti,
)
from inference_service.formats.zip_input import looks_like_zip, unpack
from inference_service.imaging.geometry import Volume
from inference_service.imaging.shear import Shear, drifts_px, find_shear, straighten_sheared
from inference_service.imaging.slice_alignment import Evened, Straightened, straight_shape

Kind = Literal["nifti", "dicom"]

_UNPACKED = "unpacked"
# Of a grid that stays as it is: a patient sheared further is not what a network was trained on.
_MOST_SHEAR_DEGREES = 10.0
MOST_BYTES = 4 * 2**30
"""That an input may have, unless a setting says otherwise."""


@dataclass(frozen=True)
class Scan:
    """What a reader makes of an input.

    Attributes:
        volume: All values finite.
        grid: The NIfTI header that a mask on the scan's grid takes its geometry from.
        replaced_voxels: Voxels that were NaN or infinite, and got the volume's least finite value.
        kind: What it was read from.
        straightened: What the network is to see instead, where the grid is sheared, as that of tilted slices.
        evened: The way from the volume's grid back to the slices, where these are uneven.
        modality: DICOM's word for it, such as CT; empty where the input does not say.
        slices: Of a DICOM series, in the order of the volume's third axis; one for each plane unless uneven.
        set_aside: How many files are no part of the volume, by reason.
        warnings: What a reader of the mask should know.
    """

    volume: Volume
    grid: Header
    replaced_voxels: int = 0
    kind: Kind = "nifti"
    straightened: Straightened | None = None
    evened: Evened | None = None
    modality: str = ""
    slices: tuple[Slice, ...] = ()
    set_aside: Mapping[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Reading:
    """What readers are given.

    Attributes:
        max_voxels: More are refused before anything is allocated.
        max_bytes: The same for bytes that files expand to.
        require: Told how many bytes are about to be taken; what it raises ends the reading.
        wishes: The request's.
        threads: Decode a series' slices.
    """

    max_voxels: int
    max_bytes: int
    require: Require
    wishes: InputOptions
    threads: int


@dataclass(frozen=True)
class Reader:
    """Reads one kind of input.

    Attributes:
        kind: What it reads, in words.
        accepts: Whether the files' content is of that kind; what is wrong inside them is for `read` to say.
        read: Gives the scan, or raises the InputError that says why not.
    """

    kind: str
    accepts: Callable[[Sequence[Path]], bool]
    read: Callable[[Sequence[Path], _Reading], Scan]


def read_scan(
    path: Path,
    folder: Path,
    *,
    max_voxels: int,
    max_bytes: int = MOST_BYTES,
    require: Require = lambda size_bytes: None,
    wishes: InputOptions = DEFAULT_INPUT_OPTIONS,
    threads: int = 1,
) -> Scan:
    """Reads a volume with the first reader that accepts the input.

    Args:
        path: A file, a zip of files, or a folder of them.
        folder: An existing one, where a zip is unpacked; what is unpacked there stays.
        max_voxels: More are refused before anything is allocated.
        max_bytes: The same for the files of a folder or a zip, all together.
        require: Told how many bytes are about to be taken; what it raises ends the reading.
        wishes: The request's.
        threads: Decode a series' slices.

    Raises:
        InputError: No reader accepts the input, or the one that does refuses it.
    """
    files = _files(path, folder, max_bytes)
    for reader in READERS:
        if reader.accepts(files):
            return reader.read(files, _Reading(max_voxels, max_bytes, require, wishes, threads))
    what = "the input" if len(files) == 1 else f"what the input's {len(files)} files hold"
    raise UnsupportedFormat(
        f"{what} is none of the kinds that are read: {'; '.join(reader.kind for reader in READERS)}"
    )


def _files(path: Path, folder: Path, max_bytes: int) -> Sequence[Path]:
    files = list_files(path, max_bytes=max_bytes) if path.is_dir() else [path]
    if len(files) == 1 and looks_like_zip(files[0]):
        files = unpack(files[0], folder / _UNPACKED, max_bytes=max_bytes)
    if not files:
        raise InputNotFound("the input holds no file")
    return files


def _is_nifti(files: Sequence[Path]) -> bool:
    return len(files) == 1 and looks_like_nifti(files[0])


def _read_nifti(files: Sequence[Path], reading: _Reading) -> Scan:
    volume, grid = read_nifti(files[0], reading.max_voxels, reading.require)
    replaced, warnings = _replace_non_finite(volume), geometry_warnings(grid, volume)
    shear = find_shear(volume.affine)
    if shear is None:
        return Scan(volume, grid, replaced, warnings=warnings)
    off = f"the grid's axes are {shear.degrees:.3g}° off right angles"
    if shear.axes is None:
        if shear.degrees > _MOST_SHEAR_DEGREES:
            raise InconsistentGeometry(f"{off}, all of them: such a grid cannot be straightened by moving planes")
        return Scan(volume, grid, replaced, warnings=(*warnings, f"{off}, all of them: the network saw none of it"))
    warnings = (*warnings, f"{off}: planes were moved in line by whole voxels for the network, and the mask back")
    return Scan(volume, grid, replaced, straightened=_straightened(volume, shear, reading), warnings=warnings)


def _straightened(volume: Volume, shear: Shear, reading: _Reading) -> Straightened:
    i, j, k = (volume.shape[axis] for axis in shear.axes or ())
    voxels = prod(straight_shape((i, j, k), drifts_px(shear, k)))
    if voxels > reading.max_voxels:
        raise InputTooLarge(
            f"the sheared grid takes {voxels} voxels when it is straight; this service takes at most "
            f"{reading.max_voxels}"
        )
    reading.require(voxels * volume.voxels.dtype.itemsize)
    return straighten_sheared(volume, shear, background=volume.voxels.min().item())


def _is_dicom(files: Sequence[Path]) -> bool:
    return any(looks_like_dicom(path) for path in files)


def _read_dicom(files: Sequence[Path], reading: _Reading) -> Scan:
    found = read_series(
        files, max_voxels=reading.max_voxels, max_bytes=reading.max_bytes, require=reading.require,
        series_uid=reading.wishes.series, tolerated=reading.wishes.tolerate, threads=reading.threads,
    )  # fmt: skip
    return Scan(
        found.volume,
        grid_header(found.volume),
        kind="dicom",
        straightened=found.straightened,
        evened=found.evened,
        modality=found.modality,
        slices=found.slices,
        set_aside={reason.value: count for reason, count in found.set_aside.items()},
        warnings=found.warnings,
    )


READERS = (
    Reader("one NIfTI-1 or NIfTI-2, plain or gzipped", _is_nifti, _read_nifti),
    Reader("DICOM, as a file, a folder or a zip of one series", _is_dicom, _read_dicom),
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
