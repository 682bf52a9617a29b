"""Jobs that are submitted to the HTTP gateway as JSON or as forms."""

import json
import socket
from collections.abc import Callable
from io import BytesIO
from typing import Any
from uuid import uuid4
from zipfile import ZipFile

import httpx
import pytest
from faults import wait_for
from gateway_server import FORM, REQUEST, problem, served
from sqlalchemy import func, select

from inference_service.contract.task_message import parse_request
from inference_service.core.settings import Settings
from inference_service.gateway.submission.upload_sweep import sweep_uploads
from inference_service.jobs import job_store
from inference_service.jobs.database import Database
from inference_service.jobs.schema import UploadRow
from inference_service.jobs.storage.object_storage import Storage

pytestmark = pytest.mark.usefixtures("no_jobs_left")


def test_a_json_request_becomes_a_job_of_the_tokens_name(
    client_of: Callable[..., httpx.Client], database: Database
) -> None:
    answer = client_of(name="radiology").post("/v1/jobs", json={"request": REQUEST})
    assert answer.status_code == 201
    job = answer.json()
    assert answer.headers["Location"] == f"/v1/jobs/{job['id']}"
    assert (job["state"], job["submitted_by"], job["request"]["model"]) == ("queued", "radiology", "ct-tissue")
    assert job["remedy"] is None
    shown = client_of(name="radiology").get(answer.headers["Location"]).json()
    assert [each["to_state"] for each in shown["transitions"]] == ["queued"]


@pytest.mark.parametrize("way", ["job_id", "Idempotency-Key"])
def test_the_same_id_is_one_job(client: httpx.Client, way: str) -> None:
    headers = {way: "night-7"} if way == "Idempotency-Key" else {}
    body = {"request": REQUEST, **({"job_id": str(uuid4())} if way == "job_id" else {})}
    first = client.post("/v1/jobs", json=body, headers=headers)
    again = client.post("/v1/jobs", json=body, headers=headers)
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json()["id"] == again.json()["id"]
    other = {**body, "request": {**REQUEST, "model": "ct-chest"}}
    assert problem(client.post("/v1/jobs", json=other, headers=headers)) == (409, "conflict")


def test_files_of_a_form_become_the_input(client: httpx.Client, database: Database, storage: Storage) -> None:
    one = client.post("/v1/jobs", data=FORM, files=[("file", ("MUELLER^HANS.nii.gz", b"scan" * 1000))])
    assert one.status_code == 201, one.text
    key = one.json()["request"]["input"]["key"]
    assert "MUELLER" not in key
    assert storage.read("volumes", key, max_bytes=10_000) == b"scan" * 1000
    assert client.get(f"/v1/jobs/{one.json()['id']}/input").content == b"scan" * 1000

    files = [("file", (f"../../{number}.dcm", b"%d" % number)) for number in range(3)]
    several = client.post("/v1/jobs", data=FORM, files=files)
    prefix = several.json()["request"]["input"]["key"]
    assert prefix.endswith("/")
    assert sorted(each.key for each in storage.list_objects("volumes", prefix)) == [
        f"{prefix}{number:06}" for number in range(3)
    ]
    with ZipFile(BytesIO(client.get(f"/v1/jobs/{several.json()['id']}/input").content)) as archive:
        assert sorted(archive.read(name) for name in archive.namelist()) == [b"0", b"1", b"2"]


def test_a_form_has_a_part_for_each_channel(client: httpx.Client, storage: Storage) -> None:
    form = {"request": json.dumps({"model": "pet-ct", "input": {"channels": {"PET": {"series": "1.2"}}}})}
    files = [("channel.CT", ("a.nii", b"ct")), ("channel.PET", ("b.dcm", b"p1")), ("channel.PET", ("c.dcm", b"p2"))]
    answer = client.post("/v1/jobs", data=form, files=files)
    assert answer.status_code == 201, answer.text
    channels = answer.json()["request"]["input"]["channels"]
    assert channels["PET"]["series"] == "1.2"
    assert storage.read("volumes", channels["CT"]["key"], max_bytes=10) == b"ct"
    assert len(storage.list_objects("volumes", channels["PET"]["key"])) == 2
    found = client.get(f"/v1/jobs/{answer.json()['id']}/input", params={"channel": "CT"})
    assert found.content == b"ct"


def test_a_form_that_is_sent_again_stores_nothing(client: httpx.Client, database: Database) -> None:
    def send() -> httpx.Response:
        files = [("file", ("scan.nii", b"scan"))]
        return client.post("/v1/jobs", data=FORM, files=files, headers={"Idempotency-Key": "once"})

    first, again = send(), send()
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()
    with database.connection() as connection:
        rows = connection.execute(select(UploadRow.id).where(UploadRow.job_id == first.json()["id"])).all()
    assert len(rows) == 1


