import tracemalloc
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import pytest
from nibabel.orientations import apply_orientation, axcodes2ornt, ornt_transform
from numpy.typing import NDArray
from scipy import ndimage

from inference_service.contract.intensity import Intensity
from inference_service.contract.manifest import Manifest
from inference_service.core.errors import InputTooLarge
from inference_service.imaging.geometry import Affine, Volume
from inference_service.segmentation.preprocessing import normalise, preprocess

MakeManifest = Callable[..., Manifest]
MakeAffine = Callable[[str, Sequence[float]], Affine]
Doubles = NDArray[np.float64]
Fields = dict[str, object]

MAX_VOXELS = 10**6
# Bounds float32 rounding of intensities near 1 made from intensities near 1000.
CLOSE = 1e-5


def ct(x: Doubles) -> Doubles:
    return np.asarray((np.clip(x, -900, 300) - 80) / 120)


def z_score(x: Doubles) -> Doubles:
    return np.asarray((x - x.mean()) / x.std())


def z_score_nonzero(x: Doubles) -> Doubles:
    return np.where(x == 0, 0, (x - x[x != 0].mean()) / x[x != 0].std())


def percentiles(x: Doubles) -> Doubles:
    low, high = np.percentile(x, [5, 90])
    return np.asarray(-1 + 3 * (x - low) / (high - low))


def min_max(x: Doubles) -> Doubles:
    return np.asarray(-1 + 4 * (x - x.min()) / (x.max() - x.min()))


def fixed_range(x: Doubles) -> Doubles:
    return -1 + 2 * (x + 200) / 500


CT: Fields = {"kind": "ct", "clip": (-900, 300), "mean": 80.0, "std": 120.0}
Z_SCORE: Fields = {"kind": "z_score"}
Z_SCORE_NONZERO: Fields = {"kind": "z_score", "nonzero_only": True}
PERCENTILES: Fields = {"kind": "percentiles", "percentiles": (5, 90), "output": (-1, 2)}
MIN_MAX: Fields = {"kind": "min_max", "output": (-1, 3)}
FIXED_RANGE: Fields = {"kind": "fixed_range", "input": (-200, 300), "output": (-1, 1)}

FORMULAS: list[tuple[Fields, Callable[[Doubles], Doubles]]] = [
    (CT, ct),
    (Z_SCORE, z_score),
    (Z_SCORE_NONZERO, z_score_nonzero),
    (PERCENTILES, lambda x: np.clip(percentiles(x), -1, 2)),
    (PERCENTILES | {"clip": False}, percentiles),
    (MIN_MAX, min_max),
    (FIXED_RANGE, lambda x: np.clip(fixed_range(x), -1, 1)),
    (FIXED_RANGE | {"clip": False}, fixed_range),
    ({"kind": "none"}, lambda x: x),
]


def intensity_of(make_manifest: MakeManifest, fields: Fields) -> Intensity:
    return make_manifest(channels=[{"name": "CT", "intensity": fields}]).channels[0].intensities[0]


