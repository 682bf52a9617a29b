"""Commands for upstreams: submit a job, follow it, download its result. They need only the base installation."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TypeVar
from uuid import UUID

import click
from rich.table import Column, Table

from inference_service.cli.display import ProgressDisplay, console, job_table, print_json, show_job
from inference_service.cli.each import each_scan, report_end
from inference_service.cli.exit_codes import ExitCode
from inference_service.cli.options import (
    FollowOptions,
    InputArguments,
    JobOptions,
    ModelOptions,
    OutputOptions,
    duration,
    follow_options,
    input_arguments,
    job_argument,
    job_options,
    json_option,
    model_options,
    output_options,
)
from inference_service.client import Client
from inference_service.cohort.job_run import JobRun
from inference_service.contract.input_options import InputOptions
from inference_service.contract.task_message import ChannelReference, InputReference, SegmentRequest, parse_request
from inference_service.core.errors import (
    COMMAND_LINE_CODES,
    BadRequest,
    ErrorCode,
    InputNotFound,
    error_from_row,
)
from inference_service.core.settings import get_settings
from inference_service.jobs.job_store import Job
from inference_service.jobs.schema import JobState

_S3 = "s3://"
# The key of a local file in a request that is only validated.
_PLACEHOLDER = "uploads"
Reference = TypeVar("Reference", InputReference, ChannelReference)
_ROW_CODES = sorted(code.value for code in set(ErrorCode) - COMMAND_LINE_CODES - {ErrorCode.CANCELLED})


@click.command()
@click.argument("volume", metavar="[IN]", required=False)
@model_options
@job_options
@input_arguments
@output_options
@follow_options
@json_option
def submit(
    volume: str | None,
    model: ModelOptions,
    job: JobOptions,
    arguments: InputArguments,
    output: OutputOptions,
    follow: FollowOptions,
    as_json: bool,
) -> None:
    """Submit a job that segments IN, or for a model of several channels the scans of --channel.

    IN is a local file or folder, which is uploaded, or s3://bucket/key. A file is NIfTI, NRRD, MetaImage, DICOM, or a
    zip or tar of files; a folder, or a key that ends in /, contains a DICOM series or another volume. For a
    model of several channels, a folder or an archive may hold one file for each, with names that end in _0000, _0001
    and so on.

    With --each, IN is a local folder of many scans. OUT of --to gets a folder for each whose job has ended, and
    results.csv with all labels. Without --wait this ends when all are submitted; the same command fetches the rest.
    """
    if (volume is None) != bool(arguments.channels):
        raise click.UsageError("expected either IN or --channel")
    if follow.each != (follow.target is not None):
        raise click.UsageError("--each needs --to OUT, and --to needs --each")
    if follow.each and (volume is None or volume.startswith(_S3) or job.job_id):
        raise click.UsageError("--each takes a local folder, without --channel and --job-id")
    # The whole request is validated before the upload, so that a rejected request leaves no scan behind.
    request = parse_request(
        {
            "input": _input(volume, arguments),
            "model": model.model,
            "model_version": model.model_version,
            "priority": job.priority,
            "output": {"prefix": output.prefix, "formats": output.formats or ("nifti",), "scan": output.scan},
            "options": {
                "reuse": job.reuse,
                "tolerate": arguments.tolerate,
                "modality_check": arguments.modality_check,
            },
        }
    )
    if volume is not None and follow.target is not None:
        _submit_each(Path(volume), follow.target, request, follow, as_json=as_json)
        return
    with Client() as client:
        request = request.model_copy(update={"input": _uploaded(client, request.input, volume, arguments)})
        job_id = client.submit(request, job_id=job.job_id)
        if follow.wait:
            _follow(client, job_id, as_json=as_json)
        elif as_json:
            print_json({"job_id": str(job_id)})
        else:
            click.echo(job_id)


def _submit_each(folder: Path, out: Path, request: SegmentRequest, follow: FollowOptions, *, as_json: bool) -> None:
    settings = get_settings()
    # The priority may differ from run to run: it does not change a result.
    identity = request.model_dump(mode="json", exclude={"priority": True, "input": {"bucket", "key"}})
    with (
        Client(settings) as client,
        each_scan(folder, out, identity, work_path=settings.usable_work_path) as run,
    ):
        unfinished = JobRun(run, client, request, settings, at_once=follow.at_once).submit_each(wait=follow.wait)
    report_end(run, unfinished=unfinished, as_json=as_json)


@click.command()
@job_argument
@json_option
def status(job_id: UUID, as_json: bool) -> None:
    """Show a job and its state transitions."""
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
            f"{change.at:%Y-%m-%d %H:%M:%S}",
            change.from_state or "",
            change.to_state,
            str(change.attempt),
            change.worker or "",
            change.detail or "",
        )
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
    """Cancel a job.

    A queued job is cancelled at once. A running job stops within seconds.
    """
    with Client() as client:
        job = _found(client.cancel(job_id), job_id)
    if as_json:
        print_json(_as_dict(job))
    else:
        click.echo(f"{job.state}, stop requested" if job.state is JobState.RUNNING else job.state)


@click.command()
@click.argument("job_ids", metavar="[JOB]...", type=click.UUID, nargs=-1)
@click.option(
    "--failed-since",
    metavar="PERIOD",
    callback=duration,
    help="All jobs that failed within this period, such as 1h or 2d.",
)
@click.option(
    "--code", metavar="CODE", type=click.Choice(_ROW_CODES), help="With --failed-since, only jobs with this error code."
)
@json_option
def retry(job_ids: tuple[UUID, ...], failed_since: timedelta | None, code: str | None, as_json: bool) -> None:
    """Queue failed or cancelled jobs again.

    They keep their ids and get all their attempts again. Prints each id as its job is queued. Exits with 3 if a named
    job does not exist, or has neither failed nor was it cancelled; the others are queued.
    """
    if bool(job_ids) == (failed_since is not None):
        raise click.UsageError("name the jobs, or give --failed-since")
    if code and failed_since is None:
        raise click.UsageError("--code needs --failed-since")
    refused: dict[str, str] = {}
    with Client() as client:
        if failed_since is None:
            retried = _retried(client, job_ids, refused)
        else:
            retried = client.retry_failed(since=failed_since, code=ErrorCode(code) if code else None)
        _print_retried(retried, refused, as_json=as_json)
    if refused:
        raise SystemExit(ExitCode.REJECTED)


def _print_retried(retried: Iterator[UUID], refused: Mapping[str, str], *, as_json: bool) -> None:
    """Prints what was done, also if a server fails meanwhile."""
    queued = []
    try:
        for job_id in retried:
            queued.append(job_id)
            if not as_json:
                click.echo(job_id)
    finally:
        if as_json:
            print_json({"queued": queued, "refused": refused})
        else:
            for message in refused.values():
                click.echo(f"error: {BadRequest.code}: {message}", err=True)


def _retried(client: Client, job_ids: Sequence[UUID], refused: dict[str, str]) -> Iterator[UUID]:
    """Retries jobs, yields the ids of those that are queued, and collects why others are not."""
    for job_id in job_ids:
        try:
            if client.retry(job_id) is None:
                raise BadRequest(f"there is no job {job_id}")
        except BadRequest as error:
            refused[str(job_id)] = error.message
        else:
            yield job_id


@click.command()
@job_argument
@click.option(
    "--to",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for the files; default: JOB.",
)
@json_option
def result(job_id: UUID, folder: Path | None, as_json: bool) -> None:
    """Download the results of a succeeded job.

    They are mask, report and preview, and, if they were requested, the scan and the mask in other formats.
    """
    with Client() as client:
        job = _found(client.status(job_id), job_id)
        _require_success(job)
        paths = [str(path) for path in client.result(job, folder or Path(str(job_id)))]
    if as_json:
        print_json(paths)
    else:
        click.echo("\n".join(paths))


@click.command("jobs")
@click.option("--state", type=click.Choice([state.value for state in JobState]), help="Only jobs in this state.")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="Number of jobs.")
@json_option
def list_jobs(state: str | None, limit: int, as_json: bool) -> None:
    """List the newest jobs."""
    with Client() as client:
        found = client.list(state=JobState(state) if state else None, limit=limit)
    if as_json:
        print_json([_as_dict(job) for job in found])
        return
    table = Table(
        Column("job", no_wrap=True), "state", "priority", "model", "submitted by", "created", "progress", "error"
    )
    for job in found:
        request = job.request or {}
        table.add_row(
            str(job.id),
            job.state,
            request.get("priority", ""),
            request.get("model", ""),
            job.submitted_by or "",
            f"{job.created_at:%Y-%m-%d %H:%M:%S}",
            f"{job.progress:.0%}",
            job.error_code or "",
        )
    console().print(table)


@click.command("workers")
@json_option
def list_workers(as_json: bool) -> None:
    """List the workers of the last 24 hours."""
    with Client() as client:
        found = client.workers()
    if as_json:
        print_json([dataclasses.asdict(worker) for worker in found])
        return
    table = Table(Column("worker", no_wrap=True), "role", "last seen, s ago", "queues", "providers", "jobs")
    for worker in found:
        table.add_row(
            worker.name,
            worker.role,
            f"{worker.silent_s:.0f}",
            f"paused: {worker.paused}" if worker.paused else ", ".join(worker.queues),
            ", ".join(worker.providers),
            "\n".join(str(job_id) for job_id in worker.jobs),
        )
    console().print(table)


def _input(volume: str | None, arguments: InputArguments) -> dict[str, object]:
    """Returns the input of the request; local files get placeholders until they are uploaded."""
    options = arguments.options()
    if volume is not None:
        return _scan(volume, options)
    return {"channels": {name: _scan(source, options.of_channel(name)) for name, source in arguments.channels.items()}}


def _scan(source: str, options: InputOptions) -> dict[str, object]:
    chosen = {"series": options.series, "select": dict(options.select)}
    if source.startswith(_S3):
        bucket, _, key = source.removeprefix(_S3).partition("/")
        return {"bucket": bucket, "key": key, **chosen}
    if not Path(source).exists():
        raise InputNotFound("there is no such file or folder")
    return {"key": _PLACEHOLDER, **chosen}


def _uploaded(
    client: Client, reference: InputReference, volume: str | None, arguments: InputArguments
) -> InputReference:
    """Uploads local files, and returns the input with their places."""
    if volume is not None:
        return _placed(client, reference, volume)
    channels = {
        name: _placed(client, channel, arguments.channels[name]) for name, channel in reference.channels.items()
    }
    return reference.model_copy(update={"channels": channels})


def _placed(client: Client, reference: Reference, source: str) -> Reference:
    if source.startswith(_S3):
        return reference
    uploaded = client.upload(Path(source))
    return reference.model_copy(update={"bucket": uploaded.bucket, "key": uploaded.key})


def _found(job: Job | None, job_id: UUID) -> Job:
    if job is None:
        raise click.ClickException(f"there is no job {job_id}")
    return job


def _follow(client: Client, job_id: UUID, *, as_json: bool) -> None:
    """Shows a job's progress on standard error until it is finished, then its outcome."""
    with ProgressDisplay(console(stderr=True), {job_id: str(job_id)}) as display:
        job = client.wait(job_id, progress=partial(show_job, display))
    if as_json:
        print_json(_as_dict(job))
    elif job.error_code is None:
        console().print(job_table(job))
    _require_success(job)


def _require_success(job: Job) -> None:
    """Raises the error of a failed job, after its remedy is printed."""
    if job.error_code is None:
        return
    if job.remedy is not None:
        click.echo(f"note: {job.remedy}", err=True)
    raise error_from_row(job.error_code, job.error_message or "")


def _as_dict(job: Job) -> dict[str, object]:
    return dataclasses.asdict(job)


COMMANDS = (submit, status, watch, cancel, retry, result, list_jobs, list_workers)
