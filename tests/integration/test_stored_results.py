"""Stored results: each attempt has keys of its own, and the row of a job proves the content of its objects."""

import json
import shutil
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock
from uuid import UUID, uuid4

import numpy as np
import pytest
from click.testing import Result
from jobs_in_process import Request, get, run
from minio.error import S3Error, ServerError
from sqlalchemy import delete, func, insert, select, update

from inference_service.client import Client
from inference_service.core.errors import DatabaseUnavailable, InternalError, ResultDamaged, StorageRefused
from inference_service.core.files import Checksum
from inference_service.core.settings import Settings
from inference_service.formats.nifti import write_volume
from inference_service.imaging.geometry import Volume
from inference_service.jobs import attempts, job_store, recovery
from inference_service.jobs.database import Database
from inference_service.jobs.schema import JobRow, JobState, StoredAttemptRow
from inference_service.jobs.storage import stored_attempts
from inference_service.jobs.storage.audit import Audit, Problem
from inference_service.jobs.storage.object_storage import Storage
from inference_service.worker.sweeper import Sweeper
from inference_service.worker.task import TaskHandler

REUSE = {"options": {"reuse": True}}


def other_scan(storage: Storage, folder: Path) -> Request:
    """A scan of bone only, whose mask differs from the phantom's in every voxel."""
    path = folder / "bone.nii.gz"
    write_volume(path, Volume(np.full((20, 21, 22), 500, np.int16), np.diag([1.5, 1.5, 1.5, 1.0])))
    storage.store("volumes", "bone", path, content_type="application/gzip")
    options = {"modality_check": False}
    return {"input": {"bucket": "volumes", "key": "bone"}, "model": "ct-tissue", "options": options}


def result_of(settings: Settings, job: job_store.Job, folder: Path) -> dict[str, bytes]:
    """The files of a job's result, verified by the client."""
    with Client(settings) as client:
        return {path.name: path.read_bytes() for path in client.result(job, folder)}


def key_of(job: job_store.Job, name: str) -> str:
    assert job.result is not None
    return job.result[name]


def keys_of(storage: Storage, job_id: UUID) -> list[str]:
    return [key for key in storage.list_keys("masks") if str(job_id) in key]


def detail(database: Database, job: job_store.Job) -> str | None:
    assert job.state is JobState.SUCCEEDED, job.error_message
    return job_store.transitions(database, job.id)[-1].detail


@pytest.fixture
def hasten_removal(database: Database) -> Callable[[], None]:
    """Makes the removal of all objects of lost attempts due now."""

    def hasten() -> None:
        with database.begin() as connection:
            connection.execute(update(StoredAttemptRow).values(remove_after=func.now()))

    return hasten


@pytest.fixture
def lose_lease(
    database: Database, expire_lease: Callable[[UUID], None], monkeypatch: pytest.MonkeyPatch
) -> Callable[[UUID], None]:
    """Lets the lease of an attempt in this process expire, which renews it no more, as if it were frozen."""
    renew = attempts.renew

    def lose(job_id: UUID) -> None:
        with database.connection() as connection:
            lost = connection.execute(select(JobRow.lease_token).where(JobRow.id == job_id)).scalar_one()

        def renew_others(database: Database, claim: attempts.Claim, **values: Any) -> attempts.Renewal:
            if claim.token == lost:
                return attempts.Renewal(held=True, cancel_requested=False)
            return renew(database, claim, **values)

        monkeypatch.setattr(attempts, "renew", renew_others)
        expire_lease(job_id)

    return lose


def overwrite(storage: Storage, key: str, content: bytes, folder: Path) -> None:
    (folder / "other").write_bytes(content)
    storage.store("masks", key, folder / "other", content_type="application/octet-stream")


def test_two_jobs_with_one_prefix_have_their_own_results(
    handler: TaskHandler,
    database: Database,
    storage: Storage,
    settings: Settings,
    request_for_scan: Request,
    tmp_path: Path,
) -> None:
    output = {"output": {"prefix": f"shared/{uuid4()}"}}
    requests = [request_for_scan, other_scan(storage, tmp_path)]
    alone = [run(handler, database, request) for request in requests]
    together = [run(handler, database, {**request, **output}) for request in requests]
    masks = [result_of(settings, job, tmp_path / str(job.id))["mask.nii.gz"] for job in (*alone, *together)]
    assert masks[2:] == masks[:2]
    assert masks[0] != masks[1]


