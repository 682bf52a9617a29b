"""A client of the HTTP gateway, which is served from a thread."""

from collections.abc import Callable, Iterator
from uuid import uuid4

import httpx
import pytest
from gateway_server import served
from jobs_in_process import Request
from sqlalchemy import delete

from inference_service.embedded.servers import Servers
from inference_service.embedded.stack import settings_for
from inference_service.jobs.database import Database
from inference_service.jobs.gateway import tokens
from inference_service.jobs.gateway.tokens import Limits, TokenRole
from inference_service.jobs.schema import TokenRow
from inference_service.worker.task import TaskHandler


@pytest.fixture(scope="module")
def address(servers: Servers) -> Iterator[str]:
    with served(settings_for(servers.environment), local=False) as found:
        yield found


@pytest.fixture
def client_of(address: str, database: Database) -> Iterator[Callable[..., httpx.Client]]:
    """Makes a client with a token of its own."""
    opened = []

    def make(role: TokenRole = TokenRole.SUBMIT, name: str | None = None, **limits: float) -> httpx.Client:
        _, secret = tokens.add(database, name or f"name-{uuid4()}", role, Limits(**limits))  # type: ignore[arg-type]
        opened.append(httpx.Client(base_url=address, headers={"Authorization": f"Bearer {secret}"}, timeout=30))
        return opened[-1]

    yield make
    for client in opened:
        client.close()
    with database.begin() as connection:
        connection.execute(delete(TokenRow))


@pytest.fixture
def client(client_of: Callable[..., httpx.Client]) -> httpx.Client:
    return client_of()


@pytest.fixture
def finished(
    client_of: Callable[..., httpx.Client], handler: TaskHandler, database: Database, request_for_scan: Request
) -> tuple[httpx.Client, str]:
    """A client, and the path of its succeeded job."""
    client = client_of()
    request = {**request_for_scan, "output": {"scan": True}}
    path = client.post("/v1/jobs", json={"request": request}).headers["Location"]
    job_id = path.rpartition("/")[2]
    handler.handle({"job_id": job_id, "request": request}, task_id=job_id)
    return client, path
