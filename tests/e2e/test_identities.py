"""The service runs with the least-privileged identities of `deploy/identities` alone, and they can do no more.

Redis and Postgres enforce their own rights here. The S3 policies are enforced by a proxy, `s3_policies`.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import psycopg2
import pytest
import yaml
from celery import Celery
from faults import LIMIT_S, PERIODS, wait_for
from gateway_server import served
from identities import REPOSITORY, Identities, create_postgres_roles, created
from psycopg2.errors import InsufficientPrivilege
from redis import Redis
from redis.exceptions import AuthenticationError, NoPermissionError, ResponseError
from sqlalchemy import func, update

from inference_service import Client, Priority, SegmentRequest
from inference_service.contract.task_message import InputReference, RequestOptions
from inference_service.core.errors import StorageRefused
from inference_service.core.settings import Settings
from inference_service.embedded.servers import start_servers
from inference_service.embedded.service_process import WorkerProcess, start_worker
from inference_service.embedded.stack import settings_for
from inference_service.gateway.submission.upload_sweep import sweep_uploads
from inference_service.jobs.database import connect
from inference_service.jobs.gateway import uploads
from inference_service.jobs.job_store import Job
from inference_service.jobs.queues.celery_app import make_app
from inference_service.jobs.queues.redis_state import fetch_redis_state
from inference_service.jobs.schema import JobState, UploadRow
from inference_service.jobs.storage.object_storage import Storage
from inference_service.worker.deployment import check, prepare

MODEL = "ct-tissue"
TRACE = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "tracestate": "vendor=a"}
# Of KEDA's Redis scaler.
LENGTH_BY_TYPE = """
local command = {list = 'llen', none = 'llen'}
return redis.call(command[redis.call('type', KEYS[1]).ok], KEYS[1])
"""


@pytest.fixture(scope="module")
def identities(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Identities]:
    """Servers whose schema and buckets were made by the identity of `migrate`."""
    folder = tmp_path_factory.mktemp("identities")
    with start_servers(folder / "servers", durable=False) as servers, created(servers, folder) as made:
        prepare(made.settings("migrate"))
        yield made


@pytest.fixture(scope="module")
def worker(identities: Identities, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    folder = tmp_path_factory.mktemp("worker")
    with start_worker("cpu", {**PERIODS, **identities.environment("worker")}, folder=folder) as running:
        running.wait_until_ready()
        yield running


@pytest.fixture
def upstream(identities: Identities) -> Iterator[Client]:
    with Client(identities.settings("upstream")) as client:
        yield client


@pytest.fixture
def nothing_refused(identities: Identities) -> Iterator[None]:
    """Checks that Redis refuses nothing meanwhile. The name and version of a client are no right that it needs."""
    with identities.redis("default") as administrator:
        administrator.acl_log_reset()
        yield
        refused = {(entry["username"], entry["object"]) for entry in administrator.acl_log()}
    assert {(name, command) for name, command in refused if command != "client|setinfo"} == set()


@pytest.fixture
def reference(upstream: Client, scan: Path) -> InputReference:
    return upstream.upload(scan)


def succeeded(upstream: Client, job_id: UUID) -> Job:
    wait_for(lambda: upstream.status(job_id) is not None)
    job = upstream.wait(job_id, timeout_s=LIMIT_S)
    assert (job.state, job.error_message) == (JobState.SUCCEEDED, None)
    return job


def refusals(actions: Iterable[str], *, of_workers: set[str]) -> list[tuple[str, str]]:
    """The identities that have no right to change anything, each with each action, and workers with the rest."""
    return [
        (name, action)
        for action in actions
        for name in ("upstream", "keda", "monitoring", "worker")
        if not (name == "worker" and action in of_workers)
    ]


def execute(settings: Settings, statement: str) -> list[tuple[Any, ...]]:
    """Executes a statement with the Postgres role of some settings, and returns its rows."""
    with (
        closing(
            psycopg2.connect(
                host=settings.postgres_server,
                port=settings.postgres_port,
                user=settings.postgres_user,
                password=settings.postgres_password.get_secret_value(),
                dbname=settings.postgres_db,
            )
        ) as connection,
        connection.cursor() as cursor,
    ):
        connection.autocommit = True
        cursor.execute(statement)
        return list(cursor.fetchall()) if cursor.description else []


@pytest.mark.usefixtures("worker", "nothing_refused")
@pytest.mark.parametrize("priority", Priority)
def test_a_job_runs_from_upload_to_result(
    upstream: Client, reference: InputReference, priority: Priority, tmp_path: Path
) -> None:
    request = SegmentRequest(input=reference, model=MODEL, priority=priority)
    job = succeeded(upstream, upstream.submit(request, submitted_by="gateway", trace_headers=TRACE))
    assert {path.name for path in upstream.result(job, tmp_path)} == {"mask.nii.gz", "report.json", "preview.png"}
    assert [change.to_state for change in upstream.transitions(job.id)] == ["queued", "running", "succeeded"]
    assert len(upstream.workers()) == 1


@pytest.mark.usefixtures("worker", "nothing_refused")
def test_a_result_is_reused(upstream: Client, reference: InputReference) -> None:
    options = RequestOptions(reuse=True)
    for _ in range(2):
        job = succeeded(upstream, upstream.submit(SegmentRequest(input=reference, model=MODEL, options=options)))
    assert "reuse" in str(upstream.transitions(job.id)[-1].detail)


@pytest.mark.usefixtures("worker", "nothing_refused")
def test_a_raw_message_runs(identities: Identities, upstream: Client, reference: InputReference) -> None:
    job_id = uuid4()
    request = {"input": reference.model_dump(mode="json"), "model": MODEL}
    with Celery(broker=identities.settings("upstream").broker_url, set_as_current=False) as app:
        app.send_task(
            "inference_service.segment",
            kwargs={"job_id": str(job_id), "request": request},
            task_id=str(job_id),
            queue="overflow",
        )
    succeeded(upstream, job_id)


@pytest.mark.usefixtures("worker", "nothing_refused")
def test_a_raw_message_cancels(identities: Identities, upstream: Client) -> None:
    job_id = uuid4()
    with Celery(broker=identities.settings("upstream").broker_url, set_as_current=False) as app:
        app.send_task("inference_service.cancel", kwargs={"job_id": str(job_id)}, queue="cancellations")
    wait_for(lambda: upstream.status(job_id) is not None)
    assert upstream.wait(job_id, timeout_s=LIMIT_S).state == JobState.CANCELLED


@pytest.mark.usefixtures("nothing_refused")
def test_an_upstream_cancels_a_queued_job_and_retries_it(upstream: Client, reference: InputReference) -> None:
    # No worker has the model, so that the job may be cancelled before or after it is claimed, but never succeeds.
    job_id = upstream.submit(SegmentRequest(input=reference, model="none"))
    for _ in range(2):
        upstream.cancel(job_id)
        assert upstream.wait(job_id, timeout_s=LIMIT_S).state in {JobState.CANCELLED, JobState.FAILED}
        upstream.retry(job_id)
    assert "retried" in {change.detail for change in upstream.transitions(job_id)}
    upstream.cancel(job_id)


@pytest.mark.usefixtures("nothing_refused")
def test_a_worker_finds_its_servers_usable(identities: Identities) -> None:
    problems = {item.name: item.problem for item in check(identities.settings("worker"))}
    assert {problems[name] for name in ("redis", "postgres", "minio")} == {None}


def test_migrate_runs_again(identities: Identities) -> None:
    prepare(identities.settings("migrate"))


def test_an_installation_with_one_user_is_taken_over(identities: Identities) -> None:
    administrator = settings_for(identities.servers.environment)
    execute(administrator, "CREATE DATABASE old")
    old = {"postgres_db": "old"}
    prepare(administrator.model_copy(update=old))
    execute(administrator.model_copy(update=old), "INSERT INTO jobs (id, state) VALUES (gen_random_uuid(), 'failed')")
    for _ in range(2):
        create_postgres_roles(identities.servers, identities.secrets, database="old")
        prepare(identities.settings("migrate").model_copy(update=old))
    for name in ("worker", "upstream", "monitoring"):
        assert execute(identities.settings(name).model_copy(update=old), "SELECT count(*) FROM jobs") == [(1,)]
    owners = execute(
        administrator.model_copy(update=old), "SELECT tableowner FROM pg_tables WHERE schemaname = 'public'"
    )
    assert set(owners) == {("inference_migrate",)}


COMMANDS_OF_OPERATORS = (["audit"], ["retry", "--failed-since", "1h"], ["prune", "--older-than", "1h", "--results"])


@pytest.mark.parametrize("arguments", COMMANDS_OF_OPERATORS, ids=" ".join)
def test_operators_run_their_commands_as_a_worker(
    identities: Identities, upstream: Client, arguments: list[str]
) -> None:
    long_ago = "UPDATE jobs SET finished_at = finished_at - interval '1 day' RETURNING id"
    execute(settings_for(identities.servers.environment), long_ago)
    done = subprocess.run(
        [sys.executable, "-m", "inference_service", *arguments],
        env={**os.environ, **identities.environment("worker")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    if arguments[0] == "prune":
        assert not any(job.finished for job in upstream.list())


def test_keda_reads_queue_lengths_and_running_jobs(identities: Identities) -> None:
    with identities.redis("keda") as connection:
        assert connection.eval(LENGTH_BY_TYPE, 1, "overflow") == connection.llen("overflow")
        for script in ("return redis.call('lrange', KEYS[1], 0, -1)", "return redis.call('del', KEYS[1])"):
            with pytest.raises(ResponseError, match="no permissions"):
                connection.eval(script, 1, "overflow")
    triggers = yaml.safe_load((REPOSITORY / "deploy/kubernetes/overlays/cpu/scaling.yaml").read_text())["spec"][
        "triggers"
    ]
    (query,) = (trigger["metadata"]["query"] for trigger in triggers if trigger["type"] == "postgresql")
    assert execute(identities.settings("keda"), query)[0][0] >= 0


@pytest.mark.usefixtures("nothing_refused")
def test_monitoring_reads(identities: Identities) -> None:
    settings = identities.settings("monitoring")
    assert set(fetch_redis_state(make_app(settings)).depths) == {"priority", "overflow"}
    for table in ("jobs", "transitions", "workers"):
        execute(identities.settings("monitoring"), f"SELECT count(*) FROM {table}")


COMMANDS: dict[str, Callable[["Redis"], object]] = {
    "read messages": lambda connection: connection.lrange("overflow", 0, -1),
    "take messages": lambda connection: connection.rpop("overflow"),
    "remove a queue": lambda connection: connection.delete("overflow"),
    "remove everything": lambda connection: connection.flushall(),
    "list keys": lambda connection: connection.keys(),
    "read unacknowledged messages": lambda connection: connection.hgetall("unacked"),
    "write events": lambda connection: connection.xadd("completions", {"job_id": "x"}),
    "write another key": lambda connection: connection.lpush("other", "x"),
    "publish commands to workers": lambda connection: connection.publish("/0.celery.pidbox", "x"),
    "read the configuration": lambda connection: connection.config_get("*"),
    "change rights": lambda connection: connection.acl_setuser("upstream", enabled=True, nopass=True),
    "watch other clients": lambda connection: connection.client_list(),
    "stop the server": lambda connection: connection.shutdown(nosave=True),
}
OF_WORKERS = {"write events", "read messages", "take messages", "remove a queue", "read unacknowledged messages"}
# Flower publishes commands, and workers take none.
REFUSED = [
    case for case in refusals(COMMANDS, of_workers=OF_WORKERS) if case != ("monitoring", "publish commands to workers")
]


@pytest.mark.parametrize(("name", "command"), REFUSED)
def test_redis_refuses_everything_else(identities: Identities, name: str, command: str) -> None:
    with identities.redis(name) as connection, pytest.raises(NoPermissionError):
        COMMANDS[command](connection)


STATEMENTS = {
    "write a result": "UPDATE jobs SET result = '{}'",
    "hide warnings": "UPDATE jobs SET warnings = NULL",
    "write a model": "UPDATE jobs SET model_name = 'other'",
    "change a request": "UPDATE jobs SET request = '{}'",
    "take a lease": "UPDATE jobs SET lease_owner = 'me'",
    "renew a lease": "UPDATE jobs SET lease_expires_at = now()",
    "change a lease": "UPDATE jobs SET lease_token = NULL",
    "insert a result": "INSERT INTO jobs (id, state, result) VALUES (gen_random_uuid(), 'succeeded', '{}')",
    "delete jobs": "DELETE FROM jobs",
    "delete transitions": "DELETE FROM transitions",
    "change transitions": "UPDATE transitions SET detail = ''",
    "pretend to be a worker": "INSERT INTO workers SELECT * FROM workers",
    "hold the lock of the sweep": "SELECT pg_advisory_lock(1)",
    "create a table": "CREATE TABLE mine ()",
    "create a temporary table": "CREATE TEMPORARY TABLE mine ()",
    "drop a table": "DROP TABLE transitions",
    "truncate a table": "TRUNCATE transitions",
    "add a column": "ALTER TABLE jobs ADD COLUMN mine text",
    "read passwords": "SELECT * FROM pg_authid",
    "read a file": "SELECT pg_read_file('PG_VERSION')",
    "run a program": "COPY jobs TO PROGRAM 'true'",
    "change the schema's version": "UPDATE alembic_version SET version_num = '0001'",
}
WRITES = {key for key, statement in STATEMENTS.items() if statement.startswith(("UPDATE jobs", "INSERT", "DELETE"))}


@pytest.mark.parametrize(
    ("name", "statement"),
    refusals(STATEMENTS, of_workers=WRITES | {"change transitions", "hold the lock of the sweep"}),
)
def test_postgres_refuses_everything_else(identities: Identities, name: str, statement: str) -> None:
    with pytest.raises(InsufficientPrivilege):
        execute(identities.settings(name), STATEMENTS[statement])


# State of the job, and the columns to write. Each is a column that submitting, cancelling or retrying a job writes.
CHANGES = {
    "take back a success": ("succeeded", "state = 'queued', dispatched_at = NULL"),
    "cancel a success": ("succeeded", "state = 'cancelled'"),
    "hide the time of a success": ("succeeded", "finished_at = NULL"),
    "forge a success": ("running", "state = 'succeeded'"),
    "take a job from its worker": ("running", "state = 'queued'"),
    "give a job attempts without end": ("running", "returned_attempts = 1000000"),
    "take the attempts of a job": ("queued", "returned_attempts = -1000000"),
    "keep a job from its workers": ("queued", "not_before = 'infinity'"),
    "name no workers": ("queued", "avoided_workers = '5'"),
    "start a job without a worker": ("queued", "state = 'running'"),
    "start a job before all times": ("queued", "started_at = '-infinity'"),
    "send a job before all times": ("queued", "dispatched_at = '4000-01-01 BC'"),
    "fail a job": ("queued", "state = 'failed'"),
    "cancel a job long ago": ("queued", "state = 'cancelled', finished_at = '2000-01-01', error_code = 'cancelled'"),
    "retry a job without end": ("failed", "state = 'queued', returned_attempts = 1000000, finished_at = NULL"),
    "change a failure": ("failed", "error_message = 'forged'"),
}


@pytest.mark.parametrize(("state", "columns"), CHANGES.values(), ids=CHANGES)
def test_an_upstream_changes_jobs_in_no_other_way(identities: Identities, state: str, columns: str) -> None:
    administrator = settings_for(identities.servers.environment)
    job_id = uuid4()
    execute(administrator, f"INSERT INTO jobs (id, state, attempt) VALUES ('{job_id}', '{state}', 1)")
    statement = f"UPDATE jobs SET {columns} WHERE id = '{job_id}'"
    with pytest.raises(InsufficientPrivilege, match="may only submit, cancel and retry jobs"):
        execute(identities.settings("upstream"), statement)
    execute(identities.settings("worker"), statement)
    execute(administrator, f"DELETE FROM jobs WHERE id = '{job_id}'")


@pytest.mark.parametrize("state", ["running", "succeeded", "failed", "cancelled"])
def test_an_upstream_creates_queued_jobs_alone(identities: Identities, state: str) -> None:
    with pytest.raises(InsufficientPrivilege, match="may only submit, cancel and retry jobs"):
        execute(identities.settings("upstream"), f"INSERT INTO jobs (id, state) VALUES (gen_random_uuid(), '{state}')")


def test_keda_reads_no_request(identities: Identities) -> None:
    with pytest.raises(InsufficientPrivilege):
        execute(identities.settings("keda"), "SELECT request FROM jobs")


STORAGE: dict[str, Callable[[Storage, Path], object]] = {
    "read input": lambda storage, path: storage.fetch("volumes", "scan", path / "scan", max_bytes=10**9),
    "write input": lambda storage, path: storage.store("volumes", "scan", Path(__file__), content_type="text/plain"),
    "remove input": lambda storage, path: storage.remove("volumes", "scan"),
    "list input": lambda storage, path: storage.require_bucket("volumes"),
    "write output": lambda storage, path: storage.store("masks", "x", Path(__file__), content_type="text/plain"),
    "read output": lambda storage, path: storage.fetch("masks", "x", path / "x", max_bytes=10**9),
    "remove output": lambda storage, path: storage.remove("masks", "x"),
    "list output": lambda storage, path: storage.require_bucket("masks"),
    "create a bucket": lambda storage, path: storage.ensure_bucket("mine"),
    "read models": lambda storage, path: storage.fetch("models", "x", path / "x", max_bytes=10**9),
    "list models": lambda storage, path: storage.list_objects("models", ""),
    "write models": lambda storage, path: storage.create("models", "x", b"x"),
    "remove models": lambda storage, path: storage.remove("models", "x"),
    "read another bucket": lambda storage, path: storage.fetch("other", "x", path / "x", max_bytes=10**9),
}
STORAGE_RIGHTS = {
    "upstream": {"write input", "read output"},
    "worker": {
        *("read input", "list input", "write output", "read output", "remove output", "list output"),
        *("read models", "list models"),
    },
    "migrate": {"list input", "list output", "list models"},
    "models": {"read models", "list models", "write models", "remove models"},
    "gateway": {"read input", "write input", "list input", "read output"},
}


def test_a_gateway_submits_files_serves_results_and_removes_uploads(
    identities: Identities, worker: WorkerProcess, scan: Path, nothing_refused: None
) -> None:
    settings = identities.settings("gateway")
    with served(settings, local=True) as address, httpx.Client(base_url=address, timeout=30) as client:
        form = {"request": json.dumps({"model": MODEL})}
        path = client.post("/v1/jobs", data=form, files=[("file", ("f", scan.read_bytes()))]).headers["Location"]
        wait_for(lambda: client.get(path).json()["state"] == "succeeded")
        assert client.get(f"{path}/results/mask").status_code == 200
        assert client.get(f"{path}/input").content == scan.read_bytes()
        assert client.get("/healthz").json() == {"database": True, "storage": True, "queues": True}
        (listed,) = [model for model in client.get("/v1/models").json() if model["name"] == MODEL]
        assert listed["summary"]["licence"] == "Apache-2.0"
        wrong = {"request": (None, form["request"].encode()), "file": ("f", b"x"), "other": (None, b"y")}
        assert client.post("/v1/jobs", files=wrong).status_code == 400
    with closing(connect(settings)) as database:
        upload = uploads.take_unused(database)
        assert upload is not None
        storage = Storage(settings)
        assert len(storage.list_objects(upload.bucket, upload.prefix)) == 1
        with database.begin() as connection:
            connection.execute(update(UploadRow).values(remove_after=func.now()))
        sweep_uploads(database, storage)
        assert storage.list_objects(upload.bucket, upload.prefix) == []


@pytest.mark.parametrize("action", STORAGE)
@pytest.mark.parametrize("name", STORAGE_RIGHTS)
def test_the_object_storage_refuses_everything_else(
    identities: Identities, name: str, action: str, tmp_path: Path
) -> None:
    administrator = Storage(settings_for(identities.servers.environment))
    administrator.ensure_bucket("models")
    for bucket, key in (("volumes", "scan"), ("masks", "x"), ("models", "x")):
        administrator.store(bucket, key, Path(__file__), content_type="text/plain")
    storage = Storage(identities.settings(name))
    if action in STORAGE_RIGHTS[name]:
        STORAGE[action](storage, tmp_path)
    else:
        with pytest.raises(StorageRefused, match="denies access"):
            STORAGE[action](storage, tmp_path)


def test_a_password_of_another_identity_does_not_fit(identities: Identities) -> None:
    password = (identities.secrets / "redis_keda_password").read_text()
    with (
        Redis("127.0.0.1", identities.servers.redis.port, username="worker", password=password) as connection,
        pytest.raises(AuthenticationError),
    ):
        connection.ping()
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        psycopg2.connect(
            host="127.0.0.1",
            port=identities.servers.postgres.port,
            user="inference_worker",
            password=(identities.secrets / "postgres_keda_password").read_text(),
            dbname="inference",
        )
