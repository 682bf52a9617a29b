"""Requests to the HTTP gateway that break the contract or the protocol, or come from another site's page."""

import json
import logging
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import httpx
import pytest
from gateway_server import served

from inference_service.core.settings import Settings
from inference_service.gateway.observation import Observation
from inference_service.jobs import job_store

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
    assert "GET /v1/jobs by local: 500" in " ".join(record.getMessage() for record in caplog.records)


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
