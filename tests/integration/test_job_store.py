"""The life of a job, against a real Postgres."""

import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from uuid import UUID, uuid4

import pytest
from sqlalchemy import create_engine

from inference_service.contract.task_message import (
    ChannelReference,
    InputReference,
    OutputReference,
    Priority,
    RequestOptions,
    SegmentRequest,
)
from inference_service.core.errors import DatabaseUnavailable, InputCorrupt, JobCancelled
from inference_service.core.files import Checksum
from inference_service.core.settings import Settings
from inference_service.jobs import attempts, job_store
from inference_service.jobs.database import Database, connect, database_url
from inference_service.jobs.schema import JobState

REQUEST = SegmentRequest(input=InputReference(bucket="volumes", key="ct/1.nii.gz"), model="ct-tissue")
SUCCESS = attempts.Success(
    result={"bucket": "masks", "mask": "a/mask.nii.gz", "report": "a/report.json", "preview": "a/preview.png"},
    checksums={name: Checksum(number * 64, 7) for name, number in (("mask", "a"), ("report", "b"), ("preview", "c"))},
    input_sha256="1" * 64,
    model_name="ct-tissue",
    model_version="1",
    model_sha256="0" * 64,
    manifest_sha256="9" * 64,
    precision="fp32",
    providers=["CPUExecutionProvider"],
    warnings=[{"code": "single_slice", "message": "the scan is a single slice"}],
    timings_s={"fetch": 0.5},
)


@pytest.fixture
def job_id(database: Database) -> UUID:
    job_id = uuid4()
    assert job_store.create(database, job_id, REQUEST)
    return job_id


def claim(database: Database, job_id: UUID, *, lease_s: float = 30.0, max_attempts: int = 3) -> attempts.Claim | None:
    return attempts.claim(database, job_id, worker="w", lease_s=lease_s, max_attempts=max_attempts)


def claimed(database: Database, job_id: UUID) -> attempts.Claim:
    held = claim(database, job_id)
    assert held is not None
    return held


def get(database: Database, job_id: UUID) -> job_store.Job:
    job = job_store.get(database, job_id)
    assert job is not None
    return job


def history(database: Database, job_id: UUID) -> list[tuple[str | None, str, int, str | None]]:
    return [
        (change.from_state, change.to_state, change.attempt, change.detail)
        for change in job_store.transitions(database, job_id)
    ]


def test_the_same_job_created_twice_is_one_job(database: Database, job_id: UUID) -> None:
    other = REQUEST.model_copy(update={"model": "other"})
    assert not job_store.create(database, job_id, other)
    assert get(database, job_id).request == REQUEST.model_dump(mode="json")
    assert history(database, job_id) == [(None, "queued", 0, None)]


def test_a_claim_is_given_once(database: Database, job_id: UUID) -> None:
    held = claimed(database, job_id)
    assert (held.attempt, held.worker, held.request) == (1, "w", REQUEST.model_dump(mode="json"))
    assert claim(database, job_id) is None
    job = get(database, job_id)
    assert (job.state, job.attempt, job.lease_owner) == (JobState.RUNNING, 1, "w")
    assert job.started_at is not None


def test_of_many_claims_at_once_one_is_given(database: Database, job_id: UUID) -> None:
    with ThreadPoolExecutor(8) as pool:
        claims = list(pool.map(lambda _: claim(database, job_id), range(16)))
    assert sum(held is not None for held in claims) == 1


def test_a_job_that_does_not_exist_is_not_claimed(database: Database) -> None:
    assert claim(database, uuid4()) is None


def test_success_is_written_once_and_is_final(database: Database, job_id: UUID) -> None:
    held = claimed(database, job_id)
    assert attempts.succeed(database, held, SUCCESS)
    assert not attempts.succeed(database, held, SUCCESS)
    assert not attempts.fail(database, held, InputCorrupt("x"))
    assert claim(database, job_id) is None
    job = get(database, job_id)
    assert (job.state, job.finished, job.progress) == (JobState.SUCCEEDED, True, 1.0)
    assert (job.result, job.providers, job.timings_s) == (SUCCESS.result, SUCCESS.providers, SUCCESS.timings_s)
    assert job.warnings == SUCCESS.warnings
    assert (job.model_name, job.model_version, job.model_sha256) == ("ct-tissue", "1", "0" * 64)
    assert job.finished_at is not None
    assert history(database, job_id) == [
        (None, "queued", 0, None),
        ("queued", "running", 1, None),
        ("running", "succeeded", 1, None),
    ]


