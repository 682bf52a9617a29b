"""Schema, migrations and lost connections, against a real Postgres."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

import psycopg2.extensions
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, text

from inference_service.core.errors import DatabaseUnavailable
from inference_service.core.settings import Settings
from inference_service.embedded.servers import Servers
from inference_service.jobs import database as database_module
from inference_service.jobs import job_store
from inference_service.jobs.database import connect, limit_response_time, migrate
from inference_service.jobs.schema import Base


@pytest.fixture
def empty_database(settings: Settings, database: Engine) -> Iterator[Settings]:
    """A database of its own that no migration has run on."""
    name = f"empty_{uuid4().hex}"
    with database.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
        yield settings.model_copy(update={"postgres_db": name})
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


def test_the_migrations_make_exactly_the_tables_of_the_code(empty_database: Settings) -> None:
    migrate(empty_database)
    engine = connect(empty_database)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, Base.metadata) == []
    engine.dispose()


def test_migrating_twice_changes_nothing(empty_database: Settings) -> None:
    migrate(empty_database)
    engine = connect(empty_database)
    job_id = uuid4()
    job_store.create(engine, job_id, None)
    migrate(empty_database)
    assert job_store.get(engine, job_id) is not None
    engine.dispose()


def test_missing_tables_are_said_to_want_a_migration(empty_database: Settings) -> None:
    engine = connect(empty_database)
    with pytest.raises(DatabaseUnavailable, match="inference-service migrate"):
        job_store.get(engine, uuid4())
    engine.dispose()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"postgres_password": ""}, "fe_sendauth: no password supplied"),
        ({"postgres_password": "wrong"}, 'password authentication failed for user "inference"'),
        ({"postgres_db": "absent"}, 'database "absent" does not exist'),
        ({"postgres_port": 1}, "Connection refused"),
    ],
    ids=["none", "password", "database", "nobody"],
)
def test_what_keeps_postgres_from_answering_is_said(settings: Settings, changed: dict[str, object], said: str) -> None:
    with pytest.raises(DatabaseUnavailable) as caught:
        migrate(Settings.model_validate({**settings.model_dump(), **changed}))
    assert caught.value.message == f"Postgres cannot be used: {said}"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(database_module, "_ANSWER_LIMIT_S", 0.5)
    limit_response_time()
    yield
    psycopg2.extensions.set_wait_callback(None)


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.usefixtures("impatient")
def test_a_server_that_says_nothing_is_not_waited_for(database: Engine) -> None:
    with database.connect() as connection:
        pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
        with frozen(pid), pytest.raises(DatabaseUnavailable), database_module.mapped_errors():
            connection.execute(text("SELECT 1"))
    assert job_store.get(database, uuid4()) is None


@pytest.mark.usefixtures("impatient")
def test_nor_is_one_that_takes_no_connection(servers: Servers, settings: Settings) -> None:
    engine = connect(settings)
    assert servers.postgres.pid is not None
    with frozen(servers.postgres.pid), pytest.raises(DatabaseUnavailable):
        job_store.get(engine, uuid4())
    assert job_store.get(engine, uuid4()) is None
    engine.dispose()


@pytest.mark.usefixtures("impatient")
def test_a_statement_may_take_as_long_as_that(database: Engine) -> None:
    with database.connect() as connection:
        assert connection.execute(text("SELECT 1 FROM pg_sleep(0.2)")).scalar_one() == 1
