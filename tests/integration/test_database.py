"""Schema, migrations and lost connections, against a real Postgres."""

import os
import signal
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from uuid import UUID, uuid4

import psycopg2.extensions
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from pydantic import SecretStr
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from inference_service.contract.task_message import InputReference, SegmentRequest
from inference_service.core.errors import DatabaseUnavailable
from inference_service.core.settings import Settings
from inference_service.embedded.servers import Servers
from inference_service.jobs import attempts, job_store, recovery
from inference_service.jobs import database as database_module
from inference_service.jobs.database import Database, connect, limit_response_time, migrate, run_alembic
from inference_service.jobs.schema import Base, JobState

REQUEST = SegmentRequest(input=InputReference(key="ct/1.nii.gz"), model="ct-tissue")


def migrate_to(settings: Settings, revision: str, *, down: bool = False) -> None:
    """Migrates to one revision, as `migrate` does to the newest one."""
    run_alembic(settings, lambda config: (command.downgrade if down else command.upgrade)(config, revision))


def test_the_migrations_create_exactly_the_tables_of_the_code(empty_database: Settings) -> None:
    migrate(empty_database)
    with closing(connect(empty_database)) as database, database.connection() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, Base.metadata) == []


def test_a_second_migration_changes_nothing(empty_database: Settings) -> None:
    migrate(empty_database)
    with closing(connect(empty_database)) as database:
        job_id = uuid4()
        job_store.create(database, job_id, None)
        migrate(empty_database)
        assert job_store.get(database, job_id) is not None


def test_every_migration_can_be_reverted(empty_database: Settings) -> None:
    migrate(empty_database)
    migrate_to(empty_database, "base", down=True)
    migrate(empty_database)
    with closing(connect(empty_database)) as database:
        assert job_store.count(database) == 0


def test_the_error_for_missing_tables_names_the_remedy(empty_database: Settings) -> None:
    with (
        closing(connect(empty_database)) as database,
        pytest.raises(DatabaseUnavailable, match="inference-service migrate"),
    ):
        job_store.get(database, uuid4())


# Statements of the version before revision 0004.
OLD_CREATE = """
    INSERT INTO jobs (id, state, request) VALUES (:id, 'queued', :request) ON CONFLICT DO NOTHING RETURNING id
"""
OLD_INSERT = """
    INSERT INTO jobs (id, state, request, attempt, excused, queue, dispatched_at, dispatched_to)
    VALUES (:id, :state, '{}', 3, 1, 'overflow', now(), 'run A')
"""
OLD_RETURN = """
    UPDATE jobs SET state = 'queued', excused = excused + 1, lease_token = NULL, lease_expires_at = NULL,
        not_before = now(), dispatched_at = NULL
    WHERE id = :id
"""
OLD_DISPATCH = """
    UPDATE jobs SET queue = 'overflow', dispatched_at = now(), dispatched_to = :run
    WHERE id = :id AND state = 'queued' AND attempt = :attempt
"""
OLD_CLAIM = """
    SELECT state, attempt, excused, request, output_place, on_cpu, cancel_requested FROM jobs
    WHERE id = :id AND (state = 'queued' AND (not_before IS NULL OR not_before <= now())
        OR state = 'running' AND lease_expires_at < now())
    FOR UPDATE
"""
OLD_UNSENT = """
    SELECT id, request, attempt, on_cpu FROM jobs
    WHERE state = 'queued' AND request IS NOT NULL AND dispatched_at IS NOT NULL AND dispatched_to != :run
"""
OLD_RESERVATION = "UPDATE jobs SET output_place = :place WHERE id = :id AND state = 'running' RETURNING id"
NEW_COLUMNS = "SELECT returned_attempts, redis_run_id FROM jobs WHERE id = :id"
OLD_COLUMNS = "SELECT excused, dispatched_to FROM jobs WHERE id = :id"


def rows(database: Database, statement: str, **parameters: object) -> list[tuple[object, ...]]:
    with database.begin() as connection:
        result = connection.execute(text(statement), parameters)
        return [tuple(row) for row in result] if result.returns_rows else []


