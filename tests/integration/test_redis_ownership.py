"""Deployments that share a Redis, and workers of one deployment with different ones, against real servers."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from click.testing import Result
from redis import Redis
from sqlalchemy import func, select, update

from inference_service.client import Client
from inference_service.contract.task_message import InputReference, SegmentRequest
from inference_service.core.errors import ConfigurationError, OtherRedisInUse
from inference_service.core.scratch_space import ScratchSpace
from inference_service.core.settings import Settings
from inference_service.jobs import job_store
from inference_service.jobs.database import Database, connect, migrate
from inference_service.jobs.queues.celery_app import App, make_app
from inference_service.jobs.queues.redis_state import RedisState, fetch_redis_state, owner_key
from inference_service.jobs.queues.waiting_jobs import find_waiting_jobs
from inference_service.jobs.redis_ownership import RedisOwnership
from inference_service.jobs.schema import JobRow, JobState, WorkerRow
from inference_service.jobs.workers.worker_registry import Role, WorkerIdentity, record_heartbeat
from inference_service.worker.deployment import take_redis
from inference_service.worker.self_test import SelfTest
from inference_service.worker.supervisor import Supervisor

REQUEST = SegmentRequest(input=InputReference(key="ct/1.nii.gz"), model="ct-tissue")
LIVE_S = 30.0


@pytest.fixture
def own(empty_database: Settings, redis: Redis) -> Settings:
    """Settings of a deployment with a database of its own."""
    migrate(empty_database)
    return empty_database


@pytest.fixture
def other(own: Settings, settings: Settings) -> Settings:
    """Settings of another deployment, with the same Redis."""
    return settings


@pytest.fixture
def app(own: Settings) -> Iterator[App]:
    with closing(make_app(own)) as app:
        yield app


@pytest.fixture
def own_database(own: Settings) -> Iterator[Database]:
    with closing(connect(own)) as database:
        yield database


@pytest.fixture
def ownership(own: Settings) -> Iterator[Callable[..., RedisOwnership]]:
    """Makes the ownership of a worker that has just reported itself, or of a client."""
    with ExitStack() as stack:

        def make(settings: Settings = own, *, worker: str | None = None) -> RedisOwnership:
            app = stack.enter_context(closing(make_app(settings)))
            database = stack.enter_context(closing(connect(settings)))
            if worker is not None:
                record_heartbeat(database, WorkerIdentity(worker, Role.CPU, 1, []), queues=["overflow"])
            return RedisOwnership(app, database, live_within_s=LIVE_S, worker=worker)

        yield make


def changed(settings: Settings, **changes: object) -> Settings:
    return Settings.model_validate({**settings.model_dump(), **changes})


def fall_silent(database: Database, worker: str, *, since_s: float = 2 * LIVE_S) -> None:
    """Moves a worker's last heartbeat: by default so far back that the worker counts as dead."""
    seen_at = func.now() - timedelta(seconds=since_s)
    with database.begin() as connection:
        connection.execute(update(WorkerRow).where(WorkerRow.name == worker).values(seen_at=seen_at))


def test_prefixes_keep_the_messages_of_deployments_apart(own: Settings, redis: Redis) -> None:
    with Client(changed(own, redis_prefix="ward:")) as client:
        job_id = client.submit(REQUEST)
    assert redis.keys("*") == [b"ward:overflow"]
    for prefix, depth, waiting in (("ward:", 1, {job_id}), ("", 0, set()), ("other:", 0, set())):
        with closing(make_app(changed(own, redis_prefix=prefix))) as app:
            assert fetch_redis_state(app).depths == {"priority": 0, "overflow": depth}
            assert find_waiting_jobs(app, taken_within_s=60) == waiting


