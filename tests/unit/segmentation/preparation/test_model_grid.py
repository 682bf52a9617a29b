from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nibabel.orientations import apply_orientation, axcodes2ornt, ornt_transform
from numpy.typing import NDArray
from preprocessing_numbers import (
    CASES,
    NNUNET_SPACING_MM,
    NNUNET_TARGET_MM,
    NUMBERS,
    Case,
    intensity_scan,
    logits_of,
)
from scipy import ndimage

from inference_service.contract.manifest import Manifest
from inference_service.imaging.geometry import Affine, Reorientation, Shape, Sides, Volume
from inference_service.imaging.interpolation import EQUAL_EXTENTS, Interpolation, Interpolations, Steps
from inference_service.segmentation.labels.label_decision import background_value, decide_labels
from inference_service.segmentation.labels.native_grid import write_native_labels
from inference_service.segmentation.preparation.model_grid import ModelGrid, model_grid
from inference_service.segmentation.preparation.preprocessing import PreprocessedImage, preprocess

MakeManifest = Callable[..., Manifest]
MakeAffine = Callable[[str, Sequence[float]], Affine]
Floats = NDArray[np.float32]
Labels = NDArray[np.unsignedinteger]

MODES: dict[str | int, Interpolation] = {
    "bilinear": "linear", "nearest": "nearest", 2: "quadratic", 3: "cubic",
}  # fmt: skip
# Bounds float32 rounding of intensities of up to 300.
CLOSE = 1e-3


@pytest.fixture(scope="module")
def numbers() -> dict[str, NDArray[Any]]:
    with np.load(NUMBERS) as file:
        return dict(file)


def manifest_of(make_manifest: MakeManifest, case: Case, **fields: object) -> Manifest:
    intensity: dict[str, object] = {"kind": "none"}
    if case.foreground is not None:
        intensity = {"kind": "fixed_range", "input": (-40, 60), "output": (0, 1)}
        fields["crop"] = {
            "kind": "foreground",
            "margin_voxels": case.foreground["margin"],
            "divisor": case.foreground["k_divisible"],
            "channel": case.foreground.get("channel_indices"),
            "prepared": True,
        }
    return make_manifest(
        channels=[{"name": f"channel {number}", "intensity": intensity} for number in range(len(case.channels))],
        spacing_mm=[mm if mm > 0 else None for mm in case.target_mm],
        grid="first_centre",
        interpolation=MODES[case.mode],
        interpolate="probabilities",
        values=(0, 1, 2),
        **fields,
    )


def prepared(case: Case, manifest: Manifest) -> PreprocessedImage:
    return prepared_of([Volume(channel, case.affine) for channel in case.channels], manifest)


def prepared_of(channels: Sequence[Volume], manifest: Manifest) -> PreprocessedImage:
    return preprocess(channels, manifest, max_voxels=10**6)


def mapped_back(image: PreprocessedImage, logits: Floats, manifest: Manifest, shape: Shape) -> Labels:
    """The labels of the probabilities of logits on the image's grid, on the scan's."""
    probabilities = np.exp(logits - logits.max(axis=0))
    probabilities /= probabilities.sum(axis=0)
    labels = np.zeros(shape, dtype=np.uint8)
    placement = image.grid.placement(image.sides)
    write_native_labels(
        placement.bordered(np.moveaxis(probabilities, 1, 0), (0, 1, 2), background_value(manifest)),
        decide=partial(decide_labels, part=manifest, values=(0, 1, 2), dtype=np.uint8),
        target=image.grid.reorientation.apply(labels)[placement.region],
        taps=placement.taps,
    )
    return labels


@pytest.mark.parametrize("name", CASES)
def test_images_are_those_of_monai(make_manifest: MakeManifest, numbers: dict[str, NDArray[Any]], name: str) -> None:
    case = CASES[name]
    image = prepared(case, manifest_of(make_manifest, case)).image
    assert image.shape == numbers[f"{name}: image"].shape
    assert np.allclose(image, numbers[f"{name}: image"], atol=CLOSE)


@pytest.mark.parametrize(
    ("name", "interpolation"),
    [(name, interpolation) for name, case in CASES.items() for interpolation in case.interpolations_back],
)
def test_labels_are_those_of_monais_inverse(
    make_manifest: MakeManifest, numbers: dict[str, NDArray[Any]], name: str, interpolation: str
) -> None:
    case = CASES[name]
    manifest = manifest_of(make_manifest, case, logits_interpolation=interpolation)
    image = prepared(case, manifest)
    labels = mapped_back(image, logits_of(image.image.shape[1:]), manifest, case.shape)
    assert np.array_equal(labels, numbers[f"{name}: {interpolation} labels"])
    assert set(np.unique(labels)) == {0, 1, 2}