def test_renamed_columns_have_the_values_of_unfinished_jobs(empty_database: Settings) -> None:
    migrate_to(empty_database, "0003")
    with closing(connect(empty_database)) as database:
        job_ids = {state: uuid4() for state in JobState}
        for state, job_id in job_ids.items():
            rows(database, OLD_INSERT, id=job_id, state=state)
        migrate(empty_database)
        for state in (JobState.QUEUED, JobState.RUNNING):
            assert rows(database, NEW_COLUMNS, id=job_ids[state]) == [(1, "run A")]
        assert {job.state: job.id for job in job_store.latest(database)} == job_ids
        migrate_to(empty_database, "0003", down=True)
        for job_id in job_ids.values():
            assert rows(database, OLD_COLUMNS, id=job_id) == [(1, "run A")]


@pytest.mark.parametrize(
    ("statements", "reason"),
    [
        (["ALTER TABLE jobs DROP COLUMN request"], 'column "request" of relation "jobs" does not exist'),
        (["CREATE ROLE lowly LOGIN PASSWORD 'lowly'", "GRANT SELECT ON jobs TO lowly"], "permission denied"),
    ],
    ids=["missing column", "missing privilege"],
)
def test_a_database_that_refuses_a_statement_is_unavailable(
    empty_database: Settings, statements: list[str], reason: str
) -> None:
    migrate(empty_database)
    role = {"postgres_user": "lowly", "postgres_password": SecretStr("lowly")} if len(statements) > 1 else {}
    with closing(connect(empty_database)) as owner:
        with owner.begin() as connection:
            for statement in statements:
                connection.execute(text(statement))
        with (
            closing(connect(empty_database.model_copy(update=role))) as database,
            pytest.raises(DatabaseUnavailable) as refused,
        ):
            job_store.create(database, uuid4(), REQUEST)
        assert reason in refused.value.message
        assert "\n" not in refused.value.message
        if role:
            with owner.begin() as connection:
                connection.execute(text("DROP OWNED BY lowly"))
                connection.execute(text("DROP ROLE lowly"))


@pytest.fixture
def queued_job(database: Database) -> UUID:
    job_id = uuid4()
    assert job_store.create(database, job_id, REQUEST)
    return job_id


def is_unsent(database: Database, job_id: UUID) -> bool:
    return job_id in {job.id for job in recovery.find_unsent(database, grace_s=-1)}


def test_a_job_created_and_sent_by_the_old_version_is_claimed_by_the_new_one(database: Database) -> None:
    job_id = uuid4()
    request = REQUEST.model_dump_json()
    assert rows(database, OLD_CREATE, id=job_id, request=request) == [(job_id,)]
    assert rows(database, OLD_CREATE, id=job_id, request=request) == []
    assert rows(database, NEW_COLUMNS, id=job_id) == [(0, None)]
    rows(database, OLD_DISPATCH, id=job_id, run="run A", attempt=0)
    assert rows(database, NEW_COLUMNS, id=job_id) == [(0, "run A")]
    claim = attempts.claim(database, job_id, worker="w", lease_s=30, max_attempts=3)
    assert claim is not None
    assert (claim.attempt, claim.request) == (1, REQUEST.model_dump(mode="json"))


def test_a_message_sent_by_either_version_is_known_to_the_other(database: Database, queued_job: UUID) -> None:
    def is_unsent_to_the_old(run_id: str) -> bool:
        return queued_job in {row[0] for row in rows(database, OLD_UNSENT, run=run_id)}

    assert is_unsent(database, queued_job)
    rows(database, OLD_DISPATCH, id=queued_job, run="run A", attempt=0)
    assert not is_unsent(database, queued_job)
    with database.begin() as connection:
        job = job_store.UnsentJob(queued_job, REQUEST.model_dump(mode="json"), attempt=0)
        job_store.mark_dispatched(connection, job, queue="overflow", redis_run_id="run B")
    assert not is_unsent_to_the_old("run B")
    assert is_unsent_to_the_old("run A")


