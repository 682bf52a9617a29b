"""Tells the files of several channels in one folder or archive apart, by the endings that nnU-Net gives their names.

No other part of a name is used: `numbered_name` keeps only the ending, from the upload or the archive on.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from inference_service.core.errors import MixedSeries, NotAVolume
from inference_service.core.files import channel_number
from inference_service.formats.dicom.file_check import looks_like_dicom
from inference_service.formats.dicom.series.headers import read_headers
from inference_service.formats.input_files import InputFiles, volume_files
from inference_service.formats.read_limits import ReadLimits


def complete_channels(files: Sequence[Path]) -> int:
    """Returns for how many channels there is one volume each, numbered from 0 on; 0 if they do not fit together."""
    found = _count_channels(files)
    return len(found) if found == Counter(range(len(found))) else 0


def split_channels(files: InputFiles, names: Sequence[str], limits: ReadLimits) -> dict[str, InputFiles]:
    """Returns the files of each channel: a volume, and the file with its voxels if that is another one.

    Args:
        files: The files of the input.
        names: The channels of the model, in order.
        limits: The largest input that is read.

    Raises:
        MixedSeries: The input holds several DICOM series.
        NotAVolume: The input does not hold exactly one volume for each channel.
    """
    found = _count_channels(files.paths)
    if found != Counter(range(len(names))):
        _refuse(files.paths, names, found, limits)
    candidates = [path for path in files.paths if not looks_like_dicom(path)]
    return {
        name: replace(files, paths=[path for path in candidates if channel_number(path.name) == number])
        for number, name in enumerate(names)
    }


def _count_channels(files: Sequence[Path]) -> Counter[int | None]:
    """Returns the number of volumes by the channel that their names end in; None counts those without an ending."""
    return Counter(channel_number(path.name) for paths in volume_files(files).values() for path in paths)


def _refuse(files: Sequence[Path], names: Sequence[str], found: Counter[int | None], limits: ReadLimits) -> None:
    listed = ", ".join(f"{name} (_{number:04})" for number, name in enumerate(names))
    text = f"the model takes {len(names)} channels, each a file whose name ends so: {listed}; the input has"
    slices = Counter(instance.series_uid for instance in read_headers(files, limits).instances)
    if slices and not found:
        remedy = "name each channel in input.channels by the key of these files and its series"
        message = f"{text} DICOM images of {len(slices)} series: {remedy}"
        raise MixedSeries(message, slices) if len(slices) > 1 else NotAVolume(message)
    numbered = [
        f"{found[number]} of _{number:04}" for number in sorted(number for number in found if number is not None)
    ]
    others = [f"{found[None]} of another name"] if found[None] else []
    raise NotAVolume(
        f"{text} these volumes: {', '.join(numbered + others) or 'none'}; send one for each, or name a scan for each "
        "channel in input.channels"
    )
