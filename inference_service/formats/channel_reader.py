"""Reads the scans of a model's channels, and brings all of them to one grid: that of the first channel."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from math import floor, prod
from pathlib import Path

from inference_service.contract.input_options import check_channels
from inference_service.contract.report import InputFormat
from inference_service.core.errors import InconsistentGeometry, InputTooLarge, naming
from inference_service.core.files import Sources
from inference_service.core.report_warnings import ReportWarning, WarningCode
from inference_service.core.threads import ThreadPool
from inference_service.formats.channel_files import split_channels
from inference_service.formats.input_files import InputFiles, input_files
from inference_service.formats.read_limits import ReadLimits
from inference_service.formats.scan_reader import ReadOptions, Scan, read_files
from inference_service.imaging.geometry import Shape, Spacing, Volume
from inference_service.imaging.regridding import regrid, same_grid

# Channels of one patient overlap far more, even a sagittal and an axial one. Less is another region or another patient.
_MIN_COVERED = 0.25
_FLOAT32_BYTES = 4

OnChannel = Callable[[str, Scan], None]
"""Called with the name and the scan of each channel as soon as it is read. An error that it raises ends the reading."""


@dataclass(frozen=True)
class ChannelScan:
    """The scan of one channel.

    Attributes:
        name: Name of the channel.
        sources: The file or folder that it was read from; in an input of all channels, its files.
        input_format: The format.
        shape: Voxels of the scan's own grid.
        spacing_mm: Spacing of that grid.
        modality: Modality as in DICOM; empty where none is stated.
        frame_of_reference: FrameOfReferenceUID of a DICOM series; empty where none is stated.
        volume: The volume on the grid that the network gets.
        resampled: Whether it was resampled to that grid.
        warnings: Warnings for the user of the mask, which name the channel if there are several.
    """

    name: str
    sources: tuple[Path, ...]
    input_format: InputFormat
    shape: Shape
    spacing_mm: Spacing
    modality: str
    frame_of_reference: str
    volume: Volume
    resampled: bool
    warnings: tuple[ReportWarning, ...]


@dataclass(frozen=True)
class Study:
    """The scans of all channels of a model.

    Attributes:
        first: The scan of the first channel, on whose grid the mask lies.
        channels: The scans of the channels, in the order of the model.
    """

    first: Scan
    channels: tuple[ChannelScan, ...]

    @property
    def warnings(self) -> tuple[ReportWarning, ...]:
        """The warnings about all channels."""
        return tuple(warning for channel in self.channels for warning in channel.warnings)

    def volumes(self, names: Iterable[str]) -> list[Volume]:
        """Returns the volumes of channels, all on one grid; a name may come several times."""
        found = {channel.name: channel.volume for channel in self.channels}
        return [found[name] for name in names]


def read_study(
    sources: Sources,
    names: Sequence[str],
    work_folder: Path,
    options: ReadOptions,
    on_channel: OnChannel = lambda name, scan: None,
) -> Study:
    """Reads the scan of each channel of a model.

    Args:
        sources: A file or folder for each channel; or one for all, in which the names of files end in _0000 and so on
            if there are several channels.
        names: The channels, in the order of the model.
        work_folder: An existing folder into which archives are unpacked; their files are left there.
        options: How the scans are read. The limits hold for all channels together.
        on_channel: Called after each channel.

    Raises:
        BadRequest: The sources are not those of the channels, or an option does not fit its scan.
        InputError: A scan cannot be read, or does not lie in the same space as the others. The message names the
            channel if there are several.
    """
    if not isinstance(sources, Path):
        check_channels(sources, names)
        return read_channels(_files_of_each(sources, names, work_folder, options.limits), options, on_channel)
    files = input_files(sources, work_folder, options.limits)
    if len(names) == 1:
        return read_channels([ChannelFiles(names[0], (sources,), files)], options, on_channel)
    return read_channels(files_of_channels(files, names, options.limits), options, on_channel)


@dataclass(frozen=True)
class ChannelFiles:
    """The files of one channel.

    Attributes:
        name: Name of the channel.
        sources: The files and folders as they were sent.
        files: The files, unpacked and decompressed as far as the readers need it.
        among_others: Whether there are several channels.
    """

    name: str
    sources: tuple[Path, ...]
    files: InputFiles
    among_others: bool = False

    def naming(self) -> AbstractContextManager[None]:
        """Names the channel in errors, if there are others."""
        return naming(f"channel {self.name}") if self.among_others else nullcontext()


def files_of_channels(files: InputFiles, names: Sequence[str], limits: ReadLimits) -> list[ChannelFiles]:
    """Divides the files of one input for several channels; raises the errors of `split_channels`."""
    found = split_channels(files, names, limits)
    return [ChannelFiles(name, tuple(each.paths), each, among_others=True) for name, each in found.items()]


def _files_of_each(
    sources: Mapping[str, Path], names: Sequence[str], work_folder: Path, limits: ReadLimits
) -> Iterator[ChannelFiles]:
    """Yields the files of each channel, unpacked just before."""
    remaining_bytes = limits.max_bytes
    for number, name in enumerate(names):
        folder = work_folder / f"channel-{number}"
        folder.mkdir()
        with naming(f"channel {name}") if len(names) > 1 else nullcontext():
            files = input_files(sources[name], folder, replace(limits, max_bytes=remaining_bytes))
        remaining_bytes -= sum(path.stat().st_size for path in files.paths)
        yield ChannelFiles(name, (sources[name],), files, among_others=len(names) > 1)


def read_channels(
    channels: Iterable[ChannelFiles], options: ReadOptions, on_channel: OnChannel = lambda name, scan: None
) -> Study:
    """Reads the scan of each channel, and resamples those that lie on another grid than the first.

    Raises:
        BadRequest, InputError: See `read_study`.
    """
    first: Scan | None = None
    read: list[ChannelScan] = []
    remaining_voxels = options.limits.max_voxels
    for channel in channels:
        with channel.naming():
            limits = replace(options.limits, max_voxels=remaining_voxels)
            input_options = options.input_options.of_channel(channel.name)
            scan = read_files(channel.files, replace(options, limits=limits, input_options=input_options))
            on_channel(channel.name, scan)
        found = _describe(channel, scan)
        _check_frames_of_reference(read, found)
        if first is None:
            first = scan
        else:
            with channel.naming():
                found = _on_grid_of(read[0], found, scan, replace(options, limits=limits))
        remaining_voxels -= max(scan.volume.voxels.size, found.volume.voxels.size)
        read.append(found)
    if first is None:
        raise ValueError("a model has at least one channel")
    return Study(first, tuple(read))


def _describe(channel: ChannelFiles, scan: Scan) -> ChannelScan:
    prefix = f"channel {channel.name}: " if channel.among_others else ""
    return ChannelScan(
        name=channel.name,
        sources=channel.sources,
        input_format=scan.input_format,
        shape=scan.volume.shape,
        spacing_mm=scan.volume.spacing_mm,
        modality=scan.modality,
        frame_of_reference=scan.slices[0].instance.frame_of_reference_uid if scan.slices else "",
        volume=scan.aligned.volume if scan.aligned else scan.volume,
        resampled=False,
        warnings=tuple(replace(warning, message=prefix + warning.message) for warning in scan.warnings),
    )


def _on_grid_of(first: ChannelScan, found: ChannelScan, scan: Scan, options: ReadOptions) -> ChannelScan:
    """Resamples a scan to the grid that the network gets from the first one, unless it lies on this grid already.

    It is resampled from its own grid, also if the planes of that are sheared and were aligned.
    """
    grid = first.volume
    if same_grid(found.volume, grid):
        return found
    voxels = prod(grid.shape)
    if voxels > options.limits.max_voxels:
        raise InputTooLarge(
            f"on the grid of channel {first.name} it has {voxels} voxels; this service takes at most "
            f"{options.limits.max_voxels} more in all channels"
        )
    options.limits.require_memory(_FLOAT32_BYTES * voxels)
    with ThreadPool(options.threads) as threads:
        volume, covered = regrid(scan.volume, grid.affine, grid.shape, threads=threads)
    if covered < _MIN_COVERED:
        raise InconsistentGeometry(
            f"it covers {floor(covered * 100)}% of the grid of channel {first.name}, and at least {_MIN_COVERED:.0%} "
            "are needed: expected scans of one region of one patient"
        )
    message = f"channel {found.name} was resampled to the grid of channel {first.name}"
    if covered < 1:
        message += f", of which it covers {floor(covered * 100)}%; the rest got its lowest value"
    warning = ReportWarning(WarningCode.CHANNEL_RESAMPLED, message)
    return replace(found, volume=volume, resampled=True, warnings=(*found.warnings, warning))


def _check_frames_of_reference(others: Sequence[ChannelScan], channel: ChannelScan) -> None:
    for other in others:
        if "" not in (uids := {other.frame_of_reference, channel.frame_of_reference}) and len(uids) > 1:
            raise InconsistentGeometry(
                f"channels {other.name} and {channel.name} have different frames of reference, so that their positions "
                "cannot be compared: send series of one frame of reference, or volumes that are registered"
            )
