"""Redis servers beside the embedded one: a replica, sentinels, or others."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from faults import wait_for
from redis import Redis, RedisError
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from inference_service.embedded.process import ANSWER_LIMIT_S, HOST, Server, server_environment
from inference_service.embedded.servers import Servers

NAME = "queues"
# A user of the sentinels who may only ask for primaries.
USER = "service"
SENTINEL_PASSWORD = "sentinel-p@ss"
SETTINGS = {
    "REDIS_SENTINEL_MASTER": NAME,
    "REDIS_SENTINEL_USERNAME": USER,
    "REDIS_SENTINEL_PASSWORD": SENTINEL_PASSWORD,
}


@dataclass
class Group:
    """The servers of a group.

    Attributes:
        servers: The primary and the replica, in the order in which they started.
        sentinels: The sentinels.
        password: The password of the servers, and of the sentinels for one another.
    """

    servers: list[Server]
    sentinels: list[Server]
    password: str = field(repr=False)

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which the service finds the primary."""
        return {
            "REDIS_URL": ";".join(f"sentinel://{HOST}:{sentinel.port}/0" for sentinel in self.sentinels),
            "REDIS_PASSWORD": self.password,
            **SETTINGS,
        }

    def role(self, server: Server) -> str:
        """Returns "master" or "slave"."""
        with client(server.port, self.password) as redis:
            return str(redis.info("replication")["role"])

    def wait_until_complete(self, primary: Server) -> None:
        """Waits until every sentinel knows this primary, the replica, which is in step, and the other sentinels."""
        wait_for(lambda: all(self._is_complete(sentinel, primary) for sentinel in self.sentinels))

    def wait_until_primary(self, server: Server) -> None:
        """Waits until a server is the primary that all sentinels name."""
        wait_for(lambda: all(self._master(sentinel)["port"] == server.port for sentinel in self.sentinels))
        wait_for(lambda: self.role(server) == "master")

    def _is_complete(self, sentinel: Server, primary: Server) -> bool:
        master = self._master(sentinel)
        with client(primary.port, self.password) as redis:
            replication = redis.info("replication")
        known = (master["port"], master["num-other-sentinels"], master["num-slaves"], master["is_sdown"])
        in_step = replication["connected_slaves"] == 1 and replication["slave0"]["state"] == "online"
        return known == (primary.port, len(self.sentinels) - 1, 1, False) and in_step

    def _master(self, sentinel: Server) -> dict[str, object]:
        with client(sentinel.port, SENTINEL_PASSWORD, user=USER) as redis:
            return dict(redis.sentinel_masters()[NAME])


@contextmanager
def start_group(servers: Servers, folder: Path) -> Iterator[Group]:
    """Starts a replica and sentinels beside the embedded primary, and stops them when the block ends."""
    password = servers.credentials.redis_password
    group = Group([servers.redis], [], password)
    with client(servers.redis.port, password) as redis:
        redis.config_set("masterauth", password)
        redis.config_rewrite()
    replica = [f"requirepass {password}", f"masterauth {password}", f"replicaof {HOST} {servers.redis.port}"]
    with ExitStack() as stack:
        group.servers.append(stack.enter_context(start_redis(servers, folder / "replica", replica)))
        for number in range(3):
            sentinel = start_sentinel(
                servers, folder / f"sentinel-{number}", servers.redis.port, quorum=2, down_after_s=1
            )
            group.sentinels.append(stack.enter_context(sentinel))
        group.wait_until_complete(servers.redis)
        yield group


@contextmanager
def start_sentinel(
    servers: Servers, folder: Path, port: int, *, quorum: int = 1, down_after_s: int = 60
) -> Iterator[Server]:
    """Starts a sentinel, and stops it when the block ends.

    Args:
        servers: Gives the program and the password.
        folder: A new folder.
        port: The port of the primary.
        quorum: Number of sentinels that must find the primary dead.
        down_after_s: Seconds without an answer after which the sentinel finds it dead.
    """
    password = servers.credentials.redis_password
    lines = [
        f"sentinel monitor {NAME} {HOST} {port} {quorum}",
        f"sentinel auth-pass {NAME} {password}",
        f"sentinel down-after-milliseconds {NAME} {down_after_s * 1000}",
        f"sentinel failover-timeout {NAME} 5000",
        f"requirepass {password}",
        f"user {USER} on >{SENTINEL_PASSWORD} -@all +sentinel|masters",
    ]
    with start_redis(servers, folder, lines, "--sentinel") as server:
        yield server


@contextmanager
def start_redis(servers: Servers, folder: Path, lines: list[str], *options: str) -> Iterator[Server]:
    """Starts the program of the embedded Redis, and stops it when the block ends.

    Args:
        servers: Gives the program and the password that `lines` must set.
        folder: A new folder.
        lines: Lines of its configuration.
        options: Options of its command line.
    """
    folder.mkdir()
    binary = servers.redis.command(0)[0]
    configuration = folder / "redis.conf"
    configuration.write_text("\n".join([f"bind {HOST}", *lines]) + "\n")

    def answers(port: int) -> bool:
        with suppress(RedisError), client(port, servers.credentials.redis_password, retries=0) as redis:
            return bool(redis.ping())
        return False

    with (folder / "lock").open("w") as lock:
        server = Server(
            name=folder.name,
            command=lambda port: [binary, str(configuration), *options, "--port", str(port)],
            answers=answers,
            folder=folder,
            log_path=folder / "log",
            environment=server_environment(),
            lock=lock.fileno(),
        )
        try:
            server.start()
            yield server
        finally:
            server.kill()


def client(port: int, password: str, *, user: str | None = None, retries: int = 3) -> Redis:
    """Returns a client of a server or sentinel."""
    retry = Retry(ConstantBackoff(0.1), retries)
    return Redis(HOST, port, username=user, password=password, socket_timeout=ANSWER_LIMIT_S, retry=retry)