def test_a_late_request_of_a_lost_attempt_changes_no_result(
    make_handler: Callable[..., TaskHandler],
    database: Database,
    storage: Storage,
    settings: Settings,
    request_for_scan: Request,
    lose_lease: Callable[[UUID], None],
    sweeper: Sweeper,
    hasten_removal: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    job_id = uuid4()
    message = {"job_id": str(job_id), "request": request_for_scan}
    store = Storage.store

    def late(self: Storage, bucket: str, key: str, *rest: Any, **options: Any) -> None:
        """The first attempt's first request arrives after the second attempt's success."""
        monkeypatch.setattr(Storage, "store", store)
        lose_lease(job_id)
        make_handler().handle(message, task_id=str(job_id))
        store(self, bucket, key, *rest, **options)

    monkeypatch.setattr(Storage, "store", late)
    make_handler().handle(message, task_id=str(job_id))
    job = get(database, job_id)
    assert (job.state, job.attempt) == (JobState.SUCCEEDED, 2)
    assert job.result is not None
    files = result_of(settings, job, tmp_path / "result")
    own = sorted(key for name, key in job.result.items() if name != "bucket")
    assert set(keys_of(storage, job_id)) > set(own)
    sweeper.remove_abandoned_objects()
    assert set(keys_of(storage, job_id)) > set(own)
    hasten_removal()
    sweeper.remove_abandoned_objects()
    assert keys_of(storage, job_id) == own
    assert result_of(settings, job, tmp_path / "again") == files


@pytest.mark.parametrize("prefix", [None, "failed/of/a/study"])
def test_objects_of_a_failed_job_are_removed(
    handler: TaskHandler,
    database: Database,
    storage: Storage,
    request_for_scan: Request,
    sweeper: Sweeper,
    hasten_removal: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    prefix: str | None,
) -> None:
    store = Storage.store

    def half(self: Storage, bucket: str, key: str, *rest: Any, **options: Any) -> None:
        if key.endswith("report.json"):
            raise InternalError("half of it is there")
        store(self, bucket, key, *rest, **options)

    monkeypatch.setattr(Storage, "store", half)
    job = run(handler, database, {**request_for_scan, "output": {"prefix": prefix}})
    assert job.error_code == "internal_error"
    assert [key.rpartition("/")[2] for key in keys_of(storage, job.id)] == ["mask.nii.gz"]
    hasten_removal()
    sweeper.remove_abandoned_objects()
    assert keys_of(storage, job.id) == []
    assert stored_attempts.take_abandoned(database) is None


def test_an_attempt_without_its_lease_stores_nothing(
    handler: TaskHandler,
    database: Database,
    storage: Storage,
    request_for_scan: Request,
    lose_lease: Callable[[UUID], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job_id = uuid4()
    record = stored_attempts.record

    def after_another_attempt_began(database: Database, attempt: stored_attempts.StoredAttempt) -> bool:
        lose_lease(job_id)
        assert attempts.claim(database, job_id, worker="another", lease_s=60, max_attempts=3)
        return record(database, attempt)

    monkeypatch.setattr(stored_attempts, "record", after_another_attempt_began)
    handler.handle({"job_id": str(job_id), "request": request_for_scan}, task_id=str(job_id))
    assert (get(database, job_id).state, get(database, job_id).lease_owner) == (JobState.RUNNING, "another")
    assert keys_of(storage, job_id) == []


def test_objects_of_a_running_attempt_are_not_removed(
    database: Database, hasten_removal: Callable[[], None], expire_lease: Callable[[UUID], None]
) -> None:
    job_id = uuid4()
    job_store.create(database, job_id, None)
    claim = attempts.claim(database, job_id, worker="w", lease_s=60, max_attempts=3)
    assert claim is not None
    attempt = stored_attempts.StoredAttempt(claim.token, job_id, f"masks/{job_id}")
    assert stored_attempts.record(database, attempt)
    hasten_removal()
    take = partial(stored_attempts.take_abandoned, database)
    assert attempt not in iter(take, None)
    attempts.fail(database, claim, InternalError("x"))
    hasten_removal()
    assert attempt in iter(take, None)


@pytest.mark.parametrize("end", ["failure", "retry", "expiry", "new-claim"])
def test_objects_are_removed_an_hour_after_their_attempt_has_ended(
    database: Database, hasten_removal: Callable[[], None], expire_lease: Callable[[UUID], None], end: str
) -> None:
    """Not after it began to store: a worker that froze for long may still have requests on the way."""
    job_id = uuid4()
    job_store.create(database, job_id, None)
    take = partial(attempts.claim, database, job_id, worker="w", lease_s=60, max_attempts=3)
    claim = take()
    assert claim is not None
    assert stored_attempts.record(database, stored_attempts.StoredAttempt(claim.token, job_id, f"masks/{job_id}"))
    hasten_removal()
    if end == "failure":
        attempts.fail(database, claim, InternalError("x"))
    elif end == "retry":
        attempts.schedule_retry(database, claim, delay_s=0, detail="x")
    elif end == "expiry":
        expire_lease(job_id)
        recovery.requeue_expired(database, max_attempts=3)
    else:
        expire_lease(job_id)
        assert take() is not None
    with database.connection() as connection:
        is_late = StoredAttemptRow.remove_after > func.now() + timedelta(minutes=59)
        assert connection.execute(select(is_late).where(StoredAttemptRow.lease_token == claim.token)).scalar_one()


def test_an_attempt_is_recorded_once_more_if_the_answer_of_postgres_was_lost(database: Database) -> None:
    job_id = uuid4()
    job_store.create(database, job_id, None)
    claim = attempts.claim(database, job_id, worker="w", lease_s=60, max_attempts=3)
    assert claim is not None
    attempt = stored_attempts.StoredAttempt(claim.token, job_id, f"masks/{job_id}")
    assert stored_attempts.record(database, attempt)
    assert stored_attempts.record(database, attempt)


def test_objects_that_cannot_be_removed_do_not_keep_others_from_being_removed(
    database: Database,
    storage: Storage,
    sweeper: Sweeper,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    locked = [stored_attempts.StoredAttempt(uuid4(), uuid4(), f"masks/locked-{number}") for number in range(50)]
    free = stored_attempts.StoredAttempt(uuid4(), uuid4(), f"masks/free-{uuid4()}")
    free_key = free.location.removeprefix("masks/") + "/mask.nii.gz"
    overwrite(storage, free_key, b"x", tmp_path)
    with database.begin() as connection:
        for number, attempt in enumerate([*locked, free]):
            past = func.now() - timedelta(minutes=1000 - number)
            connection.execute(insert(StoredAttemptRow).values(**vars(attempt), remove_after=past))
    remove = Storage.remove

    def refuse(self: Storage, bucket: str, key: str) -> None:
        if key.startswith("locked-"):
            raise StorageRefused("the object storage refuses: AccessDenied")
        remove(self, bucket, key)

    monkeypatch.setattr(Storage, "remove", refuse)
    for _ in range(3):
        sweeper.remove_abandoned_objects()
    assert not storage.exists("masks", free_key)
    with database.connection() as connection:
        left = set(connection.execute(select(StoredAttemptRow.lease_token)).scalars())
    assert {attempt.lease_token for attempt in locked} <= left
    with database.begin() as connection:
        connection.execute(delete(StoredAttemptRow))


def test_a_finished_job_runs_again_after_the_database_is_restored(
    handler: TaskHandler, database: Database, request_for_scan: Request, settings: Settings, tmp_path: Path
) -> None:
    job = run(handler, database, request_for_scan)
    before = {"state": JobState.QUEUED, "attempt": 0, "result": None, "finished_at": None}
    with database.begin() as connection:
        connection.execute(update(JobRow).where(JobRow.id == job.id).values(before))
    handler.handle({"job_id": str(job.id), "request": request_for_scan}, task_id=str(job.id))
    again = get(database, job.id)
    assert again.result != job.result
    masks = [result_of(settings, each, tmp_path / name)["mask.nii.gz"] for name, each in (("1", job), ("2", again))]
    assert masks[0] == masks[1]


def test_row_and_report_prove_every_object(
    handler: TaskHandler, database: Database, settings: Settings, request_for_scan: Request, tmp_path: Path
) -> None:
    job = run(handler, database, request_for_scan)
    result_of(settings, job, tmp_path)
    files = {"mask": "mask.nii.gz", "report": "report.json", "preview": "preview.png"}
    assert job.checksums == {name: Checksum.of_file(tmp_path / file) for name, file in files.items()}
    report = json.loads((tmp_path / "report.json").read_bytes())
    assert report["checksums"] == {
        file: vars(job.checksums[name]) for name, file in files.items() if file != "report.json"
    }
    manifest = settings.models_path / "ct-tissue" / "1" / "manifest.json"
    assert job.manifest_sha256 == report["model"]["manifest_sha256"] == Checksum.of_file(manifest).sha256
    assert job.precision == report["precision"] == "fp32"


@pytest.mark.parametrize("content", [b"short", b"x" * 10**6, None], ids=["smaller", "larger", "same size"])
def test_the_client_refuses_an_object_that_is_not_the_jobs(
    handler: TaskHandler,
    database: Database,
    storage: Storage,
    settings: Settings,
    request_for_scan: Request,
    command: Callable[..., Result],
    tmp_path: Path,
    content: bytes | None,
) -> None:
    job = run(handler, database, request_for_scan)
    assert job.result is not None
    assert job.checksums is not None
    overwrite(storage, job.result["mask"], content or b"y" * job.checksums["mask"].size_bytes, tmp_path)
    with Client(settings) as client, pytest.raises(ResultDamaged, match=r"mask\.nii\.gz"):
        client.result(job, tmp_path / "result")
    assert list((tmp_path / "result").iterdir()) == []
    outcome = command("result", job.id, "--to", tmp_path / "result")
    assert (outcome.exit_code, "result_damaged" in outcome.output) == (1, True)


def test_results_of_the_version_before_have_no_checksums_and_are_fetched(
    handler: TaskHandler, database: Database, settings: Settings, request_for_scan: Request, tmp_path: Path
) -> None:
    job = run(handler, database, request_for_scan)
    with database.begin() as connection:
        connection.execute(update(JobRow).where(JobRow.id == job.id).values(checksums=None, warnings=None))
    assert get(database, job.id).warnings is None
    assert set(result_of(settings, get(database, job.id), tmp_path)) == {"mask.nii.gz", "report.json", "preview.png"}


def test_a_result_is_reused_with_the_same_content(
    handler: TaskHandler, database: Database, settings: Settings, request_for_scan: Request, tmp_path: Path
) -> None:
    first = run(handler, database, request_for_scan)
    second = run(handler, database, {**request_for_scan, **REUSE})
    assert str(detail(database, second)).startswith("reused ")
    assert first.result != second.result
    assert first.checksums == second.checksums
    assert result_of(settings, second, tmp_path / "2") == result_of(settings, first, tmp_path / "1")


@pytest.mark.parametrize("damage", ["removed", "changed", "refused"])
def test_a_damaged_earlier_result_is_computed_again(
    handler: TaskHandler,
    database: Database,
    storage: Storage,
    request_for_scan: Request,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    damage: str,
) -> None:
    def refuse(*_: object) -> None:
        raise StorageRefused("the object storage denies access (AccessDenied)")

    run(handler, database, request_for_scan)
    if damage == "refused":
        monkeypatch.setattr(Storage, "fetch_verified", refuse)
    for job in job_store.latest(database, job_store.JobFilter([JobState.SUCCEEDED]), limit=1000):
        assert job.result is not None
        if damage == "removed":
            storage.remove("masks", job.result["mask"])
        elif damage == "changed":
            overwrite(storage, job.result["mask"], b"another scan's mask", tmp_path)
    again = run(handler, database, {**request_for_scan, **REUSE})
    assert detail(database, again) is None


def test_a_result_of_another_manifest_or_precision_is_not_reused(
    make_handler: Callable[..., TaskHandler],
    database: Database,
    settings: Settings,
    request_for_scan: Request,
    tmp_path: Path,
) -> None:
    models = tmp_path / "models"
    shutil.copytree(settings.models_path / "ct-tissue", models / "ct-tissue")
    manifest = models / "ct-tissue" / "1" / "manifest.json"
    # A description of its own, so that no other test's results match.
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "description": f"changed {uuid4()}"}))
    handler = make_handler(models_path=models)
    first = run(handler, database, request_for_scan)
    assert detail(database, run(handler, database, {**request_for_scan, **REUSE})) == f"reused {first.id}"
    with database.begin() as connection:
        connection.execute(
            update(JobRow).where(JobRow.manifest_sha256 == first.manifest_sha256).values(precision="bf16")
        )
    assert detail(database, run(handler, database, {**request_for_scan, **REUSE})) is None
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "description": f"changed {uuid4()}"}))
    assert detail(database, run(handler, database, {**request_for_scan, **REUSE})) is None