def hounsfield(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Values from about -1500 to 1500, a fifth of them 0."""
    random = np.random.default_rng(0)
    values = random.normal(50, 500, shape)
    return np.where(random.random(shape) < 0.2, 0, values).astype(np.float32)


@pytest.mark.parametrize(("fields", "formula"), FORMULAS)
def test_intensities_are_mapped_by_their_formulas(
    make_manifest: MakeManifest, fields: Fields, formula: Callable[[Doubles], Doubles]
) -> None:
    image = hounsfield((11, 7, 5))
    expected = formula(image.astype(np.float64))
    normalise(image, intensity_of(make_manifest, fields))
    assert image.dtype == np.float32
    assert np.allclose(image, expected, rtol=CLOSE, atol=CLOSE)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [(Z_SCORE, 0), (Z_SCORE_NONZERO, 0), (PERCENTILES, -1), (PERCENTILES | {"clip": False}, -1), (MIN_MAX, -1)],
)
@pytest.mark.parametrize("value", [0.0, 0.1, -1024.3])
def test_constant_volumes_are_not_divided_by_0(
    make_manifest: MakeManifest, fields: Fields, expected: float, value: float
) -> None:
    image = np.full((5, 4, 3), value, dtype=np.float32)
    normalise(image, intensity_of(make_manifest, fields))
    assert (image == expected).all()


def test_views_are_normalised_in_place(make_manifest: MakeManifest) -> None:
    image = hounsfield((6, 5, 4))
    expected = z_score_nonzero(image.astype(np.float64))
    normalise(image.transpose(2, 0, 1)[::-1], intensity_of(make_manifest, Z_SCORE_NONZERO))
    assert np.allclose(image, expected, atol=CLOSE)


@pytest.mark.parametrize(
    ("source", "target"), [("LPS", "SAR"), ("RAS", "RAS"), ("PIR", "LSA"), ("SLP", "RAI"), ("ASL", "IPR")]
)
@pytest.mark.parametrize(("interpolation", "order"), [("linear", 1), ("cubic", 3)])
def test_image_has_the_models_orientation_and_spacing(
    make_manifest: MakeManifest,
    oblique_affine: MakeAffine,
    source: str,
    target: str,
    interpolation: str,
    order: Literal[1, 3],
) -> None:
    spacing = (2.0, 1.5, 1.2)
    volume = Volume(hounsfield((6, 11, 15)), oblique_affine(source, spacing))
    change = ornt_transform(axcodes2ornt(source), axcodes2ornt(target))
    scan = apply_orientation(volume.voxels, change)
    scan_spacing = [spacing[list(change[:, 0]).index(axis)] for axis in range(3)]
    model_spacing = (2.5, 1.0, 1.4)
    ratios = [round(n * s / m) / n for n, s, m in zip(scan.shape, scan_spacing, model_spacing, strict=True)]
    expected = ndimage.zoom(scan.astype(np.float64), ratios, order=order, mode="nearest", grid_mode=True)

    manifest = make_manifest(orientation=target, spacing_mm=model_spacing, interpolation=interpolation)
    prepared = preprocess([volume], manifest, max_voxels=MAX_VOXELS)
    assert prepared.image[0].shape == expected.shape
    assert len({round(ratio, 3) for ratio in ratios}) == 3
    assert np.allclose(prepared.image[0], expected, rtol=CLOSE, atol=0.01)


def test_area_interpolation_averages_the_voxels_that_a_model_voxel_covers(make_manifest: MakeManifest) -> None:
    volume = Volume(hounsfield((6, 8, 9)), np.diag([1.0, 1.0, 1.0, 1.0]))
    manifest = make_manifest(spacing_mm=(2.0, 4.0, 3.0), interpolation="area")
    means = volume.voxels.reshape(3, 2, 2, 4, 3, 3).mean(axis=(1, 3, 5))
    assert np.allclose(preprocess([volume], manifest, max_voxels=MAX_VOXELS).image[0], means, atol=0.01)


@pytest.mark.parametrize("source", ["RAS", "LPS", "PIR", "SLA"])
def test_axes_run_in_the_models_directions(
    make_manifest: MakeManifest, oblique_affine: MakeAffine, source: str
) -> None:
    affine = oblique_affine(source, (2.0, 1.5, 3.0))
    world_mm = np.moveaxis(np.indices((6, 7, 8)), 0, 3) @ affine[:3, :3].T + affine[:3, 3]
    spacing = Volume(world_mm[..., 0], affine).spacing_mm
    world_axes = [next(i for i, letters in enumerate(("LR", "PA", "IS")) if code in letters) for code in source]
    by_world_axis = dict(zip(world_axes, spacing, strict=True))
    manifest = make_manifest(orientation="SPR", spacing_mm=[by_world_axis[axis] for axis in (2, 1, 0)])
    for axis, (world_axis, sign) in enumerate(((2, 1), (1, -1), (0, 1))):
        image = preprocess([Volume(world_mm[..., world_axis], affine)], manifest, max_voxels=MAX_VOXELS).image[0]
        steps = sign * np.diff(image, axis=axis)
        assert (steps > 0.8 * by_world_axis[world_axis]).all()


def test_intensities_are_mapped_as_the_manifest_asks(make_manifest: MakeManifest) -> None:
    volume = Volume(hounsfield((6, 5, 4)).astype(np.int16), np.eye(4))
    image = preprocess(
        [volume], make_manifest(channels=[{"name": "CT", "intensity": CT}]), max_voxels=MAX_VOXELS
    ).image[0]
    assert np.allclose(image, ct(volume.voxels.astype(np.float64)), atol=CLOSE)
    assert volume.voxels.dtype == np.int16
    assert volume.voxels.min() < -900


def test_separate_axis_is_found_along_the_models_axes(make_manifest: MakeManifest, oblique_affine: MakeAffine) -> None:
    voxels = hounsfield((8, 7, 4))
    volume = Volume(voxels, oblique_affine("RAS", (1.0, 1.0, 5.0)))
    manifest = make_manifest(orientation="SAR", interpolation="cubic", separate_axis_above=3)
    prepared = preprocess([volume], manifest, max_voxels=MAX_VOXELS)
    assert prepared.logits_interpolations == ("nearest", "linear", "linear")
    assert np.array_equal(prepared.image[0], np.repeat(voxels.transpose(2, 1, 0), 5, axis=0))
    prepared = preprocess([volume], make_manifest(separate_axis_above=6), max_voxels=MAX_VOXELS)
    assert prepared.logits_interpolations == ("linear", "linear", "linear")


def test_reorientation_leads_back_to_the_scan(make_manifest: MakeManifest, oblique_affine: MakeAffine) -> None:
    voxels = hounsfield((4, 5, 6))
    manifest = make_manifest(orientation="IAR")
    prepared = preprocess([Volume(voxels, oblique_affine("PLI", (1.0, 1.0, 1.0)))], manifest, max_voxels=MAX_VOXELS)
    assert np.array_equal(prepared.image[0], prepared.reorientation.apply(voxels))


@pytest.mark.parametrize(
    ("shape", "spacing", "window", "message"),
    [
        ((1, 4097, 1), (1, 1, 1), (5, 4, 3), r"the scan has an axis of 4097 voxels; this service takes at most 4096"),
        (
            (1, 1, 50), (1, 1, 100), (5, 4, 3),
            r"the scan gets an axis of 5000 voxels at the model's spacing of 1 × 1 × 1 mm; .* at most 4096",
        ),
        (
            (10, 20, 30), (8, 7, 6), (5, 4, 3),
            r"the scan becomes a grid of 2016000 voxels at the model's spacing of 1 × 1 × 1 mm; .* at most 1000000",
        ),
        ((1, 1, 1), (1, 1, 1), (101, 102, 103), r"a grid of 1061106 voxels"),
    ],
)  # fmt: skip
def test_large_grids_are_refused_before_they_are_allocated(
    make_manifest: MakeManifest,
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    window: tuple[int, int, int],
    message: str,
) -> None:
    volume = Volume(np.zeros(shape, dtype=np.int16), np.diag([*spacing, 1.0]))
    manifest = make_manifest(window=window, interpolation="cubic")
    tracemalloc.start()
    try:
        with pytest.raises(InputTooLarge, match=message):
            preprocess([volume], manifest, max_voxels=MAX_VOXELS)
        assert tracemalloc.get_traced_memory()[1] < 10**5
    finally:
        tracemalloc.stop()


def test_grids_as_large_as_the_limit_are_accepted(make_manifest: MakeManifest) -> None:
    volume = Volume(np.zeros((3, 1, 4), dtype=np.int16), np.diag([2.0, 3.0, 2.0, 1.0]))
    manifest = make_manifest(window=(5, 4, 3))
    assert preprocess([volume], manifest, max_voxels=6 * 4 * 8).image[0].shape == (6, 3, 8)
    with pytest.raises(InputTooLarge, match=r"192 voxels.*at most 191"):
        preprocess([volume], manifest, max_voxels=6 * 4 * 8 - 1)


def test_long_axes_take_memory_in_proportion(make_manifest: MakeManifest) -> None:
    volume = Volume(np.zeros((4096, 1, 1), dtype=np.int16), np.diag([0.5, 1.0, 1.0, 1.0]))
    tracemalloc.start()
    try:
        assert preprocess([volume], make_manifest(), max_voxels=MAX_VOXELS).image[0].shape == (2048, 1, 1)
        assert tracemalloc.get_traced_memory()[1] < 50 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "intensity",
    [
        {"kind": "ct", "clip": (-200, 300), "mean": 40.0, "std": 70.0},
        {"kind": "z_score"},
        {"kind": "z_score", "nonzero_only": True},
        {"kind": "percentiles", "percentiles": (5, 95)},
        {"kind": "min_max"},
        {"kind": "fixed_range", "input": (-100, 400)},
        {"kind": "none"},
    ],
)
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
@pytest.mark.parametrize("interpolation", ["linear", "cubic"])
def test_intensities_may_be_mapped_before_resampling(
    make_manifest: MakeManifest, intensity: dict[str, object], dtype: type[np.generic], interpolation: str
) -> None:
    voxels = np.random.default_rng(0).integers(-1000, 1000, (12, 9, 10)).astype(dtype)
    voxels[2:5, 3:6] = 0
    before = voxels.copy()
    fields = {"channels": [{"name": "CT", "intensity": intensity}], "interpolation": interpolation}
    manifest = make_manifest(**fields, spacing_mm=(1.6, 0.7, 1.3), intensity_before_resampling=True)
    got = preprocess([Volume(voxels, np.eye(4))], manifest, max_voxels=MAX_VOXELS).image[0]

    mapped = voxels.astype(np.float32)
    normalise(mapped, manifest.channels[0].intensities[0])
    plain = make_manifest(interpolation=interpolation, spacing_mm=(1.6, 0.7, 1.3))
    expected = preprocess([Volume(mapped, np.eye(4))], plain, max_voxels=MAX_VOXELS).image[0]
    assert np.allclose(got, expected, atol=1e-5)
    assert np.array_equal(voxels, before)
    if intensity["kind"] == "ct":
        after = preprocess(
            [Volume(voxels, np.eye(4))], make_manifest(**fields, spacing_mm=(1.6, 0.7, 1.3)), max_voxels=10**6
        )
        assert not np.allclose(got, after.image[0], atol=0.1)


@pytest.mark.parametrize("intensity", [Z_SCORE, PERCENTILES, MIN_MAX])
@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("padding", [-2000, -2048, -3024, -(2**15)])
def test_padding_of_a_ct_does_not_shift_its_statistics(
    make_manifest: MakeManifest, intensity: Fields, before: bool, padding: int
) -> None:
    fields: Fields = {
        "channels": [{"name": "CT", "intensity": intensity}],
        "spacing_mm": (1.6, 0.7, 1.3),
        "intensity_before_resampling": before,
    }
    voxels = np.random.default_rng(0).integers(-1000, 1000, (12, 9, 10), dtype=np.int16)
    images = {}
    for value in (-1024, padding):
        voxels[:3] = value
        scan = voxels.copy()
        for modality in ("CT", "MR"):
            volume = Volume(scan, np.eye(4))
            prepared = preprocess([volume], make_manifest(**fields), of_ct=modality == "CT", max_voxels=MAX_VOXELS)
            images[modality, value] = prepared.image
        np.testing.assert_array_equal(scan, voxels)
    np.testing.assert_array_equal(images["CT", padding], images["CT", -1024])
    assert not np.allclose(images["MR", padding], images["MR", -1024])


def test_a_copy_of_a_ct_without_padding_is_accounted_for(make_manifest: MakeManifest) -> None:
    manifest = make_manifest(channels=[{"name": "CT", "intensity": Z_SCORE}])
    volume = Volume(np.full((12, 9, 10), -2000, np.int16), np.eye(4))
    required: list[int] = []
    preprocess([volume], manifest, of_ct=True, max_voxels=MAX_VOXELS, require_memory=required.append)
    assert volume.voxels.nbytes in required
