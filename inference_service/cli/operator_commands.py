"""Commands of the operator's side: bring a deployment up, look whether it is well, run a worker."""

from datetime import timedelta
from pathlib import Path
from typing import NoReturn

import click

from inference_service.cli.display import console, print_json
from inference_service.cli.job_commands import json_option
from inference_service.core.settings import get_settings
from inference_service.worker.health import is_fresh

_EXIT_UNAVAILABLE = 4


@click.command()
@json_option
def migrate(as_json: bool) -> None:
    """Bring the database's schema up to date and make the buckets."""
    from inference_service.worker.deployment import prepare

    settings = get_settings()
    prepare(settings)
    buckets = [settings.minio_input_bucket, settings.minio_output_bucket]
    if as_json:
        print_json({"schema": "up to date", "buckets": buckets})
    else:
        click.echo(f"the schema is up to date, the buckets {' and '.join(buckets)} exist")


@click.command()
@json_option
def check(as_json: bool) -> None:
    """Look whether Redis, Postgres, MinIO, the models and the providers are usable."""
    from inference_service.worker.deployment import check as check_deployment

    checks = check_deployment(get_settings())
    if as_json:
        print_json(
            [
                {"name": item.name, "usable": item.problem is None, "detail": item.problem or item.detail}
                for item in checks
            ]
        )
    else:
        for item in checks:
            click.echo(
                f"{item.name:<10} {'ok' if item.problem is None else 'NOT USABLE'}: {item.problem or item.detail}"
            )
    if any(item.problem for item in checks):
        raise SystemExit(_EXIT_UNAVAILABLE)


@click.command()
@click.option("--role", type=click.Choice(["gpu", "cpu"]), required=True)
def worker(role: str) -> NoReturn:
    """Run a worker: role gpu drains the priority queue first, role cpu the overflow queue."""
    from inference_service.jobs.worker_registry import Role
    from inference_service.worker.main import run_worker

    raise SystemExit(run_worker(Role(role), get_settings()))


@click.command()
@click.option("--within", "within_s", type=click.FloatRange(min=0), default=30.0, show_default=True, help="Seconds.")
@json_option
def health(within_s: float, as_json: bool) -> None:
    """Tell whether the worker that touches HEALTH_PATH consumes; asks no server."""
    path = get_settings().health_path
    if path is None:
        raise click.UsageError("HEALTH_PATH is not set: the worker leaves no sign of life")
    consumes = is_fresh(path, within=timedelta(seconds=within_s))
    if as_json:
        print_json({"consumes": consumes})
    else:
        click.echo("the worker consumes" if consumes else f"no sign of life within {within_s:g} s", err=not consumes)
    if not consumes:
        raise SystemExit(_EXIT_UNAVAILABLE)


@click.command()
@json_option
def providers(as_json: bool) -> None:
    """Show which ONNX Runtime providers are requested, usable and used here."""
    from inference_service.engine.providers import probe_providers, usable_providers

    settings = get_settings()
    lines = {
        "requested": settings.onnx_providers,
        "available": usable_providers(),
        "using": settings.effective_onnx_providers,
    }
    refused = {probe.provider: probe.reason for probe in probe_providers() if probe.reason is not None}
    if as_json:
        print_json({**lines, "refused": refused})
        return
    for name, value in lines.items():
        click.echo(f"ONNX providers {name}: {value}")
    for provider, reason in refused.items():
        console().print(f"{provider} is not usable: {reason}")


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
def reference(folder: Path) -> None:
    """Write the generated pages of the documentation into FOLDER: JSON Schemas and the table of settings."""
    from inference_service.cli.reference import reference_pages

    folder.mkdir(parents=True, exist_ok=True)
    for name, page in reference_pages().items():
        (folder / name).write_text(page, encoding="utf-8")
        click.echo(folder / name)


COMMANDS = (migrate, check, worker, health, providers, reference)
