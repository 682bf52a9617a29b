"""Requests to the HTTP gateway that break the contract or the protocol, or come from another site's page."""

import json
import logging
import socket
import threading
from base64 import urlsafe_b64encode
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from io import BytesIO
from typing import Any
from uuid import uuid4
from zipfile import ZipFile

import httpx
import psutil
import pytest
from faults import wait_for
from gateway_server import served
from sqlalchemy import delete

from inference_service.client import Client
from inference_service.core.errors import StorageUnavailable
from inference_service.core.settings import Settings
from inference_service.gateway import events, health, server
from inference_service.gateway.health import HealthCheck
from inference_service.gateway.observation import Observation
from inference_service.gateway.views import Health
from inference_service.jobs import job_store
from inference_service.jobs.database import Database
from inference_service.jobs.gateway import tokens
from inference_service.jobs.gateway.tokens import Limits, TokenRole
from inference_service.jobs.schema import TokenRow
from inference_service.jobs.storage.object_storage import Storage

pytestmark = pytest.mark.usefixtures("no_jobs_left")

REQUEST = {"input": {"key": "scan"}, "model": "ct-tissue"}
JSON = {"Content-Type": "application/json"}


@pytest.fixture
def client(settings: Settings) -> Iterator[httpx.Client]:
    with served(settings, local=True) as address, httpx.Client(base_url=address, timeout=30) as made:
        yield made


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


@pytest.mark.parametrize(
    "body",
    [
        b'{"request": {"input": {"key": "scan\xff"}, "model": "ct-tissue"}}',
        b'{"request": {"input": {"channels": {"C\\u0000T": {"key": "scan"}}}, "model": "ct-tissue"}}',
        b'{"request": {"input": {"channels": {"C\\ud800T": {"key": "scan"}}}, "model": "ct-tissue"}}',
    ],
    ids=["no-utf-8", "nul", "surrogate"],
)
def test_texts_that_no_server_stores_are_refused(client: httpx.Client, body: bytes) -> None:
    assert code(client.post("/v1/jobs", content=body, headers=JSON)) == (400, "bad_request")


@pytest.mark.parametrize(
    ("input_", "field"),
    [
        ({"channels": {"PET": 5}}, "channel.PET"),
        ({"channels": {"PET": "ab"}}, "channel.PET"),
        ({"channels": {"PET": None}}, "channel.PET"),
        ({"channels": {"PET": {"bucket": "masks"}}}, "channel.PET"),
        ({"channels": {"PET": {"key": "other"}}}, "channel.PET"),
        ({"channels": None}, "file"),
        ([], "file"),
    ],
)
def test_inputs_of_forms_that_break_the_contract(client: httpx.Client, input_: object, field: str) -> None:
    request = json.dumps({"model": "ct-tissue", "input": input_})
    answer = client.post("/v1/jobs", files=[("request", (None, request)), (field, ("f", b"x"))])
    assert code(answer) == (400, "bad_request")


@pytest.mark.parametrize("time", ["0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59"])
def test_a_cursor_outside_of_all_times_is_refused(client: httpx.Client, time: str) -> None:
    cursor = urlsafe_b64encode(json.dumps([time, str(uuid4())]).encode()).decode()
    assert code(client.get("/v1/jobs", params={"after": cursor})) == (400, "bad_request")


def test_an_empty_idempotency_key_is_refused(client: httpx.Client) -> None:
    """A script whose variable is unset would make one job of all."""
    answer = client.post("/v1/jobs", json={"request": REQUEST}, headers={"Idempotency-Key": ""})
    assert code(answer) == (400, "bad_request")


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://other.example"},
        {"Origin": "null"},
        {"Origin": "http://["},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Host": "["},
        {"Host": "localhost.other.example"},
    ],
)
def test_pages_of_other_sites_are_refused(client: httpx.Client, headers: dict[str, str]) -> None:
    assert code(client.post("/v1/jobs", json={"request": REQUEST}, headers=headers)) == (403, "forbidden")


@pytest.mark.parametrize("path", ["/v1/jobs/", "/healthz/", "//v1/jobs"])
def test_no_path_leads_to_the_address_that_a_request_states(client: httpx.Client, path: str) -> None:
    answer = client.get(httpx.URL(f"{client.base_url}").copy_with(raw_path=path.encode()))
    assert code(answer) == (404, "not_found")


