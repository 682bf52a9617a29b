"""Streams of events of the HTTP gateway."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from gateway_server import REQUEST, served

from inference_service.core.settings import Settings
from inference_service.jobs.database import Database

pytestmark = pytest.mark.usefixtures("no_jobs_left")


def test_events_tell_a_job_to_its_end_and_go_on_after_a_break(
    finished: tuple[httpx.Client, str], database: Database
) -> None:
    client, path = finished
    told = list(events(client, path))
    transitions = [data["to_state"] for kind, _, data in told if kind == "transition"]
    assert transitions == ["queued", "running", "succeeded"]
    assert told[-1][0] == "progress"
    assert told[-1][2]["state"] == "succeeded"
    first_id = told[0][1]
    rest = [data["to_state"] for kind, _, data in events(client, path, last=first_id) if kind == "transition"]
    assert rest == ["running", "succeeded"]


def test_events_come_as_they_happen(client: httpx.Client) -> None:
    path = client.post("/v1/jobs", json={"request": REQUEST}).headers["Location"]
    told = events(client, path)
    assert next(told)[2]["to_state"] == "queued"
    client.delete(path)
    assert [data["to_state"] for kind, _, data in told if kind == "transition"] == ["cancelled"]


def test_a_stop_ends_streams_of_events(settings: Settings) -> None:
    with httpx.Client(timeout=30) as client:
        with served(settings, local=True) as address:
            path = client.post(f"{address}/v1/jobs", json={"request": REQUEST}).headers["Location"]
            told = events(client, f"{address}{path}")
            assert next(told)[2]["to_state"] == "queued"
        assert [kind for kind, _, _ in told if kind == "transition"] == []


def events(client: httpx.Client, path: str, last: str | None = None) -> Iterator[tuple[str, str, Any]]:
    """Yields kind, id and content of each event of a stream, up to its end."""
    headers = {"Last-Event-ID": last} if last else {}
    with client.stream("GET", f"{path}/events", headers=headers) as answer:
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        fields: dict[str, str] = {}
        for line in answer.iter_lines():
            if line:
                name, _, value = line.partition(":")
                fields[name] = value.strip()
            elif "data" in fields:
                yield fields["event"], fields.get("id", ""), json.loads(fields["data"])
                fields = {}
