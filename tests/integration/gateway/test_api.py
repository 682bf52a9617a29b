"""The HTTP gateway as its description states it: lists, bodies, paths, slow clients, health."""

import re
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from gateway_server import REQUEST, problem, served

from inference_service.core.settings import Settings
from inference_service.gateway import server
from inference_service.gateway.submission import form
from inference_service.jobs.database import Database
from inference_service.jobs.workers.worker_registry import Role, WorkerIdentity, record_heartbeat

pytestmark = pytest.mark.usefixtures("no_jobs_left")


def test_jobs_are_listed_by_pages(client: httpx.Client) -> None:
    ids = [client.post("/v1/jobs", json={"request": REQUEST}).json()["id"] for _ in range(5)]
    client.delete(f"/v1/jobs/{ids[1]}")
    client.post("/v1/jobs", json={"request": {**REQUEST, "model": "other"}})
    found = []
    query: dict[str, str | int] = {"limit": 2, "model": "ct-tissue", "state": "queued"}
    while True:
        page = client.get("/v1/jobs", params=query).json()
        found += [job["id"] for job in page["jobs"]]
        if page["next"] is None:
            break
        query["after"] = page["next"]
    assert found == [ids[4], ids[3], ids[2], ids[0]]
    both = client.get("/v1/jobs", params={"state": ["queued", "cancelled"], "model": "ct-tissue"}).json()["jobs"]
    assert [job["id"] for job in both] == ids[::-1]
    middle = client.get(f"/v1/jobs/{ids[2]}").json()["created_at"]
    earlier = client.get("/v1/jobs", params={"created_before": middle}).json()["jobs"]
    assert [job["id"] for job in earlier] == [ids[1], ids[0]]
    for wrong in ({"after": "no cursor"}, {"limit": 0}, {"state": "lost"}, {"created_from": "tomorrow"}):
        assert problem(client.get("/v1/jobs", params=wrong)) == (400, "bad_request")


@pytest.mark.parametrize(
    ("body", "headers", "refusal"),
    [
        (b"{", {"Content-Type": "application/json"}, (400, "bad_request")),
        (b"[" * 100_000, {"Content-Type": "application/json"}, (400, "bad_request")),
        (b"[]", {"Content-Type": "application/json"}, (400, "bad_request")),
        (b"{}", {"Content-Type": "application/json"}, (400, "bad_request")),
        (b" " * (2**18 + 1), {"Content-Type": "application/json"}, (413, "body_too_large")),
        (b"x", {"Content-Type": "text/plain"}, (415, "unsupported_media_type")),
        (b"x", {"Content-Type": "multipart/form-data"}, (400, "bad_request")),
        (b"x", {"Content-Type": "multipart/form-data; boundary=b"}, (400, "bad_request")),
        (b"--b\r\n" + b"A: b\r\n" * 50, {"Content-Type": "multipart/form-data; boundary=b"}, (413, "body_too_large")),
        (b"--b\r\nA: " + b"b" * 9000, {"Content-Type": "multipart/form-data; boundary=b"}, (413, "body_too_large")),
    ],
)
def test_bodies_that_break_the_contract(
    client: httpx.Client, body: bytes, headers: dict[str, str], refusal: tuple[int, str]
) -> None:
    assert problem(client.post("/v1/jobs", content=body, headers=headers)) == refusal


def test_the_api_is_as_it_describes_itself(
    client: httpx.Client, finished: tuple[httpx.Client, str], tmp_path: Path
) -> None:
    """Generated requests: every answer has a status, headers and a body of the description, and none is an error."""
    command = [
        *(str(Path(sys.executable).with_name("st")), "run", f"{client.base_url}/v1/openapi.json"),
        *(
            "--header",
            f"Authorization: {client.headers['Authorization']}",
            "--max-examples",
            "5",
            "--generation-deterministic",
            "--seed",
            "7",
            "--phases",
            "examples,coverage,fuzzing",
        ),
        # A stream of events does not end, a cancelled job stays, not every text is a cursor, and 0 is taken for false.
        *("--exclude-path", "/v1/jobs/{job_id}/events", "--exclude-path", "/v1/session"),
        *("--exclude-checks", "use_after_free,positive_data_acceptance,negative_data_rejection"),
    ]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100, cwd=tmp_path)
    assert ended.returncode == 0, ended.stdout[-5000:]
    tested = re.search(r"Tested: ([0-9]+)", ended.stdout)
    assert tested is not None
    assert int(tested[1]) >= 10


@pytest.mark.parametrize("sent", [b"", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"])
def test_a_client_without_headers_is_left(settings: Settings, monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(server, "_HEADERS_LIMIT_S", 0.2)
    with served(settings, local=True) as address:
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            connection.sendall(sent)
            assert connection.recv(1) == b""


def test_a_body_that_does_not_go_on_is_refused(
    client: httpx.Client, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(form, "_SILENCE_LIMIT_S", 0.2)
    host, port = address.removeprefix("http://").split(":")
    head = (
        f"POST /v1/jobs HTTP/1.1\r\nHost: {host}\r\nAuthorization: {client.headers['Authorization']}\r\n"
        "Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 1000\r\n\r\n--b\r\n"
    )
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(head.encode())
        assert connection.recv(12) == b"HTTP/1.1 408"


def test_headers_that_are_too_long_are_refused(address: str) -> None:
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 300_000)
        assert connection.recv(12) == b"HTTP/1.1 400"


def test_paths_that_do_not_exist(client: httpx.Client) -> None:
    assert problem(client.get("/v1/nothing")) == (404, "not_found")
    assert problem(client.get("/v1/jobs/7")) == (400, "bad_request")
    assert problem(client.get("/v1/jobs/..%2f..%2fetc%2fpasswd")) in ((400, "bad_request"), (404, "not_found"))


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("/v1/jobs", "GET, POST"),
        ("/v1/jobs/7", "DELETE, GET"),
        ("/v1/openapi.json", "GET, HEAD"),
        ("/", "GET, HEAD"),
        ("/page/main.js", "GET, HEAD"),
    ],
)
def test_a_method_that_a_path_does_not_take_is_refused(client: httpx.Client, path: str, methods: str) -> None:
    answer = client.put(path)
    assert problem(answer) == (405, "method_not_allowed")
    assert answer.headers["Allow"] == methods


def test_the_state_of_the_service(client: httpx.Client, address: str, database: Database) -> None:
    identity = WorkerIdentity("w", Role.CPU, 2, ["CPUExecutionProvider"])
    record_heartbeat(database, identity, queues=["overflow"])
    assert [worker["name"] for worker in client.get("/v1/workers").json()] == ["w"]
    queues = client.get("/v1/queues").json()
    assert queues["queued_jobs"] >= 0
    assert set(queues["messages"]) >= {"priority", "overflow"}
    assert httpx.get(f"{address}/healthz").json() == {"database": True, "storage": True, "queues": True}
