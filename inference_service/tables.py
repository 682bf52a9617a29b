"""The tables in Postgres, the connection to it and its migrations."""

import select
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar
from uuid import UUID

import psycopg2
from psycopg2.errors import UndefinedTable
from psycopg2.extensions import POLL_OK, POLL_WRITE, set_wait_callback
from sqlalchemy import (
    URL,
    BigInteger,
    CheckConstraint,
    DateTime,
    Engine,
    ForeignKey,
    Index,
    MetaData,
    Text,
    create_engine,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import DBAPIError, InternalError, OperationalError, ProgrammingError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.pool import NullPool

from inference_service.errors import DatabaseUnavailable
from inference_service.settings import Settings

# What other modules call the pool of connections.
Database = Engine

_CONNECT_TIMEOUT_S = 5
_SILENCE_LIMIT_S = 15
# What waits for a row gets it once the server has dropped a frozen client, so the server's limits come first.
_ANSWER_LIMIT_S = _SILENCE_LIMIT_S + 5
MIGRATIONS = Path(__file__).with_name("migrations")


class JobState(StrEnum):
    """Where a job is; see `docs/task-contract.md` for the transitions."""

    QUEUED = "queued"
    """Waits for a worker, or for its next attempt."""
    RUNNING = "running"
    """A worker holds its lease."""
    SUCCEEDED = "succeeded"
    """Mask and report are stored."""
    FAILED = "failed"
    """Ended without a result; the row has the code."""
    CANCELLED = "cancelled"
    """Ended by its owner."""


FINAL_STATES = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})


class Base(DeclarativeBase):
    """The declarative base, with names for constraints, so that migrations can refer to them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        datetime: DateTime(timezone=True),
        str: Text(),
        dict[str, Any]: JSONB(none_as_null=True),
        list[str]: JSONB(none_as_null=True),
    }


class JobRow(Base):
    """One job: what was asked, who runs it, and how it ended."""

    __tablename__ = "jobs"
    __table_args__ = (
        CheckConstraint("state IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')", name="state"),
        Index(None, "state", "created_at"),
        Index("ix_jobs_input_sha256", "input_sha256", "model_sha256", postgresql_where=text("state = 'succeeded'")),
        # No two jobs write to the same place.
        Index("uq_jobs_output_place", "output_place", unique=True),
        Index(
            "ix_jobs_uncleared",
            "id",
            postgresql_where=text("state IN ('failed', 'cancelled') AND output_place IS NOT NULL"),
        ),
        Index(None, "created_at"),
        Index(None, "finished_at"),
        Index("ix_jobs_unreadable", "id", postgresql_where=text("state = 'queued' AND request IS NULL")),
        Index(
            "ix_jobs_started",
            "queue",
            "dispatched_at",
            postgresql_where=text("state <> 'queued' AND started_at IS NOT NULL"),
        ),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    state: Mapped[str]
    request: Mapped[dict[str, Any] | None] = mapped_column(comment="null where the message broke the contract")
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]

    output_place: Mapped[str | None] = mapped_column(comment="bucket and prefix that its results are reserved")

    queue: Mapped[str | None] = mapped_column(comment="where its message went last")
    dispatched_at: Mapped[datetime | None] = mapped_column(comment="when; null while it has yet to be sent")
    dispatched_to: Mapped[str | None] = mapped_column(comment="the run of Redis that took it")

    attempt: Mapped[int] = mapped_column(server_default="0")
    excused: Mapped[int] = mapped_column(
        server_default="0", comment="attempts given back by workers that were told to stop"
    )
    on_cpu: Mapped[bool] = mapped_column(server_default="false", comment="whether a GPU had too little memory for it")
    not_before: Mapped[datetime | None] = mapped_column(comment="when the next attempt is due")
    cancel_requested: Mapped[bool] = mapped_column(server_default="false")
    lease_owner: Mapped[str | None] = mapped_column(comment="the worker that runs it, or ran it last")
    lease_pid: Mapped[int | None] = mapped_column(comment="the process of that worker which does")
    lease_token: Mapped[UUID | None] = mapped_column(comment="what every write of an outcome must present")
    lease_expires_at: Mapped[datetime | None]

    stage: Mapped[str | None]
    progress: Mapped[float] = mapped_column(server_default="0")

    model_name: Mapped[str | None]
    model_version: Mapped[str | None]
    model_sha256: Mapped[str | None]
    providers: Mapped[list[str] | None] = mapped_column(comment="execution providers really used")
    timings_s: Mapped[dict[str, Any] | None] = mapped_column(comment="seconds of each stage")
    result: Mapped[dict[str, Any] | None] = mapped_column(comment="bucket and keys of mask and report")
    input_sha256: Mapped[str | None] = mapped_column(comment="of the volume as it was stored")
    error_code: Mapped[str | None]
    error_message: Mapped[str | None]


class TransitionRow(Base):
    """One change of a job's state."""

    __tablename__ = "transitions"

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    job_id: Mapped[UUID] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), index=True)
    at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    from_state: Mapped[str | None]
    to_state: Mapped[str]
    attempt: Mapped[int]
    worker: Mapped[str | None]
    detail: Mapped[str | None]


class WorkerRow(Base):
    """One worker that is, or lately was, alive."""

    __tablename__ = "workers"

    name: Mapped[str] = mapped_column(primary_key=True)
    role: Mapped[str]
    concurrency: Mapped[int]
    providers: Mapped[list[str]] = mapped_column(comment="execution providers in use")
    queues: Mapped[list[str]] = mapped_column(comment="consumed now, in order")
    started_at: Mapped[datetime] = mapped_column(server_default=func.now())
    seen_at: Mapped[datetime] = mapped_column(server_default=func.now(), comment="when it last consumed")


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


def limit_silence() -> None:
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
