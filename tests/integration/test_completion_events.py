"""The stream of jobs that have ended."""

import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from jobs_in_process import claim
from redis import Redis
from sqlalchemy import func, select, update

from inference_service.contract.task_message import InputReference, SegmentRequest
from inference_service.core.errors import InputCorrupt
from inference_service.core.files import Checksum
from inference_service.core.settings import Settings
from inference_service.jobs import attempts, completion_events, job_store
from inference_service.jobs.completion_events import STREAM, publish_completions
from inference_service.jobs.database import Database
from inference_service.jobs.queues.celery_app import App
from inference_service.jobs.schema import TransitionRow
from inference_service.jobs.storage.object_storage import Storage
from inference_service.worker.sweeper import Sweeper

REQUEST = SegmentRequest(input=InputReference(key="ct/1.nii.gz"), model="ct-tissue")

pytestmark = pytest.mark.usefixtures("no_jobs")


@pytest.fixture
def redis(settings: Settings) -> Iterator[Redis]:
    """Redis without events. Answers are decoded."""
    with Redis.from_url(settings.broker_url, decode_responses=True) as redis:
        redis.delete(STREAM)
        yield redis
        redis.delete(STREAM)


def ended(database: Database, *, ago: timedelta = timedelta(minutes=1)) -> UUID:
    """A job that has failed some time ago."""
    job_id = uuid4()
    job_store.create(database, job_id, REQUEST, submitted_by="pacs")
    attempts.fail(database, claim(database, job_id), InputCorrupt("x"))
    with database.begin() as connection:
        past = update(TransitionRow).where(TransitionRow.job_id == job_id)
        connection.execute(past.values(at=func.now() - ago))
    return job_id


def events(redis: Any) -> list[dict[str, str]]:
    return [fields for _, fields in redis.xrange(STREAM)]


def published(redis: Redis) -> list[str]:
    return [event["job_id"] for event in events(redis)]


def test_each_end_of_a_job_is_published_once(app: App, database: Database, redis: Redis) -> None:
    jobs = [ended(database)]
    job_store.create(database, uuid4(), REQUEST)
    assert publish_completions(app, database) == 1
    jobs.append(ended(database))
    assert publish_completions(app, database) == 1
    assert publish_completions(app, database) == 0
    assert published(redis) == [str(job_id) for job_id in jobs]
    event, *_ = events(redis)
    transition = event.pop("transition")
    at = datetime.fromisoformat(event.pop("at"))
    assert event == {
        "job_id": str(jobs[0]),
        "state": "failed",
        "error_code": "input_corrupt",
        "result": "",
        "checksums": "",
        "warnings": "",
        "attempt": "1",
        "submitted_by": "pacs",
    }
    with database.connection() as connection:
        written = select(TransitionRow.id, TransitionRow.at).where(TransitionRow.job_id == jobs[0])
        assert (int(transition), at) == connection.execute(written.order_by(TransitionRow.id.desc())).first()


def test_the_event_of_a_success_says_where_the_result_is(app: App, database: Database, redis: Redis) -> None:
    job_id = uuid4()
    job_store.create(database, job_id, REQUEST)
    success = attempts.Success(
        input_sha256="4" * 64,
        model_name="ct-tissue",
        model_version="1",
        model_sha256="5" * 64,
        manifest_sha256="6" * 64,
        precision="fp32",
        providers=[],
        warnings=[{"code": "single_slice", "message": "the scan is a single slice"}],
        timings_s={},
        result={"bucket": "masks", "mask": f"{job_id}/1-a/mask.nii.gz"},
        checksums={"mask": Checksum("7" * 64, 9)},
    )
    assert attempts.succeed(database, claim(database, job_id), success)
    publish_completions(app, database)
    (event,) = events(redis)
    assert (event["state"], event["error_code"]) == ("succeeded", "")
    assert json.loads(event["result"]) == success.result
    assert json.loads(event["warnings"]) == success.warnings
    assert json.loads(event["checksums"]) == {"mask": {"sha256": "7" * 64, "size_bytes": 9}}


def test_a_cancelled_job_is_published(app: App, database: Database, redis: Redis) -> None:
    job_id = uuid4()
    job_store.create(database, job_id, REQUEST)
    job_store.cancel(database, job_id)
    publish_completions(app, database)
    (event,) = events(redis)
    assert (event["job_id"], event["state"], event["error_code"]) == (str(job_id), "cancelled", "cancelled")


def test_no_end_is_left_out_that_is_committed_after_a_later_one(
    app: App, database: Database, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(completion_events, "_LONGEST_WAIT_S", 0.1)
    early, late = ended(database), ended(database)
    redis.delete(STREAM)
    with database.begin() as connection:
        # As if it was numbered before the other, and is committed now.
        first = select(func.min(TransitionRow.id)).where(
            TransitionRow.job_id == early, TransitionRow.to_state == "failed"
        )
        transition_id = connection.execute(first).scalar_one()
        connection.execute(update(TransitionRow).where(TransitionRow.id == transition_id).values(detail="late"))
        assert publish_completions(app, database) == 0
    assert publish_completions(app, database) == 2
    assert published(redis) == [str(early), str(late)]


def test_an_empty_stream_begins_with_the_last_hour(app: App, database: Database, redis: Redis) -> None:
    ended(database, ago=timedelta(hours=2))
    recent = ended(database)
    publish_completions(app, database)
    assert published(redis) == [str(recent)]


def test_a_database_restored_from_a_backup_is_published_from_the_last_hour_on(
    app: App, database: Database, redis: Redis
) -> None:
    redis.xadd(STREAM, {"transition": str(2**40)})
    recent = ended(database)
    publish_completions(app, database)
    assert events(redis)[-1]["job_id"] == str(recent)


def test_the_stream_is_bounded(app: App, database: Database, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completion_events, "_MAX_EVENTS", 1)
    monkeypatch.setattr(completion_events, "_EVENTS_AT_ONCE", 150)
    for _ in range(150):
        redis.xadd(STREAM, {"transition": "0"})
    ended(database)
    publish_completions(app, database)
    assert redis.xlen(STREAM) < 150


def test_events_are_off_by_default(
    app: App, settings: Settings, database: Database, storage: Storage, redis: Redis
) -> None:
    ended(database)
    Sweeper(settings, app, database, storage).publish_completions()
    assert not redis.exists(STREAM)
    on = settings.model_copy(update={"completion_events": True})
    Sweeper(on, app, database, storage).publish_completions()
    assert redis.xlen(STREAM) == 1
