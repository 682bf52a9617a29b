"""Output of the commands `models`: the card of a model, and where each version is."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table

from inference_service.cli.display import printable
from inference_service.contract.manifest import Manifest

if TYPE_CHECKING:
    from inference_service.engine.model_registry import Model
    from inference_service.model_store.catalogue import CatalogueEntry

MAX_CARD_BYTES = 2**20
"""A larger card is not shown."""


def catalogue_json(entries: "Sequence[CatalogueEntry]") -> list[dict[str, object]]:
    """Returns the models and their places as JSON."""
    return [
        {
            "name": entry.name,
            "version": entry.version,
            "places": entry.places,
            "problem": entry.problem or None,
            "manifest": None if entry.manifest is None else entry.manifest.model_dump(mode="json"),
        }
        for entry in entries
    ]


def print_catalogue(screen: Console, entries: "Sequence[CatalogueEntry]") -> None:
    """Prints a table of models and their places, and below it their problems."""
    table = Table("name", "version", "places", "modality", "labels", "description")
    for entry in entries:
        summary = ("", "", "") if entry.manifest is None else model_summary(entry.manifest)
        table.add_row(entry.name, entry.version, ", ".join(entry.places), *summary)
    screen.print(table)
    for entry in entries:
        if entry.problem:
            screen.print(f"{entry.name} {entry.version}: {entry.problem}")


def model_summary(manifest: Manifest) -> tuple[str, str, str]:
    """Returns the modality, the labels and the description of a model."""
    return manifest.modality, ", ".join(label.name for label in manifest.labels), manifest.description


def print_card(screen: Console, model: "Model") -> None:
    """Prints a model's card, if it has one, and the facts of its manifest."""
    from inference_service.engine.model_registry import CARD_FILE

    card = model.folder / CARD_FILE
    if card.is_file() and card.stat().st_size <= MAX_CARD_BYTES:
        screen.print(Markdown(printable(card.read_text(encoding="utf-8", errors="replace"))))
        screen.print()
    manifest = model.manifest
    networks = manifest.network_files
    first = manifest.all_parts[0]
    facts = {
        "model": model.title,
        "description": manifest.description,
        "intended use": manifest.intended_use,
        "licence": manifest.licence,
        "modality": manifest.modality,
        "channels": ", ".join(manifest.channel_names),
        "labels": ", ".join(f"{label.value} {label.name}" for label in manifest.labels),
        "parts": str(len(manifest.all_parts)),
        "networks": ", ".join(networks),
        "window, voxels": " × ".join(str(size or "all") for size in first.window),
        "spacing, mm": " × ".join(f"{mm:.4g}" if mm else "scan's" for mm in first.spacing_mm),
        "precisions": ", ".join(manifest.precisions),
        "sha256": manifest.networks_sha256,
    }
    table = Table(show_header=False, box=None)
    for fact, value in facts.items():
        table.add_row(fact, printable(value))
    screen.print(table)