def test_an_attempt_returned_to_either_version_does_not_count_for_the_other(
    database: Database, queued_job: UUID
) -> None:
    worker = f"w-{uuid4()}"

    def claim() -> attempts.Claim:
        claimed = attempts.claim(database, queued_job, worker=worker, lease_s=30, max_attempts=1)
        assert claimed is not None
        return claimed

    claim()
    rows(database, OLD_RETURN, id=queued_job)
    assert claim().attempts_left == 0
    assert rows(database, OLD_RESERVATION, id=queued_job, place=f"masks/{queued_job}") == [(queued_job,)]
    assert recovery.return_jobs(database, worker=worker, max_attempts=1) == []
    ((state, attempt, excused, _, place, _, _),) = rows(database, OLD_CLAIM, id=queued_job)
    assert (state, attempt, excused, place) == ("queued", 2, 2, f"masks/{queued_job}")
    rows(database, OLD_DISPATCH, id=queued_job, run="run A", attempt=2)
    assert rows(database, NEW_COLUMNS, id=queued_job) == [(2, "run A")]


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"postgres_password": ""}, "fe_sendauth: no password supplied"),
        ({"postgres_password": "wrong"}, 'password authentication failed for user "inference"'),
        ({"postgres_db": "absent"}, 'database "absent" does not exist'),
        ({"postgres_port": 1}, "Connection refused"),
    ],
    ids=["no-password", "wrong-password", "no-database", "no-server"],
)
def test_the_error_says_why_postgres_cannot_be_used(
    settings: Settings, changed: dict[str, object], reason: str
) -> None:
    with pytest.raises(DatabaseUnavailable) as caught:
        migrate(Settings.model_validate({**settings.model_dump(), **changed}))
    assert caught.value.message == f"Postgres cannot be used: {reason}"


def test_too_many_connections_at_once_are_an_outage(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_module, "_IDLE_LIMIT_S", 1)
    with closing(connect(settings)) as database, ExitStack() as stack:
        for _ in range(10):
            stack.enter_context(database.connection())
        with pytest.raises(DatabaseUnavailable, match="in use"):
            database.ping()


@pytest.fixture
def limited_responses() -> Iterator[None]:
    """Limits the response time of this process's connections, as in a worker."""
    limit_response_time()
    yield
    psycopg2.extensions.set_wait_callback(None)


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """Freezes a process of Postgres for the block, in which nobody waits long for it."""
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(database_module, "_RESPONSE_LIMIT_S", 0.5)
            yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.usefixtures("limited_responses")
def test_a_statement_fails_when_the_server_is_frozen(database: Database) -> None:
    def freeze_and_ask() -> None:
        with database.connection() as connection:
            pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
            with frozen(pid):
                connection.execute(text("SELECT 1"))

    with pytest.raises(DatabaseUnavailable):
        freeze_and_ask()
    assert job_store.get(database, uuid4()) is None


@pytest.mark.usefixtures("limited_responses")
def test_a_connection_fails_when_the_server_is_frozen(servers: Servers, settings: Settings) -> None:
    with closing(connect(settings)) as database:
        assert servers.postgres.pid is not None
        with frozen(servers.postgres.pid), pytest.raises(DatabaseUnavailable):
            job_store.get(database, uuid4())
        assert job_store.get(database, uuid4()) is None


@pytest.mark.usefixtures("limited_responses")
def test_an_error_quotes_no_value_of_a_row(database: Database) -> None:
    """Unexpected errors are logged, and the row of a job has its request."""
    insert = text("INSERT INTO jobs (id, state, request) VALUES (:id, 'lost', CAST(:request AS jsonb))")
    values = {"id": uuid4(), "request": '{"input": {"key": "MUELLER"}}'}
    with pytest.raises(IntegrityError) as caught, database.begin() as connection:
        connection.execute(insert, values)
    logged = "".join(traceback.format_exception(caught.value))
    assert 'violates check constraint "ck_jobs_state"' in logged
    assert "MUELLER" not in logged


def test_a_statement_within_the_limit_succeeds(database: Database) -> None:
    with database.connection() as connection:
        assert connection.execute(text("SELECT 1 FROM pg_sleep(0.2)")).scalar_one() == 1
