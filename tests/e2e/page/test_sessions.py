"""Tokens and sessions in the page."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from faults import wait_for
from page_browser import NEEDS_CHROMIUM
from playwright.sync_api import Page, expect
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

pytestmark = NEEDS_CHROMIUM


@pytest.fixture
def guarded(servers: Servers, settings: Settings, no_jobs_left: None, tmp_path: Path) -> Iterator[str]:
    """The address of a gateway that asks for tokens."""
    with closing(connect(settings)) as database:
        token(settings, "operator", TokenRole.ADMIN)
        with start_gateway(servers.environment, folder=tmp_path, port=free_port()) as gateway:
            yield gateway.address
        with database.begin() as connection:
            connection.execute(delete(TokenRow))


def token(settings: Settings, name: str, role: TokenRole, **limits: float) -> str:
    """Makes a token."""
    with closing(connect(settings)) as database:
        return tokens.add(database, name, role, Limits(**limits))[1]  # type: ignore[arg-type]


def log_in(page: Page, secret: str) -> None:
    page.get_by_label("Token").fill(secret)
    page.get_by_role("button", name="Log in").click()


def test_a_token_is_asked_for_and_forgotten(page: Page, guarded: str, settings: Settings) -> None:
    secret = token(settings, "radiology", TokenRole.READ)
    page.goto(guarded)
    log_in(page, "wrong")
    expect(page.get_by_role("alert")).to_contain_text("unauthenticated")
    page.get_by_label("Token").fill(secret)
    page.keyboard.press("Enter")
    expect(page.locator(".who")).to_contain_text("radiology (read)")
    expect(page.get_by_role("link", name="New job")).not_to_be_visible()
    assert secret not in str(page.evaluate("[document.cookie, {...localStorage}, {...sessionStorage}]"))
    page.reload()
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_label("Token")).to_be_visible()


def test_a_token_of_few_requests_slows_the_page_down(page: Page, guarded: str, settings: Settings) -> None:
    refused: list[str] = []
    page.on("response", lambda answer: refused.append(answer.url) if answer.status == 429 else None)
    page.goto(guarded)
    log_in(page, token(settings, "slow", TokenRole.SUBMIT, requests_per_s=0.5))
    wait_for(lambda: page.evaluate("0") == 0 and len(refused) > 2)
    expect(page.get_by_role("alert")).not_to_be_visible()
    with Client(settings) as client:
        job_id = client.submit(SegmentRequest(input={"key": "none"}, model="ct-tissue"), submitted_by="slow")
    expect(page.get_by_role("row").filter(has_text=str(job_id)[:8])).to_contain_text("queued")


def test_all_tabs_follow_the_session(page: Page, guarded: str, settings: Settings) -> None:
    page.goto(guarded)
    log_in(page, token(settings, "radiology", TokenRole.SUBMIT))
    expect(page.locator(".who")).to_contain_text("radiology")
    other = page.context.new_page()
    other.goto(f"{guarded}/#/models")
    other.get_by_role("button", name="Log out").click()
    expect(page.get_by_label("Token")).to_be_visible()
    log_in(other, token(settings, "research", TokenRole.SUBMIT))
    expect(page.locator(".who")).to_contain_text("research")