def test_a_webhook_is_shown_with_its_job(settings: Settings) -> None:
    with_webhooks = settings.model_copy(update={"webhook_prefixes": ["https://ris.example/hooks/"]})
    body = {"request": REQUEST, "webhook": "https://ris.example/hooks/7"}
    with served(with_webhooks, local=True) as address, httpx.Client(base_url=address) as client:
        path = client.post("/v1/jobs", json=body).headers["Location"]
        assert client.get(path).json()["webhook"] == {
            "url": "https://ris.example/hooks/7",
            "attempts": 0,
            "settled": False,
            "error": None,
        }
        form = {**FORM, "webhook": "https://ris.example/hooks/8"}
        path = client.post("/v1/jobs", data=form, files=[("file", ("f", b"x"))]).headers["Location"]
        assert client.get(path).json()["webhook"]["url"] == "https://ris.example/hooks/8"
        elsewhere = client.post("/v1/jobs", json={**body, "webhook": "https://evil.example/"})
        assert problem(elsewhere) == (400, "bad_request")


@pytest.mark.parametrize(
    ("data", "files", "code"),
    [
        ({}, [("file", b"x")], "bad_request"),
        ({"request": "{}"}, [("file", b"x")], "bad_request"),
        ({"request": "no JSON"}, [("file", b"x")], "bad_request"),
        (FORM, [], "bad_request"),
        ({**FORM, "patient": "MUELLER"}, [("file", b"x")], "bad_request"),
        (FORM, [("file", b"x"), ("channel.CT", b"y")], "bad_request"),
        ({"request": json.dumps({"model": "a", "input": {"key": "other"}})}, [("file", b"x")], "bad_request"),
        ({**FORM, "job_id": "7"}, [("file", b"x")], "bad_request"),
    ],
)
def test_a_wrong_form_is_refused_with_a_sentence(
    client: httpx.Client, data: dict[str, str], files: list[tuple[str, bytes]], code: str
) -> None:
    # Without a file, the library would send another type of form.
    parts = [(name, (None, text)) for name, text in data.items()] + [(name, ("f", each)) for name, each in files]
    answer = client.post("/v1/jobs", files=parts or [("", (None, ""))])
    assert problem(answer) == (400, code)
    assert "MUELLER" not in answer.text


def test_what_a_refused_or_broken_upload_stored_is_removed(
    client: httpx.Client, address: str, database: Database, storage: Storage
) -> None:
    name = client.get("/v1/session").json()["name"]
    client.post("/v1/jobs", files=[("request", (None, FORM["request"])), ("file", ("f", b"x")), ("b", (None, "y"))])
    host, port = address.removeprefix("http://").split(":")
    body = (
        f'--b\r\nContent-Disposition: form-data; name="request"\r\n\r\n{FORM["request"]}\r\n'
        '--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
    ).encode() + bytes(2**20)
    with socket.create_connection((host, int(port))) as connection:
        head = (
            f"POST /v1/jobs HTTP/1.1\r\nHost: {host}\r\nAuthorization: {client.headers['Authorization']}\r\n"
            f"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: {len(body) + 1000}\r\n\r\n"
        )
        connection.sendall(head.encode() + body)
        wait_for(lambda: len(unclaimed(database, name)) == 2)
    wait_for(lambda: all(row.remove_after <= row.now for row in unclaimed(database, name)))
    rows = unclaimed(database, name)
    sweep_uploads(database, storage)
    for row in rows:
        assert storage.list_objects(row.bucket, row.prefix) == []


def unclaimed(database: Database, name: str) -> list[Any]:
    """Uploads of a name that became no job."""
    columns = UploadRow.__table__.columns
    statement = select(*columns, func.now().label("now")).where(UploadRow.name == name)
    with database.connection() as connection:
        rows = connection.execute(statement).all()
    return [row for row in rows if job_store.get(database, row.job_id) is None]


@pytest.mark.parametrize("place", [{"key": "uploads/"}, {"bucket": "masks", "key": "scan"}])
def test_a_job_leads_to_no_other_places_than_those_of_inputs(
    client_of: Callable[..., httpx.Client], database: Database, storage: Storage, place: dict[str, str]
) -> None:
    client_of().post("/v1/jobs", data=FORM, files=[("file", ("f", b"another upstream's scan"))])
    storage.create("masks", "scan", b"another upstream's mask")
    client = client_of(name="curious")
    request = {**REQUEST, "input": place}
    assert problem(client.post("/v1/jobs", json={"request": request})) == (400, "bad_request")
    by_channels = {**REQUEST, "input": {"channels": {"CT": place}}}
    assert problem(client.post("/v1/jobs", json={"request": by_channels})) == (400, "bad_request")
    # Other upstreams write rows without the gateway.
    job_id = uuid4()
    job_store.create(database, job_id, parse_request(request), submitted_by="curious")
    assert problem(client.get(f"/v1/jobs/{job_id}/input")) == (400, "bad_request")


def test_a_form_is_refused_before_its_files_if_no_job_may_use_uploads(settings: Settings) -> None:
    elsewhere = settings.model_copy(update={"input_prefixes": ["archive/"]})
    with served(elsewhere, local=True) as address, httpx.Client(base_url=address) as client:
        refused = client.post("/v1/jobs", data=FORM, files=[("file", ("f", b"x"))])
        assert problem(refused) == (400, "bad_request")
