"""The command group `models`: installed and stored models."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click
from rich.table import Table

from inference_service.cli.display import ProgressDisplay, console, print_json
from inference_service.cli.import_command import import_model
from inference_service.cli.model_display import (
    MAX_CARD_BYTES,
    catalogue_json,
    model_summary,
    print_card,
    print_catalogue,
)
from inference_service.cli.options import json_option
from inference_service.core.execution import Precision
from inference_service.core.scratch_space import scratch_folder
from inference_service.core.settings import Settings, get_settings

if TYPE_CHECKING:
    from inference_service.engine.model_registry import Model
    from inference_service.model_store.catalogue import CatalogueEntry
    from inference_service.model_store.stored_models import StoredModels

_REDUCED = [precision for precision in get_args(Precision) if precision != "fp32"]


@click.group()
def models() -> None:
    """List, show and verify models, import others, and store them in the object storage."""


models.add_command(import_model)


@contextmanager
def _stored_models(settings: Settings, *, patient: bool = False) -> "Iterator[StoredModels]":
    """Yields the stored models.

    Args:
        settings: Bucket and storage.
        patient: Whether a transfer goes on during an outage.
    """
    from inference_service.jobs.storage.object_storage import Storage
    from inference_service.model_store.stored_models import StoredModels

    with closing(Storage(settings, retry_for_s=settings.outage_patience_s if patient else 0.0)) as storage:
        stored = StoredModels.of(settings, storage)
        if stored is None:
            raise click.UsageError("MODELS_BUCKET is not set, so no models are stored")
        yield stored


@models.command("list")
@click.option("--stored", "with_stored", is_flag=True, help="List the stored models too, and where each version is.")
@json_option
def list_models(with_stored: bool, as_json: bool) -> None:
    """List the installed models."""
    from inference_service.engine.model_registry import list_models as find_all
    from inference_service.engine.model_registry import read_model

    settings = get_settings()
    if with_stored:
        entries = _catalogue(settings)
        if as_json:
            print_json(catalogue_json(entries))
        else:
            print_catalogue(console(), entries)
        return
    found = [read_model(folder).manifest for folder in find_all(settings.models_path)]
    if as_json:
        print_json([manifest.model_dump(mode="json") for manifest in found])
        return
    table = Table("name", "version", "modality", "labels", "description")
    for manifest in found:
        table.add_row(manifest.name, manifest.version, *model_summary(manifest))
    console().print(table)


def _catalogue(settings: Settings) -> "list[CatalogueEntry]":
    from inference_service.model_store.catalogue import list_everywhere
    from inference_service.model_store.model_cache import ModelCache

    cache = ModelCache(settings.usable_models_cache_path, settings.models_cache_bytes)
    with _stored_models(settings) as stored, scratch_folder(settings.usable_work_path) as scratch:
        return list_everywhere(settings.models_path, stored, cache, scratch)


@models.command()
@click.argument("name")
@click.argument("version", required=False)
@click.option("--stored", "from_storage", is_flag=True, help="Show the stored model.")
@json_option
def show(name: str, version: str | None, from_storage: bool, as_json: bool) -> None:
    """Show a model's card and the facts of its manifest. With --json, print its manifest."""
    settings = get_settings()
    with scratch_folder(settings.usable_work_path) as scratch:
        model = _fetch_description(settings, name, version, scratch) if from_storage else _find(settings, name, version)
        if as_json:
            print_json(model.manifest.model_dump(mode="json"))
        else:
            print_card(console(), model)


def _find(settings: Settings, name: str, version: str | None) -> "Model":
    from inference_service.engine.model_registry import find_model

    return find_model(settings.models_path, name, version)


def _fetch_description(settings: Settings, name: str, version: str | None, scratch: Path) -> "Model":
    """Fetches the manifest and the card of a stored model."""
    from inference_service.engine.model_registry import CARD_FILE

    with _stored_models(settings) as stored:
        index = stored.find_index(name, version)
        folder = scratch / index.name / index.version
        folder.mkdir(parents=True)
        model = stored.fetch_manifest(index, folder)
        if CARD_FILE in index.files and index.files[CARD_FILE].size_bytes <= MAX_CARD_BYTES:
            stored.fetch_file(index, CARD_FILE, folder)
    return model


