"""The gateway behind nginx, as docs/http-api.md configures it."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import urljoin

import httpx
import pytest
from faults import wait_for
from gateway_server import REQUEST
from sqlalchemy import delete

from inference_service import Client, SegmentRequest
from inference_service.core.settings import Settings
from inference_service.embedded.process import free_port
from inference_service.embedded.servers import Servers
from inference_service.embedded.service_process import start_gateway
from inference_service.jobs.database import connect
from inference_service.jobs.gateway import tokens
from inference_service.jobs.gateway.tokens import Limits, TokenRole
from inference_service.jobs.schema import TokenRow

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
pytestmark = [pytest.mark.skipif(NGINX is None, reason="nginx is not installed"), pytest.mark.timeout(120)]
DOCS = Path(__file__).parents[2] / "docs/http-api.md"
GATEWAY = "http://127.0.0.1:8080"


def documented() -> tuple[str, str]:
    """The configurations of the docs: at the root of a host, and below a path."""
    found = re.findall(r"```\n(location .*?)```", DOCS.read_text(), re.DOTALL)
    root, below = found
    return root, below + "".join(root.splitlines(keepends=True)[2:])


@contextmanager
def nginx(locations: str, *gateways: str, folder: Path) -> Iterator[str]:
    """Runs nginx before gateways, and yields its address."""
    port = free_port()
    folders = "".join(f"{name}_temp_path {folder};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    servers = "".join(f"server {gateway.removeprefix('http://')};" for gateway in gateways)
    configuration = folder / "nginx.conf"
    configuration.write_text(
        f"daemon off; pid {folder}/nginx.pid; error_log {folder}/nginx.log; events {{}}\n"
        f"http {{ access_log off; {folders} upstream gateways {{ {servers} }}\n"
        f"server {{ listen 127.0.0.1:{port};\n{locations.replace(GATEWAY, 'http://gateways')} }} }}\n"
    )
    address = f"http://127.0.0.1:{port}"
    with subprocess.Popen([str(NGINX), "-e", f"{folder}/nginx.log", "-c", str(configuration)]) as process:
        try:
            wait_for(lambda: _answers(address))
            yield address
        finally:
            process.terminate()


def _answers(address: str) -> bool:
    try:
        return httpx.get(address).status_code > 0
    except httpx.TransportError:
        return False


@pytest.fixture
def secret(settings: Settings) -> Iterator[str]:
    """The secret of a token."""
    with closing(connect(settings)) as database:
        yield tokens.add(database, "radiology", TokenRole.SUBMIT, Limits())[1]
        with database.begin() as connection:
            connection.execute(delete(TokenRow))


def test_page_session_and_addresses_below_a_path(
    servers: Servers, secret: str, no_jobs_left: None, tmp_path: Path
) -> None:
    with (
        start_gateway(servers.environment, folder=tmp_path, port=free_port()) as gateway,
        nginx(documented()[1], gateway.address, folder=tmp_path) as address,
        httpx.Client(base_url=f"{address}/inference/", follow_redirects=True) as browser,
    ):
        page = browser.get(f"{address}/inference")
        assert str(page.url) == f"{address}/inference/"
        for path in re.findall(r'(?:href|src)="([^"]+)"', page.text):
            assert browser.get(path).status_code == 200, path
        begun = browser.post("v1/session", headers={"Authorization": f"Bearer {secret}"})
        assert begun.status_code == 200
        assert [cookie.path for cookie in browser.cookies.jar] == ["/inference/v1"]
        submitted = browser.post("v1/jobs", json={"request": REQUEST}, headers={"Origin": address})
        location = urljoin(str(submitted.url), submitted.headers["Location"])
        assert browser.get(location).json()["id"] == submitted.json()["id"]
        described = browser.get("v1/openapi.json")
        assert urljoin(str(described.url), described.json()["servers"][0]["url"]) == f"{address}/inference/"
        assert browser.delete("v1/session", headers={"Origin": address}).status_code == 204
        assert browser.get("v1/session").status_code == 401


def rest_of(lines: Iterator[str]) -> str:
    """The rest of a stream, which may break."""
    found: list[str] = []
    with suppress(httpx.RemoteProtocolError):
        found.extend(lines)
    return "\n".join(found)


def test_a_stream_goes_on_at_another_gateway_when_its_own_dies(
    servers: Servers, settings: Settings, no_jobs_left: None, tmp_path: Path
) -> None:
    folders = [tmp_path / "one", tmp_path / "other"]
    for folder in folders:
        folder.mkdir()
    with (
        Client(settings) as client,
        start_gateway(servers.environment, folder=folders[0], port=free_port()) as one,
        start_gateway(servers.environment, folder=folders[1], port=free_port()) as other,
        nginx(documented()[0], one.address, other.address, folder=tmp_path) as address,
        httpx.Client(base_url=address, timeout=30) as browser,
        ExitStack() as opened,
    ):
        job_id = client.submit(SegmentRequest.model_validate(REQUEST))
        path = f"/v1/jobs/{job_id}/events"
        # nginx sends each to another gateway.
        streams = [opened.enter_context(browser.stream("GET", path)).iter_lines() for _ in range(2)]
        seen = [next(line for line in lines if line.startswith("id: ")).removeprefix("id: ") for lines in streams]
        one.process.kill()
        client.cancel(job_id)
        ends = [rest_of(lines) for lines in streams]
        assert sorted("cancelled" in end for end in ends) == [False, True]
        resumed = browser.get(path, headers={"Last-Event-ID": seen[0]}).text
        assert "cancelled" in resumed
        assert f"id: {seen[0]}" not in resumed
