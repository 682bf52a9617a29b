"""The page in Chromium, with the whole service behind it."""

import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from uuid import UUID

import nibabel
import numpy as np
import pytest
import two_channels
from dicom_files import phantom, regular_stack, write_series
from faults import PERIODS, wait_for
from nibabel import Nifti1Header, Nifti1Image
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Browser, Dialog, Page, Playwright, Route, ViewportSize, expect, sync_playwright
from sqlalchemy import delete, update

from inference_service import Client, SegmentRequest
from inference_service.core.settings import Settings
from inference_service.embedded.process import free_port
from inference_service.embedded.servers import Servers
from inference_service.embedded.service_process import start_gateway, start_worker
from inference_service.embedded.stack import Stack
from inference_service.jobs.database import connect
from inference_service.jobs.gateway import tokens
from inference_service.jobs.gateway.tokens import Limits, TokenRole
from inference_service.jobs.schema import JobRow, JobState, TokenRow

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
    pytest.mark.timeout(180),
]

REPOSITORY = Path(__file__).parents[2]
NARROW: ViewportSize = {"width": 420, "height": 800}
WIDE: ViewportSize = {"width": 1000, "height": 700}
LIMIT_MS = 60_000
expect.set_options(timeout=LIMIT_MS)
# Chromium demands it of root.
SANDBOX = ["--no-sandbox"] if os.geteuid() == 0 else []
# WebGL in software.
WEBGL = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
# At most 64 characters without a slash, so that it may name a label and a file.
HOSTILE = "<img src=x onerror=document.title='hostile'>"


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


def drop(page: Page, *paths: Path) -> None:
    """Drops files or folders on the page, as the browser gets them from the desktop."""
    # The place moves when the models are there.
    expect(page.locator("form .hint")).to_be_visible()
    box = page.locator(".drop").bounding_box()
    assert box is not None
    devtools = page.context.new_cdp_session(page)
    for kind in ("dragEnter", "dragOver", "drop"):
        event = {"type": kind, "x": box["x"] + 20, "y": box["y"] + 20}
        data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
        devtools.send("Input.dispatchDragEvent", {**event, "data": data})


def submit(page: Page, *paths: Path, model: str = "ct-tissue/1") -> None:
    """Submits a dropped scan in the page, which then shows the job."""
    page.goto("/#/new")
    page.get_by_role("combobox", name="Model").select_option(model)
    drop(page, *paths)
    page.get_by_role("button", name="Submit").click()
    page.wait_for_url("**/#/jobs/*")


def expect_state(page: Page, state: str) -> None:
    expect(page.locator("h1 .state")).to_have_text(state)


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


def test_a_click_on_a_label_leads_to_it(page: Page, job: UUID) -> None:
    page.goto(f"/#/jobs/{job}")
    for label in ("lung", "bone", "air"):
        page.get_by_role("button", name=label, exact=True).click()
        expect(page.locator(".place")).to_contain_text(f"{label},")


def mirror_the_qform_in_metres(header: Nifti1Header) -> None:
    header.set_sform(np.diag([0.001, 0.001, 0.001, 1]) @ header.get_sform(), code="scanner")
    header.set_qform(np.diag([-1.0, 1, 1, 1]) @ header.get_sform(), code="aligned")
    header.set_xyzt_units("meter")


def scale_the_sform(header: Nifti1Header) -> None:
    header.set_sform(header.get_sform() @ np.diag([1.3, 1, 1, 1]), code="scanner")


def leave_pixdim_out(header: Nifti1Header) -> None:
    header.set_qform(None, code="unknown")
    header["pixdim"][1:4] = 1


def run(stack: Stack, scan: Path, **fields: object) -> UUID:
    """Runs a job for a scan and returns its id."""
    with Client(stack.settings) as client:
        job_id = client.submit(
            SegmentRequest.model_validate({"input": client.upload(scan), "model": "ct-tissue", **fields})
        )
        assert client.wait(job_id, timeout_s=60).state is JobState.SUCCEEDED
    return job_id


def picture(page: Page) -> NDArray[np.int16]:
    """The canvas as rows of red, green and blue."""
    image = Image.open(io.BytesIO(page.locator("canvas").screenshot()))
    return np.asarray(image.convert("RGB")).astype(np.int16)