def test_a_redis_belongs_to_the_deployment_whose_worker_comes_first(
    app: App, other: Settings, redis: Redis, ownership: Callable[..., RedisOwnership]
) -> None:
    state = fetch_redis_state(app)
    assert state.owner is None
    own_worker, other_worker = ownership(), ownership(other)
    own_worker.claim(state)
    # Both saw it without an owner.
    other_worker.claim(state)
    state = fetch_redis_state(app)
    assert state.owner == str(own_worker.deployment_id)
    own_worker.claim(state)
    with pytest.raises(ConfigurationError, match=r"belongs to another deployment.*REDIS_PREFIX") as caught:
        other_worker.claim(state)
    assert caught.value.message.endswith(f"delete the key {owner_key(app)}")
    redis.delete(owner_key(app))
    other_worker.claim(fetch_redis_state(app))
    with pytest.raises(ConfigurationError):
        own_worker.verify(fetch_redis_state(app))


def test_a_client_refuses_the_redis_of_another_deployment(
    app: App, own: Settings, own_database: Database, other: Settings, ownership: Callable[..., RedisOwnership]
) -> None:
    with Client(own) as client:
        client.submit(REQUEST)
        ownership(other).claim(fetch_redis_state(app))
        with pytest.raises(ConfigurationError, match="belongs to another deployment"):
            client.submit(REQUEST)
    assert job_store.count(own_database) == 1
    assert fetch_redis_state(app).depths["overflow"] == 1


@pytest.mark.parametrize("elsewhere", [{"prefix": "ward:"}, {"number": 1}, {"run": "a copy"}], ids=str)
def test_workers_of_one_deployment_use_one_redis(
    own: Settings, own_database: Database, ownership: Callable[..., RedisOwnership], elsewhere: dict[str, Any]
) -> None:
    here, there = state_of(own), state_of(own, **elsewhere)
    assert here.place != there.place
    first, second, client = ownership(worker="first"), ownership(worker="second"), ownership()
    client.require_common(there)
    first.adopt(here)
    for refused in (second.adopt, second.require_common, client.require_common):
        with pytest.raises(OtherRedisInUse, match="give all the same REDIS_URL and REDIS_PREFIX"):
            refused(there)
    first.adopt(here)
    second.adopt(here)
    fall_silent(own_database, "first")
    with pytest.raises(OtherRedisInUse):
        client.require_common(there)
    # The last one alive takes its Redis along.
    second.adopt(there)
    client.require_common(there)
    with pytest.raises(OtherRedisInUse):
        first.adopt(here)


def state_of(settings: Settings, *, prefix: str = "", number: int = 0, run: str | None = None) -> RedisState:
    """The state of a Redis, as far as it matters here."""
    url = settings.broker_url.rpartition("/")[0]
    with closing(make_app(changed(settings, redis_prefix=prefix, redis_url=f"{url}/{number}"))) as app:
        state = fetch_redis_state(app)
    return state if run is None else replace(state, run_id=run, place=f"run {run}, database 0, prefix ''")


def test_a_restarted_redis_is_adopted_once_all_workers_have_seen_it(
    own: Settings, ownership: Callable[..., RedisOwnership]
) -> None:
    before, after = state_of(own, run="before"), state_of(own, run="after")
    first, second = ownership(worker="first"), ownership(worker="second")
    for worker in (first, second):
        worker.adopt(before)
    with pytest.raises(OtherRedisInUse):
        first.adopt(after)
    second.adopt(after)
    first.adopt(after)


def test_a_job_waits_in_postgres_if_the_workers_use_another_redis(
    app: App, own: Settings, own_database: Database, ownership: Callable[..., RedisOwnership]
) -> None:
    ownership(worker="w").adopt(state_of(own, prefix="ward:"))
    with Client(own) as client:
        job = client.status(client.submit(REQUEST))
        assert job is not None
        assert (job.state, job.queue, fetch_redis_state(app).depths["overflow"]) == (JobState.QUEUED, None, 0)
        fall_silent(own_database, "w")
        client.submit(REQUEST)
        assert fetch_redis_state(app).depths["overflow"] == 1


