"""The HTTP gateway on real servers, over real connections."""

import hashlib
import json
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any
from uuid import uuid4
from zipfile import ZipFile

import httpx
import pytest
from faults import wait_for
from gateway_server import served
from jobs_in_process import Request
from sqlalchemy import delete, func, select

from inference_service.contract.task_message import parse_request
from inference_service.core.errors import ErrorCode
from inference_service.core.remedies import REMEDIES
from inference_service.core.settings import Settings
from inference_service.embedded.servers import Servers
from inference_service.embedded.stack import settings_for
from inference_service.gateway import server
from inference_service.gateway.submission import form
from inference_service.gateway.submission.upload_sweep import sweep_uploads
from inference_service.jobs import job_store
from inference_service.jobs.database import Database
from inference_service.jobs.gateway import tokens
from inference_service.jobs.gateway.tokens import Limits, TokenRole
from inference_service.jobs.schema import TokenRow, UploadRow
from inference_service.jobs.storage.object_storage import Storage
from inference_service.jobs.worker_registry import Role, WorkerIdentity, record_heartbeat
from inference_service.worker.task import TaskHandler

pytestmark = pytest.mark.usefixtures("no_jobs_left")

REQUEST = {"input": {"key": "scan"}, "model": "ct-tissue"}
FORM = {"request": json.dumps({"model": "ct-tissue"})}


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


def problem(answer: httpx.Response) -> tuple[int, str]:
    """The status and the code of a refusal, which must be problem details."""
    assert answer.headers["Content-Type"] == "application/problem+json"
    content = answer.json()
    assert content.keys() == {"type", "title", "status", "detail", "code", "remedy"}
    assert content["status"] == answer.status_code
    return answer.status_code, content["code"]


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


def test_results_have_types_names_and_checksums(finished: tuple[httpx.Client, str]) -> None:
    client, path = finished
    job = client.get(path).json()
    assert job["state"] == "succeeded"
    gzip = "application/gzip"
    types = {"mask": gzip, "scan": gzip, "report": "application/json", "preview": "image/png"}
    for name, media_type in types.items():
        answer = client.get(f"{path}/results/{name}")
        assert answer.headers["Content-Type"] == media_type
        assert hashlib.sha256(answer.content).hexdigest() == job["checksums"][name]["sha256"]
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Content-Disposition"] == 'attachment; filename="preview.png"'
    assert problem(client.get(f"{path}/results/nrrd")) == (404, "not_found")
    assert problem(client.get(f"{path}/results/bucket")) == (404, "not_found")


def test_results_are_sent_in_ranges(finished: tuple[httpx.Client, str]) -> None:
    client, path = finished
    whole = client.get(f"{path}/results/mask")
    tag = whole.headers["ETag"]

    def part(**headers: str) -> httpx.Response:
        return client.get(
            f"{path}/results/mask", headers={name.replace("_", "-"): each for name, each in headers.items()}
        )

    some = part(Range="bytes=10-19")
    assert (some.status_code, some.content) == (206, whole.content[10:20])
    assert some.headers["Content-Range"] == f"bytes 10-19/{len(whole.content)}"
    assert part(Range="bytes=-5").content == whole.content[-5:]
    assert part(Range="bytes=100-").content == whole.content[100:]
    assert part(Range="bytes=0-9", If_Range='"other"').content == whole.content
    assert part(If_None_Match=tag).status_code == 304
    assert problem(part(Range=f"bytes={len(whole.content)}-")) == (416, "range_not_satisfiable")
    head = client.head(f"{path}/results/mask")
    assert (head.headers["Content-Length"], head.content) == (str(len(whole.content)), b"")


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
    assert problem(client.put("/v1/jobs")) == (405, "method_not_allowed")
    assert problem(client.get("/v1/jobs/7")) == (400, "bad_request")
    assert problem(client.get("/v1/jobs/..%2f..%2fetc%2fpasswd")) in ((400, "bad_request"), (404, "not_found"))


def test_the_state_of_the_service(client: httpx.Client, address: str, database: Database) -> None:
    identity = WorkerIdentity("w", Role.CPU, 2, ["CPUExecutionProvider"])
    record_heartbeat(database, identity, queues=["overflow"])
    assert [worker["name"] for worker in client.get("/v1/workers").json()] == ["w"]
    queues = client.get("/v1/queues").json()
    assert queues["queued_jobs"] >= 0
    assert set(queues["messages"]) >= {"priority", "overflow"}
    assert httpx.get(f"{address}/healthz").json() == {"database": True, "storage": True, "queues": True}
