"""Tokens of the HTTP gateway, their roles and limits, and the sessions of browsers."""

from collections.abc import Callable
from importlib.metadata import version
from uuid import uuid4

import httpx
import pytest
from gateway_server import FORM, REQUEST, problem, served

from inference_service.core.errors import ErrorCode
from inference_service.core.remedies import REMEDIES
from inference_service.core.settings import Settings
from inference_service.jobs.database import Database
from inference_service.jobs.gateway import tokens
from inference_service.jobs.gateway.tokens import TokenRole

pytestmark = pytest.mark.usefixtures("no_jobs_left")


def test_a_token_sees_the_jobs_of_its_name(client_of: Callable[..., httpx.Client]) -> None:
    own, reader = client_of(name="a"), client_of(TokenRole.READ, "a")
    other, admin = client_of(name="b"), client_of(TokenRole.ADMIN, "c")
    path = own.post("/v1/jobs", json={"request": REQUEST}).headers["Location"]
    job_id = path.rpartition("/")[2]
    for client, seen in ((own, True), (reader, True), (admin, True), (other, False)):
        assert (client.get(path).status_code == 200) is seen
        assert (job_id in {job["id"] for job in client.get("/v1/jobs").json()["jobs"]}) is seen
    for call in ("", "/events", "/results/mask", "/input"):
        assert problem(other.get(path + call)) == (404, "not_found")
    assert problem(other.delete(path)) == (404, "not_found")
    assert problem(other.post("/v1/jobs", json={"request": REQUEST, "job_id": job_id})) == (409, "conflict")
    assert problem(reader.delete(path)) == (403, "forbidden")
    assert problem(reader.post("/v1/jobs", json={"request": REQUEST})) == (403, "forbidden")
    cancelled = own.delete(path).json()
    assert (cancelled["state"], cancelled["remedy"]) == ("cancelled", REMEDIES[ErrorCode.CANCELLED])


@pytest.mark.parametrize("header", [None, "Bearer wrong", "Bearer", "Basic abc"])
def test_without_a_valid_token_nothing_is_answered(address: str, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header}
    for method, path in (
        ("GET", "/v1/jobs"),
        ("POST", "/v1/jobs"),
        ("GET", f"/v1/jobs/{uuid4()}"),
        ("GET", f"/v1/jobs/{uuid4()}/events"),
        ("GET", "/v1/models"),
        ("GET", "/v1/workers"),
        ("GET", "/v1/queues"),
        ("GET", "/v1/session"),
    ):
        answer = httpx.request(method, address + path, headers=headers)
        assert problem(answer) == (401, "unauthenticated")
        assert answer.headers["WWW-Authenticate"] == "Bearer"


def test_a_removed_token_is_refused_at_once(client: httpx.Client, database: Database) -> None:
    assert client.get("/v1/session").status_code == 200
    for token in tokens.list_tokens(database):
        tokens.remove(database, token.id)
    assert problem(client.get("/v1/session")) == (401, "unauthenticated")


def test_a_browser_carries_the_token_as_a_cookie(client: httpx.Client, address: str) -> None:
    begun = client.post("/v1/session")
    cookie = begun.headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    # Below a path of a proxy, a browser sends it to no other service of the host.
    assert "Path" not in cookie
    with httpx.Client(base_url=address, cookies=begun.cookies) as browser:
        assert browser.get("/v1/session").json()["role"] == "submit"
        body = {"request": REQUEST}
        assert browser.post("/v1/jobs", json=body, headers={"Origin": address}).status_code == 201
        from_elsewhere = browser.post("/v1/jobs", json=body, headers={"Origin": "https://other.example"})
        assert problem(from_elsewhere) == (403, "forbidden")


def test_without_tokens_only_this_machine_may_ask(settings: Settings) -> None:
    with served(settings, local=True) as address:
        assert httpx.get(f"{address}/v1/session").json() == {
            "name": "local",
            "role": "admin",
            "needs_token": False,
            "max_input_bytes": settings.max_input_bytes,
            "version": version("inference-service"),
        }
        stale = httpx.get(f"{address}/v1/session", headers={"Cookie": "inference_session=removed"})
        assert stale.json()["name"] == "local"
        rebound = httpx.get(f"{address}/v1/session", headers={"Host": "rebound.example"})
        assert problem(rebound) == (403, "forbidden")
        forged = httpx.post(f"{address}/v1/jobs", json={"request": REQUEST}, headers={"Origin": "https://a.example"})
        assert problem(forged) == (403, "forbidden")


def test_limits_of_a_token(client_of: Callable[..., httpx.Client]) -> None:
    slow = client_of(requests_per_s=0.1)
    assert slow.get("/v1/session").status_code == 200
    refused = slow.get("/v1/session")
    assert problem(refused) == (429, "too_many_requests")
    assert int(refused.headers["Retry-After"]) > 0

    queued = client_of(queued_jobs=1)
    assert queued.post("/v1/jobs", json={"request": REQUEST}).status_code == 201
    assert problem(queued.post("/v1/jobs", json={"request": REQUEST})) == (429, "too_many_requests")

    small = client_of(bytes_per_day=1000)
    assert small.post("/v1/jobs", data=FORM, files=[("file", ("f", bytes(900)))]).status_code == 201
    assert problem(small.post("/v1/jobs", data=FORM, files=[("file", ("f", bytes(200)))])) == (429, "too_many_requests")
    assert problem(small.post("/v1/jobs", data=FORM, files=[("file", ("f", bytes(200)))])) == (429, "too_many_requests")
