"""Commands for operators: prepare and check a deployment, run a worker, inspect providers."""

import dataclasses
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

import click

from inference_service.cli.display import console, print_json
from inference_service.cli.exit_codes import ExitCode
from inference_service.cli.options import duration, json_option
from inference_service.core.settings import get_settings
from inference_service.jobs.database import connect
from inference_service.jobs.storage.object_storage import Storage
from inference_service.worker.health import is_fresh, pause_reason

_PRUNED_AT_ONCE = 1000


@click.command()
@json_option
def migrate(as_json: bool) -> None:
    """Create or update the schema and the buckets."""
    from inference_service.worker.deployment import prepare

    buckets = prepare(get_settings())
    if as_json:
        print_json({"schema": "up to date", "buckets": buckets})
    else:
        click.echo(f"schema up to date; buckets {' and '.join(buckets)} exist")


@click.command()
@json_option
def check(as_json: bool) -> None:
    """Check servers, models and providers.

    Exits with 4 if Redis, Postgres, MinIO, a model or the providers are not usable.
    """
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
        raise SystemExit(ExitCode.UNAVAILABLE)


@click.command()
@click.option("--sizes-only", is_flag=True, help="Compare sizes instead of reading every object.")
@click.option(
    "--remove-unclaimed",
    is_flag=True,
    help="Let the workers remove the unclaimed objects, an hour after they are found.",
)
@json_option
def audit(sizes_only: bool, remove_unclaimed: bool, as_json: bool) -> None:
    """Compare the results of all jobs with the stored objects.

    Prints objects that are missing or are not the ones that their job has stored, that the storage refuses to read, and
    objects of lost attempts that no job names and no sweep removes: each as it is found, and figures at the end. With
    --json, each line is a JSON object. Exits with 1 if there are findings.
    """
    from inference_service.jobs.storage.audit import Audit
    from inference_service.jobs.storage.stored_attempts import record_unclaimed

    settings = get_settings()
    patience_s = settings.outage_patience_s
    storage = Storage(settings, retry_for_s=patience_s)
    findings = 0
    with closing(connect(settings)) as database:
        audit = Audit(
            database,
            storage,
            bucket=settings.minio_output_bucket,
            sizes_only=sizes_only,
            outage_patience_s=patience_s,
        )
        for finding in audit.findings():
            findings += 1
            if as_json:
                print_json(dataclasses.asdict(finding), indent=None)
            else:
                click.echo(f"{finding.problem:<10} {finding.bucket}/{finding.key} of job {finding.job_id}")
            if remove_unclaimed and (attempt := finding.unclaimed_attempt) is not None:
                record_unclaimed(database, attempt)
    if as_json:
        figures = {name: getattr(audit, name) for name in ("jobs", "objects", "without_checksum", "without_row")}
        print_json({"findings": findings, **figures}, indent=None)
    else:
        click.echo(
            f"{findings} finding(s); {audit.jobs} succeeded job(s) with {audit.objects} object(s), "
            f"{audit.without_checksum} of them without a checksum; "
            f"{audit.without_row} object(s) of jobs that have no row"
        )
    if findings:
        raise SystemExit(ExitCode.FAILED)


@click.command()
@click.option(
    "--older-than",
    metavar="PERIOD",
    callback=duration,
    required=True,
    help="Time since the end of the jobs, such as 90d or 12h.",
)
@click.option("--results", is_flag=True, help="Delete the results of these jobs, too.")
@json_option
def prune(older_than: timedelta, results: bool, as_json: bool) -> None:
    """Delete the rows of jobs that finished long ago.

    Their transitions go with them. With --results, workers delete their stored objects an hour later. A job that is not
    finished stays.
    """
    from inference_service.jobs import retention

    if older_than < retention.SHORTEST_RETENTION:
        raise click.UsageError("--older-than: at least 1h, as a job whose message comes again would run again")
    jobs = 0
    with closing(connect(get_settings())) as database:
        while deleted := retention.prune(database, older_than=older_than, results=results, limit=_PRUNED_AT_ONCE):
            jobs += deleted
    if as_json:
        print_json({"jobs": jobs})
    else:
        click.echo(f"deleted {jobs} job(s)" + ("; workers delete their results in an hour" if results else ""))


@click.command()
@click.option("--role", type=click.Choice(["gpu", "cpu"]), required=True, help="Role of the worker.")
def worker(role: str) -> NoReturn:
    """Run a worker.

    Role gpu takes jobs from the priority queue first, role cpu from the overflow queue.
    """
    from inference_service.jobs.workers.worker_registry import Role
    from inference_service.worker.main import run_worker

    raise SystemExit(run_worker(Role(role), get_settings()))


@click.command()
@click.option(
    "--within",
    "within_s",
    type=click.FloatRange(min=0),
    default=30.0,
    show_default=True,
    help="Maximum age in seconds.",
)
@json_option
def health(within_s: float, as_json: bool) -> None:
    """Check whether the worker is consuming.

    A worker touches the file HEALTH_PATH while it consumes its queues or is paused, and writes there why it is paused.
    This command reads the file and asks no server.
    """
    path = get_settings().health_path
    if path is None:
        raise click.UsageError("HEALTH_PATH is not set, so the worker touches no health file")
    problem = f"no heartbeat within {within_s:g} s"
    if is_fresh(path, within=timedelta(seconds=within_s)):
        reason = pause_reason(path)
        problem = f"the worker is paused: {reason}" if reason else ""
    if as_json:
        print_json({"consumes": not problem, "problem": problem or None})
    else:
        click.echo(problem or "the worker consumes", err=bool(problem))
    if problem:
        raise SystemExit(ExitCode.UNAVAILABLE)


@click.command()
@json_option
def providers(as_json: bool) -> None:
    """Show the requested and the usable providers.

    Lists the ONNX Runtime execution providers that are requested, available and used on this machine.
    """
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
    """Write the generated documentation pages.

    FOLDER gets the JSON Schemas and the table of settings.
    """
    from inference_service.cli.reference import reference_pages

    folder.mkdir(parents=True, exist_ok=True)
    for name, page in reference_pages().items():
        (folder / name).write_text(page, encoding="utf-8")
        click.echo(folder / name)


COMMANDS = (migrate, check, audit, prune, worker, health, providers, reference)