@models.command()
@click.argument("name")
@click.argument("version", required=False)
@click.option("--precision", type=click.Choice(_REDUCED), help="Compare this precision with fp32 on --volume.")
@click.option("--volume", type=click.Path(path_type=Path), help="A scan for the comparison.")
@json_option
def verify(name: str, version: str | None, precision: Precision | None, volume: Path | None, as_json: bool) -> None:
    """Load a model, check it against its manifest and run it on one window.

    With --precision and --volume, also segment the volume in that precision and in fp32, and show how well they agree.
    """
    if (precision is None) != (volume is None):
        raise click.UsageError("--precision and --volume must be given together")
    from inference_service.segmentation.model_checks import compare_precisions, verify_model

    settings = get_settings()
    verified = verify_model(settings, name, version)
    if precision is not None and volume is not None:
        verified |= compare_precisions(settings, name, version, precision=precision, source=volume)
    if as_json:
        print_json(verified)
    else:
        for key, value in verified.items():
            click.echo(f"{key}: {value}")


@models.command()
@click.argument("name")
@click.argument("version", required=False)
@json_option
def push(name: str, version: str | None, as_json: bool) -> None:
    """Store an installed model in MODELS_BUCKET.

    Workers that lack it fetch it when a job needs it. A stored version never changes: pushing it again does nothing,
    and other files are refused.
    """
    settings = get_settings()
    model = _find(settings, name, version)
    for network in model.manifest.network_files.values():
        model.read_network(network)
    with (
        _stored_models(settings, patient=True) as stored,
        ProgressDisplay(console(stderr=True), {name: model.title}) as display,
    ):
        pushed = stored.push(model, lambda share: display.show(name, "storing", share))
        address = f"{stored.address}{model.manifest.name}/{model.manifest.version}/"
    if as_json:
        print_json({"name": model.manifest.name, "version": model.manifest.version, "address": address, "new": pushed})
    else:
        click.echo(f"{'stored' if pushed else 'stored before'}: {address}")


@models.command()
@click.argument("name")
@click.argument("version", required=False)
@click.option("--cache", "into_cache", is_flag=True, help="Fetch it into this machine's cache, before a job needs it.")
@json_option
def pull(name: str, version: str | None, into_cache: bool, as_json: bool) -> None:
    """Install a stored model into MODELS_PATH."""
    from inference_service.model_store.model_cache import ModelCache

    settings = get_settings()
    with (
        _stored_models(settings, patient=True) as stored,
        ProgressDisplay(console(stderr=True), {name: name}) as display,
    ):
        index = stored.find_index(name, version)

        def report(share: float) -> None:
            display.show(name, "fetching", share)

        if into_cache:
            cache = ModelCache(settings.usable_models_cache_path, settings.models_cache_bytes)
            pulled = not cache.has(index)
            with cache.holding(
                index, lambda target: stored.fetch(index, target, report), wait=lambda: report(0.0)
            ) as held:
                folder = held
        else:
            folder = settings.own_models_path / index.name / index.version
            pulled = stored.pull(index, settings.own_models_path, report)
    if as_json:
        print_json({"name": index.name, "version": index.version, "folder": str(folder), "new": pulled})
    else:
        click.echo(f"{'fetched' if pulled else 'there before'}: {folder}")


@models.command()
@click.argument("name")
@click.argument("version")
@click.option("--stored", "from_storage", is_flag=True, help="Remove the stored version, not the installed one.")
@click.option("--yes", is_flag=True, help="Ask no question.")
@json_option
def remove(name: str, version: str, from_storage: bool, yes: bool, as_json: bool) -> None:
    """Remove a version from MODELS_PATH, or with --stored from MODELS_BUCKET.

    Jobs that run now go on with a stored version, and may fail with an installed one. A version that was removed may
    come again with other files; prefer a new version, because rows of earlier jobs name the old one.
    """
    from inference_service.core.errors import ModelNotFound
    from inference_service.engine.model_folder import uninstall
    from inference_service.engine.model_registry import check_names

    settings = get_settings()
    check_names(name, version)
    place = "MODELS_BUCKET" if from_storage else "MODELS_PATH"
    if not yes:
        click.confirm(f"Remove model {name} {version} from {place}?", abort=True, err=True)
    if from_storage:
        with _stored_models(settings, patient=True) as stored:
            stored.remove(name, version)
    else:
        folder = settings.models_path / name / version
        if not folder.is_dir():
            raise ModelNotFound(f"model {name} {version} is not installed under MODELS_PATH")
        uninstall(folder)
    if as_json:
        print_json({"name": name, "version": version, "removed_from": place})
    else:
        click.echo(f"removed: {name} {version} from {place}")