def test_failure_keeps_code_and_message(database: Database, job_id: UUID) -> None:
    assert attempts.fail(database, claimed(database, job_id), InputCorrupt("the file is empty"))
    job = get(database, job_id)
    assert (job.state, job.error_code, job.error_message) == (JobState.FAILED, "input_corrupt", "the file is empty")
    assert history(database, job_id)[-1] == ("running", "failed", 1, "input_corrupt")


def test_a_retry_is_another_attempt(database: Database, job_id: UUID) -> None:
    assert attempts.schedule_retry(database, claimed(database, job_id), delay_s=0, detail="storage_unavailable")
    assert get(database, job_id).state is JobState.QUEUED
    assert claimed(database, job_id).attempt == 2
    assert history(database, job_id)[2:] == [
        ("running", "queued", 1, "storage_unavailable"),
        ("queued", "running", 2, None),
    ]


def test_an_expired_lease_passes_to_another_attempt_and_the_old_one_writes_nothing(
    database: Database, job_id: UUID, expire_lease: Callable[[UUID], None]
) -> None:
    old = claimed(database, job_id)
    expire_lease(job_id)
    new = claimed(database, job_id)
    assert new.attempt == 2
    assert not attempts.renew(database, old, lease_s=30, stage="windows", progress=0.5).held
    assert not attempts.succeed(database, old, SUCCESS)
    assert not attempts.fail(database, old, InputCorrupt("x"))
    assert not attempts.schedule_retry(database, old, delay_s=0, detail="x")
    assert get(database, job_id).state is JobState.RUNNING
    assert attempts.succeed(database, new, SUCCESS)


def test_a_worker_lost_on_the_last_attempt_ends_the_job(
    database: Database, job_id: UUID, expire_lease: Callable[[UUID], None]
) -> None:
    assert claim(database, job_id, max_attempts=1)
    expire_lease(job_id)
    assert claim(database, job_id, max_attempts=1) is None
    job = get(database, job_id)
    assert (job.state, job.error_code) == (JobState.FAILED, "worker_lost")
    assert history(database, job_id)[-1] == ("running", "failed", 1, "worker_lost")


def test_a_renewal_writes_progress_and_extends_the_lease(
    database: Database, job_id: UUID, expire_lease: Callable[[UUID], None]
) -> None:
    held = claimed(database, job_id)
    expire_lease(job_id)
    renewal = attempts.renew(database, held, lease_s=30, stage="windows", progress=0.25)
    assert renewal == attempts.Renewal(held=True, cancel_requested=False)
    assert claim(database, job_id) is None
    job = get(database, job_id)
    assert (job.stage, job.progress) == ("windows", 0.25)


def test_a_queued_job_is_cancelled_at_once(database: Database, job_id: UUID) -> None:
    job = job_store.cancel(database, job_id)
    assert job is not None
    assert (job.state, job.error_code) == (JobState.CANCELLED, "cancelled")
    assert claim(database, job_id) is None
    assert history(database, job_id)[-1] == ("queued", "cancelled", 0, "cancelled")


def test_a_running_job_is_asked_to_stop(database: Database, job_id: UUID) -> None:
    held = claimed(database, job_id)
    job = job_store.cancel(database, job_id)
    assert job is not None
    assert (job.state, job.cancel_requested) == (JobState.RUNNING, True)
    assert attempts.renew(database, held, lease_s=30, stage=None, progress=0).cancel_requested
    assert attempts.fail(database, held, JobCancelled("stopped"))
    assert get(database, job_id).state is JobState.CANCELLED


def test_a_finished_job_is_not_cancelled(database: Database, job_id: UUID) -> None:
    attempts.succeed(database, claimed(database, job_id), SUCCESS)
    job = job_store.cancel(database, job_id)
    assert job is not None
    assert (job.state, job.cancel_requested) == (JobState.SUCCEEDED, False)
    assert job_store.cancel(database, uuid4()) is None


def test_the_newest_jobs_come_first(database: Database, job_id: UUID) -> None:
    newer = uuid4()
    job_store.create(database, newer, REQUEST)
    job_store.cancel(database, newer)
    assert [job.id for job in job_store.latest(database, limit=2)] == [newer, job_id]
    assert job_store.latest(database, job_store.JobFilter([JobState.CANCELLED]), limit=1)[0].id == newer
    assert newer not in {job.id for job in job_store.latest(database, job_store.JobFilter([JobState.QUEUED]))}


