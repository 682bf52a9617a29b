import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import jsonschema
import numpy as np
import pytest

from inference_service.manifest import Manifest
from inference_service.parallel import Threads
from inference_service.report import InputReport, LabelReport, ModelReport, Report, measure_labels
from inference_service.volume import Volume

MakeManifest = Callable[..., Manifest]

# Bounds what float64 sums of squares lose of a standard deviation.
CLOSE = 1e-9


@pytest.mark.parametrize("mask_order", ["C", "F"])
@pytest.mark.parametrize("scan_order", ["C", "F"])
@pytest.mark.parametrize("depth", [1, 16, 37])
def test_figures_are_numpys(
    make_manifest: MakeManifest, mask_order: Literal["C", "F"], scan_order: Literal["C", "F"], depth: int
) -> None:
    random = np.random.default_rng(depth)
    values = (0, 3, 7)
    mask = np.array(random.choice(values, (6, 5, depth)), dtype=np.uint8, order=mask_order)
    voxels = np.array(random.normal(40, 300, mask.shape) + 900.0 * mask, dtype=np.int16, order=scan_order)
    volume = Volume(voxels, np.diag([-0.5, 2.0, 3.0, 1.0]))
    reports = measure_labels(mask, volume, make_manifest(values=values))
    assert [(report.value, report.name) for report in reports] == [(value, f"label {value}") for value in values]
    for report in reports:
        inside = voxels[mask == report.value].astype(np.float64)
        assert report.voxels == inside.size
        assert report.volume_ml == pytest.approx(inside.size * 0.003)
        assert report.intensity_mean == pytest.approx(inside.mean(), rel=CLOSE)
        assert report.intensity_std == pytest.approx(inside.std(), rel=CLOSE)


def test_label_without_voxels_has_no_intensity(make_manifest: MakeManifest) -> None:
    volume = Volume(np.full((3, 4, 5), 7, dtype=np.int16), np.eye(4))
    full, empty = measure_labels(np.zeros((3, 4, 5), dtype=np.uint16), volume, make_manifest(values=(0, 300)))
    assert full.model_dump(exclude={"name"}) == {
        "value": 0, "voxels": 60, "volume_ml": 0.06, "intensity_mean": 7, "intensity_std": 0,
    }  # fmt: skip
    assert empty.model_dump(exclude={"name"}) == {
        "value": 300, "voxels": 0, "volume_ml": 0, "intensity_mean": None, "intensity_std": None,
    }  # fmt: skip


def test_spread_of_a_constant_is_never_the_root_of_a_negative(make_manifest: MakeManifest) -> None:
    volume = Volume(np.full((7, 5, 3), 0.1, dtype=np.float32), np.eye(4))
    report = measure_labels(np.zeros((7, 5, 3), dtype=np.uint8), volume, make_manifest(values=(0,)))[0]
    assert report.intensity_std == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("dtype", ["i2", ">i2", "u2", "i4", "f4", ">f4", "f8"])
@pytest.mark.parametrize("offset", [0, 10**4, 10**9])
def test_figures_hold_for_every_kind_of_intensity(make_manifest: MakeManifest, dtype: str, offset: int) -> None:
    random = np.random.default_rng(0)
    values = (0, 2, 700)
    mask = np.array(random.choice((*values, 9), (130, 110, 80)), dtype=np.uint16, order="F")
    intensities = random.normal(300, 40, mask.shape) + 500 * (mask == 2)
    if np.dtype(dtype).itemsize > 2:
        intensities += offset
    volume = Volume(np.asfortranarray(intensities.astype(dtype)), np.eye(4))
    manifest = make_manifest(values=values)
    reports = measure_labels(mask, volume, manifest)
    for report in reports:
        inside = volume.voxels[mask == report.value].astype(np.float64)
        assert report.voxels == inside.size
        assert report.intensity_mean == pytest.approx(inside.mean(), rel=CLOSE)
        assert report.intensity_std == pytest.approx(inside.std(), rel=1e-7)
    with Threads(3) as threads:
        assert measure_labels(mask, volume, manifest, threads=threads) == reports


def test_integers_of_all_their_range_are_measured(make_manifest: MakeManifest) -> None:
    extremes = np.array([-(2**31), 2**31 - 1, 5, 5], dtype=np.int32).reshape(4, 1, 1)
    mask = np.array([1, 1, 0, 0], dtype=np.uint8).reshape(4, 1, 1)
    five, both = measure_labels(mask, Volume(extremes, np.eye(4)), make_manifest(values=(0, 1)))
    assert (five.intensity_mean, five.intensity_std) == (5, 0)
    assert (both.intensity_mean, both.intensity_std) == (-0.5, 2**31 - 0.5)


def test_voxels_of_no_label_are_not_counted(make_manifest: MakeManifest) -> None:
    mask = np.array([0, 0, 5, 2], dtype=np.uint8).reshape(2, 2, 1)
    volume = Volume(np.array([9, 9, 1, 3], dtype=np.int16).reshape(2, 2, 1), np.eye(4))
    reports = measure_labels(mask, volume, make_manifest(values=(5, 2), activation="sigmoid"))
    assert [(report.voxels, report.intensity_mean) for report in reports] == [(1, 1), (1, 3)]


def test_report_is_written_as_its_schema_says(tmp_path: Path) -> None:
    label = LabelReport(value=0, name="leber é", voxels=0, volume_ml=0, intensity_mean=None, intensity_std=None)
    report = Report(
        service_version="1",
        input=InputReport(
            kind="nifti",
            sha256="0" * 64,
            shape=(2, 3, 4),
            spacing_mm=(1, 2, 3),
            orientation="LPS",
            affine=np.eye(4).tolist(),
            modality=None,
            slices=None,
            set_aside={},
            cropped_to=None,
        ),
        model=ModelReport(name="test", version="1", sha256="0" * 64),
        providers=["CPUExecutionProvider"],
        precision="fp32",
        windows=4,
        labels=[label],
        timings_s={"read": 0.5},
        warnings=[],
    )
    report.write(tmp_path / "report.json")
    written = json.loads((tmp_path / "report.json").read_bytes())
    jsonschema.validate(written, Report.model_json_schema())
    assert written["labels"][0]["intensity_mean"] is None
    assert Report.model_validate_json((tmp_path / "report.json").read_bytes()) == report


@pytest.mark.parametrize(
    ("dtype", "values"),
    [(np.uint64, (2**63 + 5, 2**63 + 9)), (np.uint64, (2**60, 2**60 + 3)), (np.int64, (-(2**62), 7))],
)
def test_integers_of_64_bits_are_counted_right(
    make_manifest: Callable[..., Manifest], dtype: type[np.generic], values: tuple[int, int]
) -> None:
    mask = (np.arange(120) % 2).astype(np.uint8).reshape(4, 5, 6, order="F")
    voxels = np.where(mask, np.array(values[1], dtype), np.array(values[0], dtype))
    labels = measure_labels(mask, Volume(np.asfortranarray(voxels), np.eye(4)), make_manifest(values=(0, 1)))
    assert [label.voxels for label in labels] == [60, 60]
    assert [label.intensity_mean for label in labels] == pytest.approx([float(value) for value in values])
