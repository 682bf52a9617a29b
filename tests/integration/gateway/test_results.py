"""The table of results that the HTTP gateway sends: which jobs it has, their rows, and how it ends."""

import csv
import json
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import httpx
import pytest
from faults import wait_for
from gateway_server import served
from sqlalchemy import delete, insert

from inference_service.core.files import Checksum
from inference_service.core.settings import Settings
from inference_service.gateway import results_api
from inference_service.jobs.database import Database
from inference_service.jobs.gateway import tokens
from inference_service.jobs.gateway.tokens import Limits, TokenRole
from inference_service.jobs.schema import JobRow, TokenRow
from inference_service.jobs.storage.object_storage import Storage

pytestmark = pytest.mark.usefixtures("no_jobs", "no_jobs_left")

HEADER = "scan,label,label_name,volume_ml,intensity_mean,intensity_std,error_code"
REPORT = {
    "written_by": "a later version",
    "labels": [
        {"value": 1, "name": "=lung", "volume_ml": 4.5, "intensity_mean": -800.0, "intensity_std": 2.0, "new": 1},
        {"value": 2, "name": "rib, left", "volume_ml": 0.0, "intensity_mean": None, "intensity_std": None},
    ],
}
AddJob = Callable[..., UUID]


@pytest.fixture
def client(settings: Settings) -> Iterator[httpx.Client]:
    with served(settings, local=True) as address, httpx.Client(base_url=address, timeout=30) as made:
        yield made


@pytest.fixture
def add_job(database: Database, storage: Storage, tmp_path: Path) -> AddJob:
    """Records a finished job, each newer than the one before, with an object for its report."""
    created = [datetime.now(UTC) - timedelta(days=1)]

    def add(
        state: str = "succeeded", *, report: object = REPORT, stored: bytes | None = None, **columns: object
    ) -> UUID:
        job_id = uuid4()
        created.append(created[-1] + timedelta(seconds=1))
        values = {"state": state, "request": {"model": "ct-lung"}, "created_at": created[-1], **columns}
        if state == "succeeded":
            path = tmp_path / "report.json"
            path.write_text(json.dumps(report))
            checksum = Checksum.of_file(path)
            if stored is not None:
                path.write_bytes(stored)
            key = f"{job_id}/report.json"
            storage.store("masks", key, path, content_type="application/json")
            values = {
                "result": {"bucket": "masks", "mask": "m", "report": key},
                "checksums": {"report": vars(checksum)},
                **values,
            }
        with database.begin() as connection:
            connection.execute(insert(JobRow).values(id=job_id, **values))
        return job_id

    return add


def rows(client: httpx.Client, query: Mapping[str, object] | None = None) -> list[list[str]]:
    """The rows of the table, without its header."""
    answer = client.get("/v1/results.csv", params=query)  # type: ignore[arg-type]
    assert answer.status_code == 200, answer.text
    header, *lines = answer.text.splitlines()
    assert header == HEADER
    return list(csv.reader(lines))


def test_the_table_has_the_labels_of_all_finished_jobs(client: httpx.Client, add_job: AddJob) -> None:
    first = add_job()
    failed = add_job("failed", error_code="missing_slices")
    cancelled = add_job("cancelled", error_code="cancelled")
    add_job("queued")
    add_job("running")
    answer = client.get("/v1/results.csv")
    assert answer.headers["Content-Type"] == "text/csv; charset=utf-8"
    assert answer.headers["Content-Disposition"] == 'attachment; filename="results.csv"'
    assert answer.text.splitlines() == [
        HEADER,
        f"{cancelled},,,,,,cancelled",
        f"{failed},,,,,,missing_slices",
        f"{first},1,'=lung,4.5,-800.0,2.0,",
        f'{first},2,"rib, left",0.0,,,',
    ]