def test_a_refused_message_has_a_row_without_a_request(database: Database) -> None:
    job_id = uuid4()
    assert job_store.create(database, job_id, None)
    assert get(database, job_id).request is None


def test_an_unreachable_database_is_an_outage(settings: Settings) -> None:
    nowhere = connect(settings.model_copy(update={"postgres_port": 1}))
    with pytest.raises(DatabaseUnavailable):
        job_store.get(nowhere, uuid4())


def test_an_attempt_that_is_not_due_is_not_claimed(database: Database, job_id: UUID) -> None:
    assert attempts.schedule_retry(database, claimed(database, job_id), delay_s=30, detail="storage_unavailable")
    assert claim(database, job_id) is None
    assert get(database, job_id).state is JobState.QUEUED


def test_an_expired_job_with_a_requested_cancellation_is_cancelled(
    database: Database, job_id: UUID, expire_lease: Callable[[UUID], None]
) -> None:
    claimed(database, job_id)
    job_store.cancel(database, job_id)
    expire_lease(job_id)
    assert claim(database, job_id) is None
    assert get(database, job_id).state is JobState.CANCELLED


def test_a_job_with_a_requested_cancellation_is_not_retried(database: Database, job_id: UUID) -> None:
    held = claimed(database, job_id)
    job_store.cancel(database, job_id)
    assert attempts.schedule_retry(database, held, delay_s=30, detail="storage_unavailable")
    assert get(database, job_id).state is JobState.CANCELLED


def test_a_read_only_server_is_an_outage(settings: Settings) -> None:
    read_only = {"options": "-c default_transaction_read_only=on"}
    database = Database(create_engine(database_url(settings), connect_args=read_only))
    with closing(database), pytest.raises(DatabaseUnavailable):
        job_store.create(database, uuid4(), REQUEST)


def test_the_same_work_is_found_by_input_model_and_options(database: Database, job_id: UUID) -> None:
    network = uuid4().hex * 2
    success = dataclasses.replace(SUCCESS, model_sha256=network)
    model = job_store.ModelIdentity("ct-tissue", "1", network, "9" * 64, "fp32")

    def found(
        request: SegmentRequest = REQUEST, *, sha256: str = "1" * 64, by: job_store.ModelIdentity = model
    ) -> bool:
        return job_store.find_same_work(database, request, input_sha256=sha256, model=by) == get(database, job_id)

    assert not found()
    attempts.succeed(database, claimed(database, job_id), success)
    assert found()
    assert found(REQUEST.model_copy(update={"options": RequestOptions(reuse=True), "priority": Priority.URGENT}))
    assert not found(REQUEST.model_copy(update={"output": OutputReference(scan=True)}))
    assert not found(sha256="2" * 64)
    for column in dataclasses.asdict(model):
        assert not found(by=dataclasses.replace(model, **{column: "2"}))


def test_the_same_work_of_several_channels_is_found_by_the_options_of_each(database: Database) -> None:
    network = uuid4().hex * 2
    model = job_store.ModelIdentity("ct-tissue", "1", network, "9" * 64, "fp32")

    def request(t1: ChannelReference, **others: ChannelReference) -> SegmentRequest:
        return SegmentRequest(input=InputReference(channels={"T1": t1, **others}), model="ct-tissue")

    plain = ChannelReference(key="a")
    selecting = ChannelReference(bucket="volumes", key="b", series="1.2", select={"EchoTime": 80})
    job_id = uuid4()
    job_store.create(database, job_id, request(plain, FLAIR=selecting))
    attempts.succeed(database, claimed(database, job_id), dataclasses.replace(SUCCESS, model_sha256=network))

    def found(wanted: SegmentRequest) -> bool:
        return job_store.find_same_work(database, wanted, input_sha256="1" * 64, model=model) == get(database, job_id)

    assert found(request(plain, FLAIR=selecting))
    elsewhere = {"bucket": "research", "key": "c"}
    assert found(request(plain.model_copy(update=elsewhere), FLAIR=selecting.model_copy(update=elsewhere)))
    assert not found(request(plain, FLAIR=selecting.model_copy(update={"series": "1.3"})))
    assert not found(request(plain, FLAIR=selecting.model_copy(update={"select": {}})))
    assert not found(request(selecting, FLAIR=plain))
    assert not found(request(plain))
    assert not found(REQUEST)
