"""The table of jobs, and jobs as they are followed and cancelled."""

from pathlib import Path
from uuid import UUID

from page_browser import NEEDS_CHROMIUM, expect_state
from playwright.sync_api import Page, Route, expect

from inference_service import Client, SegmentRequest
from inference_service.core.settings import Settings
from inference_service.embedded.process import free_port
from inference_service.embedded.servers import Servers
from inference_service.embedded.service_process import start_gateway
from inference_service.jobs.schema import JobState

pytestmark = NEEDS_CHROMIUM


def test_a_job_is_cancelled_in_the_table(page: Page, idle: str, settings: Settings) -> None:
    with Client(settings) as client:
        job_id = client.submit(SegmentRequest(input={"key": "none"}, model="ct-tissue", priority="urgent"))
        page.goto(f"{idle}/#/jobs")
        row = page.get_by_role("row").filter(has_text=str(job_id)[:8])
        expect(row).to_contain_text("queued")
        expect(row).to_contain_text("urgent")
        page.on("dialog", lambda dialog: dialog.accept())
        row.get_by_role("button", name="Cancel").click()
        expect(row).to_contain_text("cancelled")
        assert client.wait(job_id, timeout_s=10).state is JobState.CANCELLED
        page.get_by_label("State").select_option("queued")
        expect(row).not_to_be_visible()


def test_a_job_is_cancelled_in_its_view_if_the_user_agrees(page: Page, idle: str, settings: Settings) -> None:
    answers = iter(["dismiss", "accept"])
    page.on("dialog", lambda dialog: getattr(dialog, next(answers))())
    with Client(settings) as client:
        job_id = client.submit(SegmentRequest(input={"key": "none"}, model="ct-tissue"))
        page.goto(f"{idle}/#/jobs/{job_id}")
        cancel = page.get_by_role("button", name="Cancel")
        cancel.click()
        expect(cancel).to_be_visible()
        assert [job.state for job in client.list(limit=1)] == [JobState.QUEUED]
        cancel.click()
        expect(cancel).not_to_be_visible()
        expect_state(page, "cancelled")


def test_a_job_that_is_retried_is_followed_again(page: Page, idle: str, settings: Settings) -> None:
    with Client(settings) as client:
        job_id = client.submit(SegmentRequest(input={"key": "none"}, model="ct-tissue"))
        client.cancel(job_id)
        page.goto(f"{idle}/#/jobs/{job_id}")
        expect_state(page, "cancelled")
        client.retry(job_id)
        expect_state(page, "queued")
        expect(page.get_by_text("no worker")).to_be_visible()
        client.cancel(job_id)
        expect_state(page, "cancelled")


def test_the_end_of_a_job_is_announced(page: Page, idle: str, settings: Settings) -> None:
    with Client(settings) as client:
        job_id = client.submit(SegmentRequest(input={"key": "none"}, model="ct-tissue"))
        page.goto(f"{idle}/#/jobs/{job_id}")
        status = page.get_by_role("status")
        expect(status).to_contain_text("queued: waits in the queue")
        announced = status.element_handle()
        client.cancel(job_id)
        expect(status).to_have_text("cancelled")
        # Screen readers announce changes of an element, but not a new element.
        assert announced.evaluate("element => element.isConnected")


def test_a_lost_gateway_is_told_and_found_again(
    page: Page, servers: Servers, settings: Settings, tmp_path: Path, no_jobs_left: None
) -> None:
    with Client(settings) as client, start_gateway(servers.environment, folder=tmp_path, port=free_port()) as gateway:
        job_id = client.submit(SegmentRequest(input={"key": "none"}, model="ct-tissue"))
        page.goto(f"{gateway.address}/#/jobs/{job_id}")
        expect_state(page, "queued")
        gateway.stop()
        expect(page.get_by_role("alert")).to_contain_text("does not answer")
        gateway.start()
        gateway.wait_until_ready()
        expect(page.get_by_role("alert")).not_to_be_visible()
        client.cancel(job_id)
        expect_state(page, "cancelled")


def test_who_comes_back_from_a_job_finds_the_table_as_it_was(page: Page, job: UUID) -> None:
    page.goto("/#/jobs")
    page.get_by_label("State").select_option("succeeded")
    page.get_by_role("link", name=str(job)[:8]).click()
    expect_state(page, "succeeded")
    page.go_back()
    expect(page.get_by_label("State")).to_have_value("succeeded")


def test_a_page_that_is_hidden_and_seen_again_asks_no_more_often(page: Page) -> None:
    asked: list[Route] = []
    page.route("**/v1/queues", lambda route: asked.append(route))
    with page.expect_request("**/v1/queues"):
        page.goto("/#/jobs")
    for _ in range(5):
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    with page.expect_response("**/v1/queues"):
        asked[0].fulfill(json={"running_jobs": 7, "queued_jobs": 0, "messages": {}})
    expect(page.locator(".strip")).to_contain_text("7")
    assert len(asked) == 1
    with page.expect_request("**/v1/queues"):
        pass


def test_an_address_that_names_no_job_and_a_move_to_another_view_keep_the_page_usable(page: Page) -> None:
    page.goto("/#/jobs/%")
    expect(page.get_by_role("alert")).to_be_visible()
    page.get_by_role("link", name="Models").click()
    expect(page.get_by_role("heading", name="Models")).to_be_visible()
    assert page.evaluate("document.activeElement.id") == "content"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "none"
