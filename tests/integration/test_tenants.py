"""Tenants share the queues."""

import os
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from kombu import Connection, Consumer, Message
from redis import Redis
from sqlalchemy import func, update

from inference_service.client import Client
from inference_service.contract.task_message import InputReference, Priority, SegmentRequest
from inference_service.core.errors import BadRequest
from inference_service.core.settings import Settings
from inference_service.jobs.database import Database
from inference_service.jobs.queues.celery_app import make_app
from inference_service.jobs.queues.lists import all_lists
from inference_service.jobs.queues.redis_state import fetch_redis_state
from inference_service.jobs.queues.waiting_jobs import find_waiting_jobs
from inference_service.jobs.schema import JobRow
from inference_service.jobs.storage.object_storage import Storage
from inference_service.jobs.workers.worker_registry import Role, WorkerIdentity, deregister, record_heartbeat
from inference_service.worker.messages.redis_transport import Turns
from inference_service.worker.sweeper import Sweeper

REQUEST = SegmentRequest(input=InputReference(key="ct/1.nii.gz"), model="ct-tissue")
URGENT = REQUEST.model_copy(update={"priority": Priority.URGENT})
REDIS_USERS = Path(__file__).parents[2] / "deploy/identities/redis-users.sh"
SHARES = {"radiology": 3, "research": 1}

pytestmark = pytest.mark.usefixtures("no_jobs")


@pytest.fixture
def shared(settings: Settings, redis: Redis) -> Settings:
    return settings.model_copy(update={"tenants": SHARES})


@pytest.fixture
def client(shared: Settings) -> Iterator[Client]:
    with Client(shared) as client:
        yield client


@pytest.fixture
def taken(shared: Settings) -> Iterator["Taken"]:
    with closing(Taken(shared)) as taken:
        yield taken


class Taken:
    """The messages that a worker has taken, without the rest of the worker."""

    def __init__(self, settings: Settings) -> None:
        app = make_app(settings)
        self._connection = Connection(
            settings.broker_url,
            transport="inference_service.worker.messages.redis_transport:Transport",
            transport_options=app.conf.broker_transport_options,
        )
        self.messages: list[Message] = []
        queues = [queue for queue in app.conf.task_queues if queue.name in ("priority", "overflow")]
        self._consumer = Consumer(
            self._connection.channel(), queues, on_message=self.messages.append, accept=["json"]
        ).__enter__()

    def take(self, count: int) -> list[Message]:
        """Takes this many messages."""
        first = len(self.messages)
        while len(self.messages) < first + count:
            self._connection.drain_events(timeout=30)
        return self.messages[first:]

    def close(self) -> None:
        self._consumer.__exit__(None, None, None)
        self._connection.close()


def tenant_of(message: Message) -> str | None:
    _, arguments, _ = message.decode()
    tenant: str | None = arguments.get("tenant")
    return tenant


def test_a_tenant_with_many_jobs_does_not_starve_the_others(client: Client, taken: Taken) -> None:
    for _ in range(40):
        client.submit(REQUEST, tenant="radiology")
    for _ in range(4):
        client.submit(REQUEST, tenant="research")
        client.submit(REQUEST)
    assert Counter(map(tenant_of, taken.take(20))) == {"radiology": 12, "research": 4, None: 4}
    assert {tenant_of(message) for message in taken.take(28)} == {"radiology"}


def test_urgent_jobs_of_any_tenant_come_first(client: Client, taken: Taken) -> None:
    for _ in range(3):
        client.submit(REQUEST, tenant="radiology")
    urgent = client.submit(URGENT, tenant="research")
    assert taken.take(1)[0].headers["id"] == str(urgent)


def test_unused_shares_go_to_the_others() -> None:
    turns = Turns({"radiology": 3, "research": 1, "idle": 5})
    served: Counter[str | None] = Counter()
    for _ in range(40):
        # Messages without a tenant, and those of a tenant, are all gone.
        tenant = next(each for each in turns.order() if each not in (None, "idle"))
        turns.taken(tenant)
        served[tenant] += 1
    assert served == {"radiology": 30, "research": 10}


def test_a_message_goes_back_to_the_list_of_its_tenant(client: Client, taken: Taken, redis: Redis) -> None:
    client.submit(REQUEST, tenant="research")
    (message,) = taken.take(1)
    assert redis.llen("overflow.research") == 0
    message.reject(requeue=True)
    assert redis.llen("overflow.research") == 1