@pytest.fixture
def supervisor(own: Settings, redis: Redis, tmp_path: Path) -> Iterator[Supervisor]:
    """The supervisor of a worker, whose sweeps the test makes."""
    with closing(ScratchSpace(tmp_path)) as scratch_space:
        supervisor = Supervisor(
            own.model_copy(update={"lease_s": 0.001}),
            WorkerIdentity("w", Role.CPU, 1, []),
            scratch_space,
            SelfTest(own, scratch_space.path, worker="w"),
            consumed_queues=lambda: ["overflow"],
            messages_taken=lambda: None,
        )
        yield supervisor
        supervisor.stop()


def test_a_sweep_sends_nothing_to_a_redis_that_other_workers_do_not_use(
    app: App,
    own: Settings,
    own_database: Database,
    supervisor: Supervisor,
    ownership: Callable[..., RedisOwnership],
) -> None:
    job_store.create(own_database, uuid4(), REQUEST)
    with own_database.begin() as connection:
        connection.execute(update(JobRow).values(created_at=func.now() - timedelta(hours=1)))
    ownership(worker="another").adopt(state_of(own, run="another"))
    supervisor._sweep()
    assert fetch_redis_state(app).depths["overflow"] == 0
    fall_silent(own_database, "another")
    supervisor._sweep()
    assert fetch_redis_state(app).depths["overflow"] == 1
    with own_database.connection() as connection:
        place = connection.execute(select(WorkerRow.redis).where(WorkerRow.name == "w")).scalar_one()
    assert place == fetch_redis_state(app).place


def test_a_worker_stops_if_another_deployment_has_taken_its_redis(
    app: App,
    other: Settings,
    supervisor: Supervisor,
    ownership: Callable[..., RedisOwnership],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    signals: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda *args: signals.append(args))
    supervisor._sweep()
    assert not signals
    with Redis.from_url(other.broker_url) as redis:
        redis.flushdb()
    ownership(other).claim(fetch_redis_state(app))
    supervisor._sweep()
    assert signals == [(os.getpid(), signal.SIGTERM)]
    assert supervisor.gave_up
    assert "belongs to another deployment" in caplog.text


def test_a_worker_takes_its_redis_before_it_starts(
    app: App, own: Settings, own_database: Database, other: Settings, ownership: Callable[..., RedisOwnership]
) -> None:
    take_redis(own)
    assert fetch_redis_state(app).owner == str(ownership().deployment_id)
    with pytest.raises(ConfigurationError):
        take_redis(other)
    ownership(worker="w").adopt(state_of(own, run="another"))
    fall_silent(own_database, "w", since_s=-3600)
    with pytest.raises(OtherRedisInUse):
        take_redis(own.model_copy(update={"cpu_standby_s": 0.01}))


def test_the_commands_say_that_a_redis_is_not_this_deployments(
    app: App, own: Settings, other: Settings, ownership: Callable[..., RedisOwnership], command: Callable[..., Result]
) -> None:
    ownership(own).claim(fetch_redis_state(app))
    checked = command("check")
    assert checked.exit_code == 4
    (line,) = [line for line in checked.output.splitlines() if line.startswith("redis ")]
    assert "NOT USABLE: this Redis belongs to another deployment" in line
    submitted = command("submit", "s3://volumes/scan", "--model", "ct-tissue")
    assert submitted.exit_code == 1
    assert submitted.stderr.startswith("error: internal_error: this Redis belongs to another deployment")
    done = subprocess.run(
        [sys.executable, "-m", "inference_service", "worker", "--role", "cpu"],
        env={**os.environ, "ONNX_PROVIDERS": '["CPUExecutionProvider"]'},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: internal_error: this Redis belongs to another deployment")


def test_a_client_sends_to_a_redis_that_was_restarted_with_its_data(
    app: App, own: Settings, ownership: Callable[..., RedisOwnership]
) -> None:
    worker = ownership(worker="w")
    worker.claim(fetch_redis_state(app))
    worker.adopt(state_of(own, run="before the restart"))
    with Client(own) as client:
        client.submit(REQUEST)
    assert fetch_redis_state(app).depths["overflow"] == 1
