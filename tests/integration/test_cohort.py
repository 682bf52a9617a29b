"""Many scans, each a job, by the command `submit --each`."""

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from inference_service.client import Client
from inference_service.core.settings import Settings
from inference_service.jobs.job_store import Job
from inference_service.worker.task import TaskHandler

pytestmark = pytest.mark.usefixtures("no_jobs", "redis")

Command = Callable[..., Result]


@pytest.fixture
def scans(tmp_path: Path, scan: Path) -> Path:
    folder = tmp_path / "scans"
    folder.mkdir()
    shutil.copy(scan, folder / "MUELLER_1.nii.gz")
    shutil.copy(scan, folder / "MUELLER_2.nii.gz")
    (folder / "broken.nii.gz").write_bytes(b"\x1f\x8b")
    return folder


def all_jobs(settings: Settings) -> list[Job]:
    with Client(settings) as client:
        return list(client.list())


def run_all(handler: TaskHandler, settings: Settings) -> None:
    """Runs the jobs as a worker does."""
    for job in all_jobs(settings):
        if not job.finished:
            handler.handle({"job_id": str(job.id), "request": job.request}, task_id=str(job.id))


def test_each_scan_becomes_one_job_and_one_result(
    command: Command, handler: TaskHandler, settings: Settings, scans: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    submit = ("submit", scans, "--each", "--to", out, "--model", "ct-tissue")
    first = command(*submit)
    assert first.exit_code == 0, first.output
    assert "0 segmented\n3 submitted and not finished" in first.stdout
    assert "3 submitted and not finished" in command(*submit, "--priority", "urgent").stdout
    jobs = all_jobs(settings)
    assert len(jobs) == 3
    assert "MUELLER" not in str(jobs)

    run_all(handler, settings)
    fetched = command(*submit, "--wait")
    assert fetched.exit_code == 3, fetched.output
    assert "broken: input_corrupt: " in fetched.stderr
    assert "2 segmented\n1 failed" in fetched.stdout
    assert sorted(path.name for path in out.iterdir()) == ["MUELLER_1", "MUELLER_2", "results.csv", "scans.jsonl"]
    assert sorted(path.name for path in (out / "MUELLER_1").iterdir()) == ["mask.nii.gz", "preview.png", "report.json"]
    with (out / "results.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["error_code"] for row in rows if not row["label"]] == ["input_corrupt"]
    assert {row["scan"] for row in rows if row["volume_ml"]} == {"MUELLER_1", "MUELLER_2"}

    (scans / "broken.nii.gz").unlink()
    (scans / "MUELLER_1.nii.gz").touch()
    last = command(*submit, "--wait")
    assert last.exit_code == 0
    assert "0 segmented\n2 skipped" in last.stdout
    assert len(all_jobs(settings)) == 3