def test_an_unexpected_error_is_answered_and_observed(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_args: Any, **_options: Any) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr(job_store, "latest", fail)
    caplog.set_level(logging.INFO)
    answer = client.get("/v1/jobs")
    assert code(answer) == (500, "internal_error")
    assert "a fault" not in answer.text
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    # The line is written after the answer.
    wait_for(lambda: any("GET /v1/jobs by local: 500" in record.getMessage() for record in caplog.records))


def test_a_prefix_is_downloaded_under_numbered_names(client: httpx.Client, storage: Storage) -> None:
    for key in ("a/1.dcm", "b/1.dcm"):
        storage.create("volumes", f"series/{key}", key.encode())
    request = {**REQUEST, "input": {"key": "series/"}}
    path = client.post("/v1/jobs", json={"request": request}).headers["Location"]
    with ZipFile(BytesIO(client.get(f"{path}/input").content)) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == {"000000": b"a/1.dcm", "000001": b"b/1.dcm"}


def test_the_head_of_a_zip_reads_no_objects(
    client: httpx.Client, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.create("volumes", "series/1", b"x")
    request = {**REQUEST, "input": {"key": "series/"}}
    path = client.post("/v1/jobs", json={"request": request}).headers["Location"]
    monkeypatch.setattr(Storage, "stream", None)
    head = client.head(f"{path}/input")
    assert (head.status_code, head.headers["Content-Type"]) == (200, "application/zip")


def test_health_is_checked_once_for_many_callers(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "_KEPT_S", 60.0)
    checks = 0

    def check(_self: HealthCheck) -> Health:
        nonlocal checks
        checks += 1
        return Health(database=True, storage=True, queues=True)

    monkeypatch.setattr(HealthCheck, "_check", check)
    assert at_once(20, lambda _: client.get("/healthz")) == {200: 20}
    assert checks == 1


@pytest.mark.parametrize("hanging", ["storage", "queues"])
def test_a_server_that_hangs_leaves_threads_to_other_calls(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch, hanging: str
) -> None:
    released = threading.Event()
    asked = threading.Semaphore(0)

    def hang(*_args: Any, **_options: Any) -> int:
        asked.release()
        released.wait(30)
        raise StorageUnavailable("the server does not answer")

    path = client.post("/v1/jobs", json={"request": REQUEST}).headers["Location"]
    if hanging == "storage":
        monkeypatch.setattr(Storage, "size", hang)
        call = partial(client.get, f"{path}/input")
    else:
        monkeypatch.setattr(Client, "submit", hang)
        call = partial(client.post, "/v1/jobs", json={"request": REQUEST})
    with ThreadPoolExecutor(50) as pool:
        waiting = [pool.submit(call) for _ in range(50)]
        try:
            for _ in range(10):
                assert asked.acquire(timeout=20)
            assert client.get("/v1/jobs", timeout=10).status_code == 200
        finally:
            released.set()
        assert {each.result().status_code for each in waiting} == {503}


def test_methods_that_callers_make_up_add_no_metrics() -> None:
    observation = Observation()
    for method in ("GET", "MADE", "UP"):
        observation._record({"method": method, "type": "http"}, 405, 0.1)
    found = {
        sample.labels["method"]
        for metric in observation.registry.collect()
        for sample in metric.samples
        if "method" in sample.labels
    }
    assert found == {"GET", "unknown"}


@pytest.fixture
def limited(settings: Settings, database: Database) -> Iterator[Callable[..., httpx.Client]]:
    """Makes a client whose token has limits."""
    with served(settings, local=False) as address, ExitStack() as stack:

        def make(**limits: int) -> httpx.Client:
            _, secret = tokens.add(database, f"name-{uuid4()}", TokenRole.SUBMIT, Limits(**limits))
            headers = {"Authorization": f"Bearer {secret}"}
            return stack.enter_context(httpx.Client(base_url=address, headers=headers, timeout=60))

        yield make
    with database.begin() as connection:
        connection.execute(delete(TokenRow))


def at_once(count: int, call: Callable[[int], httpx.Response]) -> Counter[int]:
    """The statuses of calls that are made at the same time."""
    with ThreadPoolExecutor(count) as pool:
        return Counter(answer.status_code for answer in pool.map(call, range(count)))


def test_calls_at_once_exceed_no_limit_of_queued_jobs(limited: Callable[..., httpx.Client]) -> None:
    client = limited(queued_jobs=3)
    assert at_once(12, lambda _: client.post("/v1/jobs", json={"request": REQUEST})) == {201: 3, 429: 9}


def test_calls_at_once_exceed_no_limit_of_bytes(limited: Callable[..., httpx.Client]) -> None:
    client = limited(bytes_per_day=250_000)
    form = {"request": json.dumps({"model": "ct-tissue"})}

    def upload(_number: int) -> httpx.Response:
        return client.post("/v1/jobs", data=form, files=[("file", ("f", bytes(100_000)))])

    assert at_once(6, upload) == {201: 2, 429: 4}


@pytest.mark.parametrize("form", [False, True])
def test_the_same_key_at_once_is_one_job(limited: Callable[..., httpx.Client], form: bool) -> None:
    client = limited()
    headers = {"Idempotency-Key": "night-7"}

    def send(_number: int) -> httpx.Response:
        if not form:
            return client.post("/v1/jobs", json={"request": REQUEST}, headers=headers)
        data = {"request": json.dumps({"model": "ct-tissue"})}
        return client.post("/v1/jobs", data=data, files=[("file", ("f", b"scan"))], headers=headers)

    assert at_once(12, send) == {201: 1, 200: 11}
    assert len(client.get("/v1/jobs").json()["jobs"]) == 1


def test_a_removed_token_hears_no_more(
    limited: Callable[..., httpx.Client], database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "_PERMISSION_PERIOD_S", 0.2)
    client = limited()
    path = client.post("/v1/jobs", json={"request": REQUEST}).headers["Location"]
    with client.stream("GET", f"{path}/events") as answer:
        lines = answer.iter_lines()
        assert next(lines) == "event: transition"
        with database.begin() as connection:
            connection.execute(delete(TokenRow))
        assert not [line for line in lines if "cancelled" in line]


def test_lists_of_tenants_are_for_the_role_admin(
    limited: Callable[..., httpx.Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = limited()
    monkeypatch.setattr(Client, "queue_depths", lambda _: {"priority": 0, "overflow": 1, "overflow.radiology": 2})
    assert client.get("/v1/queues").json()["messages"] == {"priority": 0, "overflow": 3}


def test_the_description_says_how_callers_prove_who_they_are(client: httpx.Client) -> None:
    described = client.get("/v1/openapi.json").json()
    assert described["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    assert described["security"] == [{"token": []}, {"session": []}]
    assert described["paths"]["/healthz"]["get"]["security"] == []


def connect_to(client: httpx.Client, head: str) -> socket.socket:
    """A connection that has sent the head of a request, and from which little can be received unread."""
    connection = socket.socket()
    connection.settimeout(20)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect((client.base_url.host, client.base_url.port))
    connection.sendall(head.encode())
    return connection


def test_the_second_request_of_a_connection_must_come_in_time(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_HEADERS_LIMIT_S", 0.3)
    with connect_to(client, "GET /v1/session HTTP/1.1\r\nHost: localhost\r\n\r\nGET /v1/session") as connection:
        received = b""
        while piece := connection.recv(4096):
            received += piece
    assert received.count(b"HTTP/1.1 200") == 1


def test_no_second_request_hides_in_a_body_with_two_lengths(client: httpx.Client) -> None:
    head = (
        "POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 5\r\n"
        "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    )
    with connect_to(client, head) as connection:
        received = b""
        while piece := connection.recv(4096):
            received += piece
    assert received.startswith(b"HTTP/1.1 400")
    assert received.count(b"HTTP/1.1") == 1


def test_a_refused_body_must_end_in_time(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_REFUSED_BODY_LIMIT_S", 0.3)
    head = "POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\nContent-Length: 1000\r\n\r\nx"
    with connect_to(client, head) as connection:
        received = b""
        while piece := connection.recv(4096):
            received += piece
    assert received.startswith(b"HTTP/1.1 415")


def test_a_client_that_does_not_read_is_left(
    client: httpx.Client, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_READ_LIMIT_S", 0.3)
    storage.store_stream("volumes", "large", BytesIO(bytes(32 * 2**20)), content_type="application/octet-stream")
    request = {**REQUEST, "input": {"key": "large"}}
    path = client.post("/v1/jobs", json={"request": request}).headers["Location"]
    with connect_to(client, f"GET {path}/input HTTP/1.1\r\nHost: localhost\r\n\r\n") as connection:
        port = connection.getsockname()[1]

        def is_served() -> bool:
            return any(each.raddr and each.raddr.port == port for each in psutil.Process().net_connections())

        wait_for(is_served)
        wait_for(lambda: not is_served())
