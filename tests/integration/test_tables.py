"""Schema and migrations, against a real Postgres."""

from collections.abc import Iterator
from uuid import uuid4

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, text

from inference_service import jobs
from inference_service.errors import DatabaseUnavailable
from inference_service.settings import Settings
from inference_service.tables import Base, connect, migrate


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
    jobs.create(engine, job_id, None)
    migrate(empty_database)
    assert jobs.get(engine, job_id) is not None
    engine.dispose()


def test_missing_tables_are_said_to_want_a_migration(empty_database: Settings) -> None:
    engine = connect(empty_database)
    with pytest.raises(DatabaseUnavailable, match="inference-service migrate"):
        jobs.get(engine, uuid4())
    engine.dispose()


def test_a_wrong_password_is_database_unavailable(settings: Settings) -> None:
    with pytest.raises(DatabaseUnavailable):
        migrate(Settings.model_validate({**settings.model_dump(), "postgres_password": "wrong"}))
