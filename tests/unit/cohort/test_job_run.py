from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import pytest

from inference_service.client import Client
from inference_service.cohort import job_run
from inference_service.cohort.cohort_run import CohortRun
from inference_service.cohort.job_run import JobRun
from inference_service.cohort.result_folder import open_results
from inference_service.cohort.scan_folder import list_scans
from inference_service.contract.task_message import InputReference, SegmentRequest
from inference_service.core.errors import DatabaseUnavailable, ServiceError, StorageUnavailable
from inference_service.core.settings import Settings

REQUEST = SegmentRequest(input=InputReference(key="placeholder"), model="ct-tissue")
SETTINGS = Settings(outage_patience_s=1.0)


@dataclass
class Service:
    """Stands in for a client: a job ends, without an error or with one, when it was looked at twice."""

    errors: dict[str, str] = field(default_factory=dict)
    uploads: list[str] = field(default_factory=list)
    jobs: dict[UUID, str] = field(default_factory=dict)
    looks: dict[UUID, int] = field(default_factory=dict)
    most: int = 0
    lost_after: int | None = None
    ends: bool = True

    def upload(self, volume: Path) -> InputReference:
        if len(self.uploads) == self.lost_after:
            raise StorageUnavailable("the object storage does not answer")
        self.uploads.append(volume.name)
        return InputReference(bucket="volumes", key=f"uploads/{len(self.uploads)}")

    def submit(self, request: SegmentRequest, *, job_id: UUID) -> UUID:
        assert request.input.key == f"uploads/{len(self.uploads)}"
        self.jobs[job_id] = self.uploads[-1]
        self.most = max(self.most, sum(self.looks.get(job, 0) < 2 for job in self.jobs))
        return job_id

    def status(self, job_id: UUID) -> object:
        if job_id not in self.jobs:
            return None
        self.looks[job_id] = self.looks.get(job_id, 0) + 1
        finished = self.ends and self.looks[job_id] >= 2
        code = self.errors.get(self.jobs[job_id]) if finished else None
        return SimpleNamespace(
            id=job_id, finished=finished, progress=0.5, error_code=code, error_message="it failed" if code else None
        )

    def result(self, job: Any, folder: Path) -> list[Path]:
        folder.mkdir()
        (folder / "report.json").write_text("{}")
        return []


class Silent:
    def show(self, done: int, share: float, detail: str) -> None:
        assert 0 <= share <= 1

    def failed(self, scan: str, error: ServiceError) -> None:
        pass


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_run, "_POLL_S", 0.0)


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    folder = tmp_path / "scans"
    folder.mkdir()
    for number in range(5):
        (folder / f"MUELLER{number}.nii").write_text(str(number))
    return folder


@pytest.fixture
def service() -> Service:
    return Service()


def submit(service: Service, scans: Path, *, at_once: int = 2, wait: bool = True) -> tuple[CohortRun, int]:
    with open_results(scans.parent / "out", {}, work_path=None) as results:
        run = CohortRun(list_scans(scans).scans, results, Silent())
        left = JobRun(run, cast(Client, service), REQUEST, SETTINGS, at_once=at_once).submit_each(wait=wait)
    return run, left


@pytest.mark.parametrize("wait", [True, False])
def test_few_jobs_wait_or_run_at_a_time(service: Service, scans: Path, wait: bool) -> None:
    run, left = submit(service, scans, wait=wait)
    assert service.most <= 2
    assert (run.finished + left, len(service.jobs)) == (5, 5)
    assert (left == 0) == wait


def test_a_second_run_submits_no_second_job(service: Service, scans: Path) -> None:
    service.ends = False
    _, left = submit(service, scans, at_once=9, wait=False)
    assert left == 5
    service.ends = True
    run, left = submit(service, scans)
    assert (run.finished, left, len(service.uploads), len(service.jobs)) == (5, 0, 5, 5)


def test_a_failed_job_is_followed_by_another_in_the_next_run(service: Service, scans: Path) -> None:
    # Transient errors of a job are no reason to stop.
    service.errors = {"MUELLER1.nii": "input_corrupt", "MUELLER2.nii": "worker_lost"}
    run, _ = submit(service, scans)
    assert {name: error.code for name, error in run.failures.items()} == {
        "MUELLER1": "input_corrupt",
        "MUELLER2": "worker_lost",
    }
    assert run.finished == 3
    service.errors = {}
    for name in ("MUELLER0", "MUELLER3", "MUELLER4"):
        (scans / f"{name}.nii").unlink()
    run, _ = submit(service, scans)
    assert (run.finished, len(service.jobs)) == (2, 7)


def test_an_outage_ends_the_run_and_the_next_one_goes_on(service: Service, scans: Path) -> None:
    service.lost_after = 3
    service.ends = False
    with pytest.raises(StorageUnavailable):
        submit(service, scans, wait=False, at_once=9)
    service.lost_after = None
    _, left = submit(service, scans, wait=False, at_once=9)
    assert len(service.uploads) == len(service.jobs) == 5
    assert left == 5


def test_a_short_outage_is_waited_for(service: Service, scans: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status = service.status
    calls = iter(range(100))

    def flaky(job_id: UUID) -> object:
        if next(calls) == 0:
            raise DatabaseUnavailable("Postgres does not answer")
        return status(job_id)

    monkeypatch.setattr(service, "status", flaky)
    run, _ = submit(service, scans)
    assert run.finished == 5
