"""Rows of finished jobs are deleted after a time, and their results with them if that is asked for."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from click.testing import Result
from jobs_in_process import Request, get, run
from sqlalchemy import func, select, update

from inference_service.contract.result_files import result_files
from inference_service.core.errors import StorageRefused, StorageUnavailable
from inference_service.core.files import Checksum
from inference_service.core.settings import Settings
from inference_service.jobs import job_store, retention
from inference_service.jobs.database import Database
from inference_service.jobs.job_store import Job
from inference_service.jobs.queues.celery_app import make_app
from inference_service.jobs.schema import FINAL_STATES, JobRow, JobState, StoredAttemptRow, TransitionRow
from inference_service.jobs.storage import stored_attempts
from inference_service.jobs.storage.audit import Audit, Finding
from inference_service.jobs.storage.object_storage import Storage
from inference_service.jobs.storage.result_store import ResultStore
from inference_service.worker.sweeper import Sweeper
from inference_service.worker.task import TaskHandler

# No other test has jobs of this age.
AGE = timedelta(days=1000)
OLDER_THAN = timedelta(days=900)


def age(database: Database, job_id: UUID, *, state: JobState | None = None) -> None:
    """Moves the end of a job back, and changes its state on request."""
    values: dict[str, object] = {"finished_at": func.now() - AGE}
    if state is not None:
        values["state"] = state
    with database.begin() as connection:
        connection.execute(update(JobRow).where(JobRow.id == job_id).values(values))


def create(database: Database) -> UUID:
    job_id = uuid4()
    assert job_store.create(database, job_id, None)
    return job_id


def prune(database: Database, *, results: bool = False, limit: int = 1000) -> int:
    return retention.prune(database, older_than=OLDER_THAN, results=results, limit=limit)


def make_removals_due(database: Database) -> None:
    with database.begin() as connection:
        connection.execute(update(StoredAttemptRow).values(remove_after=func.now()))


def remove_objects(database: Database, storage: Storage) -> None:
    """Removes the objects that no row names, as an hour later."""
    make_removals_due(database)
    retention.remove_objects(database, storage, limit_s=60)


def keys_of(storage: Storage, job: Job) -> set[str]:
    assert job.result is not None
    return {key for name, key in job.result.items() if name != "bucket" and storage.exists("masks", key)}


def compare(database: Database, storage: Storage) -> tuple[list[Finding], int]:
    """The findings of the audit, and the number of objects of jobs without a row."""
    audit = Audit(database, storage, bucket="masks", sizes_only=True)
    return list(audit.findings()), audit.without_row


@pytest.fixture
def old_job(handler: TaskHandler, database: Database, request_for_scan: Request) -> Job:
    """A job that succeeded long ago."""
    job = run(handler, database, {**request_for_scan, "output": {"scan": True}})
    assert job.state is JobState.SUCCEEDED
    age(database, job.id)
    return job


def test_finished_jobs_are_pruned_with_their_transitions_and_others_stay(database: Database) -> None:
    finished: dict[JobState, UUID] = {}
    unfinished: dict[JobState, UUID] = {}
    for state in JobState:
        job_id = create(database)
        age(database, job_id, state=state)
        (finished if state in FINAL_STATES else unfinished)[state] = job_id
    recent = create(database)
    job_store.cancel(database, recent)
    try:
        assert prune(database, limit=2) == 2
        assert prune(database) == 1
        assert prune(database) == 0
        assert [job_store.get(database, job_id) for job_id in finished.values()] == [None] * 3
        with database.connection() as connection:
            of_finished = TransitionRow.job_id.in_(finished.values())
            assert connection.execute(select(TransitionRow.id).where(of_finished)).first() is None
        for job_id in (*unfinished.values(), recent):
            assert job_store.get(database, job_id) is not None
            assert job_store.transitions(database, job_id)
    finally:
        for job_id in unfinished.values():
            age(database, job_id, state=JobState.CANCELLED)
        prune(database)


def test_no_row_names_a_result_that_is_pruned(database: Database, storage: Storage, old_job: Job) -> None:
    keys = keys_of(storage, old_job)
    assert len(keys) == 4
    assert prune(database, results=True) == 1
    assert job_store.get(database, old_job.id) is None
    # A failover of Postgres that loses this transaction brings the row back, and finds its objects.
    retention.remove_objects(database, storage, limit_s=60)
    assert keys_of(storage, old_job) == keys
    findings, _ = compare(database, storage)
    assert not [finding for finding in findings if finding.job_id == old_job.id]
    remove_objects(database, storage)
    assert keys_of(storage, old_job) == set()
    with database.connection() as connection:
        of_job = StoredAttemptRow.job_id == old_job.id
        assert connection.execute(select(StoredAttemptRow.lease_token).where(of_job)).first() is None


def test_results_stay_unless_they_are_pruned_too(database: Database, storage: Storage, old_job: Job) -> None:
    keys = keys_of(storage, old_job)
    findings, without_row = compare(database, storage)
    assert prune(database) == 1
    remove_objects(database, storage)
    assert keys_of(storage, old_job) == keys
    assert compare(database, storage) == (findings, without_row + len(keys))


def test_a_result_with_the_keys_of_an_older_version_is_pruned(
    database: Database, storage: Storage, old_job: Job, tmp_path: Path
) -> None:
    prefix = f"study/{uuid4()}"
    store = ResultStore(storage, f"masks/{prefix}", result_files([]))
    for name in ("mask.nii.gz", "report.json", "preview.png"):
        (tmp_path / name).write_bytes(b"x")
    store.store(tmp_path, before_each=lambda: None)
    with database.begin() as connection:
        values = {"result": store.result, "checksums": None}
        connection.execute(update(JobRow).where(JobRow.id == old_job.id).values(values))
    earlier = get(database, old_job.id)
    assert len(keys_of(storage, earlier)) == 3
    assert prune(database, results=True) == 1
    remove_objects(database, storage)
    assert keys_of(storage, earlier) == set()


def test_a_result_that_is_pruned_while_it_is_reused_is_computed_again(
    handler: TaskHandler,
    database: Database,
    storage: Storage,
    request_for_scan: Request,
    old_job: Job,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fetch = Storage.fetch_verified

    def late(self: Storage, bucket: str, key: str, target: Path, expected: Checksum) -> None:
        age(database, earlier.id)
        prune(database, results=True)
        remove_objects(database, storage)
        fetch(self, bucket, key, target, expected)

    # The latest result is taken.
    earlier = run(handler, database, request_for_scan)
    monkeypatch.setattr(Storage, "fetch_verified", late)
    job = run(handler, database, {**request_for_scan, "options": {"reuse": True}})
    assert job_store.get(database, earlier.id) is None
    assert job.state is JobState.SUCCEEDED
    assert job_store.transitions(database, job.id)[-1].detail is None
    assert len(keys_of(storage, job)) == 3


@pytest.mark.parametrize("results", [False, True])
def test_a_worker_prunes_if_its_settings_say_so(
    settings: Settings, database: Database, storage: Storage, old_job: Job, results: bool
) -> None:
    def sweep(**changes: object) -> None:
        sweeper = Sweeper(settings.model_copy(update=changes), make_app(settings), database, storage)
        sweeper.prune()
        make_removals_due(database)
        sweeper.remove_abandoned_objects()

    keys = keys_of(storage, old_job)
    sweep()
    sweep(retention_days=AGE.days + 1)
    assert job_store.get(database, old_job.id) is not None
    sweep(retention_days=OLDER_THAN.days, retention_results=results)
    assert job_store.get(database, old_job.id) is None
    assert keys_of(storage, old_job) == (set() if results else keys)


def test_the_command_prunes_and_reports(
    database: Database, storage: Storage, old_job: Job, command: Callable[..., Result]
) -> None:
    another = create(database)
    age(database, another, state=JobState.FAILED)
    done = command("prune", "--older-than", "900d", "--results", "--json")
    assert (done.exit_code, json.loads(done.output)) == (0, {"jobs": 2})
    remove_objects(database, storage)
    assert keys_of(storage, old_job) == set()
    assert command("prune", "--older-than", "900d").output == "deleted 0 job(s)\n"


def test_a_row_stays_while_a_message_may_come_again(command: Callable[..., Result]) -> None:
    done = command("prune", "--older-than", "59m")
    assert (done.exit_code, "at least 1h" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("error", "delay_s"), [(StorageRefused("AccessDenied"), 3600), (StorageUnavailable("it does not answer"), 30)]
)
def test_objects_that_the_storage_keeps_are_removed_later(
    database: Database,
    storage: Storage,
    old_job: Job,
    monkeypatch: pytest.MonkeyPatch,
    error: StorageUnavailable,
    delay_s: int,
) -> None:
    def refuse(*_: object) -> None:
        raise error

    remove_objects(database, storage)
    prune(database, results=True)
    with monkeypatch.context() as patch:
        patch.setattr(Storage, "remove", refuse)
        with nullcontext() if isinstance(error, StorageRefused) else pytest.raises(StorageUnavailable):
            remove_objects(database, storage)
    left_s = func.extract("epoch", StoredAttemptRow.remove_after - func.now())
    with database.connection() as connection:
        delay = connection.execute(select(left_s).where(StoredAttemptRow.job_id == old_job.id)).scalar_one()
    assert delay_s - 10 < delay <= delay_s
    remove_objects(database, storage)
    assert keys_of(storage, old_job) == set()


def test_workers_do_not_remove_the_same_objects(database: Database, old_job: Job) -> None:
    prune(database, results=True)
    make_removals_due(database)
    taken = list(iter(lambda: stored_attempts.take_abandoned(database), None))
    assert old_job.id in {attempt.job_id for attempt in taken}
    assert stored_attempts.take_abandoned(database) is None


def test_a_removal_ends_after_its_limit(database: Database, storage: Storage, old_job: Job) -> None:
    keys = keys_of(storage, old_job)
    prune(database, results=True)
    make_removals_due(database)
    retention.remove_objects(database, storage, limit_s=0)
    assert keys_of(storage, old_job) == keys
    remove_objects(database, storage)
