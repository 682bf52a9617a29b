from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from inference_service.contract.manifest import Manifest
from inference_service.contract.palette import label_colour
from inference_service.contract.report import LabelReport
from inference_service.core.threads import SINGLE_THREAD, ThreadPool
from inference_service.imaging.components import find_components
from inference_service.imaging.geometry import Affine, Volume
from inference_service.segmentation.labels.label_statistics import measure_labels

MakeManifest = Callable[..., Manifest]
MakeAffine = Callable[..., Affine]

# Bounds the rounding of a standard deviation from float64 sums of squares.
CLOSE = 1e-9

FIGURES = {"value", "voxels", "volume_ml", "intensity_mean", "intensity_std"}


def measured(
    mask: NDArray[np.unsignedinteger], volume: Volume, manifest: Manifest, *, threads: ThreadPool = SINGLE_THREAD
) -> list[LabelReport]:
    components = find_components(mask, [label.value for label in manifest.labels])
    return measure_labels(mask, volume, manifest, components, threads=threads)


@pytest.mark.parametrize("mask_order", ["C", "F"])
@pytest.mark.parametrize("scan_order", ["C", "F"])
@pytest.mark.parametrize("depth", [1, 16, 37])
def test_figures_agree_with_numpy(
    make_manifest: MakeManifest, mask_order: Literal["C", "F"], scan_order: Literal["C", "F"], depth: int
) -> None:
    random = np.random.default_rng(depth)
    values = (0, 3, 7)
    mask = np.array(random.choice(values, (6, 5, depth)), dtype=np.uint8, order=mask_order)
    voxels = np.array(random.normal(40, 300, mask.shape) + 900.0 * mask, dtype=np.int16, order=scan_order)
    volume = Volume(voxels, np.diag([-0.5, 2.0, 3.0, 1.0]))
    reports = measured(mask, volume, make_manifest(values=values))
    assert [(report.value, report.name) for report in reports] == [(value, f"label {value}") for value in values]
    for report in reports:
        inside = voxels[mask == report.value].astype(np.float64)
        assert report.voxels == inside.size
        assert report.volume_ml == pytest.approx(inside.size * 0.003)
        assert report.intensity_mean == pytest.approx(inside.mean(), rel=CLOSE)
        assert report.intensity_std == pytest.approx(inside.std(), rel=CLOSE)


def test_labels_have_their_own_colours_or_those_of_the_palette(make_manifest: MakeManifest) -> None:
    labels = [{"name": "b", "value": 5}, {"name": "air", "value": 0}, {"name": "a", "value": 2, "colour": (1, 2, 3)}]
    volume = Volume(np.zeros((3, 4, 5), dtype=np.int16), np.eye(4))
    reports = measured(np.zeros(volume.shape, dtype=np.uint8), volume, make_manifest(labels=labels))
    assert [report.colour for report in reports] == [label_colour(0), None, (1, 2, 3)]


def test_label_without_voxels_has_no_intensity(make_manifest: MakeManifest) -> None:
    volume = Volume(np.full((3, 4, 5), 7, dtype=np.int16), np.eye(4))
    full, empty = measured(np.zeros((3, 4, 5), dtype=np.uint16), volume, make_manifest(values=(0, 300)))
    assert full.model_dump(include=FIGURES) == {
        "value": 0,
        "voxels": 60,
        "volume_ml": 0.06,
        "intensity_mean": 7,
        "intensity_std": 0,
    }
    assert empty.model_dump(include=FIGURES) == {
        "value": 300,
        "voxels": 0,
        "volume_ml": 0,
        "intensity_mean": None,
        "intensity_std": None,
    }


def test_standard_deviation_of_a_constant_is_not_nan(make_manifest: MakeManifest) -> None:
    volume = Volume(np.full((7, 5, 3), 0.1, dtype=np.float32), np.eye(4))
    report = measured(np.zeros((7, 5, 3), dtype=np.uint8), volume, make_manifest(values=(0,)))[0]
    assert report.intensity_std == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("dtype", ["i2", ">i2", "u2", "i4", "f4", ">f4", "f8"])
