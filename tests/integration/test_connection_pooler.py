"""Postgres behind PgBouncer, in both of the modes that the service supports."""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager

import pytest
from jobs_in_process import Request, run
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from inference_service.core.errors import DatabaseUnavailable
from inference_service.core.settings import Settings
from inference_service.embedded.postgres import _answers, _unprivileged_account
from inference_service.embedded.process import HOST, Server
from inference_service.jobs import database as database_module
from inference_service.jobs import job_store
from inference_service.jobs.database import Database, connect
from inference_service.jobs.schema import JobState
from inference_service.worker import deployment
from inference_service.worker.deployment import check
from inference_service.worker.task import TaskHandler

PGBOUNCER = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")

pytestmark = pytest.mark.skipif(PGBOUNCER is None, reason="PgBouncer is not installed")


@pytest.fixture(scope="module")
def start_pooler(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., AbstractContextManager[Settings]]:
    """Starts PgBouncer in front of the Postgres of some settings, and yields settings that use it."""

    @contextmanager
    def start(settings: Settings, mode: str, *, connections: int, ignored: str = "") -> Iterator[Settings]:
        folder = tmp_path_factory.mktemp("pgbouncer")
        password = settings.postgres_password.get_secret_value()
        (folder / "users.txt").write_text(f'"{settings.postgres_user}" "{password}"\n')
        # PgBouncer refuses to run as root, like Postgres.
        account = _unprivileged_account()

        def command(port: int) -> list[str]:
            lines = [
                "[databases]",
                f"* = host={HOST} port={settings.postgres_port}",
                "[pgbouncer]",
                f"listen_addr = {HOST}",
                f"listen_port = {port}",
                "unix_socket_dir =",
                "auth_type = scram-sha-256",
                "auth_file = users.txt",
                f"pool_mode = {mode}",
                f"default_pool_size = {connections}",
                f"ignore_startup_parameters = {ignored}",
            ]
            (folder / "pgbouncer.ini").write_text("\n".join(lines) + "\n")
            if account is not None:
                for path in (folder, *folder.iterdir()):
                    os.chown(path, account.uid, account.gid)
            return [str(PGBOUNCER), "pgbouncer.ini"]

        with (folder / "lock").open("w") as lock:
            server = Server(
                name="pgbouncer",
                command=command,
                answers=lambda port: _answers(port, password),
                folder=folder,
                log_path=folder / "log",
                environment={},
                account=account,
                lock=lock.fileno(),
            )
            try:
                server.start()
                yield Settings.model_validate({**settings.model_dump(), "postgres_port": server.port})
            finally:
                server.kill()

    return start


@pytest.fixture(params=["session", "transaction"])
def pooled(
    request: pytest.FixtureRequest, settings: Settings, start_pooler: Callable[..., AbstractContextManager[Settings]]
) -> Iterator[Settings]:
    """Settings with a pooler. Its clients share one connection, as far as the mode allows that."""
    connections = 1 if request.param == "transaction" else 8
    with start_pooler(settings, request.param, connections=connections) as direct:
        yield direct.model_copy(update={"postgres_pooler": True})


def test_a_job_runs(
    pooled: Settings, make_handler: Callable[..., TaskHandler], database: Database, request_for_scan: Request
) -> None:
    handler = make_handler(postgres_port=pooled.postgres_port, postgres_pooler=True)
    assert run(handler, database, request_for_scan).state is JobState.SUCCEEDED


def test_a_statement_that_waits_for_a_lock_gives_up(
    pooled: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "_RESPONSE_LIMIT_S", 0.2)
    with closing(connect(pooled)) as limited, database.begin() as connection:
        connection.execute(text("LOCK TABLE jobs"))
        with pytest.raises(DatabaseUnavailable, match="another session may hold a lock"):
            job_store.count(limited)


def is_alive(database: Database, pid: int) -> bool:
    with database.connection() as connection:
        query = text("SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = :pid)")
        return bool(connection.execute(query, {"pid": pid}).scalar_one())


def test_an_idle_transaction_is_ended(pooled: Settings, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_module, "_IDLE_LIMIT_S", 1)
    with closing(connect(pooled)) as limited, limited.connection() as idle:
        pid = idle.execute(text("SELECT pg_backend_pid()")).scalar_one()
        while is_alive(database, pid):
            time.sleep(0.05)
        with pytest.raises(OperationalError):
            idle.execute(text("SELECT 1"))


def test_other_clients_of_a_pooler_keep_their_own_limits(pooled: Settings) -> None:
    with closing(connect(pooled)) as limited, closing(connect(pooled, pooled=False)) as other:
        for database, limit in ((limited, "20s"), (other, "15s"), (limited, "20s")):
            with database.begin() as connection:
                assert connection.execute(text("SHOW statement_timeout")).scalar_one() == limit
    with closing(database_module._connect(pooled, {}, pooled=False)) as unlimited, unlimited.begin() as connection:
        assert connection.execute(text("SHOW statement_timeout")).scalar_one() == "0"


@pytest.mark.parametrize("ignored", ["", "options"])
def test_the_check_names_the_setting(
    settings: Settings,
    start_pooler: Callable[..., AbstractContextManager[Settings]],
    ignored: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(deployment, "_check_providers", lambda _settings: "")

    def problem(used: Settings) -> str | None:
        (found,) = (item.problem for item in check(used) if item.name == "postgres")
        return found

    with start_pooler(settings, "session", connections=8, ignored=ignored) as direct:
        assert "set POSTGRES_POOLER=true" in str(problem(direct))
        assert problem(direct.model_copy(update={"postgres_pooler": True})) is None