@pytest.mark.parametrize("change", [mirror_the_qform_in_metres, scale_the_sform, leave_pixdim_out])
def test_images_lie_as_the_worker_has_read_them(
    page: Page, stack: Stack, job: UUID, scan: Path, tmp_path: Path, change: Callable[[Nifti1Header], None]
) -> None:
    image = nibabel.load(scan)
    assert isinstance(image, Nifti1Image)
    change(image.header)
    nibabel.save(Nifti1Image(np.asarray(image.dataobj), None, image.header), tmp_path / "scan.nii.gz")
    seen = []
    for job_id in (job, run(stack, tmp_path / "scan.nii.gz")):
        page.goto(f"/#/jobs/{job_id}")
        page.get_by_role("button", name="bone", exact=True).click()
        expect(page.locator(".place")).to_contain_text("bone,")
        seen.append((page.locator(".place").inner_text(), picture(page)))
    (place, expected), (changed_place, changed) = seen
    assert changed_place == place
    # Metres are stored in single precision, which moves some edges by a pixel.
    assert np.abs(changed - expected).mean() < 1


def test_a_sheared_grid_is_drawn_in_its_true_position(page: Page, stack: Stack, tmp_path: Path) -> None:
    tilted = regular_stack(phantom((40, 36, 30)), drift_mm=(0, 1, 0))
    write_series(tmp_path / "series", tilted)
    page.goto(
        f"/#/jobs/{run(stack, tmp_path / 'series', output={'scan': True}, options={'tolerate': ['gantry_tilt']})}"
    )
    page.get_by_role("combobox", name="Window").select_option("all")
    page.get_by_role("combobox", name="View").select_option("sagittal")
    page.get_by_label("Opacity").fill("0")

    def slant() -> float:
        """How far the middle of the body moves from its upper to its lower part, in pixels."""
        body = picture(page).min(axis=2) > 60
        rows = np.flatnonzero(body.sum(axis=1) > 30)
        if rows.size == 0:
            return 0
        upper, lower = (np.median(np.flatnonzero(body[rows[len(rows) * part // 10]])) for part in (3, 7))
        return float(abs(upper - lower))

    wait_for(lambda: slant() > 30)


def test_a_scan_that_the_viewer_cannot_read_leaves_its_mask(
    page: Page, stack: Stack, scan: Path, tmp_path: Path
) -> None:
    image = nibabel.load(scan)
    assert isinstance(image, Nifti1Image)
    voxels = np.clip(np.asarray(image.dataobj), 0, None).astype(np.uint64)
    path = tmp_path / "scan.nii.gz"
    nibabel.save(Nifti1Image(voxels, image.affine, dtype=np.uint64), path)
    page.goto(f"/#/jobs/{run(stack, path, options={'modality_check': False})}")
    expect(page.locator(".viewer")).to_contain_text("The scan is not shown")
    page.get_by_role("button", name="bone", exact=True).click()
    expect(page.locator(".place")).to_contain_text("bone")


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


@pytest.fixture
def idle(servers: Servers, no_jobs_left: None, tmp_path: Path) -> Iterator[str]:
    """The address of a gateway of servers without a worker."""
    with start_gateway(servers.environment, folder=tmp_path, port=free_port()) as gateway:
        yield gateway.address


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


@pytest.fixture
def hostile_models(tmp_path: Path) -> Path:
    """A folder with a model whose texts are HTML with scripts."""
    source = REPOSITORY / "models/ct-tissue/1"
    folder = tmp_path / "models/hostile/1"
    shutil.copytree(source, folder)
    manifest = json.loads((source / "manifest.json").read_text())
    manifest |= {"name": "hostile", "description": HOSTILE, "licence": HOSTILE, "intended_use": HOSTILE}
    for label in manifest["labels"][1:]:
        label["name"] = f"{HOSTILE}{label['value']}"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder.parents[1]


def test_texts_of_strangers_stay_texts(
    page: Page, idle: str, servers: Servers, settings: Settings, hostile_models: Path, scan: Path, tmp_path: Path
) -> None:
    environment = {**servers.environment, **PERIODS, "MODELS_PATH": str(hostile_models)}
    hostile_scan = tmp_path / f"{HOSTILE}.nii.gz"
    shutil.copy(scan, hostile_scan)
    with start_worker("cpu", environment, folder=tmp_path) as worker:
        worker.wait_until_ready()
        wait_for(
            lambda: [model["summary"] for model in page.request.get(f"{idle}/v1/models").json()] not in ([], [None])
        )
        page.goto(f"{idle}/#/models")
        expect(page.locator(".card").filter(has_text=HOSTILE)).to_be_visible()
        page.goto(f"{idle}/#/new")
        page.get_by_role("combobox", name="Model").select_option("hostile/1")
        drop(page, hostile_scan)
        expect(page.locator(".drop")).to_contain_text(hostile_scan.name)
        page.get_by_role("button", name="Submit").click()
        expect_state(page, "succeeded")
        expect(page.get_by_role("button", name=f"{HOSTILE}4")).to_be_visible()
        assert page.title() != "hostile"
        job_id = page.url.rpartition("/")[2]
        with closing(connect(settings)) as database, database.begin() as connection:
            values = {"error_code": "internal_error", "error_message": HOSTILE, "state": "failed", "stage": HOSTILE}
            statement = update(JobRow).where(JobRow.id == UUID(job_id))
            connection.execute(statement.values(lease_owner=HOSTILE, submitted_by=HOSTILE, **values))
        page.reload()
        expect(page.get_by_role("alert")).to_contain_text(HOSTILE)
        page.goto(f"{idle}/#/jobs")
        expect(page.get_by_role("row").filter(has_text=job_id[:8])).to_contain_text(HOSTILE)
        assert page.title() != "hostile"


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


@pytest.mark.parametrize("view", ["jobs", "new", "models", "job"])
def test_a_narrow_window_shows_everything(page: Page, job: UUID, view: str) -> None:
    page.set_viewport_size(NARROW)
    page.goto(f"/#/jobs/{job}" if view == "job" else f"/#/{view}")
    expect(
        page.locator({"jobs": "table", "new": "form", "models": ".card", "job": ".controls"}[view]).first
    ).to_be_visible()
    assert page.evaluate("document.scrollingElement.scrollWidth") == NARROW["width"]


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


@pytest.mark.parametrize("width", [NARROW["width"], 1440])
def test_long_names_and_texts_stay_in_their_places(page: Page, job: UUID, width: int) -> None:
    word = "segmental" * 20
    row = page.request.get(f"/v1/jobs/{job}").json()
    report = page.request.get(f"/v1/jobs/{job}/results/report").json()
    for label in report["labels"]:
        label["name"] = f"{word[:60]}{label['value']}"
    row["warnings"] = [{"code": "qform_ignored", "message": f"the file {word} is odd"}] * 20
    row |= {"error_code": "internal_error", "error_message": f"the file {word} is damaged"}
    page.route(f"**/v1/jobs/{job}", lambda route: route.fulfill(json=row))
    page.route("**/results/report", lambda route: route.fulfill(json=report))
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(f"/#/jobs/{job}")
    expect(page.locator(".controls")).to_be_visible()
    assert page.evaluate("document.scrollingElement.scrollWidth") == width
    assert page.locator(".scroll").evaluate("element => element.scrollWidth <= element.clientWidth")


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


def test_a_scan_that_is_gone_leaves_the_mask_and_its_reason(page: Page, job: UUID) -> None:
    gone = {"code": "input_not_found", "detail": "there is no such object", "remedy": "Check the key."}
    page.route("**/input", lambda route: route.fulfill(status=404, json=gone))
    page.goto(f"/#/jobs/{job}")
    expect(page.get_by_text("The scan is not shown: there is no such object")).to_be_visible()
    expect(page.get_by_label("Opacity")).to_be_visible()


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


def test_who_comes_back_from_a_job_finds_the_table_as_it_was(page: Page, job: UUID) -> None:
    page.goto("/#/jobs")
    page.get_by_label("State").select_option("succeeded")
    page.get_by_role("link", name=str(job)[:8]).click()
    expect_state(page, "succeeded")
    page.go_back()
    expect(page.get_by_label("State")).to_have_value("succeeded")
