"""Reads an input of any supported format: each format has a reader, chosen by content and never by file name."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from inference_service.contract.input_options import DEFAULT_INPUT_OPTIONS, InputOptions
from inference_service.contract.report import InputFormat
from inference_service.core.errors import BadRequest, InputCorrupt, NotAVolume, UnsupportedFormat
from inference_service.core.report_warnings import ReportWarning, WarningCode
from inference_service.formats.analyze import read_analyze
from inference_service.formats.archives.unpacking import refuse_other_formats
from inference_service.formats.decompression import read_start
from inference_service.formats.dicom.file_check import looks_like_dicom
from inference_service.formats.dicom.instance import Slice, ValueType
from inference_service.formats.dicom.series.reader import read_series
from inference_service.formats.fill_values import replace_fill_values
from inference_service.formats.grid_check import extent_warnings
from inference_service.formats.input_files import InputFiles, input_files, is_dicom_image, volume_files
from inference_service.formats.nifti import find_headers as nifti_headers
from inference_service.formats.nifti import grid_header, read_nifti
from inference_service.formats.nifti_header import NiftiHeader, is_analyze
from inference_service.formats.raster.reader import METAIMAGE, NRRD, RasterFormat, find_headers, read_raster
from inference_service.formats.read_limits import ReadLimits
from inference_service.formats.sheared_grid import align_grid
from inference_service.imaging.geometry import Volume
from inference_service.imaging.slice_alignment import AlignedVolume
from inference_service.imaging.slice_spacing import EvenlySpacedVolume

# Reason to set aside a file beside that of a volume.
_NO_VOLUME = "no_volume"


@dataclass(frozen=True)
class Scan:
    """A volume that was read from an input, with the data that a mask on its grid needs.

    Attributes:
        volume: All values finite.
        grid: NIfTI header from which a mask on the volume's grid takes its geometry.
        replaced_voxels: Voxels that were fill values, and got the lowest value of the others, or air.
        input_format: The format that it was read from.
        aligned: The volume for the network where the grid is sheared, as by a tilted gantry; None where the network
            gets `volume`.
        evenly_spaced: Takes a mask on the volume's grid back to the slices of a series with uneven spacing; None
            elsewhere.
        modality: Modality as in DICOM (0008,0060), such as CT; empty where the input does not state one.
        value_type: The quantity that the values of a DICOM series measure, such as HU; None where it is not stated.
        slices: Slices of a DICOM series along the volume's third axis; one a plane unless `evenly_spaced` is set.
        set_aside: Number of files that are no part of the volume, by reason.
        warnings: Warnings for the user of the mask.
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
    warnings: tuple[ReportWarning, ...] = ()


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
class _Found:
    """A volume that begins with a header, as its reader returns it.

    Attributes:
        volume: The volume.
        grid: See `Scan`.
        files: Number of its files.
        warnings: Warnings about the header.
        modality: See `Scan`.
    """

    volume: Volume
    grid: NiftiHeader
    files: int
    warnings: tuple[ReportWarning, ...]
    modality: str = ""


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
        path: A file, an archive of files, or a folder of them.
        work_folder: An existing folder into which archives are unpacked; their files are left there.
        limits: The largest input that is read.
        input_options: The request's options for the input.
        threads: Number of threads that decode a series' frames.

    Raises:
        InputError: No reader accepts the input, or the reader that accepts it finds an error.
    """
    files = input_files(path, work_folder, limits)
    return read_files(files, ReadOptions(limits, input_options, threads))


def read_files(found: InputFiles, options: ReadOptions) -> Scan:
    """Reads a volume from files with the first reader that accepts them.

    Raises:
        BadRequest: The request selects slices, and the input is not DICOM.
        InputError: No reader accepts the files, or the reader that accepts them finds an error.
    """
    files = found.paths
    for reader in READERS:
        if reader.accepts(files, options.limits):
            if options.input_options.select and reader.read is not _read_dicom:
                raise BadRequest("input.select chooses among the slices of a DICOM series, and the input is none")
            scan = reader.read(files, options)
            affine, shape = scan.volume.affine, scan.volume.shape
            fills = _fill_value_warnings(scan.replaced_voxels)
            return replace(scan, warnings=(*found.warnings, *scan.warnings, *fills, *extent_warnings(affine, shape)))
    _check_not_damaged(files)
    refuse_other_formats(files)
    subject = "the input is" if len(files) == 1 else f"the input's {len(files)} files are"
    raise UnsupportedFormat(
        f"{subject} in no supported format; expected one of: {'; '.join(reader.description for reader in READERS)}. "
        "Several files are sent as a folder, a zip or a tar. Voxels need their header: an .img or .raw file alone is "
        "not enough"
    )


def _fill_value_warnings(replaced_voxels: int) -> tuple[ReportWarning, ...]:
    if not replaced_voxels:
        return ()
    message = (
        f"{replaced_voxels} voxels were NaN, infinite or another fill value; they were set to the lowest value of the "
        "others, or to air"
    )
    return (ReportWarning(WarningCode.FILL_VALUES_REPLACED, message),)


def _check_not_damaged(files: Sequence[Path]) -> None:
    """Raises InputCorrupt if the files are empty, or if one is compressed and cannot be decompressed."""
    filled = [path for path in files if path.stat().st_size]
    if not filled:
        raise InputCorrupt(
            "the input is an empty file" if len(files) == 1 else f"the input's {len(files)} files are empty"
        )
    for path in filled:
        read_start(path, 1)


def _reader(
    input_format: InputFormat,
    description: str,
    find: Callable[[Sequence[Path]], Sequence[Path]],
    read: Callable[[Path, Sequence[Path], ReadOptions], _Found],
) -> Reader:
    """A reader of volumes that begin with a header. DICOM goes before them; other files are set aside.

    Args:
        input_format: The format.
        description: Its description.
        find: Finds the files that begin with a header.
        read: Reads the volume of a header; it gets the other files too.
    """

    def accepts(files: Sequence[Path], limits: ReadLimits) -> bool:
        return bool(find(files)) and not any(is_dicom_image(path, limits) for path in files)

    def read_one(files: Sequence[Path], options: ReadOptions) -> Scan:
        header = _require_one_volume(files)
        found = read(header, [path for path in files if path != header], options)
        replaced = replace_fill_values(found.volume)
        aligned, shear_warnings = align_grid(found.volume, options.limits)
        others = len(files) - found.files
        return Scan(
            found.volume,
            found.grid,
            replaced,
            input_format=input_format,
            aligned=aligned,
            modality=found.modality,
            set_aside={_NO_VOLUME: others} if others else {},
            warnings=(*found.warnings, *shear_warnings),
        )

    return Reader(description, accepts, read_one)


def _require_one_volume(files: Sequence[Path]) -> Path:
    """Returns the one file that begins with the header of a volume; DICOM is left to its own reader."""
    volumes = [path for paths in volume_files(files).values() for path in paths]
    if len(volumes) > 1:
        raise NotAVolume(f"the input holds {len(volumes)} volumes: expected one; send the scan alone")
    return volumes[0]


def _read_nifti(header: Path, others: Sequence[Path], options: ReadOptions) -> _Found:
    found = read_nifti(header, options.limits, options.input_options.tolerate, others)
    return _Found(found.volume, found.header, found.files, found.warnings)


def _read_analyze(header: Path, others: Sequence[Path], options: ReadOptions) -> _Found:
    volume, warning = read_analyze(header, options.limits, options.input_options.tolerate, others)
    return _Found(volume, grid_header(volume), 2, (warning,))


def _raster_reader(form: RasterFormat, input_format: InputFormat, description: str) -> Reader:
    def read(header: Path, others: Sequence[Path], options: ReadOptions) -> _Found:
        found = read_raster(header, others, form, options.limits, options.input_options.tolerate)
        files = 1 + found.header.detached
        return _Found(found.volume, grid_header(found.volume), files, found.warnings, found.header.modality)

    return _reader(input_format, description, partial(find_headers, form=form), read)


def _holds_dicom(files: Sequence[Path], limits: ReadLimits) -> bool:
    return any(looks_like_dicom(path) for path in files)


def _read_dicom(files: Sequence[Path], options: ReadOptions) -> Scan:
    series = read_series(
        files,
        options.limits,
        options=options.input_options,
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
    _reader(
        "nifti",
        "one NIfTI-1 or NIfTI-2 volume (.nii, or .hdr with its .img; plain or compressed)",
        nifti_headers,
        _read_nifti,
    ),
    _reader(
        "analyze", "one Analyze volume (.hdr with its .img)", partial(nifti_headers, accepts=is_analyze), _read_analyze
    ),
    _raster_reader(NRRD, "nrrd", "one NRRD volume (.nrrd, or .nhdr with its data file)"),
    _raster_reader(METAIMAGE, "metaimage", "one MetaImage volume (.mha, or .mhd with its data file)"),
    Reader("a DICOM series", _holds_dicom, _read_dicom),
)
