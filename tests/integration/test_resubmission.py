"""Failed and cancelled jobs that are queued again on request."""

import json
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from uuid import UUID, uuid4

import pytest
from click.testing import CliRunner
from jobs_in_process import claim
from redis import Redis
from sqlalchemy import func, update

from inference_service import Client, InputReference, JobState, SegmentRequest
from inference_service.cli.main import main
from inference_service.core.errors import (
    BadRequest,
    DatabaseUnavailable,
    ErrorCode,
    InputCorrupt,
    ServiceError,
    StorageUnavailable,
)
from inference_service.core.remedies import REMEDIES
from inference_service.core.settings import Settings
from inference_service.jobs import attempts, job_store
from inference_service.jobs.database import Database
from inference_service.jobs.job_store import Job
from inference_service.jobs.resubmission import failed_jobs, queue_again
from inference_service.jobs.schema import JobRow

REQUEST = SegmentRequest(input=InputReference(key="ct/1.nii.gz"), model="ct-tissue")
HOUR = timedelta(hours=1)

pytestmark = pytest.mark.usefixtures("no_jobs")


@pytest.fixture
def client(settings: Settings) -> Iterator[Client]:
    with closing(Client(settings)) as client:
        yield client


def failed(database: Database, *, error: ServiceError, ago: timedelta = timedelta(), request: bool = True) -> UUID:
    """A job that failed on its third and last attempt."""
    job_id = uuid4()
    job_store.create(database, job_id, REQUEST if request else None)
    for _ in range(2):
        attempts.schedule_retry(database, claim(database, job_id), delay_s=0, detail="storage_unavailable")
    attempts.fail(database, claim(database, job_id), error, timings_s={"fetch": 1.0})
    with database.begin() as connection:
        connection.execute(update(JobRow).where(JobRow.id == job_id).values(finished_at=func.now() - ago))
    return job_id


def test_a_failed_job_gets_all_its_attempts_again(client: Client, database: Database, settings: Settings) -> None:
    job_id = failed(database, error=StorageUnavailable("x"))
    with Redis.from_url(settings.broker_url) as redis:
        redis.delete("overflow")
        job = client.retry(job_id)
        assert redis.llen("overflow") == 1
        redis.delete("overflow")
    assert job is not None
    assert (job.state, job.error_code, job.finished_at, job.started_at) == (JobState.QUEUED, None, None, None)
    change = client.transitions(job_id)[-1]
    assert (change.from_state, change.to_state, change.attempt, change.detail) == ("failed", "queued", 3, "retried")
    again = claim(database, job_id)
    assert (again.attempt, again.attempts_left) == (4, 2)


def test_a_cancelled_job_is_retried_only_by_its_id(client: Client, database: Database) -> None:
    job_id = client.submit(REQUEST)
    client.cancel(job_id)
    assert list(client.retry_failed(since=HOUR)) == []
    job = client.retry(job_id)
    assert job is not None
    assert job.state is JobState.QUEUED
    held = claim(database, job_id)
    assert not attempts.renew(database, held, lease_s=30, stage=None, progress=0).cancel_requested


def test_a_job_cancelled_while_it_ran_can_be_retried(client: Client, database: Database) -> None:
    job_id = client.submit(REQUEST)
    held = claim(database, job_id)
    client.cancel(job_id)
    attempts.schedule_retry(database, held, delay_s=0, detail="storage_unavailable")
    client.retry(job_id)
    held = claim(database, job_id)
    assert not attempts.renew(database, held, lease_s=30, stage=None, progress=0).cancel_requested


@pytest.mark.parametrize("state", [JobState.QUEUED, JobState.RUNNING, JobState.SUCCEEDED])
def test_only_failed_and_cancelled_jobs_are_retried(client: Client, database: Database, state: JobState) -> None:
    job_id = client.submit(REQUEST)
    with database.begin() as connection:
        connection.execute(update(JobRow).where(JobRow.id == job_id).values({"state": state}))
    with pytest.raises(BadRequest, match=f"is {state}"):
        client.retry(job_id)
    assert len(client.transitions(job_id)) == 1


