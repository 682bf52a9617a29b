"""Output of the command `inspect`."""

from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from inference_service.core.errors import InputError
    from inference_service.formats.inspection import FoundVolume, Inspection


def inspection_json(found: "Inspection") -> dict[str, object]:
    """Returns the content of an input as JSON."""
    return {
        "volumes": [_volume_json(volume) for volume in found.volumes],
        "other_files": found.other_files,
        "error": _error_json(found.error),
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
        screen.print(f"{number}: {'series ' if volume.kind == 'dicom' else ''}{printable_name(volume.name)}")
        if volume.error is not None:
            screen.print(f"{number}: {volume.error.code}: {volume.error.message}")
        for warning in volume.warnings:
            screen.print(f"{number}: warning {warning.code}: {warning.message}")
    for reason, count in found.other_files.items():
        screen.print(f"{count} other file(s): {reason}")
    if found.error is None:
        screen.print("A job with this input would be read.")


def _verdict(volume: "FoundVolume") -> str:
    if volume.left_out is not None:
        return f"left out: {volume.left_out}"
    return "readable" if volume.error is None else f"refused: {volume.error.code}"


def printable_name(name: str) -> str:
    # A name may be any text, and could control the terminal.
    return "".join(each if each.isprintable() else "?" for each in name) or "(without a UID)"


def _volume_json(volume: "FoundVolume") -> dict[str, object]:
    facts = volume.facts
    return {
        "format": volume.kind,
        "name": volume.name,
        "files": volume.files,
        "modality": volume.modality or None,
        "shape": facts and facts.shape,
        "spacing_mm": facts and facts.spacing_mm,
        "orientation": facts and facts.orientation,
        "values": facts and facts.values,
        "left_out": volume.left_out,
        "error": _error_json(volume.error),
        "warnings": [asdict(warning) for warning in volume.warnings],
    }


def _error_json(error: "InputError | None") -> dict[str, str] | None:
    return None if error is None else {"code": error.code, "message": error.message}
