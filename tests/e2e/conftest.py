"""The whole service, running: embedded servers and a worker process of each role."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from faults import Service, start_service

from inference_service import Client
from inference_service.embedded.servers import start_servers
from inference_service.embedded.stack import Stack, settings_for, start_stack
from inference_service.worker.deployment import prepare


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with start_stack(tmp_path_factory.mktemp("stack"), durable=False) as running:
        yield running


@pytest.fixture
def client(stack: Stack) -> Iterator[Client]:
    with Client(stack.settings) as client:
        yield client


@pytest.fixture(scope="session")
def breakable_service(tmp_path_factory: pytest.TempPathFactory, scan: Path) -> Iterator[Service]:
    """Servers without a worker, started once; a test may kill them and starts them again."""
    folder = tmp_path_factory.mktemp("faults")
    with start_servers(folder / "servers", durable=False) as servers:
        prepare(settings_for(servers.environment))
        with start_service(servers, folder, scan) as running:
            yield running


@pytest.fixture
def service(breakable_service: Service) -> Iterator[Service]:
    yield breakable_service
    breakable_service.cancel_all()