def test_the_job_has_its_tenant_and_the_list_of_its_message(client: Client, shared: Settings, redis: Redis) -> None:
    job = client.status(client.submit(URGENT, tenant="research"))
    assert job is not None
    assert (job.tenant, job.queue) == ("research", "priority.research")
    with closing(make_app(shared)) as app:
        assert fetch_redis_state(app).depths == dict.fromkeys(all_lists(SHARES), 0) | {"priority.research": 1}
        assert find_waiting_jobs(app, taken_within_s=60) == {job.id}


def test_the_tenant_of_a_client_is_a_setting(settings: Settings, redis: Redis) -> None:
    with Client(settings.model_copy(update={"tenant": "research"})) as client:
        job = client.status(client.submit(REQUEST))
        with pytest.raises(BadRequest, match="tenant 'radiology' is not in TENANTS"):
            client.submit(REQUEST, tenant="radiology")
    assert job is not None
    assert (job.tenant, job.queue, redis.llen("overflow.research")) == ("research", "overflow.research", 1)


@pytest.fixture
def sweeper(shared: Settings, database: Database, storage: Storage) -> Iterator[Sweeper]:
    with closing(make_app(shared)) as app:
        yield Sweeper(shared, app, database, storage)


def sweep(sweeper: Sweeper, shared: Settings) -> None:
    with closing(make_app(shared)) as app:
        sweeper.send_missing_messages(fetch_redis_state(app))


def test_a_job_of_a_tenant_that_the_workers_do_not_know_is_run_all_the_same(
    shared: Settings, database: Database, redis: Redis, sweeper: Sweeper
) -> None:
    with Client(shared.model_copy(update={"tenants": {}, "tenant": "unknown"})) as client:
        job_id = client.submit(REQUEST)
    sweep(sweeper, shared)
    assert redis.llen("overflow") == 0
    long_ago(database, job_id)
    sweep(sweeper, shared)
    assert redis.llen("overflow") == 1


def test_a_message_that_redis_has_lost_is_sent_to_its_tenants_list_again(
    client: Client, shared: Settings, database: Database, redis: Redis, sweeper: Sweeper
) -> None:
    long_ago(database, client.submit(REQUEST, tenant="radiology"))
    sweep(sweeper, shared)
    assert redis.llen("overflow.radiology") == 1
    redis.flushdb()
    sweep(sweeper, shared)
    assert redis.llen("overflow.radiology") == 1


def long_ago(database: Database, job_id: UUID) -> None:
    past = func.now() - timedelta(hours=1)
    with database.begin() as connection:
        connection.execute(update(JobRow).where(JobRow.id == job_id).values(created_at=past, dispatched_at=past))


def test_the_depth_of_a_queue_counts_all_tenants(settings: Settings, database: Database, redis: Redis) -> None:
    limited = settings.model_copy(update={"tenants": SHARES, "priority_max_depth": 2})
    record_heartbeat(database, WorkerIdentity("w", Role.CPU, 1, []), queues=["overflow"])
    with Client(limited) as client:
        jobs = [client.submit(URGENT, tenant=tenant) for tenant in ("radiology", "research", "research")]
        queues = [job.queue for job_id in jobs if (job := client.status(job_id)) is not None]
    deregister(database, "w")
    assert queues == ["priority.radiology", "priority.research", "overflow.research"]


@pytest.fixture
def confined(settings: Settings, redis: Any, tmp_path: Path) -> Iterator[Settings]:
    """The settings of an upstream that `redis-users.sh` confines to one tenant."""
    for identity, password in (("admin", "a"), ("upstream_research", "p")):
        (tmp_path / f"redis_{identity}_password").write_text(password)
    environment = {**os.environ, "SECRETS_PATH": str(tmp_path)}
    done = subprocess.run([REDIS_USERS], env=environment, capture_output=True, text=True, check=True)
    (rules,) = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("user upstream-research ")]
    redis.execute_command("ACL", "SETUSER", *rules)
    address = settings.broker_url.rpartition("@")[2]
    yield Settings.model_validate(
        {
            **settings.model_dump(),
            "redis_url": f"redis://upstream-research@{address}",
            "redis_password": "p",
            "tenant": "research",
        }
    )
    redis.acl_deluser("upstream-research")


def test_an_upstream_can_be_confined_to_its_tenant(confined: Settings, redis: Redis) -> None:
    with Client(confined) as client:
        jobs = [client.status(client.submit(request)) for request in (REQUEST, URGENT)]
    assert [job and job.queue for job in jobs] == ["overflow.research", "priority.research"]
    with Client(confined.model_copy(update={"tenant": "radiology"})) as client:
        job = client.status(client.submit(REQUEST))
    # The job waits in Postgres: Redis refused its message.
    assert job is not None
    assert job.queue is None
    assert redis.llen("overflow.radiology") == 0
