import tracemalloc
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import pytest
from nibabel.orientations import apply_orientation, axcodes2ornt, ornt_transform
from numpy.typing import NDArray
from scipy import ndimage

from inference_service.contract.manifest import Manifest
from inference_service.core.errors import InputTooLarge
from inference_service.imaging.geometry import Affine, Volume
from inference_service.segmentation.preparation.intensities import filled_mask, normalise
from inference_service.segmentation.preparation.preprocessing import preprocess

MakeManifest = Callable[..., Manifest]
MakeAffine = Callable[[str, Sequence[float]], Affine]
Doubles = NDArray[np.float64]
Fields = dict[str, object]

MAX_VOXELS = 10**6
# Bounds float32 rounding of intensities near 1 made from intensities near 1000.
CLOSE = 1e-5


def ct(x: Doubles) -> Doubles:
    return np.asarray((np.clip(x, -900, 300) - 80) / 120)


CT: Fields = {"kind": "ct", "clip": (-900, 300), "mean": 80.0, "std": 120.0}


def hounsfield(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Values from about -1500 to 1500, a fifth of them 0."""
    random = np.random.default_rng(0)
    values = random.normal(50, 500, shape)
    return np.where(random.random(shape) < 0.2, 0, values).astype(np.float32)


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
    assert prepared.grid.logits_interpolations == ("nearest", "linear", "linear")
    assert np.array_equal(prepared.image[0], np.repeat(voxels.transpose(2, 1, 0), 5, axis=0))
    prepared = preprocess([volume], make_manifest(separate_axis_above=6), max_voxels=MAX_VOXELS)
    assert prepared.grid.logits_interpolations == ("linear", "linear", "linear")


def test_reorientation_leads_back_to_the_scan(make_manifest: MakeManifest, oblique_affine: MakeAffine) -> None:
    voxels = hounsfield((4, 5, 6))
    manifest = make_manifest(orientation="IAR")
    prepared = preprocess([Volume(voxels, oblique_affine("PLI", (1.0, 1.0, 1.0)))], manifest, max_voxels=MAX_VOXELS)
    assert np.array_equal(prepared.image[0], prepared.grid.reorientation.apply(voxels))


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
    normalise([mapped], [manifest.channels[0].intensities])
    plain = make_manifest(interpolation=interpolation, spacing_mm=(1.6, 0.7, 1.3))
    expected = preprocess([Volume(mapped, np.eye(4))], plain, max_voxels=MAX_VOXELS).image[0]
    assert np.allclose(got, expected, atol=1e-5)
    assert np.array_equal(voxels, before)
    if intensity["kind"] == "ct":
        after = preprocess(
            [Volume(voxels, np.eye(4))], make_manifest(**fields, spacing_mm=(1.6, 0.7, 1.3)), max_voxels=10**6
        )
        assert not np.allclose(got, after.image[0], atol=0.1)


Z_SCORE: Fields = {"kind": "z_score"}
CT_CHAINS: list[list[Fields]] = [
    [Z_SCORE],
    [{"kind": "percentiles", "percentiles": (5, 90)}],
    [{"kind": "min_max"}],
    [{"kind": "linear", "scale": 2.0}, Z_SCORE | {"statistics": "all_channels"}],
    [{"kind": "clip_percentiles", "percentiles": (0, 100)}],
]


@pytest.mark.parametrize("intensity", CT_CHAINS)
@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("padding", [-2000, -2048, -3024, -(2**15)])
def test_padding_of_a_ct_does_not_shift_its_statistics(
    make_manifest: MakeManifest, intensity: list[Fields], before: bool, padding: int
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


def test_values_below_air_count_where_the_manifest_says_so(make_manifest: MakeManifest) -> None:
    voxels = np.random.default_rng(0).integers(-1000, 1000, (12, 9, 10), dtype=np.int16)
    voxels[:3] = -3024
    fields: Fields = {
        "channels": [{"name": "CT", "intensity": Z_SCORE}],
        "spacing_mm": (None, None, None),
        "air_floor": False,
    }
    prepared = preprocess([Volume(voxels, np.eye(4))], make_manifest(**fields), of_ct=True, max_voxels=MAX_VOXELS)
    np.testing.assert_allclose(prepared.image[0], (voxels - voxels.mean()) / voxels.std(), atol=1e-4)


def test_a_copy_of_a_ct_without_padding_is_accounted_for(make_manifest: MakeManifest) -> None:
    manifest = make_manifest(channels=[{"name": "CT", "intensity": Z_SCORE}])
    volume = Volume(np.full((12, 9, 10), -2000, np.int16), np.eye(4))
    required: list[int] = []
    preprocess([volume], manifest, of_ct=True, max_voxels=MAX_VOXELS, require_memory=required.append)
    assert volume.voxels.nbytes in required


def two_channels(*intensities: Fields) -> list[Fields]:
    return [{"name": name, "intensity": intensities} for name in ("T1", "T2")]


CHAINS: list[list[Fields]] = [
    [{"kind": "clip_percentiles", "percentiles": (5, 95)}, {"kind": "z_score"}],
    [{"kind": "z_score", "nonzero_only": True, "fill_holes": True}],
    [{"kind": "percentiles", "percentiles": (5, 95), "statistics": "all_channels"}],
    [{"kind": "z_score", "statistics": "all_channels"}, {"kind": "clip", "range": (-1, 1)}],
    [{"kind": "min_max"}, {"kind": "linear", "scale": 2.0, "offset": -1.0}],
]


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("order", ["C", "F"])
def test_mappings_of_several_channels_are_applied_before_or_after_resampling(
    make_manifest: MakeManifest, chain: list[Fields], order: Literal["C", "F"], *, before: bool
) -> None:
    scans = np.random.default_rng(0).integers(-1000, 1000, (2, 12, 9, 10)).astype(np.int16)
    scans[:, 2:5, 3:6] = 0
    volumes = [Volume(np.array(scans[0], order=order), np.eye(4)), Volume(scans[1].astype(np.float32), np.eye(4))]
    given = [volume.voxels.copy() for volume in volumes]
    fields = {"spacing_mm": (1.6, 0.7, 1.3), "orientation": "SAL"}
    manifest = make_manifest(**fields, channels=two_channels(*chain), intensity_before_resampling=before)
    plain = make_manifest(**fields, channels=two_channels({"kind": "none"}))
    mappings = [channel.intensities for channel in manifest.channels]

    def normalised(images: NDArray[np.float32]) -> NDArray[np.float32]:
        normalise(list(images), mappings, filled_mask(list(images), mappings))
        return images

    def resampled(images: NDArray[np.float32]) -> NDArray[np.float32]:
        return preprocess([Volume(image, np.eye(4)) for image in images], plain, max_voxels=MAX_VOXELS).image

    scan = scans.astype(np.float32)
    expected = resampled(normalised(scan)) if before else normalised(resampled(scan))
    got = preprocess(volumes, manifest, max_voxels=MAX_VOXELS).image
    assert np.allclose(got, expected, atol=1e-5)
    for volume, voxels in zip(volumes, given, strict=True):
        assert np.array_equal(volume.voxels, voxels)


@pytest.mark.parametrize("chain", [[{"kind": "none"}], [{"kind": "z_score"}], *CHAINS])
@pytest.mark.parametrize("before", [True, False])
def test_the_memory_that_preprocessing_takes_is_required_first(
    make_manifest: MakeManifest, chain: list[Fields], *, before: bool
) -> None:
    scans = np.random.default_rng(0).integers(-900, 1000, (2, 40, 50, 60)).astype(np.int16)
    volumes = [Volume(scan, np.eye(4)) for scan in scans]
    manifest = make_manifest(
        spacing_mm=(1.1, 0.9, 1.2), channels=two_channels(*chain), intensity_before_resampling=before
    )
    required: list[int] = []
    tracemalloc.start()
    try:
        image = preprocess(volumes, manifest, max_voxels=MAX_VOXELS, require_memory=required.append).image
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # Beside matrices, and planes in float64.
    assert peak < sum(required) + 2 * 10**6
    assert sum(required) < image.nbytes + 4 * 4 * max(image[0].size, scans[0].size) + 1


def test_a_padded_image_is_required_with_its_channels_of_labels(make_manifest: MakeManifest) -> None:
    first_stage = {"networks": [{"file": "first.onnx", "sha256": "1" * 64}], "spacing_mm": (2, 2, 2)}
    manifest = make_manifest(window=(8, 4, 4), first_stage=first_stage)
    assert manifest.input_channels == 4
    required: list[int] = []
    volume = Volume(np.zeros((6, 4, 3), dtype=np.int16), np.eye(4))
    preprocess([volume], manifest, max_voxels=MAX_VOXELS, require_memory=required.append)
    assert required == [4 * 4 * (6 * 4 * 3 + 8 * 4 * 4)]


def test_labels_of_a_first_stage_follow_the_channels(make_manifest: MakeManifest, oblique_affine: MakeAffine) -> None:
    first_stage = {"networks": [{"file": "first.onnx", "sha256": "1" * 64}], "spacing_mm": (2, 2, 2)}
    manifest = make_manifest(
        first_stage=first_stage, orientation="SAL", spacing_mm=(1.3, 0.8, 1.1), grid="first_centre", values=(0, 1, 3)
    )
    voxels = hounsfield((9, 8, 7))
    mask = np.zeros(voxels.shape, dtype=np.uint8)
    mask[2:6, 1:5, 2:6] = 1
    mask[4:8, 3:7, 1:4] = 3
    affine = oblique_affine("LPI", (1.0, 1.2, 0.9))
    prepared = preprocess([Volume(voxels, affine)], manifest, max_voxels=MAX_VOXELS)
    alone = make_manifest(orientation="SAL", spacing_mm=(1.3, 0.8, 1.1), grid="first_centre")
    assert np.array_equal(
        prepared.image[0], preprocess([Volume(voxels, affine)], alone, max_voxels=MAX_VOXELS).image[0]
    )
    assert not prepared.image[1:].any()
    prepared.write_label_channels(mask, [1, 3])
    shares = np.stack(
        [
            preprocess([Volume((mask == value).astype(np.float32), affine)], alone, max_voxels=MAX_VOXELS).image[0]
            for value in (0, 1, 3)
        ]
    )
    decided = np.sum(shares == shares.max(axis=0), axis=0) == 1
    largest = shares.argmax(axis=0)
    # Where three labels meet, the largest share may be less than one half.
    assert np.any(shares.max(axis=0)[decided & (largest > 0)] < 0.5)
    for channel in (1, 2):
        assert np.array_equal(prepared.image[channel][decided], largest[decided] == channel)
    assert prepared.image[1:].any(axis=(1, 2, 3)).all()


def test_of_labels_with_equal_shares_that_of_the_nearest_voxel_counts(make_manifest: MakeManifest) -> None:
    first_stage = {"networks": [{"file": "first.onnx", "sha256": "1" * 64}]}
    manifest = make_manifest(first_stage=first_stage, spacing_mm=(2, 1, 1), values=(0, 1, 3))
    mask = np.array([1, 3, 3, 1, 0, 3, 1, 0], dtype=np.uint8).reshape(8, 1, 1)
    prepared = preprocess([Volume(hounsfield(mask.shape), np.eye(4))], manifest, max_voxels=MAX_VOXELS)
    prepared.write_label_channels(mask, [1, 3])
    labels = prepared.image[1] + 3 * prepared.image[2]
    # In the middle between two voxels, SciPy takes the second one for the nearest.
    assert labels.ravel().tolist() == [3, 1, 3, 0]


def test_background_outside_the_nonzero_voxels_has_a_share_of_its_own(make_manifest: MakeManifest) -> None:
    """As in nnU-Net, which gives it a label of its own, -1."""
    first_stage = {"networks": [{"file": "first.onnx", "sha256": "1" * 64}]}
    manifest = make_manifest(first_stage=first_stage, spacing_mm=(2 / 3,) * 3, values=(0, 1))
    mask = np.zeros((2, 2, 2), dtype=np.uint8)
    mask[0] = 1
    inside = np.zeros(mask.shape, dtype=bool)
    inside[:, 0] = True
    prepared = preprocess([Volume(hounsfield(mask.shape), np.eye(4))], manifest, max_voxels=MAX_VOXELS)
    # In the middle, half of the voxels are background, of which half is inside.
    for given, middle in ((None, 0), (inside, 1)):
        prepared.write_label_channels(mask, [1], inside=given)
        assert prepared.image[1, :, 1, 1].tolist() == [1, middle, 0]
        assert prepared.image[1, :, 0, 1].tolist() == [1, 0, 0]


@pytest.mark.parametrize(("margin", "divisor"), [(0, 1), (2, 5), (9, 4)])
def test_the_prepared_foreground_is_cropped_and_padded_with_0(
    make_manifest: MakeManifest, margin: int, divisor: int
) -> None:
    voxels = np.full((12, 9, 10), -5, dtype=np.int16)
    voxels[4:8, 2:5, 3:9] = np.random.default_rng(0).integers(1, 9, (4, 3, 6))
    crop = {"kind": "foreground", "margin_voxels": margin, "divisor": divisor, "prepared": True}
    prepared = preprocess([Volume(voxels, np.eye(4))], make_manifest(crop=crop), max_voxels=MAX_VOXELS)
    padded = np.pad(voxels, 20)
    assert prepared.image.shape[1:] == tuple(stop - start for start, stop in prepared.sides)
    assert all(size % divisor == 0 for size in prepared.image.shape[1:])
    assert np.array_equal(prepared.image[0], padded[tuple(slice(20 + a, 20 + b) for a, b in prepared.sides)])
    for (start, stop), first, last in zip(prepared.sides, (4, 2, 3), (8, 5, 9), strict=True):
        before, after = first - margin - start, stop - (last + margin)
        assert 0 <= before <= after <= before + 1
        assert before + after < divisor


def test_a_scan_that_is_not_resampled_keeps_its_fractions(make_manifest: MakeManifest) -> None:
    voxels = np.random.default_rng(0).normal(scale=100, size=(6, 5, 4)).astype(np.float32)
    manifest = make_manifest(spacing_mm=(2, 2, 2), grid="centres", truncate_resampled=True)
    same = preprocess([Volume(voxels, np.diag([2.0, 2, 2, 1]))], manifest, max_voxels=MAX_VOXELS)
    assert np.array_equal(same.image[0], voxels)
    finer = preprocess([Volume(voxels, np.diag([4.0, 2, 2, 1]))], manifest, max_voxels=MAX_VOXELS)
    assert finer.image[0].shape == (12, 5, 4)
    assert np.array_equal(finer.image[0], np.trunc(finer.image[0]))
    assert np.array_equal(finer.image[0, 0], np.trunc(voxels[0]))


@pytest.mark.parametrize("fill_holes", [False, True])
def test_a_nonzero_crop_of_the_resampled_scan_decides_where_statistics_are_taken(
    make_manifest: MakeManifest, *, fill_holes: bool
) -> None:
    voxels = np.zeros((9, 10, 8), dtype=np.int16)
    voxels[2:6, 3:9, 1:7] = np.random.default_rng(0).integers(-1, 9, (4, 6, 6))
    voxels[3, 5, 3] = 0
    intensity = {"kind": "z_score", "nonzero_only": fill_holes, "fill_holes": fill_holes}
    manifest = make_manifest(
        channels=[{"name": "MR", "intensity": intensity}],
        crop={"kind": "nonzero", "prepared": True},
        spacing_mm=(1, 1, 1),
        grid="centres",
        truncate_resampled=True,
    )
    prepared = preprocess([Volume(voxels, np.diag([2.0, 1, 1, 1]))], manifest, max_voxels=MAX_VOXELS)
    resampled = ndimage.zoom(voxels.astype(np.float64), (2, 1, 1), order=1, mode="nearest")
    resampled = np.trunc(resampled * (1 + 1e-9))
    (i0, i1), (j0, j1), (k0, k1) = [(found.min(), found.max() + 1) for found in np.nonzero(resampled)]
    assert prepared.sides == ((i0, i1), (j0, j1), (k0, k1))
    inside = resampled[i0:i1, j0:j1, k0:k1]
    counted = ndimage.binary_fill_holes(inside != 0) if fill_holes else np.ones_like(inside, dtype=bool)
    expected = np.where(counted, (inside - inside[counted].mean()) / inside[counted].std(), inside)
    assert np.allclose(prepared.image[0], expected, atol=1e-5)


def test_without_foreground_the_whole_prepared_scan_is_kept(make_manifest: MakeManifest) -> None:
    crop = {"kind": "foreground", "prepared": True}
    volume = Volume(np.full((5, 4, 3), -5, dtype=np.int16), np.eye(4))
    prepared = preprocess([volume], make_manifest(crop=crop), max_voxels=MAX_VOXELS)
    assert prepared.sides == ((0, 5), (0, 4), (0, 3))


def test_a_crop_that_exceeds_the_scan_by_far_is_refused_before_it_is_allocated(make_manifest: MakeManifest) -> None:
    volume = Volume(np.ones((5, 4, 3), dtype=np.int16), np.eye(4))
    for fields, message in (({"divisor": 200}, "8000000 voxels"), ({"margin_voxels": 2500}, "an axis of 5005 voxels")):
        manifest = make_manifest(crop={"kind": "foreground", "prepared": True, **fields})
        with pytest.raises(InputTooLarge, match=message):
            preprocess([volume], manifest, max_voxels=MAX_VOXELS)