def test_a_result_is_not_reused_once_the_scan_is_cropped_by_another_model(
    make_handler: Callable[..., TaskHandler],
    database: Database,
    settings: Settings,
    request_for_scan: Request,
    tmp_path: Path,
) -> None:
    def change(name: str, **fields: object) -> None:
        path = tmp_path / "models" / name / "1" / "manifest.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "name": name, **fields}))

    for name in ("ct-tissue", "finder"):
        shutil.copytree(settings.models_path / "ct-tissue", tmp_path / "models" / name)
    change("finder")
    # A description of its own, so that no other test's results match.
    change("ct-tissue", description=f"cropped {uuid4()}", crop={"kind": "model", "model": "finder"})
    handler = make_handler(models_path=tmp_path / "models")
    first = run(handler, database, request_for_scan)
    assert (first.state, first.error_message) == (JobState.SUCCEEDED, None)
    assert detail(database, run(handler, database, {**request_for_scan, **REUSE})) == f"reused {first.id}"
    change("finder", description="changed")
    again = run(handler, database, {**request_for_scan, **REUSE})
    assert (again.state, detail(database, again)) == (JobState.SUCCEEDED, None)


def test_the_audit_finds_missing_changed_and_unclaimed_objects(
    handler: TaskHandler,
    database: Database,
    storage: Storage,
    settings: Settings,
    request_for_scan: Request,
    command: Callable[..., Result],
    sweeper: Sweeper,
    hasten_removal: Callable[[], None],
    tmp_path: Path,
) -> None:
    whole, missing, changed, resized = (run(handler, database, request_for_scan) for _ in range(4))
    size_bytes = (changed.checksums or {})["mask"].size_bytes
    storage.remove("masks", key_of(missing, "preview"))
    overwrite(storage, key_of(changed, "mask"), b"y" * size_bytes, tmp_path)
    overwrite(storage, key_of(resized, "report"), b"{}", tmp_path)
    recorded = stored_attempts.StoredAttempt(uuid4(), uuid4(), f"masks/{uuid4()}")
    unclaimed = f"study/{whole.id}/2-{uuid4().hex}/mask.nii.gz"
    to_be_removed = f"study/{recorded.job_id}/1-{recorded.lease_token.hex}/mask.nii.gz"
    for key in (unclaimed, to_be_removed, "notes/mask.nii.gz"):
        overwrite(storage, key, b"x", tmp_path)
    with database.begin() as connection:
        connection.execute(insert(StoredAttemptRow).values(**vars(recorded), remove_after=func.now()))

    def findings(*, sizes_only: bool) -> set[tuple[Problem, str]]:
        found = Audit(database, storage, bucket="masks", sizes_only=sizes_only).findings()
        jobs = {whole.id, missing.id, changed.id, resized.id, recorded.job_id}
        return {(finding.problem, finding.key) for finding in found if finding.job_id in jobs}

    by_size = {
        (Problem.MISSING, key_of(missing, "preview")),
        (Problem.CHANGED, key_of(resized, "report")),
        (Problem.UNCLAIMED, unclaimed),
    }
    assert findings(sizes_only=True) == by_size
    assert findings(sizes_only=False) == by_size | {(Problem.CHANGED, key_of(changed, "mask"))}
    outcome = command("audit", "--json")
    assert outcome.exit_code == 1
    *found, figures = map(json.loads, outcome.output.splitlines())
    assert unclaimed in {finding["key"] for finding in found}
    assert figures["findings"] == len(found)
    for arguments in ([], ["--remove-unclaimed"]):
        lines = command("audit", "--sizes-only", *arguments).output.splitlines()
        assert f"unclaimed  masks/{unclaimed} of job {whole.id}" in lines
    assert (Problem.UNCLAIMED, unclaimed) not in findings(sizes_only=True)
    assert storage.exists("masks", unclaimed)
    hasten_removal()
    sweeper.remove_abandoned_objects()
    assert not storage.exists("masks", unclaimed)
    assert storage.exists("masks", key_of(whole, "mask"))


