"""The tables in Postgres, the connection to it and its migrations."""

import select
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg2
from psycopg2.errors import UndefinedTable
from psycopg2.extensions import POLL_OK, POLL_WRITE, set_wait_callback
from sqlalchemy import (
    URL,
    Engine,
    create_engine,
)
from sqlalchemy.exc import DBAPIError, InternalError, OperationalError, ProgrammingError
from sqlalchemy.pool import NullPool

from inference_service.core.errors import DatabaseUnavailable
from inference_service.core.settings import Settings

# What other modules call the pool of connections.
Database = Engine

_CONNECT_TIMEOUT_S = 5
_SILENCE_LIMIT_S = 15
# What waits for a row gets it once the server has dropped a frozen client, so the server's limits come first.
_ANSWER_LIMIT_S = _SILENCE_LIMIT_S + 5
MIGRATIONS = Path(__file__).with_name("migrations")


def database_url(settings: Settings) -> URL:
    """Where the jobs' database is; it carries the password, which its text does not show."""
    return URL.create(
        "postgresql+psycopg2",
        username=settings.postgres_user,
        password=settings.postgres_password.get_secret_value(),
        host=settings.postgres_server,
        port=settings.postgres_port,
        database=settings.postgres_db,
    )


def connect(settings: Settings, *, pooled: bool = True) -> Database:
    """Where connections to the jobs' database come from.

    Args:
        settings: Say where it is.
        pooled: Whether connections are kept between uses; a pool is built in the process that uses it, never before
            a fork.
    """
    pool: dict[str, Any] = {"pool_pre_ping": True, "pool_size": 2, "max_overflow": 8}
    verified = settings.postgres_sslmode == "verify-full"
    limits = ["idle_in_transaction_session_timeout", *([] if pooled else ["statement_timeout"])]
    return create_engine(
        database_url(settings),
        # A statement's parameters hold requests, and errors end in the log.
        hide_parameters=True,
        **(pool if pooled else {"poolclass": NullPool}),
        connect_args={
            "connect_timeout": _CONNECT_TIMEOUT_S,
            # A server that is silently gone is noticed by the kernel, or the renewal of a lease would wait for ever.
            "sslmode": settings.postgres_sslmode,
            **({"sslrootcert": str(settings.tls_ca_path or "system")} if verified else {}),
            "tcp_user_timeout": _SILENCE_LIMIT_S * 1000,
            "keepalives_idle": _SILENCE_LIMIT_S,
            "application_name": "inference-service",
            # A process that is frozen in its middle keeps nobody else from a row.
            "options": " ".join(f"-c {limit}={_SILENCE_LIMIT_S * 1000}" for limit in limits),
        },
    )


def limit_response_time() -> None:
    """Has all connections of this process fail where Postgres says nothing for long, be it frozen in its middle.

    For a process of our own: psycopg2 has no COPY and no large objects then, and a migration may take its time.
    """
    set_wait_callback(_wait)


def _wait(connection: psycopg2.extensions.connection) -> None:
    while (wanted := connection.poll()) != POLL_OK:
        poll = select.poll()
        poll.register(connection.fileno(), select.POLLOUT if wanted == POLL_WRITE else select.POLLIN)
        if not poll.poll(_ANSWER_LIMIT_S * 1000):
            raise psycopg2.OperationalError(f"Postgres has said nothing for {_ANSWER_LIMIT_S} s")


@contextmanager
def mapped_errors() -> Iterator[None]:
    """Turns a server that is away, read-only or without our tables into DatabaseUnavailable; other errors pass."""
    try:
        yield
    except ProgrammingError as error:
        if isinstance(error.orig, UndefinedTable):
            raise DatabaseUnavailable("the tables are missing: run `inference-service migrate`") from error
        raise
    except OperationalError as error:
        # What libpq says of where it failed to connect to, and the server's severity, are left out.
        reason = str(error.orig).partition("\n")[0].rpartition(" failed: ")[2].removeprefix("FATAL:").strip()
        raise DatabaseUnavailable(f"Postgres cannot be used: {reason}") from error
    except InternalError as error:
        # Such as a server that is read-only, as one that was demoted at a failover.
        raise DatabaseUnavailable("Postgres takes no writes now") from error
    except DBAPIError as error:
        if error.connection_invalidated:
            raise DatabaseUnavailable("the connection to Postgres was lost") from error
        raise


def migrate(settings: Settings) -> None:
    """Brings the schema up to date; runs one at a time wherever it is started.

    Raises:
        DatabaseUnavailable: Postgres does not answer or refuses.
    """
    from alembic import command  # only a worker's installation has alembic
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    engine = connect(settings)
    with mapped_errors(), engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
    engine.dispose()
