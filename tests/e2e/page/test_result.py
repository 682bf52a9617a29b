"""Results in the viewer and in the table of labels."""

from uuid import UUID

from faults import wait_for
from page_browser import CHROMIUM, NEEDS_CHROMIUM, SANDBOX
from playwright.sync_api import Page, Playwright, Route, expect

pytestmark = NEEDS_CHROMIUM


def test_a_click_on_a_label_leads_to_it(page: Page, job: UUID) -> None:
    page.goto(f"/#/jobs/{job}")
    for label in ("lung", "bone", "air"):
        page.get_by_role("button", name=label, exact=True).click()
        expect(page.locator(".place")).to_contain_text(f"{label},")


def test_without_webgl_the_preview_is_shown(address: str, job: UUID, playwright: Playwright) -> None:
    launched = playwright.chromium.launch(executable_path=CHROMIUM, args=[*SANDBOX, "--disable-3d-apis"])
    page = launched.new_page(base_url=address)
    page.goto(f"/#/jobs/{job}")
    picture = page.get_by_role("img", name="Planes of the scan with its mask")
    expect(picture).to_be_visible()
    wait_for(lambda: picture.evaluate("image => image.naturalWidth") > 100)
    expect(page.get_by_role("rowheader", name="soft_tissue")).to_be_visible()
    launched.close()


def test_a_mask_that_is_missing_leaves_the_table_of_labels(page: Page, job: UUID) -> None:
    gone = {"code": "input_not_found", "detail": "there is no object", "remedy": "Ask the operator."}
    page.route("**/results/mask", lambda route: route.fulfill(status=404, json=gone))
    page.goto(f"/#/jobs/{job}")
    expect(page.get_by_role("alert")).to_contain_text("there is no object")
    expect(page.get_by_role("rowheader", name="soft_tissue")).to_be_visible()
    expect(page.locator("canvas")).not_to_be_visible()


def test_a_scan_that_is_gone_leaves_the_mask_and_its_reason(page: Page, job: UUID) -> None:
    gone = {"code": "input_not_found", "detail": "there is no such object", "remedy": "Check the key."}
    page.route("**/input", lambda route: route.fulfill(status=404, json=gone))
    page.goto(f"/#/jobs/{job}")
    expect(page.get_by_text("The scan is not shown: there is no such object")).to_be_visible()
    expect(page.get_by_label("Opacity")).to_be_visible()


def test_a_result_is_shown_when_the_storage_answers_again(page: Page, job: UUID) -> None:
    outage = {"code": "storage_unavailable", "detail": "the object storage does not answer", "remedy": "Try again."}
    failing = ["report", "mask", "scan"]

    def fail_once(route: Route, name: str) -> None:
        if name in failing:
            failing.remove(name)
            route.fulfill(status=503, json=outage)
        else:
            route.continue_()

    page.route("**/results/report", lambda route: fail_once(route, "report"))
    page.route("**/results/mask", lambda route: fail_once(route, "mask"))
    page.route("**/input", lambda route: fail_once(route, "scan"))
    page.goto(f"/#/jobs/{job}")
    expect(page.get_by_role("alert")).to_contain_text("the object storage does not answer")
    expect(page.locator(".place")).to_contain_text("HU")
    expect(page.get_by_role("alert")).not_to_be_visible()
    assert not failing
