"""Commands of the upstream's side: submit a job, follow it, take its result. They need the base installation only."""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import get_args
from uuid import UUID

import click
from rich.table import Column, Table

from inference_service.cli.display import ProgressDisplay, console, job_table, print_json, show_job
from inference_service.client import Client
from inference_service.contract.task_message import OutputFormat, Priority, Tolerance, parse_request
from inference_service.core.errors import InputNotFound, error_from_row
from inference_service.jobs.job_store import Job
from inference_service.jobs.schema import JobState

_S3 = "s3://"
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_INPUT_OPTIONS = (
    click.option("--series", help="SeriesInstanceUID of the series that is meant, should there be several."),
    click.option(
        "--tolerate",
        type=click.Choice(get_args(Tolerance)),
        multiple=True,
        help="Mend this in a DICOM series rather than refuse it; may be given twice.",
    ),
    click.option(
        "--modality-check/--no-modality-check", default=True, help="Refuse a scan that is not of the model's modality."
    ),
)

format_option = click.option(
    "--format",
    "formats",
    type=click.Choice(get_args(OutputFormat)),
    multiple=True,
    help="Write the mask as this too, beside NIfTI; may be given several times.",
)


def input_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds what may be said of an input to a command."""
    for option in reversed(_INPUT_OPTIONS):
        command = option(command)
    return command


job_argument = click.argument("job_id", metavar="JOB", type=click.UUID)


@click.command()
@click.argument("volume", metavar="IN")
@click.option("--model", required=True, help="Name of the model.")
@click.option("--model-version", help="Version of the model; the highest installed otherwise.")
@click.option(
    "--priority",
    type=click.Choice([priority.value for priority in Priority]),
    default=Priority.ROUTINE.value,
    show_default=True,
)
@input_options
@format_option
@click.option("--prefix", help="Folder of the results in the output bucket; the job's id otherwise.")
@click.option(
    "--reuse", is_flag=True, help="Take an earlier result for the same input, model and options if there is one."
)
@click.option("--job-id", type=click.UUID, help="The job's id; a new one otherwise. The same one is the same job.")
@click.option("--wait", "wait_for_end", is_flag=True, help="Wait until the job is finished.")
@json_option
def submit(
    volume: str,
    model: str,
    model_version: str | None,
    priority: str,
    series: str | None,
    tolerate: tuple[Tolerance, ...],
    modality_check: bool,
    formats: tuple[OutputFormat, ...],
    prefix: str | None,
    reuse: bool,
    job_id: UUID | None,
    wait_for_end: bool,
    as_json: bool,
) -> None:
    """Submit a segmentation of IN: a file or a folder, which is uploaded, or s3://bucket/key.

    The file is NIfTI or DICOM or a zip of a DICOM series; a folder, or a key that ends in /, holds one.
    """
    # Validated whole before anything is uploaded: a refused request leaves no scan behind.
    request = parse_request(
        {
            "input": {**_reference(volume), "series": series},
            "model": model,
            "model_version": model_version,
            "priority": priority,
            "output": {"prefix": prefix, "formats": formats or ("nifti",)},
            "options": {"reuse": reuse, "tolerate": tolerate, "modality_check": modality_check},
        }
    )
    with Client() as client:
        if not volume.startswith(_S3):
            uploaded = client.upload(Path(volume)).model_copy(update={"series": series})
            request = request.model_copy(update={"input": uploaded})
        job_id = client.submit(request, job_id=job_id)
        if wait_for_end:
            _follow(client, job_id, as_json=as_json)
        elif as_json:
            print_json({"job_id": str(job_id)})
        else:
            click.echo(job_id)


@click.command()
@job_argument
@json_option
def status(job_id: UUID, as_json: bool) -> None:
    """Show a job."""
    with Client() as client:
        job = _found(client.status(job_id), job_id)
        history = client.transitions(job_id)
    if as_json:
        print_json({**_as_dict(job), "transitions": [dataclasses.asdict(change) for change in history]})
        return
    console().print(job_table(job))
    table = Table("at", "from", "to", "attempt", "worker", "detail", title="transitions", title_justify="left")
    for change in history:
        table.add_row(
            f"{change.at:%Y-%m-%d %H:%M:%S}", change.from_state or "", change.to_state, str(change.attempt),
            change.worker or "", change.detail or "",
        )  # fmt: skip
    console().print(table)


@click.command()
@job_argument
@json_option
def watch(job_id: UUID, as_json: bool) -> None:
    """Follow a job until it is finished."""
    with Client() as client:
        _found(client.status(job_id), job_id)
        _follow(client, job_id, as_json=as_json)


@click.command()
@job_argument
@json_option
def cancel(job_id: UUID, as_json: bool) -> None:
    """Cancel a queued job; ask the worker of a running one to stop."""
    with Client() as client:
        job = _found(client.cancel(job_id), job_id)
    if as_json:
        print_json(_as_dict(job))
    else:
        click.echo(f"{job.state}, stop requested" if job.state is JobState.RUNNING else job.state)


@click.command()
@job_argument
@click.option("--to", "folder", type=click.Path(path_type=Path, file_okay=False), help="Folder; JOB otherwise.")
@json_option
def result(job_id: UUID, folder: Path | None, as_json: bool) -> None:
    """Download the results of a succeeded job: mask and report, and what other formats it was asked for."""
    with Client() as client:
        job = _found(client.status(job_id), job_id)
        if job.error_code is not None:
            raise error_from_row(job.error_code, job.error_message or "")
        paths = [str(path) for path in client.result(job, folder or Path(str(job_id)))]
    if as_json:
        print_json(paths)
    else:
        click.echo("\n".join(paths))


@click.command("jobs")
@click.option("--state", type=click.Choice([state.value for state in JobState]), help="Only jobs in this state.")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True)
@json_option
def list_jobs(state: str | None, limit: int, as_json: bool) -> None:
    """List the newest jobs."""
    with Client() as client:
        found = client.list(state=JobState(state) if state else None, limit=limit)
    if as_json:
        print_json([_as_dict(job) for job in found])
        return
    table = Table(Column("job", no_wrap=True), "state", "priority", "model", "created", "progress", "error")
    for job in found:
        request = job.request or {}
        table.add_row(
            str(job.id), job.state, request.get("priority", ""), request.get("model", ""),
            f"{job.created_at:%Y-%m-%d %H:%M:%S}", f"{job.progress:.0%}", job.error_code or "",
        )  # fmt: skip
    console().print(table)


@click.command("workers")
@json_option
def list_workers(as_json: bool) -> None:
    """List the workers seen within a day: who is alive, what each one consumes and runs."""
    with Client() as client:
        found = client.workers()
    if as_json:
        print_json([dataclasses.asdict(worker) for worker in found])
        return
    table = Table(Column("worker", no_wrap=True), "role", "seen, s ago", "queues", "providers", "jobs")
    for worker in found:
        table.add_row(
            worker.name, worker.role, f"{worker.silent_s:.0f}", ", ".join(worker.queues),
            ", ".join(worker.providers), "\n".join(str(job_id) for job_id in worker.jobs),
        )  # fmt: skip
    console().print(table)


def _reference(volume: str) -> dict[str, str]:
    """The input of a request; for what is not uploaded yet, one that stands in for it."""
    if volume.startswith(_S3):
        bucket, _, key = volume.removeprefix(_S3).partition("/")
        return {"bucket": bucket, "key": key}
    if not Path(volume).exists():
        raise InputNotFound("there is no such file or folder")
    return {"key": "uploads"}


def _found(job: Job | None, job_id: UUID) -> Job:
    if job is None:
        raise click.ClickException(f"there is no job {job_id}")
    return job


def _follow(client: Client, job_id: UUID, *, as_json: bool) -> None:
    """Shows a job's progress until it is finished, then how it ended; progress goes to standard error."""
    with ProgressDisplay(console(stderr=True), {job_id: str(job_id)}) as display:
        job = client.wait(job_id, progress=partial(show_job, display))
    if as_json:
        print_json(_as_dict(job))
    elif job.error_code is None:
        console().print(job_table(job))
    if job.error_code is not None:
        raise error_from_row(job.error_code, job.error_message or "")


def _as_dict(job: Job) -> dict[str, object]:
    return dataclasses.asdict(job)


COMMANDS = (submit, status, watch, cancel, result, list_jobs, list_workers)