def test_images_are_those_of_nnunet(make_manifest: MakeManifest, numbers: dict[str, NDArray[Any]]) -> None:
    """The thickest axis is not interpolated, the others by a cubic spline, after the normalisation."""
    scan = intensity_scan()[:, 3:]
    intensity = {"kind": "z_score", "nonzero_only": True, "fill_holes": True}
    manifest = make_manifest(
        channels=[{"name": name, "intensity": intensity} for name in ("T1", "T2")],
        spacing_mm=NNUNET_TARGET_MM,
        interpolation="cubic",
        separate_axis_above=3,
        intensity_before_resampling=True,
    )
    volumes = [Volume(channel, np.diag([*NNUNET_SPACING_MM, 1.0])) for channel in scan]
    image = preprocess(volumes, manifest, max_voxels=10**6).image
    assert image.shape == numbers["nnU-Net: resampled"].shape
    assert np.allclose(image, numbers["nnU-Net: resampled"], atol=1e-4)


@pytest.mark.parametrize(("source", "target"), [("LPS", "SAR"), ("PIR", "LSA"), ("SLP", "RAI"), ("RAS", "RAS")])
@pytest.mark.parametrize(("interpolation", "order"), [("linear", 1), ("quadratic", 2), ("cubic", 3)])
def test_first_centres_coincide_and_the_spacing_is_exact(
    make_manifest: MakeManifest,
    oblique_affine: MakeAffine,
    source: str,
    target: str,
    interpolation: str,
    order: Literal[1, 2, 3],
) -> None:
    spacing = (2.0, 1.5, 1.2)
    volume = Volume(np.random.default_rng(0).normal(size=(6, 11, 15)), oblique_affine(source, spacing))
    change = ornt_transform(axcodes2ornt(source), axcodes2ornt(target))
    scan = apply_orientation(volume.voxels, change)
    scan_spacing = [spacing[list(change[:, 0]).index(axis)] for axis in range(3)]
    model_spacing = (2.6, 1.1, 1.4)
    positions = [
        np.arange(0, (size - 1) * mm / model_mm + 0.5) * model_mm / mm
        for size, mm, model_mm in zip(scan.shape, scan_spacing, model_spacing, strict=True)
    ]
    expected = ndimage.map_coordinates(scan, np.meshgrid(*positions, indexing="ij"), order=order, mode="nearest")
    manifest = make_manifest(
        orientation=target, spacing_mm=model_spacing, interpolation=interpolation, grid="first_centre"
    )
    image = preprocess([volume], manifest, max_voxels=10**6).image[0]
    assert image.shape == expected.shape
    assert np.allclose(image, expected, atol=1e-5)


@pytest.mark.parametrize("source", ["LPS", "PIR", "RAS"])
@pytest.mark.parametrize("model_mm", [(1.5, 1.5, 1.5), (3.0, 0.75, 1.0)])
def test_images_and_labels_are_those_of_totalsegmentator(
    make_manifest: MakeManifest, oblique_affine: MakeAffine, source: str, model_mm: tuple[float, float, float]
) -> None:
    """Its change_spacing: SciPy's zoom of the scan in RAS to integers, and back by order 0."""
    random = np.random.default_rng(0)
    volume = Volume(
        random.integers(-1024, 1500, (17, 24, 21)).astype(np.int16), oblique_affine(source, (1.2, 0.8, 2.5))
    )
    scan = nibabel.as_closest_canonical(nibabel.Nifti1Image(volume.voxels, volume.affine))
    zoom = np.array(scan.header.get_zooms()) / model_mm[::-1]
    zoomed = ndimage.zoom(scan.get_fdata(), zoom, order=1, mode="nearest")
    expected = zoomed.astype(np.int32)
    manifest = make_manifest(
        orientation="SAR",
        spacing_mm=model_mm,
        grid="centres",
        truncate_resampled=True,
        logits_interpolation="nearest",
        values=(0, 1, 2),
    )
    image = prepared_of([volume], manifest)
    assert image.image[0].shape == expected.T.shape
    # Rounding decides on which side of a whole number a value lies that is next to it.
    differs = image.image[0] != expected.T
    assert np.abs(zoomed - np.rint(zoomed)).T[differs].max(initial=0) < CLOSE
    assert np.abs(image.image[0] - expected.T).max() <= 1
    labels = random.integers(0, 3, expected.shape).astype(np.uint8)
    logits = np.array([value == labels.T for value in range(3)], dtype=np.float32)
    back = ndimage.zoom(labels, np.array(scan.shape) / labels.shape, order=0, mode="nearest")
    change = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(source))
    mapped = mapped_back(image, 20 * logits, manifest, volume.shape)
    assert np.array_equal(mapped, apply_orientation(back, change))


