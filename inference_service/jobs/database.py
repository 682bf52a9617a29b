"""Connects to Postgres with time limits, maps its errors to the service's own, and migrates the schema."""

import select
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg2
from psycopg2.errors import (
    DeadlockDetected,
    InsufficientPrivilege,
    LockNotAvailable,
    QueryCanceled,
    UndefinedColumn,
    UndefinedTable,
)
from psycopg2.extensions import POLL_OK, POLL_WRITE, set_wait_callback
from sqlalchemy import URL, Connection, Engine, create_engine, event, text
from sqlalchemy.exc import DBAPIError, InternalError, OperationalError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import NullPool

from inference_service.core.errors import ConfigurationError, DatabaseUnavailable
from inference_service.core.retry import retrying
from inference_service.core.settings import Settings

if TYPE_CHECKING:
    from alembic.config import Config

_CONNECT_TIMEOUT_S = 5
# After this time, the server ends an idle transaction, and the kernel a connection whose peer does not acknowledge.
_IDLE_LIMIT_S = 15
# Longer, as a client that waits for a row lock gets it when the server drops a frozen holder of the lock.
_RESPONSE_LIMIT_S = _IDLE_LIMIT_S + 5
# A migration that waits for a lock blocks all who ask for one after it, so it waits briefly, and tries again later.
_MIGRATION_LOCK_LIMIT_S = 0.3
# Longer than an autovacuum of a large table, which holds a lock and yields only to those who wait for a second.
MIGRATION_PATIENCE_S = 300.0
"""How long a step of a migration waits for locks, and a migration for another one."""
_MIGRATIONS = Path(__file__).with_name("migrations")
_USE_POOLER = "POSTGRES_SERVER is a connection pooler, such as PgBouncer: set POSTGRES_POOLER=true"


class Database:
    """The jobs' database. An outage in one of its blocks raises DatabaseUnavailable; other errors pass unchanged.

    Args:
        engine: SQLAlchemy's source of connections.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """A transaction, committed at the end of the block and rolled back if the block raises."""
        with _mapped_errors(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """A connection for queries, or for several transactions. Only a transaction that the caller begins commits."""
        with _mapped_errors(), self._engine.connect() as connection:
            yield connection

    def ping(self) -> None:
        """Checks that Postgres answers.

        Raises:
            DatabaseUnavailable: It does not.
        """
        with self.connection() as connection:
            connection.execute(text("SELECT 1"))

    def close(self) -> None:
        """Closes the pooled connections."""
        self._engine.dispose()


def connect(settings: Settings, *, pooled: bool = True) -> Database:
    """Prepares access to the jobs' database; a connection is opened on first use.

    A statement fails if it runs for 20 s, for example because another session has locked a table; without a pool, 15 s.

    Args:
        settings: Address, credentials and TLS.
        pooled: Whether connections are kept between uses. A forked child must not inherit a pool, so a pool is made
            in the process that uses it.
    """
    limit_s = _RESPONSE_LIMIT_S if pooled else _IDLE_LIMIT_S
    return _connect(settings, {"statement_timeout": limit_s}, pooled=pooled)


def _connect(settings: Settings, limits_s: Mapping[str, float], *, pooled: bool) -> Database:
    # A process that is frozen in a transaction does not keep its row locks.
    limits_s = {"idle_in_transaction_session_timeout": _IDLE_LIMIT_S, **limits_s}
    pool: dict[str, Any] = {"pool_pre_ping": True, "pool_size": 2, "max_overflow": 8, "pool_timeout": _IDLE_LIMIT_S}
    verified = settings.postgres_sslmode == "verify-full"
    limits_ms = {name: round(limit_s * 1000) for name, limit_s in limits_s.items()}
    options = " ".join(f"-c {name}={limit_ms}" for name, limit_ms in limits_ms.items())
    engine = create_engine(
        database_url(settings),
        # Errors are logged, and a statement's parameters contain requests.
        hide_parameters=True,
        **(pool if pooled else {"poolclass": NullPool}),
        connect_args={
            "connect_timeout": _CONNECT_TIMEOUT_S,
            "sslmode": settings.postgres_sslmode,
            **({"sslrootcert": str(settings.tls_ca_path or "system")} if verified else {}),
            # Without these two, the renewal of a lease waits for ever for a server whose machine has vanished.
            "tcp_user_timeout": _IDLE_LIMIT_S * 1000,
            "keepalives_idle": _IDLE_LIMIT_S,
            "application_name": "inference-service",
            **({} if settings.postgres_pooler else {"options": options}),
        },
    )
    if settings.postgres_pooler:
        _limit_transactions(engine, limits_ms)
    return Database(engine)


def _limit_transactions(engine: Engine, limits_ms: Mapping[str, int]) -> None:
    """Makes each transaction set the limits: a pooler may give every transaction another connection of its own."""
    statement = "; ".join(f"SET LOCAL {name} = {limit_ms}" for name, limit_ms in limits_ms.items())
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(statement))


def database_url(settings: Settings) -> URL:
    """The address of the jobs' database. It carries the password, which `str()` masks."""
    return URL.create(
        "postgresql+psycopg2",
        username=settings.postgres_user,
        password=settings.postgres_password.get_secret_value(),
        host=settings.postgres_server,
        port=settings.postgres_port,
        database=settings.postgres_db,
    )


