"""The demo: runs jobs through embedded servers and real workers, and shows their results."""

import shlex
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import UUID

from rich.console import Console

from inference_service.cli.display import ProgressDisplay, labels_table, object_address, show_job, timings_table
from inference_service.client import Client
from inference_service.contract.report import Report
from inference_service.contract.task_message import Priority, SegmentRequest
from inference_service.core.errors import InputNotFound, InternalError, TimeLimit, error_from_row
from inference_service.core.scratch_space import scratch_folder
from inference_service.core.settings import get_settings
from inference_service.embedded.phantom import chest_phantom
from inference_service.embedded.servers import remove_data
from inference_service.embedded.stack import Stack, start_stack
from inference_service.engine.model_registry import find_model
from inference_service.formats.nifti import compress, write_volume
from inference_service.jobs.job_store import Job

_INPUT_FILE = "input.nii.gz"
_DATA_FOLDER = "stack"
_POLL_S = 0.2
_TIME_LIMIT_S = 3600


def run_demo(source: Path | None, output: Path, *, model: str, screen: Console) -> None:
    """Runs an urgent and a routine job on one scan, prints their results and keeps copies of the files.

    Args:
        source: The scan; None takes a synthetic chest CT.
        output: Folder for the copies, and for the data of the servers, on which `stack` shows the results in the page.
        model: Name of the model.
        screen: Console for the output.

    Raises:
        EmbeddedServerError: A server or a worker does not start, or servers run on the data of an earlier demo.
        ServiceError: A job did not succeed.
    """
    if source is not None and not source.is_file():
        raise InputNotFound(f"there is no file {source}")
    find_model(get_settings().models_path, model)
    data = output / _DATA_FOLDER
    with scratch_folder(None) as folder, _new_data(data):
        screen.print("Starting Redis, PostgreSQL, S3 and two workers …")
        with start_stack(data, durable=False) as stack:
            _print_providers(stack, screen)
            scan = folder / _INPUT_FILE
            if source is None:
                screen.print("Making a synthetic chest CT …")
                write_volume(scan, chest_phantom())
            else:
                compress(source, scan)
            _run_jobs(stack, scan, output, model=model, screen=screen)
    screen.print("All servers and workers have stopped. To see the results in a browser: make view, or")
    screen.print(f"  inference-service stack --data {shlex.quote(str(data))}", soft_wrap=True)


@contextmanager
def _new_data(data: Path) -> Iterator[None]:
    """Removes the servers' data of an earlier demo, and those of this one if the block fails."""
    remove_data(data)
    try:
        yield
    except BaseException:
        remove_data(data)
        with suppress(OSError):  # it has other files
            data.parent.rmdir()
        raise


def _run_jobs(stack: Stack, scan: Path, output: Path, *, model: str, screen: Console) -> None:
    with Client(stack.settings) as client:
        uploaded = client.upload(scan)
        names = {
            client.submit(SegmentRequest(input=uploaded, model=model, priority=priority)): priority.value
            for priority in Priority
        }
        with ProgressDisplay(screen, names) as display:
            jobs = _wait(client, names, display)
        for job in jobs:
            if job.error_code is not None:
                raise error_from_row(job.error_code, job.error_message or "")
        output.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(scan, output / _INPUT_FILE)
        mask_path, report_path, preview_path = client.result(jobs[0], output)
        with scratch_folder(None) as folder:
            if client.result(jobs[1], folder)[0].read_bytes() != mask_path.read_bytes():
                raise InternalError("the masks of the two jobs differ")
    report = Report.model_validate_json(report_path.read_bytes())
    for job in jobs:
        screen.print(f"{names[job.id]}: {job.state} by {job.lease_owner} on {', '.join(job.providers or [])}")
        screen.print(f"  {object_address(job, 'mask')}")
    screen.print(timings_table({names[job.id]: job.timings_s or {} for job in jobs}))
    screen.print(labels_table(report.labels))
    for path in (output / _INPUT_FILE, mask_path, report_path, preview_path):
        screen.print(path.absolute(), soft_wrap=True)


def _wait(client: Client, job_ids: Iterable[UUID], display: ProgressDisplay[UUID]) -> list[Job]:
    deadline = time.monotonic() + _TIME_LIMIT_S
    while time.monotonic() < deadline:
        found = [client.status(job_id) for job_id in job_ids]
        jobs = [job for job in found if job is not None]
        for job in jobs:
            show_job(display, job)
        if all(job.finished for job in jobs):
            return jobs
        time.sleep(_POLL_S)
    raise TimeLimit(f"the jobs are not finished after {_TIME_LIMIT_S} s")


def _print_providers(stack: Stack, screen: Console) -> None:
    for worker in stack.workers:
        for line in worker.log_path.read_text(encoding="utf-8").splitlines():
            if "ONNX providers" in line:
                screen.print(f"worker {worker.role}: {line[line.index('ONNX providers') :]}", soft_wrap=True)
