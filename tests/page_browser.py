"""The browser of the tests of the page, and the steps that they share."""

import os
import shutil
from pathlib import Path

import pytest
from playwright.sync_api import Page, ViewportSize, expect

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
NEEDS_CHROMIUM = [
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
    pytest.mark.timeout(180),
]
NARROW: ViewportSize = {"width": 420, "height": 800}
WIDE: ViewportSize = {"width": 1000, "height": 700}
LIMIT_MS = 60_000
expect.set_options(timeout=LIMIT_MS)
# Chromium demands it of root.
SANDBOX = ["--no-sandbox"] if os.geteuid() == 0 else []
# WebGL in software.
WEBGL = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader"]


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