@pytest.mark.parametrize("offset", [0, 10**4, 10**9])
def test_figures_are_correct_for_every_intensity_dtype(make_manifest: MakeManifest, dtype: str, offset: int) -> None:
    random = np.random.default_rng(0)
    values = (0, 2, 700)
    mask = np.array(random.choice((*values, 9), (130, 110, 80)), dtype=np.uint16, order="F")
    intensities = random.normal(300, 40, mask.shape) + 500 * (mask == 2)
    if np.dtype(dtype).itemsize > 2:
        intensities += offset
    volume = Volume(np.asfortranarray(intensities.astype(dtype)), np.eye(4))
    manifest = make_manifest(values=values)
    reports = measured(mask, volume, manifest)
    for report in reports:
        inside = volume.voxels[mask == report.value].astype(np.float64)
        assert report.voxels == inside.size
        assert report.intensity_mean == pytest.approx(inside.mean(), rel=CLOSE)
        assert report.intensity_std == pytest.approx(inside.std(), rel=1e-7)
    with ThreadPool(3) as threads:
        assert measured(mask, volume, manifest, threads=threads) == reports


def test_integers_of_the_whole_range_of_their_dtype_are_measured(make_manifest: MakeManifest) -> None:
    extremes = np.array([-(2**31), 2**31 - 1, 5, 5], dtype=np.int32).reshape(4, 1, 1)
    mask = np.array([1, 1, 0, 0], dtype=np.uint8).reshape(4, 1, 1)
    five, both = measured(mask, Volume(extremes, np.eye(4)), make_manifest(values=(0, 1)))
    assert (five.intensity_mean, five.intensity_std) == (5, 0)
    assert (both.intensity_mean, both.intensity_std) == (-0.5, 2**31 - 0.5)


def test_voxels_without_a_label_are_not_counted(make_manifest: MakeManifest) -> None:
    mask = np.array([0, 0, 5, 2], dtype=np.uint8).reshape(2, 2, 1)
    volume = Volume(np.array([9, 9, 1, 3], dtype=np.int16).reshape(2, 2, 1), np.eye(4))
    reports = measured(mask, volume, make_manifest(values=(5, 2), activation="sigmoid"))
    assert [(report.voxels, report.intensity_mean) for report in reports] == [(1, 1), (1, 3)]


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "SRA", "PIL"])
def test_bounding_box_and_centroid_of_a_label(
    make_manifest: MakeManifest, oblique_affine: MakeAffine, orientation: str
) -> None:
    random = np.random.default_rng(7)
    mask = np.zeros((9, 11, 13), dtype=np.uint8, order="F")
    mask[2:6, 3:10, 1:5] = random.choice((0, 3, 7), (4, 7, 4))
    affine = oblique_affine(orientation, (0.8, 1.5, 3.0))
    for report in measured(mask, Volume(np.zeros(mask.shape, np.int16), affine), make_manifest(values=(0, 3, 7))):
        where = np.argwhere(mask == report.value)
        world = affine @ np.append(where.mean(axis=0), 1)
        assert report.bounding_box == list(zip(where.min(axis=0), where.max(axis=0) + 1, strict=True))
        assert report.centroid_mm is not None
        assert report.centroid_mm.ras == pytest.approx(world[:3])
        assert report.centroid_mm.lps == pytest.approx(world[:3] * (-1, -1, 1))
        assert report.components == ndimage.label(mask == report.value, structure=np.ones((3, 3, 3)))[1]


def test_a_label_without_voxels_has_no_position(make_manifest: MakeManifest) -> None:
    volume = Volume(np.zeros((3, 4, 5), dtype=np.int16), np.eye(4))
    _, empty = measured(np.zeros((3, 4, 5), dtype=np.uint8), volume, make_manifest(values=(0, 5)))
    assert (empty.bounding_box, empty.centroid_mm, empty.components) == (None, None, 0)


@pytest.mark.parametrize(
    ("dtype", "values"),
    [(np.uint64, (2**63 + 5, 2**63 + 9)), (np.uint64, (2**60, 2**60 + 3)), (np.int64, (-(2**62), 7))],
)
def test_64_bit_integers_are_counted_correctly(
    make_manifest: Callable[..., Manifest], dtype: type[np.generic], values: tuple[int, int]
) -> None:
    mask = (np.arange(120) % 2).astype(np.uint8).reshape(4, 5, 6, order="F")
    voxels = np.where(mask, np.array(values[1], dtype), np.array(values[0], dtype))
    labels = measured(mask, Volume(np.asfortranarray(voxels), np.eye(4)), make_manifest(values=(0, 1)))
    assert [label.voxels for label in labels] == [60, 60]
    assert [label.intensity_mean for label in labels] == pytest.approx([float(value) for value in values])
