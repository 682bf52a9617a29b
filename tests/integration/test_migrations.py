"""Migrations of a database that is in use, against a real Postgres."""

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from uuid import UUID, uuid4

import pytest
from alembic import command as alembic_command
from click.testing import Result
from sqlalchemy import Connection, Engine, event, text

from inference_service.core.errors import DatabaseUnavailable
from inference_service.core.settings import Settings
from inference_service.jobs import database as database_module
from inference_service.jobs.database import Database, connect, migrate, run_alembic
from inference_service.jobs.migrations import online

ROWS = 200_000
# Longest wait of a lease's renewal for a migration.
BLOCKED_S = 1.0
FIRST, RELEASED = "0001", "0003"
# The migration after it begins to build an index outside of a transaction.
BEFORE_INDEX = "0005"
MIGRATION_KEY = 7_204_115_001
# Statements that hold a lock against writers for as long as they run.
BUILDS_INDEX = re.compile(r"(?:CREATE (?:UNIQUE )?|DROP )INDEX (?!CONCURRENTLY)(?:\S+ ON (?P<table>\w+))?")
CREATES_TABLE = re.compile(r"CREATE TABLE (?:IF NOT EXISTS )?(\w+)")
ALTERS_TABLE = re.compile(r"ALTER TABLE|CREATE TRIGGER|DROP TRIGGER")
CHANGES_ROWS = re.compile(r"(?:UPDATE|DELETE FROM|INSERT INTO) (?!alembic_version)(\w+)")

FINISHED = """
    INSERT INTO jobs (id, state, request, created_at, started_at, finished_at, attempt, output_place)
    SELECT gen_random_uuid(), (ARRAY['succeeded', 'failed'])[1 + n % 2], '{"model": "ct-chest"}',
        now() - n * interval '1 min', now() - n * interval '1 min', now() - n * interval '1 min', 1, 'masks/' || n
    FROM generate_series(1, :rows) AS n
"""
RUNNING = "INSERT INTO jobs (id, state, request, attempt) VALUES (:id, 'running', '{}', 1)"
RENEWAL = "UPDATE jobs SET lease_expires_at = now() + interval '30 s' WHERE id = :id AND state = 'running'"


def upgrade_to(settings: Settings, revision: str) -> None:
    run_alembic(settings, lambda config: alembic_command.upgrade(config, revision))


def execute(settings: Settings, statement: str, **parameters: object) -> None:
    with closing(connect(settings)) as database, database.begin() as connection:
        connection.execute(text("SET statement_timeout = 0"))
        connection.execute(text(statement), parameters)


def first_value(settings: Settings, query: str) -> object:
    with closing(connect(settings)) as database, database.connection() as connection:
        return connection.execute(text(query)).scalar_one()


