"""Locations of results: reserved before the work, never another job's, cleared after a failure."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import numpy as np
import pytest
from jobs_in_process import Request, get, run
from sqlalchemy import text, update

from inference_service.contract.task_message import parse_request
from inference_service.core.errors import (
    DatabaseUnavailable,
    InternalError,
    StorageUnavailable,
)
from inference_service.formats.nifti import write_volume
from inference_service.imaging.geometry import Volume
from inference_service.jobs import attempts, job_store, recovery, reservations
from inference_service.jobs.database import Database
from inference_service.jobs.object_storage import Storage
from inference_service.jobs.result_store import ResultStore
from inference_service.jobs.schema import JobRow, JobState
from inference_service.worker.task import TaskHandler


def other_scan(storage: Storage, folder: Path) -> Request:
    """A scan of bone only, whose mask differs from the phantom's in every voxel."""
    path = folder / "bone.nii.gz"
    write_volume(path, Volume(np.full((20, 21, 22), 500, np.int16), np.diag([1.5, 1.5, 1.5, 1.0])))
    storage.store("volumes", "bone", path, content_type="application/gzip")
    options = {"modality_check": False}
    return {"input": {"bucket": "volumes", "key": "bone"}, "model": "ct-tissue", "options": options}


def stored_mask(storage: Storage, job: job_store.Job, folder: Path) -> bytes:
    assert job.result is not None
    storage.fetch("masks", job.result["mask"], folder / "stored", max_bytes=10**7)
    return (folder / "stored").read_bytes()


def test_results_of_another_job_are_not_overwritten(
    handler: TaskHandler, database: Database, storage: Storage, request_for_scan: Request, tmp_path: Path
) -> None:
    prefix = f"kept/{uuid4()}"
    kept = tmp_path / "kept"
    kept.write_text("somebody's result")
    storage.store("masks", f"{prefix}/report.json", kept, content_type="text/plain")
    job = run(handler, database, {**request_for_scan, "output": {"prefix": prefix}})
    assert (job.state, job.error_code) == (JobState.FAILED, "bad_request")
    storage.fetch("masks", f"{prefix}/report.json", tmp_path / "now", max_bytes=100)
    assert (tmp_path / "now").read_text() == "somebody's result"
    assert not storage.exists("masks", f"{prefix}/mask.nii.gz")


def test_of_two_simultaneous_jobs_with_one_prefix_one_is_rejected(
    make_handler: Callable[..., TaskHandler],
    database: Database,
    storage: Storage,
    request_for_scan: Request,
    tmp_path: Path,
) -> None:
    output = {"output": {"prefix": f"race/{uuid4()}"}}
    requests = [{**request_for_scan, **output}, {**other_scan(storage, tmp_path), **output}]
    alone = [run(make_handler(), database, {**r, "output": {}}) for r in requests]
    with ThreadPoolExecutor(2) as pool:
        ended = list(pool.map(lambda r: run(make_handler(), database, r), requests))
    assert sorted(str(job.state) for job in ended) == ["failed", "succeeded"]
    (winner,) = (index for index, job in enumerate(ended) if job.state is JobState.SUCCEEDED)
    assert ended[1 - winner].error_code == "bad_request"
    assert stored_mask(storage, ended[winner], tmp_path) == stored_mask(storage, alone[winner], tmp_path)


def test_a_later_attempt_does_not_overwrite_another_jobs_result(
    handler: TaskHandler, database: Database, storage: Storage, request_for_scan: Request, tmp_path: Path
) -> None:
    output = {"output": {"prefix": f"second/{uuid4()}"}}
    first = run(handler, database, {**request_for_scan, **output})
    before = stored_mask(storage, first, tmp_path)
    second = {**other_scan(storage, tmp_path), **output}
    job_id = uuid4()
    job_store.create(database, job_id, parse_request(second))
    claim = attempts.claim(database, job_id, worker="w", lease_s=30, max_attempts=3)
    assert claim is not None
    assert attempts.schedule_retry(database, claim, delay_s=0, detail="storage_unavailable")
    handler.handle({"job_id": str(job_id), "request": second}, task_id=str(job_id))
    assert get(database, job_id).error_code == "bad_request"
    assert stored_mask(storage, first, tmp_path) == before


def test_a_finished_job_runs_again_after_the_database_is_restored(
    handler: TaskHandler, database: Database, request_for_scan: Request
) -> None:
    job = run(handler, database, request_for_scan)
    before = {"state": JobState.QUEUED, "attempt": 0, "result_location": None, "result": None, "finished_at": None}
    with database.begin() as connection:
        connection.execute(update(JobRow).where(JobRow.id == job.id).values(before))
    handler.handle({"job_id": str(job.id), "request": request_for_scan}, task_id=str(job.id))
    assert get(database, job.id).result == job.result


