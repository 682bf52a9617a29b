"""Scans and masks lie in the viewer where the worker has read them to lie."""

import io
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import nibabel
import numpy as np
import pytest
from dicom_files import phantom, regular_stack, write_series
from faults import wait_for
from nibabel import Nifti1Header, Nifti1Image
from numpy.typing import NDArray
from page_browser import NEEDS_CHROMIUM
from PIL import Image
from playwright.sync_api import Page, expect

from inference_service import Client, SegmentRequest
from inference_service.embedded.stack import Stack
from inference_service.jobs.schema import JobState

pytestmark = NEEDS_CHROMIUM


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
