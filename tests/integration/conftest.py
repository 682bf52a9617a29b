"""Connections to the real servers, and a handler of messages in the test's own process."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from datetime import timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from click.testing import CliRunner, Result
from jobs_in_process import EXECUTION, Request
from redis import Redis
from sqlalchemy import delete, func, text, update

from inference_service.cli.main import main
from inference_service.core.execution import ExecutionOptions
from inference_service.core.scratch_space import ScratchSpace
from inference_service.core.settings import Settings, get_settings
from inference_service.embedded.servers import Servers
from inference_service.jobs.database import Database, connect
from inference_service.jobs.queues.celery_app import App, make_app
from inference_service.jobs.schema import JobRow, WorkerRow
from inference_service.jobs.storage.object_storage import Storage
from inference_service.worker.job_context import JobContext
from inference_service.worker.self_test import SelfTest
from inference_service.worker.sweeper import Sweeper
from inference_service.worker.task import TaskHandler


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    """The jobs' database, without workers that other tests have reported: a failed job would be left to them."""
    with closing(connect(settings)) as opened:
        with opened.begin() as connection:
            connection.execute(delete(WorkerRow))
        yield opened


@pytest.fixture
def empty_database(settings: Settings, database: Database) -> Iterator[Settings]:
    """Settings of a database without tables."""
    name = f"empty_{uuid4().hex}"
    with database.connection() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT")
        connection.execute(text(f"CREATE DATABASE {name}"))
        yield settings.model_copy(update={"postgres_db": name})
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
def storage(settings: Settings) -> Storage:
    return Storage(settings)


@pytest.fixture
def expire_lease(database: Database) -> Callable[[UUID], None]:
    """Lets the lease of a job expire now."""

    def expire(job_id: UUID) -> None:
        past = func.now() - timedelta(seconds=1)
        with database.begin() as connection:
            connection.execute(update(JobRow).where(JobRow.id == job_id).values(lease_expires_at=past))

    return expire


@pytest.fixture
def make_handler(settings: Settings, tmp_path: Path) -> Iterator[Callable[..., TaskHandler]]:
    """Makes a handler with settings of its own. During an outage, its attempts fail early and are due again at once."""
    with ExitStack() as stack:

        def make(execution: ExecutionOptions = EXECUTION, **changes: object) -> TaskHandler:
            scratch_space = ScratchSpace(tmp_path)
            stack.callback(scratch_space.close)
            own = settings.model_copy(update={"outage_patience_s": 0.1, "retry_delay_s": 0.0, **changes})
            worker = f"w-{uuid4()}"
            self_test = SelfTest(own, scratch_space.path, worker=worker)
            return TaskHandler(JobContext(own, execution, scratch_space, worker, self_test))

        yield make


@pytest.fixture
def handler(make_handler: Callable[..., TaskHandler]) -> TaskHandler:
    return make_handler()


@pytest.fixture
def request_for_scan(storage: Storage, scan: Path) -> Request:
    storage.store("volumes", "scan", scan, content_type="application/gzip")
    return {"input": {"bucket": "volumes", "key": "scan"}, "model": "ct-tissue"}


@pytest.fixture
def command(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Result]]:
    """Runs a command of `inference-service` in this process, against the servers."""
    with monkeypatch.context() as patch:
        for name, value in servers.environment.items():
            patch.setenv(name, value)
        get_settings.cache_clear()
        yield lambda *arguments: CliRunner().invoke(main, [str(argument) for argument in arguments])
    get_settings.cache_clear()


@pytest.fixture
def app(settings: Settings) -> Iterator[App]:
    with closing(make_app(settings)) as opened:
        yield opened


@pytest.fixture
def redis(settings: Settings) -> Iterator[Redis]:
    """Redis without messages."""
    with Redis.from_url(settings.broker_url) as connection:
        connection.flushdb()
        yield connection
        connection.flushdb()


@pytest.fixture
def no_jobs(database: Database) -> None:
    """A database without jobs: a sweep finds only those of its own test."""
    with database.begin() as connection:
        connection.execute(delete(JobRow))


@pytest.fixture
def sweeper(settings: Settings, app: App, database: Database, storage: Storage) -> Sweeper:
    return Sweeper(settings, app, database, storage)
