"""The gateway as a process of its own: its memory, many callers at once, and its sudden end."""

import json
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import psutil
import pytest
from faults import wait_for
from sqlalchemy import Row, delete, func, select, update

from inference_service.core.settings import Settings
from inference_service.embedded.process import free_port
from inference_service.embedded.servers import Servers
from inference_service.embedded.service_process import GatewayProcess, start_gateway
from inference_service.gateway.submission.upload_sweep import sweep_uploads
from inference_service.jobs import job_store
from inference_service.jobs.database import Database, connect
from inference_service.jobs.gateway import tokens
from inference_service.jobs.gateway.tokens import Limits, TokenRole
from inference_service.jobs.schema import TokenRow, UploadRow, WebhookRow
from inference_service.jobs.storage.object_storage import Storage

pytestmark = pytest.mark.usefixtures("no_jobs_left")

_MB = 2**20
REQUEST = {"input": {"key": "scan"}, "model": "ct-tissue"}
FORM = json.dumps({"model": "ct-tissue"})


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    with closing(connect(settings)) as opened:
        yield opened


@pytest.fixture
def token(database: Database) -> Iterator[str]:
    yield tokens.add(database, "e2e", TokenRole.SUBMIT, Limits())[1]
    with database.begin() as connection:
        connection.execute(delete(TokenRow))


@pytest.fixture
def gateway(servers: Servers, token: str, tmp_path: Path) -> Iterator[GatewayProcess]:
    with start_gateway(servers.environment, folder=tmp_path, port=free_port()) as started:
        yield started
    assert started.process.returncode == 128 + signal.SIGTERM, started.log_path.read_text()


def client(gateway: GatewayProcess, token: str) -> httpx.Client:
    return httpx.Client(base_url=gateway.address, headers={"Authorization": f"Bearer {token}"}, timeout=60)


def kill(gateway: GatewayProcess) -> None:
    gateway.process.kill()
    gateway.process.wait()


def restart(gateway: GatewayProcess) -> None:
    gateway.start()
    gateway.wait_until_ready()


def peak_mb(gateway: GatewayProcess) -> float:
    status = Path(f"/proc/{gateway.pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def upload(api: httpx.Client, size_mb: int, *, pause: threading.Event | None = None, key: str = "") -> httpx.Response:
    """Sends a form with one file of zeros; a pause holds it before its end until it is set."""
    boundary = "b"
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="request"\r\n\r\n{FORM}\r\n'
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="scan.nii"\r\n\r\n'
    ).encode()

    def body() -> Iterator[bytes]:
        yield head
        for _ in range(size_mb):
            yield bytes(_MB)
        if pause is not None:
            pause.wait(60)
        yield f"\r\n--{boundary}--\r\n".encode()

    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}", **({"Idempotency-Key": key} if key else {})}
    return api.post("/v1/jobs", content=body(), headers=headers)


@pytest.mark.parametrize("size_mb", [100, pytest.param(1024, marks=pytest.mark.slow)])
def test_an_upload_takes_little_memory(
    gateway: GatewayProcess, token: str, settings: Settings, database: Database, size_mb: int
) -> None:
    with client(gateway, token) as api:
        answer = upload(api, size_mb)
    assert answer.status_code == 201, answer.text
    key = answer.json()["request"]["input"]["key"]
    with closing(Storage(settings)) as storage:
        assert storage.size("volumes", key) == size_mb * _MB
        storage.remove("volumes", key)
    assert peak_mb(gateway) < 300


def test_killed_in_the_middle_of_an_upload(
    gateway: GatewayProcess, token: str, settings: Settings, database: Database
) -> None:
    paused = threading.Event()
    before = newest_upload(database)
    with client(gateway, token) as api, ThreadPoolExecutor(1) as pool:
        sending = pool.submit(upload, api, 20, pause=paused, key="night")
        wait_for(lambda: newest_upload(database) != before)
        row = newest_upload(database)
        kill(gateway)
        paused.set()
        assert isinstance(sending.exception(), httpx.TransportError)
        assert row is not None
        assert row.job_id is not None
        assert job_store.get(database, row.job_id) is None
        restart(gateway)
        again = upload(api, 1, key="night")
        assert again.status_code == 201
        assert UUID(again.json()["id"]) == row.job_id
    with database.begin() as connection:
        connection.execute(update(UploadRow).values(remove_after=func.now()))
    with closing(Storage(settings)) as storage:
        sweep_uploads(database, storage)
        assert storage.list_objects(row.bucket, row.prefix) == []
        assert storage.exists("volumes", again.json()["request"]["input"]["key"])


