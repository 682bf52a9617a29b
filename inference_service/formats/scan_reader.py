"""Reads an input of any supported format: each format has a reader, chosen by content and never by file name."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
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
    NotAVolume,
    UnsupportedFormat,
)
from inference_service.core.files import list_files
from inference_service.formats.dicom.file_check import looks_like_dicom
from inference_service.formats.dicom.header import read_instance
from inference_service.formats.dicom.instance import ExclusionReason, Slice, ValueType
from inference_service.formats.dicom.series_reader import read_series
from inference_service.formats.grid_check import extent_warnings, require_valid_affine
from inference_service.formats.nifti import (
    grid_header,
    looks_like_nifti,
    read_nifti,
)
from inference_service.formats.nifti_header import NiftiHeader
from inference_service.formats.raster.reader import METAIMAGE, NRRD, RasterFormat, find_headers, read_raster
from inference_service.formats.read_limits import ReadLimits
from inference_service.formats.zip_input import looks_like_zip, unpack
from inference_service.imaging.geometry import Volume
from inference_service.imaging.shear import Shear, align_sheared, find_shear, shifts_px
from inference_service.imaging.slice_alignment import AlignedVolume, aligned_shape
from inference_service.imaging.slice_spacing import EvenlySpacedVolume

InputFormat = Literal["nifti", "dicom", "nrrd", "metaimage"]

# No scanner measures more, and networks in half precision overflow long before.
_MAX_VALUE = 1e15
_UNZIPPED_FOLDER = "unpacked"
# The reason for which files beside that of a volume are set aside.
_NO_VOLUME = "no_volume"
# A grid without right angles cannot be aligned. Up to this shear the network sees it as if its axes were at right
# angles; a patient sheared further is unlike anything a network was trained on.
_MAX_UNALIGNED_SHEAR_DEGREES = 10.0


@dataclass(frozen=True)
class Scan:
    """A volume that was read from an input, with the data that a mask on its grid needs.

    Attributes:
        volume: All values finite.
        grid: NIfTI header from which a mask on the volume's grid takes its geometry.
        replaced_voxels: Voxels that were NaN, infinite or a huge fill value, and got the lowest value of the others.
        input_format: The format that it was read from.
        aligned: The volume for the network where the grid is sheared, as by a tilted gantry; None where the network
            gets `volume`.
        evenly_spaced: Takes a mask on the volume's grid back to the slices of a series with uneven spacing; None
            elsewhere.
        modality: Modality as in DICOM (0008,0060), such as CT; empty where the input does not state one.
        value_type: What the values measure by the header of a DICOM series, such as HU; None where it is not stated.
        slices: Slices of a DICOM series along the volume's third axis; one a plane unless `evenly_spaced` is set.
        set_aside: Number of files that are no part of the volume, by reason.
        warnings: Sentences for the user of the mask.
    """

    volume: Volume
    grid: NiftiHeader
    replaced_voxels: int = 0
    input_format: InputFormat = "nifti"
    aligned: AlignedVolume | None = None
    evenly_spaced: EvenlySpacedVolume | None = None
    modality: str = ""
    value_type: ValueType | None = None
    slices: tuple[Slice, ...] = ()
    set_aside: Mapping[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class ReadOptions:
    """How an input is read.

    Attributes:
        limits: The largest input that is read.
        input_options: The request's options for the input.
        threads: Number of threads that decode a series' frames.
    """

    limits: ReadLimits
    input_options: InputOptions
    threads: int


@dataclass(frozen=True)
class Reader:
    """Reads one format.

    Attributes:
        description: The format, as error messages name it.
        accepts: Tells from the files' content whether they are of that format; `read` reports any further error.
        read: Returns the scan, or raises the InputError that says why it cannot be used.
    """

    description: str
    accepts: Callable[[Sequence[Path], ReadLimits], bool]
    read: Callable[[Sequence[Path], ReadOptions], Scan]


def read_scan(
    path: Path,
    work_folder: Path,
    limits: ReadLimits,
    *,
    input_options: InputOptions = DEFAULT_INPUT_OPTIONS,
    threads: int = 1,
) -> Scan:
    """Reads a volume with the first reader that accepts the input.

    Args:
        path: A file, a zip of files, or a folder of them.
        work_folder: An existing folder into which a zip is unpacked; its files are left there.
        limits: The largest input that is read.
        input_options: The request's options for the input.
        threads: Number of threads that decode a series' frames.

    Raises:
        InputError: No reader accepts the input, or the reader that accepts it finds an error.
    """
    files = input_files(path, work_folder, limits.max_bytes)
    return read_files(files, ReadOptions(limits, input_options, threads))


def read_files(files: Sequence[Path], options: ReadOptions) -> Scan:
    """Reads a volume from files with the first reader that accepts them.

    Raises:
        InputError: No reader accepts the files, or the reader that accepts them finds an error.
    """
    for reader in READERS:
        if reader.accepts(files, options.limits):
            scan = reader.read(files, options)
            affine, shape = scan.volume.affine, scan.volume.shape
            return replace(scan, warnings=(*scan.warnings, *extent_warnings(affine, shape)))
    _check_not_damaged(files)
    subject = "the input is" if len(files) == 1 else f"the input's {len(files)} files are"
    raise UnsupportedFormat(
        f"{subject} in no supported format; expected one of: {'; '.join(reader.description for reader in READERS)}"
    )


def _check_not_damaged(files: Sequence[Path]) -> None:
    """Raises InputCorrupt if the files are empty, or if one is gzipped and cannot be decompressed."""
    filled = [path for path in files if path.stat().st_size]
    if not filled:
        raise InputCorrupt(f"the input's {len(files)} files are empty")
    for path in filled:
        looks_like_nifti(path)


def input_files(path: Path, work_folder: Path, max_bytes: int) -> Sequence[Path]:
    """Returns the files of an input; a zip among them is unpacked if no other file holds a volume.

    Args:
        path: A file, a zip of files, or a folder of them.
        work_folder: An existing folder into which a zip is unpacked; its files are left there.
        max_bytes: Limit on the files together.

    Raises:
        InputError: There are no files, or too many, or the zip is damaged.
    """
    files = list_files(path, max_bytes=max_bytes) if path.is_dir() else [path]
    zips = [path for path in files if looks_like_zip(path)]
    others = [path for path in files if path not in zips]
    if len(zips) == 1 and not _may_hold_volume(others):
        files = [*unpack(zips[0], work_folder / _UNZIPPED_FOLDER, max_bytes=max_bytes), *others]
    if not files:
        raise InputNotFound("the input contains no file")
    return files


def _may_hold_volume(files: Sequence[Path]) -> bool:
    return (
        any(looks_like_dicom(path) for path in files)
        or bool(nifti_files(files))
        or any(find_headers(files, form) for form in (NRRD, METAIMAGE))
    )


def _holds_nifti(files: Sequence[Path], limits: ReadLimits) -> bool:
    """Returns True for a NIfTI file, or for several files of which some are NIfTI and none is a DICOM image."""
    if len(files) == 1:
        return looks_like_nifti(files[0])
    return bool(nifti_files(files)) and not any(_is_dicom_image(path, limits) for path in files)


def _is_dicom_image(path: Path, limits: ReadLimits) -> bool:
    if not looks_like_dicom(path):
        return False
    instance = read_instance(path, max_bytes=limits.max_bytes, require_memory=limits.require_memory)
    return instance is not ExclusionReason.NO_IMAGE


def nifti_files(files: Sequence[Path]) -> list[Path]:
    """Returns the NIfTI files among several; empty files, and gzipped files that cannot be decompressed, are none."""
    found = []
    for path in files:
        with suppress(InputCorrupt):
            if looks_like_nifti(path):
                found.append(path)
    return found


def _read_nifti(files: Sequence[Path], options: ReadOptions) -> Scan:
    """Reads the one NIfTI file of an input; files of other formats are set aside."""
    volumes = nifti_files(files) if len(files) > 1 else files
    _require_one_volume(files)
    found = read_nifti(volumes[0], options.limits, options.input_options.tolerate)
    scan = Scan(found.volume, found.header, _replace_fill_values(found.volume), warnings=found.warnings)
    return _aligned(_with_others(scan, len(files) - 1), options)


def _raster_reader(form: RasterFormat, input_format: InputFormat, description: str) -> Reader:
    def accepts(files: Sequence[Path], limits: ReadLimits) -> bool:
        return bool(find_headers(files, form)) and not any(_is_dicom_image(path, limits) for path in files)

    def read(files: Sequence[Path], options: ReadOptions) -> Scan:
        _require_one_volume(files)
        volume, header = read_raster(files, form, options.limits)
        require_valid_affine(volume.affine, volume.shape)
        scan = Scan(
            volume,
            grid_header(volume),
            _replace_fill_values(volume),
            input_format=input_format,
            modality=header.modality,
            warnings=header.warnings,
        )
        return _aligned(_with_others(scan, len(files) - 1 - header.detached), options)

    return Reader(description, accepts, read)


def _require_one_volume(files: Sequence[Path]) -> None:
    if len(files) == 1:
        return
    volumes = len(nifti_files(files)) + sum(len(find_headers(files, form)) for form in (NRRD, METAIMAGE))
    if volumes > 1:
        raise NotAVolume(f"the input holds {volumes} volumes, each in a file: expected one; send the scan alone")


def _with_others(scan: Scan, others: int) -> Scan:
    return replace(scan, set_aside={_NO_VOLUME: others} if others else {})


def _aligned(scan: Scan, options: ReadOptions) -> Scan:
    """Adds the volume for the network to a scan on a sheared grid."""
    shear = find_shear(scan.volume.affine)
    if shear is None:
        return scan
    if shear.axes is None:
        return replace(scan, warnings=(*scan.warnings, _unaligned_warning(shear)))
    warning = (
        f"the grid's axes deviate from right angles by {shear.degrees:.3g}°: for the network its planes were aligned "
        "by shifts of whole voxels, and the mask was shifted back"
    )
    aligned = _align(scan.volume, shear, options.limits)
    return replace(scan, aligned=aligned, warnings=(*scan.warnings, warning))


def _unaligned_warning(shear: Shear) -> str:
    """Refuses a grid with no two axes at right angles if it is far from them, and returns the warning otherwise."""
    text = f"no two axes of the grid are at right angles; the deviation is up to {shear.degrees:.3g}°"
    if shear.degrees > _MAX_UNALIGNED_SHEAR_DEGREES:
        raise InconsistentGeometry(
            f"{text}, and at most {_MAX_UNALIGNED_SHEAR_DEGREES:g}° are accepted: resample the scan to a grid with "
            "axes at right angles"
        )
    return f"{text}, and the network saw the scan without this shear"


def _align(volume: Volume, shear: Shear, limits: ReadLimits) -> AlignedVolume:
    i, j, k = (volume.shape[axis] for axis in shear.axes or ())
    voxels = prod(aligned_shape((i, j, k), shifts_px(shear, k)))
    if voxels > limits.max_voxels:
        raise InputTooLarge(
            f"the sheared grid has {voxels} voxels once its planes are aligned; this service takes at most "
            f"{limits.max_voxels}"
        )
    limits.require_memory(voxels * volume.voxels.dtype.itemsize)
    return align_sheared(volume, shear, background=volume.voxels.min().item())


def _holds_dicom(files: Sequence[Path], limits: ReadLimits) -> bool:
    return any(looks_like_dicom(path) for path in files)


def _read_dicom(files: Sequence[Path], options: ReadOptions) -> Scan:
    series = read_series(
        files,
        options.limits,
        series_uid=options.input_options.series,
        tolerated=options.input_options.tolerate,
        threads=options.threads,
    )
    return Scan(
        series.volume,
        grid_header(series.volume),
        input_format="dicom",
        aligned=series.aligned,
        evenly_spaced=series.evenly_spaced,
        modality=series.modality,
        value_type=series.value_type,
        slices=series.slices,
        set_aside={reason.value: count for reason, count in series.set_aside.items()},
        warnings=series.warnings,
    )


READERS = (
    Reader("one NIfTI-1 or NIfTI-2 file, plain or gzipped, also in a folder or a zip", _holds_nifti, _read_nifti),
    _raster_reader(NRRD, "nrrd", "one NRRD volume (.nrrd, or .nhdr with its data file in a zip or folder)"),
    _raster_reader(
        METAIMAGE, "metaimage", "one MetaImage volume (.mha, or .mhd with its data file in a zip or folder)"
    ),
    Reader("a DICOM series, as a file, a folder or a zip", _holds_dicom, _read_dicom),
)


def _replace_fill_values(volume: Volume) -> int:
    """Gives voxels that hold no measurement the lowest value of the others, in place; returns their number.

    Such are NaN, infinity, and the huge numbers with which tools fill what lies outside the field of view, as the
    lowest number of single or double precision.
    """
    voxels = volume.voxels
    if not np.issubdtype(voxels.dtype, np.floating):
        return 0
    # Plane by plane, so that no further array of the volume's size is held.
    planes = [voxels[:, :, k] for k in range(voxels.shape[2])]
    lowest = np.inf
    replaced = 0
    for plane in planes:
        measured = plane[np.abs(plane) <= _MAX_VALUE]
        replaced += plane.size - measured.size
        lowest = min(lowest, measured.min(initial=np.inf))
    if replaced == voxels.size:
        raise InputCorrupt(
            f"all voxels of the volume are NaN, infinite or beyond ±{_MAX_VALUE:g}: expected measured values"
        )
    for plane in planes if replaced else ():
        plane[~(np.abs(plane) <= _MAX_VALUE)] = lowest
    return replaced