@given(st.tuples(*[st.integers(1, 30)] * 3), st.tuples(*[st.floats(0.3, 5)] * 6))
def test_the_last_centre_is_within_half_a_voxel_of_the_scans(
    make_manifest: MakeManifest, shape: Shape, spacings: tuple[float, ...]
) -> None:
    volume = Volume(np.zeros(shape, dtype=np.int16), np.diag([*spacings[:3], 1.0]))
    grid = model_grid(volume, make_manifest(spacing_mm=spacings[3:], grid="first_centre"))
    for size, size_out, step, back in zip(shape, grid.shape, grid.steps, grid.steps_back, strict=True):
        assert isinstance(step, float)
        assert back == pytest.approx(1 / step)
        assert abs((size_out - 1) * step - (size - 1)) <= step / 2 + 1e-3


def test_a_grid_is_the_scans_where_no_spacing_is_stated(make_manifest: MakeManifest) -> None:
    volume = Volume(np.zeros((4, 5, 6), dtype=np.float32), np.diag([0.7, 1.3, 2.9, 1.0]))
    for grid in ("edges", "first_centre"):
        manifest = make_manifest(spacing_mm=(None, None, None), grid=grid)
        assert model_grid(volume, manifest).is_scan_grid
        assert np.shares_memory(preprocess([volume], manifest, max_voxels=10**6).image, volume.voxels)
    assert not model_grid(volume, make_manifest(spacing_mm=(0.71, 1.3, 2.9), grid="first_centre")).is_scan_grid


def sides_within(size: int) -> st.SearchStrategy[tuple[int, int]]:
    """A side that shares at least one voxel with an axis, and may exceed it."""
    return st.integers(0, size - 1).flatmap(
        lambda inside: st.tuples(st.integers(-3, inside), st.integers(inside + 1, size + 3))
    )


@st.composite
def crops(draw: st.DrawFn) -> tuple[ModelGrid, Sides]:
    shape = draw(st.tuples(*[st.integers(1, 9)] * 3))
    scan_shape = draw(st.tuples(*[st.integers(1, 9)] * 3))
    kinds: Interpolations = draw(st.tuples(*[st.sampled_from(["linear", "nearest"])] * 3))
    stepped = draw(st.booleans())
    steps: Steps = draw(st.tuples(*[st.floats(0.3, 3)] * 3)) if stepped else EQUAL_EXTENTS
    axes = draw(st.permutations(range(3)))
    flipped = draw(st.tuples(*[st.booleans()] * 3))
    change = Reorientation((axes[0], axes[1], axes[2]), flipped)
    sides = (draw(sides_within(shape[0])), draw(sides_within(shape[1])), draw(sides_within(shape[2])))
    return ModelGrid(change, scan_shape, shape, EQUAL_EXTENTS, steps, kinds, kinds, kinds), sides


@given(crops())
def test_outside_a_crop_the_logits_are_those_of_the_background(crop: tuple[ModelGrid, Sides]) -> None:
    """The labels are those of the whole grid, with logits of 0 outside the crop."""
    grid, sides = crop
    image = np.zeros((1, *grid.shape), dtype=np.float32)
    size = tuple(stop - start for start, stop in sides)
    logits = np.random.default_rng(0).normal(size=(3, *size)).astype(np.float32)
    whole = np.zeros((3, *grid.shape), dtype=np.float32)
    outer = tuple(slice(max(0, start), min(stop, n)) for (start, stop), n in zip(sides, grid.shape, strict=True))
    inner = tuple(slice(side.start - start, side.stop - start) for side, (start, _) in zip(outer, sides, strict=True))
    whole[:, *outer] = logits[:, *inner]

    def written(image: PreprocessedImage, values: Floats) -> tuple[Labels, tuple[slice, ...]]:
        i, j, k = (grid.scan_shape[image.grid.reorientation.axes.index(axis)] for axis in range(3))
        labels = np.zeros((i, j, k), dtype=np.uint8)
        placement = image.grid.placement(image.sides)
        write_native_labels(
            placement.bordered(np.moveaxis(values, 1, 0), (0, 1, 2), 0.0),
            decide=lambda plane: np.asarray(plane.argmax(axis=0), dtype=np.uint8),
            target=image.grid.reorientation.apply(labels)[placement.region],
            taps=placement.taps,
        )
        return labels, image.grid.reorientation.source_box(placement.region, (i, j, k))

    everything = ((0, grid.shape[0]), (0, grid.shape[1]), (0, grid.shape[2]))
    expected, everywhere = written(PreprocessedImage(image, grid, everything), whole)
    got, region = written(PreprocessedImage(image, grid, sides), logits)
    assert np.array_equal(got, expected)
    assert expected[everywhere].shape == expected.shape
    outside = np.ones(got.shape, dtype=bool)
    outside[region] = False
    assert not got[outside].any()
