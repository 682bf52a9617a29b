"""Redis with sentinels: its primary dies in the middle of jobs, and a replica takes over."""

import os
import signal
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from faults import Service, start_service
from redis_servers import SENTINEL_PASSWORD, Group, start_group

from inference_service import Client
from inference_service.embedded.servers import start_servers
from inference_service.embedded.stack import settings_for
from inference_service.worker.deployment import prepare

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def group(tmp_path: Path, scan: Path) -> Iterator[tuple[Service, Group]]:
    """A service without a worker, with a group of Redis servers."""
    with start_servers(tmp_path / "servers", durable=False) as servers:
        prepare(settings_for(servers.environment))
        with start_service(servers, tmp_path, scan) as service, start_group(servers, tmp_path) as group:
            environment = {**service.environment, **group.environment}
            settings = settings_for({**servers.environment, **group.environment})
            with closing(Client(settings)) as client:
                yield replace(service, client=client, environment=environment), group


@pytest.mark.parametrize("fault", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)], ids=str)
def test_jobs_go_on_with_the_next_primary(group: tuple[Service, Group], fault: signal.Signals) -> None:
    """A primary that is suspended, as on a machine that vanishes, ends no connection."""
    service, redis = group
    primary, replica = redis.servers
    # With a shorter lease, the worker would end before it notices that a suspended primary does not answer.
    with service.worker(LEASE_S="15") as worker:
        running = service.submit_held()
        queued = [service.submit("quick") for _ in range(3)]
        service.half_done(running)
        assert primary.pid is not None
        os.kill(primary.pid, fault)
        meanwhile = service.submit("quick")
        redis.wait_until_primary(replica)
        service.release(running)
        service.assert_succeeded(running, meanwhile, *queued, service.submit("quick"))
        log = worker.log_path.read_text()
    primary.kill()
    assert [state for state, *_ in service.transitions(running)] == ["queued", "running", "succeeded"]
    assert redis.password not in log
    assert SENTINEL_PASSWORD not in log
