"""`check`: what a worker needs of the servers, tried out."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import pytest
from faults import wait_for
from redis import Redis
from redis_servers import client, start_redis
from sqlalchemy import text

from inference_service.core.errors import StorageRefused
from inference_service.core.settings import Settings
from inference_service.embedded.process import HOST
from inference_service.embedded.servers import Servers
from inference_service.jobs.database import Database
from inference_service.jobs.queues.refusals import CLUSTER
from inference_service.jobs.storage.object_storage import Storage
from inference_service.worker import deployment
from inference_service.worker.deployment import Check, check

pytestmark = pytest.mark.usefixtures("usable_providers")


@pytest.fixture
def usable_providers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe takes seconds."""
    monkeypatch.setattr(deployment, "_check_providers", lambda _settings: "")


@pytest.fixture
def redis(settings: Settings) -> Iterator[Redis]:
    with Redis.from_url(settings.broker_url) as redis:
        before = {name: redis.config_get(name)[name] for name in ("maxmemory", "maxmemory-policy")}
        yield redis
        for name, value in before.items():
            redis.config_set(name, value)
        redis.replicaof("NO", "ONE")


def checked(settings: Settings, name: str) -> Check:
    (found,) = (item for item in check(settings) if item.name == name)
    return found


def test_a_check_of_a_usable_deployment_leaves_nothing_behind(settings: Settings, redis: Redis) -> None:
    with closing(Storage(settings)) as storage:
        before = (sorted(redis.keys()), redis.llen("overflow"), sorted(storage.list_keys("masks")))
        checks = check(settings)
        assert [item.problem for item in checks] == [None] * len(checks)
        assert (sorted(redis.keys()), redis.llen("overflow"), sorted(storage.list_keys("masks"))) == before


def test_redis_that_takes_no_message_from_this_user(settings: Settings, redis: Redis) -> None:
    rights = ["+@read", "+@connection"]
    redis.acl_setuser(
        "reader", enabled=True, passwords=["+secret"], keys=["*"], categories=rights, commands=["+info", "+multi"]
    )
    url = settings.broker_url.partition("@")[2]
    reader = Settings.model_validate(
        {**settings.model_dump(), "redis_url": f"redis://reader:secret@{url}", "redis_password": None}
    )
    try:
        assert "(NOPERM)" in str(checked(reader, "redis").problem)
    finally:
        redis.acl_deluser("reader")


def test_redis_that_is_full(settings: Settings, redis: Redis) -> None:
    redis.config_set("maxmemory", 1)
    assert "Redis is full (OOM)" in str(checked(settings, "redis").problem)


def test_redis_that_is_almost_full(settings: Settings, redis: Redis) -> None:
    redis.config_set("maxmemory", int(redis.info("memory")["used_memory"] * 1.03))
    assert "Redis is almost full" in str(checked(settings, "redis").problem)


@pytest.mark.parametrize(("policy", "usable"), [("allkeys-lru", False), ("volatile-lru", True), ("noeviction", True)])
def test_redis_that_may_evict_messages(settings: Settings, redis: Redis, policy: str, usable: bool) -> None:
    redis.config_set("maxmemory-policy", policy)
    assert (checked(settings, "redis").problem is None) is usable


def test_redis_that_is_a_replica(settings: Settings, redis: Redis) -> None:
    redis.replicaof("127.0.0.1", "1")
    assert "(READONLY)" in str(checked(settings, "redis").problem)


def test_redis_that_is_a_cluster(settings: Settings, servers: Servers, tmp_path: Path) -> None:
    """One node with all slots: it answers, but takes no command with keys of two slots."""
    password = servers.credentials.redis_password
    lines = ["cluster-enabled yes", f"requirepass {password}"]
    with start_redis(servers, tmp_path / "node", lines) as node, client(node.port, password) as redis:
        redis.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16383)
        wait_for(lambda: redis.execute_command("CLUSTER INFO")["cluster_state"] == "ok")
        url = f"redis://:{password}@{HOST}:{node.port}/0"
        assert checked(Settings.model_validate({**settings.model_dump(), "redis_url": url}), "redis").problem == CLUSTER


def test_postgres_whose_role_lacks_rights(settings: Settings, database: Database) -> None:
    role = f"reader_{uuid4().hex}"
    with database.begin() as connection:
        for statement in (f"CREATE ROLE {role} LOGIN PASSWORD 'x'", f"GRANT SELECT ON jobs, workers TO {role}"):
            connection.execute(text(statement))
    try:
        reader = Settings.model_validate({**settings.model_dump(), "postgres_user": role, "postgres_password": "x"})
        problem = str(checked(reader, "postgres").problem)
        assert f"the role {role} lacks rights of a worker" in problem
        assert "INSERT on jobs" in problem
        assert "SELECT on transitions" in problem
        assert "SELECT on jobs" not in problem
    finally:
        with database.begin() as connection:
            connection.execute(text(f"DROP OWNED BY {role}"))
            connection.execute(text(f"DROP ROLE {role}"))


def test_a_storage_with_another_time(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deployment, "_MAX_SKEW_S", -1)
    assert "synchronise the clocks" in str(checked(settings, "minio").problem)


def test_a_storage_that_lets_nothing_be_removed(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_self: Storage, _bucket: str, key: str) -> None:
        removed.append(key)
        raise StorageRefused("the object storage denies access (AccessDenied)")

    removed: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(Storage, "remove", refuse)
        found = checked(settings, "minio")
    assert found.problem is None
    assert f"this key may not remove it: {removed[0]}" in found.detail
    with closing(Storage(settings)) as storage:
        storage.remove(settings.minio_output_bucket, removed[0])