def test_a_job_without_a_request_cannot_be_retried(client: Client, database: Database) -> None:
    job_id = failed(database, error=BadRequest("x"), request=False)
    with pytest.raises(BadRequest, match="broke the contract"):
        client.retry(job_id)
    assert list(client.retry_failed(since=HOUR)) == []


def test_an_unknown_job_is_none(client: Client) -> None:
    assert client.retry(uuid4()) is None


def test_failed_jobs_are_retried_by_time_and_code(client: Client, database: Database) -> None:
    outage = failed(database, error=StorageUnavailable("x"))
    failed(database, error=InputCorrupt("x"))
    failed(database, error=StorageUnavailable("x"), ago=2 * HOUR)
    assert list(client.retry_failed(since=HOUR, code=ErrorCode.STORAGE_UNAVAILABLE)) == [outage]
    assert list(client.retry_failed(since=HOUR, code=ErrorCode.STORAGE_UNAVAILABLE)) == []


def test_the_command_says_which_jobs_are_queued_and_which_are_refused(
    client: Client, database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inference_service.client.get_settings", lambda: settings)
    queued = client.submit(REQUEST)
    retried = failed(database, error=InputCorrupt("x"))
    unknown = uuid4()
    result = CliRunner().invoke(main, ["retry", str(queued), str(unknown), str(retried), "--json"])
    assert result.exit_code == 3
    assert json.loads(result.stdout) == {
        "queued": [str(retried)],
        "refused": {
            str(queued): f"job {queued} is queued: only failed and cancelled jobs can be retried",
            str(unknown): f"there is no job {unknown}",
        },
    }
    retried = failed(database, error=InputCorrupt("x"))
    result = CliRunner().invoke(main, ["retry", str(retried), str(unknown)])
    assert (result.exit_code, result.stdout) == (3, f"{retried}\n")
    assert result.stderr == f"error: bad_request: there is no job {unknown}\n"


@pytest.mark.parametrize("command", ["watch", "result"])
def test_a_command_on_a_failed_job_prints_the_remedy_before_the_error(
    database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr("inference_service.client.get_settings", lambda: settings)
    result = CliRunner().invoke(main, [command, str(failed(database, error=InputCorrupt("x")))])
    assert result.exit_code == 3
    assert result.stderr.splitlines()[-2:] == [f"note: {REMEDIES[InputCorrupt.code]}", "error: input_corrupt: x"]


def test_the_command_prints_the_jobs_that_it_queued_before_an_outage(
    client: Client, database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inference_service.client.get_settings", lambda: settings)
    assert CliRunner().invoke(main, ["retry", "--failed-since", "0s"]).exit_code == 0
    first, *others = (failed(database, error=InputCorrupt("x")) for _ in range(3))
    retry = Client.retry

    def retry_first(self: Client, job_id: UUID) -> Job | None:
        if job_id in others:
            raise DatabaseUnavailable("it does not answer")
        return retry(self, job_id)

    monkeypatch.setattr(Client, "retry", retry_first)
    result = CliRunner().invoke(main, ["retry", "--failed-since", "1h", "--code", "input_corrupt"])
    assert (result.exit_code, result.stdout) == (4, f"{first}\n")
    assert CliRunner().invoke(main, ["retry", "--failed-since", "1h", "--json"]).exit_code == 4


def test_each_failed_job_is_found_once(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inference_service.jobs.resubmission._JOBS_AT_ONCE", 2)
    jobs = [failed(database, error=InputCorrupt("x"), ago=timedelta(minutes=1)) for _ in range(5)]
    with database.begin() as connection:
        # As where one sweep ends several jobs.
        connection.execute(update(JobRow).values(finished_at=func.now() - timedelta(minutes=1)))
    found = []
    for job_id in failed_jobs(database, since=HOUR):
        found.append(job_id)
        assert queue_again(database, job_id)
        attempts.fail(database, claim(database, job_id), InputCorrupt("again"))
    assert sorted(found) == sorted(jobs)
