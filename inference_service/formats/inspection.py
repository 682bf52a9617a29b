"""Lists the volumes of an input, each with its geometry or the reason why it cannot be read; runs no model."""

from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

from inference_service.contract.report import InputFormat
from inference_service.core.errors import BadRequest, InputError
from inference_service.core.files import channel_number
from inference_service.core.report_warnings import ReportWarning
from inference_service.formats.channel_files import complete_channels
from inference_service.formats.channel_reader import files_of_channels, read_channels
from inference_service.formats.dicom.file_check import looks_like_dicom
from inference_service.formats.dicom.instance import ExclusionReason, Instance
from inference_service.formats.dicom.series.headers import read_headers
from inference_service.formats.input_files import InputFiles, input_files, volume_files
from inference_service.formats.scan_reader import ReadOptions, Scan, read_files
from inference_service.imaging.geometry import Shape, Spacing


@dataclass(frozen=True)
class VolumeFacts:
    """The grid and the values of a volume that was read.

    Attributes:
        shape: Number of voxels along each axis of the file.
        spacing_mm: Distance of voxels along each axis.
        orientation: Direction of each axis, such as LPS.
        values: The lowest and the highest value.
    """

    shape: Shape
    spacing_mm: Spacing
    orientation: str
    values: tuple[float, float]


@dataclass(frozen=True)
class FoundVolume:
    """A volume, or a series of images, that an input holds.

    Attributes:
        kind: Its format.
        name: SeriesInstanceUID of a DICOM series; for other formats the path of the file within the input.
        files: Number of its files.
        modality: Modality as in DICOM; empty where none is stated.
        left_out: Reason to leave a series out if the input has a better one, such as localizer; None otherwise.
        facts: Facts about the volume; None if it was not read.
        error: Error of a job with this volume alone; None if it can be read, or is left out.
        warnings: Warnings for the user of a mask.
        channel: Number of the channel that the name of its file ends in, as nnU-Net writes it; None for other files.
    """

    kind: InputFormat
    name: str
    files: int
    modality: str = ""
    left_out: str | None = None
    facts: VolumeFacts | None = None
    error: InputError | None = None
    warnings: tuple[ReportWarning, ...] = ()
    channel: int | None = None


@dataclass(frozen=True)
class Inspection:
    """The content of an input.

    Attributes:
        volumes: The volumes and series.
        other_files: Number of the other files, by reason.
        error: Error that a job with this input would end with; None if its scan would be read.
        channels: Number of channels of the model that would read it.
    """

    volumes: tuple[FoundVolume, ...]
    other_files: dict[str, int]
    error: InputError | BadRequest | None
    channels: int = 1


def inspect_input(path: Path, work_folder: Path, options: ReadOptions) -> Inspection:
    """Reads each volume of an input, with its pixels.

    Args:
        path: A file, an archive of files, or a folder of them.
        work_folder: An existing folder into which archives are unpacked; their files are left there.
        options: The options that a job would read it with.

    Returns:
        The content; without volumes if the files cannot be listed or unpacked, or one exceeds the limits.
    """
    try:
        return _inspect(path, input_files(path, work_folder, options.limits), options)
    except InputError as error:
        return Inspection((), {}, error)


def _inspect(path: Path, files: InputFiles, options: ReadOptions) -> Inspection:
    single = volume_files(files.paths)
    headers = {header for paths in single.values() for header in paths}
    others = [file for file in files.paths if file not in headers and not looks_like_dicom(file)]
    volumes = [
        _read_volume(
            FoundVolume(kind, _name(header, path), 1, channel=channel_number(header.name)),
            replace(files, paths=[header, *others]),
            options,
        )
        for kind, paths in single.items()
        for header in paths
    ]
    series, other_files = _series(files, options)
    # `read_headers` counts these files as not DICOM.
    other_files[ExclusionReason.NOT_DICOM] -= sum(volume.files for volume in volumes)
    volumes += series
    channels = max(1, complete_channels(files.paths))
    alone = len(volumes) == 1 and volumes[0].left_out is None and _options_of(volumes[0], options) == options
    error = volumes[0].error if alone else _error_of(files, options, channels)
    return Inspection(tuple(volumes), dict(sorted((+other_files).items())), error, channels)


def _series(files: InputFiles, options: ReadOptions) -> tuple[list[FoundVolume], Counter[str]]:
    headers = read_headers(files.paths, options.limits)
    by_uid: dict[str, list[Instance]] = defaultdict(list)
    for instance in headers.instances:
        by_uid[instance.series_uid].append(instance)
    broken = Counter(each.series_uid for each in headers.unusable)
    errors = {each.series_uid: each.error for each in headers.unusable}
    found = [FoundVolume("dicom", uid, count, error=errors[uid]) for uid, count in broken.items() if uid not in by_uid]
    for uid, instances in by_uid.items():
        paths = [instance.path for instance in instances]
        reasons = {instance.exclusion_reason for instance in instances}
        reason = next(iter(reasons)) if len(reasons) == 1 else None
        if reason not in (None, ExclusionReason.REFORMAT):
            found.append(FoundVolume("dicom", uid, len(paths), instances[0].modality, left_out=reason))
        elif uid in errors:
            found.append(FoundVolume("dicom", uid, len(paths) + broken[uid], instances[0].modality, error=errors[uid]))
        else:
            volume = FoundVolume("dicom", uid, len(paths), instances[0].modality)
            found.append(_read_volume(volume, replace(files, paths=paths), options))
    return found, Counter({str(reason): count for reason, count in headers.excluded.items()})


def _read_volume(volume: FoundVolume, files: InputFiles, options: ReadOptions) -> FoundVolume:
    """Reads one volume alone.

    Args:
        volume: Its format, name and number of files.
        files: The files of a series; or a header, and files that hold no other.
        options: How the input is read.
    """
    try:
        scan = read_files(files, _options_of(volume, options))
    except InputError as error:
        return replace(volume, error=error)
    count = volume.files if volume.kind == "dicom" else len(files.paths) - sum(scan.set_aside.values())
    return replace(volume, files=count, modality=scan.modality, facts=_facts(scan), warnings=scan.warnings)


def _options_of(volume: FoundVolume, options: ReadOptions) -> ReadOptions:
    """The options for one volume alone: a selection is for the series that the request names, or for any series."""
    named = options.input_options.series
    selects = volume.kind == "dicom" and named in (None, volume.name)
    select = options.input_options.select if selects else {}
    return replace(options, input_options=replace(options.input_options, series=None, select=select))


def _name(file: Path, source: Path) -> str:
    """The path of a file within a folder; for a file of an archive its number, and for another its name."""
    return str(file.relative_to(source)) if file.is_relative_to(source) and file != source else file.name


def _facts(scan: Scan) -> VolumeFacts:
    volume = scan.volume
    low, high = volume.voxels.min().item(), volume.voxels.max().item()
    return VolumeFacts(volume.shape, volume.spacing_mm, volume.orientation, (low, high))


def _error_of(files: InputFiles, options: ReadOptions, channels: int) -> InputError | BadRequest | None:
    """The error of a job with a model of one channel, or with one of the channels that the files are named for."""
    try:
        if channels == 1:
            read_files(files, options)
        else:
            names = [f"_{number:04}" for number in range(channels)]
            read_channels(files_of_channels(files, names, options.limits), options)
    except (InputError, BadRequest) as error:
        return error
    return None