def require_limits(database: Database) -> None:
    """Checks that the limits of `connect` reach Postgres.

    Raises:
        DatabaseUnavailable: They do not, or Postgres does not answer.
    """
    with database.connection() as connection:
        limit = connection.execute(text("SELECT current_setting('statement_timeout')")).scalar_one()
    if limit == "0":
        raise DatabaseUnavailable(f"the time limits of statements do not reach Postgres. {_USE_POOLER}")


def is_database_outage(error: BaseException) -> bool:
    """Returns True if Postgres does not answer, so that the same call may soon succeed."""
    return isinstance(error, DatabaseUnavailable)


def limit_response_time() -> None:
    """Makes every connection of this process fail when Postgres does not respond in time, even if it is frozen.

    The limit is a wait callback of psycopg2. COPY and large objects do not work with one, and a migration may run for
    longer, so only workers and gateways set it.
    """
    set_wait_callback(_wait)


def _wait(connection: psycopg2.extensions.connection) -> None:
    while (wanted := connection.poll()) != POLL_OK:
        poll = select.poll()
        poll.register(connection.fileno(), select.POLLOUT if wanted == POLL_WRITE else select.POLLIN)
        if not poll.poll(_RESPONSE_LIMIT_S * 1000):
            raise psycopg2.OperationalError(f"Postgres has not responded for {_RESPONSE_LIMIT_S} s")


@contextmanager
def _mapped_errors() -> Iterator[None]:
    try:
        yield
    except ProgrammingError as error:
        raise DatabaseUnavailable(_refusal(error.orig)) from error
    except OperationalError as error:
        if isinstance(error.orig, QueryCanceled | LockNotAvailable):
            raise DatabaseUnavailable("Postgres did not answer in time: another session may hold a lock") from error
        # libpq's text starts with the address, and the server's with a severity; neither belongs in a public message.
        reason = str(error.orig).partition("\n")[0].rpartition(" failed: ")[2].removeprefix("FATAL:").strip()
        if reason.startswith("unsupported startup parameter"):
            raise DatabaseUnavailable(_USE_POOLER) from error
        raise DatabaseUnavailable(f"Postgres cannot be used: {reason}") from error
    except PoolTimeout as error:
        raise DatabaseUnavailable("all connections of this process to Postgres are in use") from error
    except InternalError as error:
        # For example a server that became read-only, as it was demoted in a failover.
        raise DatabaseUnavailable("Postgres takes no writes now") from error
    except DBAPIError as error:
        if error.connection_invalidated:
            raise DatabaseUnavailable("the connection to Postgres was lost") from error
        _remove_values(error)
        raise


def _remove_values(error: DBAPIError) -> None:
    """Removes the detail, which quotes the values of a row: they are those of a request, and errors are logged."""
    for each in (error, error.orig):
        if each is not None:
            each.args = (str(each.args[0]).partition("\nDETAIL:")[0], *each.args[1:])


def _refusal(cause: BaseException | None) -> str:
    """Returns the public sentence for a statement that Postgres refuses."""
    reason = str(cause).partition("\n")[0]
    if isinstance(cause, UndefinedTable):
        return "the tables are missing: run `inference-service migrate`"
    if isinstance(cause, UndefinedColumn):
        return f"the tables are of an earlier version ({reason}): run `inference-service migrate`"
    if isinstance(cause, InsufficientPrivilege):
        return f"the role lacks a right ({reason}): run `inference-service migrate`, which grants it"
    return f"Postgres refuses: {reason}"


def migrate(settings: Settings) -> None:
    """Brings the schema up to date. Jobs may run meanwhile, and concurrent calls wait for one another.

    Raises:
        ConfigurationError: Postgres is behind a connection pooler.
        DatabaseUnavailable: Postgres does not answer or refuses, or other sessions lock the tables for 5 minutes.
    """
    from alembic import command  # part of a worker's installation only

    if settings.postgres_pooler:
        # They need a session: a lock and a time limit that outlive transactions.
        raise ConfigurationError(
            "migrations do not work through a connection pooler: run them with POSTGRES_SERVER and POSTGRES_PORT of "
            "Postgres itself, and POSTGRES_POOLER=false"
        )

    run_alembic(settings, lambda config: command.upgrade(config, "head"))


def run_alembic(settings: Settings, command: "Callable[[Config], None]") -> None:
    """Runs a command of Alembic, again where it had to wait for locks. Each migration is a transaction of its own.

    Raises:
        DatabaseUnavailable: Postgres does not answer or refuses, or other sessions lock the tables for 5 minutes.
    """
    retrying(is_lock_conflict, timeout_s=MIGRATION_PATIENCE_S)(_run_alembic, settings, command)


def _run_alembic(settings: Settings, command: "Callable[[Config], None]") -> None:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    limits_s = {"lock_timeout": _MIGRATION_LOCK_LIMIT_S}
    with closing(_connect(settings, limits_s, pooled=False)) as database, database.connection() as connection:
        config.attributes["connection"] = connection
        command(config)


def is_lock_conflict(error: BaseException) -> bool:
    """Returns True if a statement failed because of other sessions' locks."""
    cause = getattr(error.__cause__, "orig", None)
    return isinstance(error, DatabaseUnavailable) and isinstance(cause, LockNotAvailable | DeadlockDetected)