def newest_upload(database: Database) -> Row[Any] | None:
    statement = select(*UploadRow.__table__.columns).order_by(UploadRow.created_at.desc()).limit(1)
    with database.connection() as connection:
        return connection.execute(statement).one_or_none()


def test_killed_in_the_middle_of_submits(gateway: GatewayProcess, token: str, database: Database) -> None:
    keys = [f"night-{number}" for number in range(60)]

    def submit(key: str) -> str | None:
        try:
            answer = api.post("/v1/jobs", json={"request": REQUEST}, headers={"Idempotency-Key": key})
        except httpx.TransportError:
            return None
        assert answer.status_code in (200, 201), answer.text
        return str(answer.json()["id"])

    with client(gateway, token) as api, ThreadPoolExecutor(4) as pool:
        before = job_store.count(database)
        first = pool.map(submit, keys)
        wait_for(lambda: job_store.count(database) > before + 10)
        kill(gateway)
        accepted = [job_id for job_id in first if job_id]
        restart(gateway)
        ids = list(pool.map(submit, keys))
    assert None not in ids
    assert len(set(ids)) == len(keys)
    assert set(accepted) <= set(ids)
    assert job_store.count(database) == before + len(keys)


def test_killed_in_the_middle_of_a_webhook(servers: Servers, token: str, database: Database, tmp_path: Path) -> None:
    heard = []
    released = threading.Event()

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append(self.headers["webhook-id"])
            if len(heard) == 1:
                released.wait(60)
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Logs nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as receiver:
        threading.Thread(target=receiver.serve_forever).start()
        url = f"http://127.0.0.1:{receiver.server_port}/"
        environment = {
            **servers.environment,
            "WEBHOOK_PREFIXES": json.dumps([url]),
            "WEBHOOK_SECRET": "the secret of a test",
            "WEBHOOK_PRIVATE_ADDRESSES": "true",
        }
        try:
            with (
                start_gateway(environment, folder=tmp_path, port=free_port()) as started,
                client(started, token) as api,
            ):
                path = api.post("/v1/jobs", json={"request": REQUEST, "webhook": url}).headers["Location"]
                api.delete(path)
                wait_for(lambda: len(heard) == 1)
                kill(started)
                restart(started)
                assert api.get(path).json()["webhook"]["settled"] is False
                with database.begin() as connection:
                    connection.execute(update(WebhookRow).values(due_at=func.now()))
                wait_for(lambda: api.get(path).json()["webhook"]["settled"])
        finally:
            released.set()
            receiver.shutdown()
    assert len(heard) == 2
    assert len(set(heard)) == 1


@pytest.mark.slow
def test_many_listeners_and_submits_at_once(gateway: GatewayProcess, token: str) -> None:
    with client(gateway, token) as api:
        job_id = api.post("/v1/jobs", json={"request": REQUEST}).json()["id"]
        with ThreadPoolExecutor(200) as pool:
            heard = [pool.submit(listen, gateway, token, job_id) for _ in range(200)]
            began = time.monotonic()
            for number in range(500):
                assert api.post("/v1/jobs", json={"request": REQUEST}).status_code == 201
                time.sleep(max(0, began + number / 50 - time.monotonic()))
            api.delete(f"/v1/jobs/{job_id}")
            assert [each.result(30) for each in heard] == [["queued", "cancelled"]] * 200


def listen(gateway: GatewayProcess, token: str, job_id: str) -> list[str]:
    with (
        client(gateway, token) as api,
        api.stream("GET", f"/v1/jobs/{job_id}/events") as answer,
    ):
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line.startswith("data: ")]
    return [data["to_state"] for data in map(json.loads, lines) if "to_state" in data]


def test_without_tokens_it_listens_to_its_machine_alone(servers: Servers, tmp_path: Path) -> None:
    environment = {**servers.environment, "GATEWAY_HOST": "0.0.0.0"}
    with start_gateway(environment, folder=tmp_path, port=free_port()) as started:
        (listening,) = (each for each in psutil.Process(started.pid).net_connections() if each.status == "LISTEN")
        assert listening.laddr.ip == "127.0.0.1"
        assert "there are no tokens" in started.log_path.read_text()
        assert httpx.get(f"{started.address}/v1/session").json()["role"] == "admin"
