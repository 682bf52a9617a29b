"""A browser, and the whole service behind the page."""

from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
from page_browser import CHROMIUM, LIMIT_MS, SANDBOX, WEBGL, WIDE
from playwright.sync_api import Browser, Page, Playwright, sync_playwright

from inference_service import Client, SegmentRequest
from inference_service.embedded.process import free_port
from inference_service.embedded.servers import Servers
from inference_service.embedded.service_process import start_gateway
from inference_service.embedded.stack import Stack


@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    with sync_playwright() as started:
        yield started


@pytest.fixture(scope="module")
def browser(playwright: Playwright) -> Iterator[Browser]:
    launched = playwright.chromium.launch(executable_path=CHROMIUM, args=[*SANDBOX, *WEBGL])
    yield launched
    launched.close()


@pytest.fixture(scope="module")
def address(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with start_gateway(stack.environment, folder=tmp_path_factory.mktemp("gateway"), port=free_port()) as gateway:
        yield gateway.address


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    """An empty page below the gateway's address; a script's error or a violated policy fails the test."""
    with browser.new_context(base_url=address, viewport=WIDE) as context:
        opened = context.new_page()
        opened.set_default_timeout(LIMIT_MS)
        wrong: list[str] = []
        opened.on("pageerror", lambda error: wrong.append(str(error)))
        opened.on("console", lambda message: wrong.append(message.text) if "Security Policy" in message.text else None)
        yield opened
        assert not wrong


@pytest.fixture(scope="module")
def job(stack: Stack, scan: Path) -> UUID:
    """A job that has succeeded."""
    with Client(stack.settings) as client:
        job_id = client.submit(SegmentRequest(input=client.upload(scan), model="ct-tissue"))
        client.wait(job_id, timeout_s=60)
    return job_id


@pytest.fixture
def idle(servers: Servers, no_jobs_left: None, tmp_path: Path) -> Iterator[str]:
    """The address of a gateway of servers without a worker."""
    with start_gateway(servers.environment, folder=tmp_path, port=free_port()) as gateway:
        yield gateway.address
