"""Output of the command `inspect`."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from shlex import quote
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from inference_service.core.errors import BadRequest, InputError, SliceGroup

if TYPE_CHECKING:
    from inference_service.formats.inspection import FoundVolume, Inspection


_MAX_LISTED_GROUPS = 100


def inspection_json(found: "Inspection") -> dict[str, object]:
    """Returns the content of an input as JSON."""
    return {
        "volumes": [_volume_json(volume) for volume in found.volumes],
        "other_files": found.other_files,
        "error": _error_json(found.error),
        "channels": found.channels,
    }


def print_inspection(screen: Console, found: "Inspection") -> None:
    """Prints a table of the volumes, and below it their names, errors and warnings."""
    table = Table("", "format", "files", "modality", "voxels", "spacing, mm", "axes", "values", "verdict")
    for number, volume in enumerate(found.volumes, 1):
        facts = volume.facts
        table.add_row(
            str(number),
            volume.kind,
            str(volume.files),
            volume.modality,
            "×".join(map(str, facts.shape)) if facts else "",
            "×".join(f"{spacing:.4g}" for spacing in facts.spacing_mm) if facts else "",
            facts.orientation if facts else "",
            "{:.5g} to {:.5g}".format(*facts.values) if facts else "",
            _verdict(volume),
        )
    screen.print(table)
    for number, volume in enumerate(found.volumes, 1):
        channel = "" if volume.channel is None else f" (channel {volume.channel})"
        screen.print(f"{number}: {'series ' if volume.kind == 'dicom' else ''}{printable_name(volume.name)}{channel}")
        if volume.error is not None:
            screen.print(f"{number}: {volume.error.code}: {volume.error.message}")
            for line in group_lines(volume.error.groups):
                screen.print(f"{number}: {line}")
        for warning in volume.warnings:
            screen.print(f"{number}: warning {warning.code}: {warning.message}")
    for reason, count in found.other_files.items():
        screen.print(f"{count} other file(s): {reason}")
    if found.error is None:
        model = "" if found.channels == 1 else f" and a model of {found.channels} channels"
        screen.print(f"A job with this input{model} would be read.")


def _verdict(volume: "FoundVolume") -> str:
    if volume.left_out is not None:
        return f"left out: {volume.left_out}"
    return "readable" if volume.error is None else f"refused: {volume.error.code}"


def printable_name(name: str) -> str:
    """Returns the name of a volume for the terminal."""
    return _printable(name) or "(without a UID)"


def _printable(text: str) -> str:
    # It may be any text, and could control the terminal.
    return "".join(each if each.isprintable() else "?" for each in text)


def group_lines(groups: Sequence[SliceGroup]) -> Iterator[str]:
    """Yields a line for each group: the options that select it, the number of its slices, and what else tells it."""
    for group in groups[:_MAX_LISTED_GROUPS]:
        options = " ".join(f"--select {quote(each)}" for each in _assignments(group.select))
        others = ", ".join(_assignments(group.attributes))
        yield f"{options}: {group.slices} slice{'s' if group.slices > 1 else ''}{f' ({others})' if others else ''}"
    if len(groups) > _MAX_LISTED_GROUPS:
        yield f"… {len(groups)} groups in all"


def _assignments(values: Mapping[str, object]) -> list[str]:
    return [f"{keyword}={'' if value is None else _printable(str(value))}" for keyword, value in values.items()]


def _volume_json(volume: "FoundVolume") -> dict[str, object]:
    facts = volume.facts
    return {
        "format": volume.kind,
        "name": volume.name,
        "files": volume.files,
        "channel": volume.channel,
        "modality": volume.modality or None,
        "shape": facts and facts.shape,
        "spacing_mm": facts and facts.spacing_mm,
        "orientation": facts and facts.orientation,
        "values": facts and facts.values,
        "left_out": volume.left_out,
        "error": _error_json(volume.error),
        "warnings": [asdict(warning) for warning in volume.warnings],
    }


def _error_json(error: InputError | BadRequest | None) -> dict[str, object] | None:
    if error is None:
        return None
    groups = error.groups if isinstance(error, InputError) else ()
    return {"code": error.code, "message": error.message, "groups": [asdict(group) for group in groups]}