def test_the_table_has_the_jobs_of_a_query(client: httpx.Client, add_job: AddJob) -> None:
    lung = add_job()
    bone = add_job(request={"model": "ct-bone"})
    failed = add_job("failed", error_code="time_limit")

    def found(**query: object) -> set[UUID]:
        return {UUID(row[0]) for row in rows(client, query)}

    assert found(model="ct-bone") == {bone}
    assert found(state="failed") == {failed}
    assert found(state=["failed", "succeeded"], model="ct-lung") == {lung, failed}
    assert found(state=["queued", "running"]) == set()
    assert found(created_from=datetime.now(UTC).isoformat()) == set()


def test_a_token_gets_the_results_of_its_own_jobs(settings: Settings, database: Database, add_job: AddJob) -> None:
    own, other = add_job(submitted_by="a"), add_job(submitted_by="b")
    with served(settings, local=False) as address:
        assert httpx.get(f"{address}/v1/results.csv").status_code == 401
        for role, expected in ((TokenRole.READ, {own}), (TokenRole.ADMIN, {own, other})):
            _, secret = tokens.add(database, "a", role, Limits())
            headers = {"Authorization": f"Bearer {secret}"}
            with httpx.Client(base_url=address, headers=headers, timeout=30) as client:
                assert {UUID(row[0]) for row in rows(client)} == expected
    with database.begin() as connection:
        connection.execute(delete(TokenRow))


def test_a_report_that_cannot_be_used_is_a_failure_of_its_job(
    client: httpx.Client, add_job: AddJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results_api, "_MAX_REPORT_BYTES", 1000)
    add_job(stored=json.dumps({**REPORT, "other": 1}).encode())
    add_job(report={"labels": [{"value": "one"}]})
    add_job(report=["[" * 100])
    add_job(report={**REPORT, "long": "a" * 1000})
    add_job(result={"bucket": "masks", "mask": "m", "report": "no/such/report.json"})
    add_job(result={"bucket": "no-such-bucket", "mask": "m", "report": "r"})
    add_job(result={"bucket": "masks", "mask": "m"})
    whole = add_job(checksums=None)
    found = rows(client)
    assert [row[0] for row in found[:2]] == [str(whole)] * 2
    assert [row[1:] for row in found[2:]] == [["", "", "", "", "", "result_damaged"]] * 7


def test_the_table_is_read_in_pages(client: httpx.Client, add_job: AddJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results_api, "_JOBS_AT_ONCE", 2)
    added = [add_job("failed", error_code="time_limit") for _ in range(6)]
    assert [row[0] for row in rows(client)] == [str(job_id) for job_id in reversed(added)]


def test_an_outage_gives_no_table_that_seems_whole(
    settings: Settings, database: Database, add_job: AddJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results_api, "_JOBS_AT_ONCE", 1)
    monkeypatch.setattr("inference_service.gateway.app._STORAGE_RETRY_S", 0.0)
    silent = settings.model_copy(update={"minio_endpoint": "127.0.0.1:1"})
    add_job()
    with served(silent, local=True) as address:
        assert httpx.get(f"{address}/v1/results.csv").json()["code"] == "storage_unavailable"
        add_job("failed", error_code="time_limit")
        with pytest.raises(httpx.RemoteProtocolError, match="incomplete"):
            httpx.get(f"{address}/v1/results.csv")


def test_a_table_ends_when_its_client_has_gone(
    client: httpx.Client, add_job: AddJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results_api, "_JOBS_AT_ONCE", 1)
    for _ in range(100):
        add_job("failed", error_code="time_limit")
    pieces: list[str] = []
    ended = threading.Event()
    table = results_api._table

    async def watched(*arguments: object) -> AsyncIterator[str]:
        try:
            async for piece in table(*arguments):  # type: ignore[arg-type]
                pieces.append(piece)
                yield piece * 2**14
        finally:
            ended.set()

    monkeypatch.setattr(results_api, "_table", watched)
    with closing(socket.create_connection((client.base_url.host, int(client.base_url.port or 0)))) as connection:
        connection.sendall(b"GET /v1/results.csv HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(12) == b"HTTP/1.1 200"
    assert ended.wait(30)
    assert len(pieces) < 100
    wait_for(lambda: client.get("/healthz").status_code == 200)
