"""Texts of strangers, long texts, and narrow windows."""

import json
import shutil
from contextlib import closing
from pathlib import Path
from uuid import UUID

import pytest
from conftest import REPOSITORY
from faults import PERIODS, wait_for
from page_browser import NARROW, NEEDS_CHROMIUM, drop, expect_state
from playwright.sync_api import Page, expect
from sqlalchemy import update

from inference_service.core.settings import Settings
from inference_service.embedded.servers import Servers
from inference_service.embedded.service_process import start_worker
from inference_service.jobs.database import connect
from inference_service.jobs.schema import JobRow

pytestmark = NEEDS_CHROMIUM
# At most 64 characters without a slash, so that it may name a label and a file.
HOSTILE = "<img src=x onerror=document.title='hostile'>"


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


@pytest.mark.parametrize("view", ["jobs", "new", "models", "job"])
def test_a_narrow_window_shows_everything(page: Page, job: UUID, view: str) -> None:
    page.set_viewport_size(NARROW)
    page.goto(f"/#/jobs/{job}" if view == "job" else f"/#/{view}")
    expect(
        page.locator({"jobs": "table", "new": "form", "models": ".card", "job": ".controls"}[view]).first
    ).to_be_visible()
    assert page.evaluate("document.scrollingElement.scrollWidth") == NARROW["width"]


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