def test_a_failed_job_frees_its_prefix(handler: TaskHandler, database: Database, request_for_scan: Request) -> None:
    output = {"output": {"prefix": f"freed/{uuid4()}"}}
    missing = {**request_for_scan, **output, "input": {"bucket": "volumes", "key": "no/such"}}
    assert run(handler, database, missing).error_code == "input_not_found"
    assert run(handler, database, {**request_for_scan, **output}).state is JobState.SUCCEEDED


def test_objects_of_a_failed_job_are_removed(
    handler: TaskHandler,
    database: Database,
    storage: Storage,
    request_for_scan: Request,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = Storage.store

    def half(self: Storage, bucket: str, key: str, *rest: Any, **options: Any) -> None:
        if key.endswith("report.json"):
            raise InternalError("half of it is there")
        store(self, bucket, key, *rest, **options)

    monkeypatch.setattr(Storage, "store", half)
    job = run(handler, database, request_for_scan)
    assert job.error_code == "internal_error"
    assert not storage.exists("masks", f"{job.id}/mask.nii.gz")
    with reservations.clearing(database, job.id, f"masks/{job.id}") as reserved:
        assert not reserved()


def test_the_location_of_a_failed_job_is_free_for_another_job(
    handler: TaskHandler,
    database: Database,
    storage: Storage,
    request_for_scan: Request,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prefix = f"mine/{uuid4()}"
    request = {**request_for_scan, "output": {"prefix": prefix}}
    with monkeypatch.context() as patched:

        def store(self: Storage, bucket: str, key: str, *_: Any, **__: Any) -> None:
            real(self, bucket, key, *_, **__)
            raise InternalError("one of them is there")

        def remove(*_: Any) -> None:
            raise StorageUnavailable("x")

        real = Storage.store
        patched.setattr(Storage, "store", store)
        patched.setattr(Storage, "remove", remove)
        failed = run(handler, database, request)
    assert failed.error_code == "internal_error"
    assert storage.exists("masks", f"{prefix}/mask.nii.gz")
    again = run(handler, database, request)
    assert (again.state, again.error_message) == (JobState.SUCCEEDED, None)
    assert failed.id not in dict(reservations.find_uncleared(database))
    # Cleaning up after the failed job removes nothing of it.
    ResultStore(storage, f"masks/{prefix}").discard(database, failed.id)
    assert storage.exists("masks", f"{prefix}/mask.nii.gz")


def test_clearing_stops_when_the_reservation_is_lost(database: Database) -> None:
    """As when Postgres ends the transaction of a frozen process."""
    job_id = uuid4()
    job_store.create(database, job_id, None)
    claim = attempts.claim(database, job_id, worker="w", lease_s=30, max_attempts=3)
    assert claim is not None
    assert reservations.reserve(database, claim, f"masks/{job_id}")
    attempts.fail(database, claim, InternalError("x"))
    removed: list[str] = []

    class Slow:
        def remove(self, bucket: str, key: str) -> None:
            removed.append(f"{bucket}/{key}")
            with database.begin() as connection:
                connection.execute(
                    text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE state = 'idle in transaction'")
                )

    with pytest.raises(DatabaseUnavailable):
        ResultStore(cast("Storage", Slow()), f"masks/{job_id}").discard(database, job_id)
    assert removed == [f"masks/{job_id}/mask.nii.gz"]
    assert (job_id, f"masks/{job_id}") in reservations.find_uncleared(database)


def test_objects_that_a_lost_attempt_stores_late_are_removed(
    make_handler: Callable[..., TaskHandler],
    database: Database,
    storage: Storage,
    request_for_scan: Request,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job_id = uuid4()
    place = f"masks/{job_id}"
    store = Storage.store

    def late(self: Storage, bucket: str, key: str, *rest: Any, **options: Any) -> None:
        if get(database, job_id).state is JobState.RUNNING:
            assert job_id in {ended.job_id for ended in recovery.return_jobs(database, worker="w", max_attempts=0)}
            ResultStore(self, place).discard(database, job_id)
        store(self, bucket, key, *rest, **options)

    monkeypatch.setattr(Storage, "store", late)
    make_handler().handle({"job_id": str(job_id), "request": request_for_scan}, task_id=str(job_id))
    assert get(database, job_id).error_code == "worker_lost"
    assert storage.exists("masks", f"{job_id}/mask.nii.gz")
    assert (job_id, place) in reservations.find_uncleared(database)
    ResultStore(storage, place).discard(database, job_id)
    assert not storage.exists("masks", f"{job_id}/mask.nii.gz")


def test_a_location_reserved_by_another_job_is_not_cleared(database: Database) -> None:
    first = uuid4()
    second = uuid4()
    place = f"masks/{first}"
    for job_id in (first, second):
        job_store.create(database, job_id, None)
        claim = attempts.claim(database, job_id, worker="w", lease_s=30, max_attempts=3)
        assert claim is not None
        if job_id == first:
            attempts.fail(database, claim, InternalError("x"))
        else:
            assert reservations.reserve(database, claim, place)
    reservations.reserve_for_clearing(database, first, place)
    with reservations.clearing(database, first, place) as is_reserved:
        assert not is_reserved()
