"""The files of the page, as the gateway serves them."""

import logging
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from faults import wait_for
from gateway_server import served

from inference_service.core.settings import Settings
from inference_service.gateway.page import routes

WEB = Path(routes.__file__).parent / "web"
MODULES = sorted(WEB.glob("*.js"))


@pytest.fixture
def client(settings: Settings) -> Iterator[httpx.Client]:
    with served(settings, local=False) as address, httpx.Client(base_url=address, timeout=30) as made:
        yield made


def test_the_page_needs_no_token_and_allows_nothing_inline(client: httpx.Client) -> None:
    answer = client.get("/")
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"<script(?![^>]* src=)|<style|\son\w+=|style=|https?://", answer.text)
    for path in re.findall(r'(?:href|src)="([^"]+)"', answer.text):
        assert client.get(f"/{path}").status_code == 200, path


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.name)
def test_every_module_finds_what_it_imports(client: httpx.Client, module: Path) -> None:
    answer = client.get(f"/page/{module.name}")
    assert answer.headers["Content-Type"].startswith("text/javascript")
    assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
    for path in re.findall(r'from "\./([^"]+)"', answer.text):
        assert client.get(f"/page/{path}").status_code == 200, path


def test_a_file_that_has_not_changed_is_not_sent_again(client: httpx.Client) -> None:
    first = client.get("/page/vendor/niivue.js")
    assert first.headers["Cache-Control"] == "no-cache"
    again = client.get("/page/vendor/niivue.js", headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    "path",
    ["/page/../routes.py", "/page/%2e%2e/routes.py", "/page/vendor/..%2f..%2froutes.py", "/page//etc/passwd", "/page/"],
)
def test_no_other_file_is_served(client: httpx.Client, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 404
    assert answer.json()["code"] == "not_found"


@pytest.mark.parametrize(
    ("path", "pattern", "status"),
    [
        ("/", "/", 200),
        ("/page/main.js", "/page/{path:path}", 200),
        ("/page/vendor/missing.js", "/page/{path:path}", 404),
        ("/missing.js", "unknown", 404),
    ],
)
def test_a_file_is_logged_by_the_pattern_of_its_path(
    client: httpx.Client, caplog: pytest.LogCaptureFixture, path: str, pattern: str, status: int
) -> None:
    caplog.set_level(logging.INFO)
    assert client.get(path).status_code == client.head(path).status_code == status
    expected = {f"{method} {pattern} by -: {status}" for method in ("GET", "HEAD")}
    wait_for(lambda: expected <= {record.getMessage().partition(" in ")[0] for record in caplog.records})


def test_an_installation_without_the_page_says_so(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(routes, "_LIBRARIES", tmp_path / "none")
    answer = client.get("/")
    assert answer.status_code == 404
    assert "WITHOUT_PAGE" in answer.json()["detail"]