@contextmanager
def transactions_recorded() -> Iterator[list[list[str]]]:
    """Yields the transactions of all connections, each a list of its statements."""
    transactions: list[list[str]] = [[]]

    def record(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        transactions[-1].append(" ".join(statement.split()))

    def end(_connection: Connection) -> None:
        transactions.append([])

    listeners: dict[str, Callable[..., None]] = {"before_cursor_execute": record, "commit": end, "rollback": end}
    for name, listener in listeners.items():
        event.listen(Engine, name, listener)
    try:
        yield transactions
    finally:
        for name, listener in listeners.items():
            event.remove(Engine, name, listener)


def test_no_migration_runs_for_long_while_it_locks_a_table_of_jobs(empty_database: Settings) -> None:
    with transactions_recorded() as transactions:
        migrate(empty_database)
    assert any("ALTER TABLE jobs" in statement for statements in transactions for statement in statements)
    for statements in transactions:
        created = {match[1] for statement in statements if (match := CREATES_TABLE.match(statement))}
        for statement in statements:
            if match := BUILDS_INDEX.match(statement):
                assert match["table"] in created, f"locks its table: {statement}"
        if any(ALTERS_TABLE.match(statement) for statement in statements):
            changed = {match[1] for statement in statements if (match := CHANGES_ROWS.match(statement))}
            assert changed <= created


def test_a_renewal_of_a_lease_does_not_wait_for_a_migration(empty_database: Settings) -> None:
    upgrade_to(empty_database, FIRST)
    execute(empty_database, FINISHED, rows=ROWS)
    table = first_value(empty_database, "SELECT pg_relation_filenode('jobs')")
    with renewing(empty_database) as waits:
        started = time.monotonic()
        migrate(empty_database)
        duration_s = time.monotonic() - started
    # On a machine with much other work, all of it takes longer.
    assert max(waits) < max(BLOCKED_S, duration_s / 4)
    assert first_value(empty_database, "SELECT pg_relation_filenode('jobs')") == table, "the table was rewritten"
    assert (
        first_value(empty_database, "SELECT count(*) FROM jobs WHERE state = 'failed' AND output_place IS NOT NULL")
        == 0
    )


@contextmanager
def renewing(settings: Settings) -> Iterator[list[float]]:
    """Renews a job's lease again and again during the block, and yields the seconds of each renewal."""
    job_id = uuid4()
    execute(settings, RUNNING, id=job_id)
    waits: list[float] = []
    done = threading.Event()
    thread = threading.Thread(target=_renew, args=(settings, job_id, waits, done))
    thread.start()
    try:
        yield waits
    finally:
        done.set()
        thread.join()


def _renew(settings: Settings, job_id: UUID, waits: list[float], done: threading.Event) -> None:
    with closing(connect(settings)) as database:
        while not done.is_set() or not waits:
            started = time.monotonic()
            with database.begin() as connection:
                assert connection.execute(text(RENEWAL), {"id": job_id}).rowcount == 1
            waits.append(time.monotonic() - started)


READ_LOCK = "LOCK TABLE jobs IN ACCESS SHARE MODE"


@contextmanager
def held(settings: Settings, lock: str) -> Iterator[None]:
    """Holds a lock; READ_LOCK is that of a long query."""
    with closing(connect(settings)) as database, database.begin() as connection:
        connection.execute(text("SET idle_in_transaction_session_timeout = 0"))
        connection.execute(text(lock))
        yield


def test_a_migration_that_waits_for_a_lock_lets_others_pass(
    empty_database: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    upgrade_to(empty_database, RELEASED)
    tries = threading.Event()
    is_lock_conflict = database_module.is_lock_conflict

    def recorded(error: BaseException) -> bool:
        tries.set()
        return is_lock_conflict(error)

    monkeypatch.setattr(database_module, "is_lock_conflict", recorded)
    migration = threading.Thread(target=migrate, args=(empty_database,))
    with renewing(empty_database) as waits:
        with held(empty_database, READ_LOCK):
            migration.start()
            assert tries.wait(30)
            renewed = len(waits)
            deadline = time.monotonic() + 30
            while len(waits) < renewed + 2 and time.monotonic() < deadline:
                time.sleep(0.01)
        migration.join()
    assert len(waits) >= renewed + 2
    assert first_value(empty_database, "SELECT count(*) FROM stored_attempts") == 0


@pytest.mark.parametrize(
    ("revision", "lock", "reason"),
    [
        (RELEASED, READ_LOCK, "another session may hold a lock"),
        (BEFORE_INDEX, "LOCK TABLE jobs IN SHARE UPDATE EXCLUSIVE MODE", "another session may hold a lock"),
        (BEFORE_INDEX, f"SELECT pg_advisory_lock({MIGRATION_KEY})", "another migration is still running"),
    ],
    ids=["query", "vacuum", "migration"],
)
def test_a_migration_gives_up_on_a_lock_that_stays(
    empty_database: Settings, monkeypatch: pytest.MonkeyPatch, revision: str, lock: str, reason: str
) -> None:
    monkeypatch.setattr(database_module, "MIGRATION_PATIENCE_S", 0.5)
    upgrade_to(empty_database, revision)
    with held(empty_database, lock), pytest.raises(DatabaseUnavailable, match=reason):
        migrate(empty_database)
    migrate(empty_database)


def test_a_migration_that_was_interrupted_runs_again(empty_database: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    upgrade_to(empty_database, FIRST)
    execute(empty_database, FINISHED, rows=10)
    for failing in ("ix_jobs_input_sha256", "ix_jobs_started"):
        with monkeypatch.context() as patch:
            patch.setattr(online, "create_index", failing_at(failing))
            with pytest.raises(KeyboardInterrupt):
                migrate(empty_database)
    migrate(empty_database)
    assert first_value(empty_database, "SELECT count(*) FROM pg_index WHERE NOT indisvalid") == 0


def failing_at(failing: str) -> Callable[..., None]:
    create_index = online.create_index

    def create(name: str, *args: object, **options: object) -> None:
        if name == failing:
            raise KeyboardInterrupt
        create_index(name, *args, **options)  # type: ignore[arg-type]

    return create


def test_the_command_line_gives_up_on_a_locked_table(
    database: Database, command: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "_RESPONSE_LIMIT_S", 0.5)
    with database.begin() as connection:
        connection.execute(text("LOCK TABLE jobs"))
        done = command("jobs")
    assert done.exit_code == 4
    assert "another session may hold a lock" in done.stderr