def test_the_audit_yields_what_it_has_found_and_survives_outages(
    handler: TaskHandler,
    database: Database,
    settings: Settings,
    request_for_scan: Request,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    jobs = {run(handler, database, request_for_scan).id for _ in range(3)}
    storage = Storage(settings, retry_for_s=60)
    stat_object = storage._minio.stat_object
    begin = Database.connection
    storage_outages = iter([True, True, False, True])
    database_outages = iter([True, False, True])

    def stat(bucket: str, key: str) -> Any:
        if next(storage_outages, False):
            raise ServerError("x", 503)
        if key.endswith("mask.nii.gz"):
            raise S3Error(Mock(status=403), "AccessDenied", None, None, None, None)
        return stat_object(bucket, key)

    def connection(self: Database) -> Any:
        if next(database_outages, False):
            raise DatabaseUnavailable("it restarts")
        return begin(self)

    monkeypatch.setattr(storage._minio, "stat_object", stat)
    monkeypatch.setattr(Database, "connection", connection)
    monkeypatch.setattr("inference_service.jobs.storage.audit._JOBS_AT_ONCE", 1)
    audit = Audit(database, storage, bucket="masks", sizes_only=True, outage_patience_s=60)
    findings = audit.findings()
    first = next(findings)
    assert (first.problem, audit.jobs) == (Problem.REFUSED, 1)
    assert jobs <= {first.job_id, *(finding.job_id for finding in findings if finding.problem is Problem.REFUSED)}
