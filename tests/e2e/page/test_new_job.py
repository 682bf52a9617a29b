"""Jobs that people submit in the page."""

from pathlib import Path

import two_channels
from dicom_files import phantom, regular_stack, write_series
from faults import PERIODS, wait_for
from page_browser import NEEDS_CHROMIUM, drop, expect_state, submit
from playwright.sync_api import Dialog, Page, Route, expect

from inference_service.embedded.servers import Servers
from inference_service.embedded.service_process import start_worker

pytestmark = NEEDS_CHROMIUM


def test_a_dropped_scan_is_segmented_and_its_labels_are_switched(page: Page, scan: Path) -> None:
    submit(page, scan)
    expect_state(page, "succeeded")
    expect(page.locator(".place")).to_contain_text("HU")
    before = page.locator("canvas").screenshot()
    page.get_by_label("Show soft_tissue").uncheck()
    wait_for(lambda: page.locator("canvas").screenshot() != before)
    page.get_by_label("Show soft_tissue").check()
    wait_for(lambda: page.locator("canvas").screenshot() == before)
    page.get_by_label("Opacity").fill("0")
    wait_for(lambda: page.locator("canvas").screenshot() != before)


def test_a_dropped_folder_of_dicom_files_is_seen_with_its_mask(page: Page, tmp_path: Path) -> None:
    folder = tmp_path / "Mueller^Anna"
    folder.mkdir()
    write_series(folder, regular_stack(phantom((40, 36, 30))))
    (folder / ".DS_Store").write_bytes(b"no scan")
    submit(page, folder)
    expect_state(page, "succeeded")
    expect(page.get_by_label("Window")).to_be_visible()
    expect(page.locator(".downloads a").get_by_text("scan", exact=True)).to_be_visible()


def test_a_refused_scan_shows_code_sentence_and_remedy(page: Page, tmp_path: Path) -> None:
    damaged = tmp_path / "scan.nii.gz"
    damaged.write_bytes(b"no gzip at all" * 40)
    submit(page, damaged)
    expect_state(page, "failed")
    note = page.get_by_role("alert")
    job = page.request.get(f"/v1/jobs/{page.url.rpartition('/')[2]}").json()
    for text in (job["error_code"], job["error_message"], job["remedy"]):
        assert text
        expect(note).to_contain_text(text)


def test_a_model_of_two_channels_takes_a_scan_for_each(page: Page, idle: str, servers: Servers, tmp_path: Path) -> None:
    two_channels.install_model(tmp_path / "models")
    environment = {**servers.environment, **PERIODS, "MODELS_PATH": str(tmp_path / "models")}
    with start_worker("cpu", environment, folder=tmp_path) as worker:
        page.goto(f"{idle}/#/new")
        expect(page.get_by_text("No worker has a model.")).to_be_visible()
        worker.wait_until_ready()
        page.get_by_role("combobox", name="Model").select_option("sums/1")
        for channel in two_channels.CHANNELS:
            expect(page.get_by_role("button", name="Submit")).to_be_disabled()
            scan = two_channels.write_scan(tmp_path / f"{channel}.nii.gz", channel)
            page.get_by_role("group", name=channel).get_by_label("Choose files").set_input_files(scan)
        page.get_by_role("button", name="Submit").click()
        expect_state(page, "succeeded")
        expect(page.get_by_label("Window")).to_be_visible()


def test_a_job_is_submitted_and_read_with_the_keyboard(page: Page, scan: Path) -> None:
    page.goto("/#/new")
    expect(page.get_by_role("option", name="ct-tissue 1")).to_be_attached()
    page.get_by_role("combobox", name="Model").focus()
    page.keyboard.type("ct-tissue")
    page.get_by_label("Choose files").set_input_files(scan)
    page.get_by_label("Choose files").focus()
    names = []
    for _ in range(12):
        page.keyboard.press("Tab")
        names.append(page.evaluate("document.activeElement.textContent || document.activeElement.name"))
        if names[-1] == "Submit":
            break
    assert names[-1] == "Submit", names
    page.keyboard.press("Enter")
    expect_state(page, "succeeded")
    shown = page.get_by_label("Show bone")
    shown.focus()
    page.keyboard.press("Space")
    expect(shown).not_to_be_checked()


def test_files_beside_their_place_and_empty_folders_lose_nothing(page: Page, scan: Path, tmp_path: Path) -> None:
    page.goto("/#/new")
    drop(page, scan)
    expect(page.locator(".drop")).to_contain_text(scan.name)
    empty = tmp_path / "empty"
    empty.mkdir()
    drop(page, empty)
    expect(page.get_by_role("alert")).to_contain_text("no files")
    expect(page.locator(".drop")).to_contain_text(scan.name)
    kept = page.evaluate(
        "!document.querySelector('nav').dispatchEvent(new DragEvent('drop', {bubbles: true, cancelable: true}))"
    )
    assert kept


def test_a_scan_above_the_limit_is_refused_before_it_is_sent(page: Page, scan: Path) -> None:
    session = page.request.get("/v1/session").json() | {"max_input_bytes": 1000}
    page.route("**/v1/session", lambda route: route.fulfill(json=session))
    page.goto("/#/new")
    page.get_by_label("Choose files").set_input_files(scan)
    expect(page.get_by_role("alert")).to_contain_text("at most 1.00 kB")
    expect(page.get_by_role("button", name="Submit")).to_be_disabled()


def test_an_upload_that_a_proxy_ends_is_sent_again_as_the_same_job(page: Page, scan: Path) -> None:
    keys: list[str] = []
    lost = [502, 503]

    def lose(route: Route) -> None:
        keys.append(route.request.headers["idempotency-key"])
        # The job is submitted all the same.
        answer = route.fetch()
        route.fulfill(status=lost.pop(), body="<html>") if lost else route.fulfill(response=answer)

    page.route("**/v1/jobs", lose)
    page.goto("/#/new")
    page.get_by_role("combobox", name="Model").select_option("ct-tissue/1")
    page.get_by_label("Choose files").set_input_files(scan)
    for sentence in ("status 503", "does not answer"):
        page.get_by_role("button", name="Submit").click()
        expect(page.get_by_role("alert")).to_contain_text(sentence)
    page.get_by_role("button", name="Submit").click()
    page.wait_for_url("**/#/jobs/*")
    assert len(keys) == 3
    assert len(set(keys)) == 1


def test_an_upload_is_not_left_by_accident(page: Page, scan: Path) -> None:
    answers = iter(["dismiss", "accept"])
    asked: list[str] = []

    def reply(dialog: Dialog) -> None:
        asked.append(dialog.message)
        getattr(dialog, next(answers))()

    page.on("dialog", reply)
    page.route("**/v1/jobs", lambda route: None)
    page.goto("/#/new")
    page.get_by_role("combobox", name="Model").select_option("ct-tissue/1")
    page.get_by_label("Choose files").set_input_files(scan)
    page.get_by_role("button", name="Submit").click()
    page.get_by_role("link", name="Models").click()
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    assert page.url.endswith("#/new")
    with page.expect_event("requestfailed"):
        page.get_by_role("link", name="Models").click()
    expect(page.get_by_role("heading", name="Models")).to_be_visible()
    page.get_by_role("link", name="Jobs").click()
    expect(page.locator("table")).to_be_visible()
    assert asked == ["Stop the upload?"] * 2
