import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import permutations, product
from pathlib import Path
from typing import Literal, get_args

import nibabel
import numpy as np
import pytest
from dicom_files import Stack, phantom, read_segmentation, regular_stack, write_series
from fake_networks import NearestValueNetwork, ThresholdNetwork
from highdicom.color import CIELabColor
from nibabel.orientations import apply_orientation, axcodes2ornt, ornt_transform
from numpy.typing import NDArray
from scipy import ndimage

from inference_service.contract.crops import ModelCrop
from inference_service.contract.input_options import InputOptions
from inference_service.contract.manifest import Manifest
from inference_service.contract.part import NETWORK_FILE
from inference_service.contract.report import Report
from inference_service.contract.result_files import MASK_FILE, REPORT_FILE, result_files
from inference_service.contract.task_message import OutputFormat
from inference_service.core.errors import BadRequest, InputTooLarge, ModelInvalid, NotAVolume, OutOfMemory
from inference_service.core.execution import ExecutionOptions
from inference_service.core.files import Checksum
from inference_service.core.memory_budget import MemoryBudget
from inference_service.core.progress import Stage, StageClock, overall_progress
from inference_service.core.report_warnings import ReportWarning, WarningCode
from inference_service.engine.model_registry import Model
from inference_service.engine.session_cache import SessionCache
from inference_service.formats.read_limits import ReadLimits
from inference_service.imaging.geometry import Affine, Volume
from inference_service.segmentation.pipeline import ModelRun, SegmentOptions, segment_file
from inference_service.segmentation.resources import Resources, StageMonitor
from inference_service.segmentation.volume_segmentation import segment_volume
from inference_service.segmentation.windows.network import LoadedNetwork, Network

MakeManifest = Callable[..., Manifest]
MakeAffine = Callable[[str, Sequence[float]], Affine]
MakeModel = Callable[..., Model]

ORIENTATIONS = ["".join(codes) for axes in permutations(("LR", "PA", "IS")) for codes in product(*axes)]
# Spacing along each world axis; in the model's axis order it is (3.0, 1.5, 0.8).
WORLD_SPACING_MM = {"L": 0.8, "R": 0.8, "P": 1.5, "A": 1.5, "I": 3.0, "S": 3.0}
MODEL_ORIENTATION = "SPL"
WINDOW = (5, 4, 3)
CPU = ExecutionOptions(("CPUExecutionProvider",), threads=1)
LIMITS = ReadLimits(10**6)
GEOMETRY = (
    "pixdim", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z",
    "srow_x", "srow_y", "srow_z", "xyzt_units", "dim",
)  # fmt: skip

# In float32, two logits closer than this may be in either order.
TIE = 1e-4


def label_scan(shape: tuple[int, ...]) -> NDArray[np.int16]:
    """Labels 0…3 as intensities, without any symmetry."""
    return np.random.default_rng(0).integers(0, 4, shape, dtype=np.int16)


def spacing_of(orientation: str) -> list[float]:
    return [WORLD_SPACING_MM[code] for code in orientation]


def only(network: Network) -> dict[str, LoadedNetwork]:
    return {NETWORK_FILE: LoadedNetwork(network)}


def segment(volume: Volume, manifest: Manifest, *values: float) -> NDArray[np.unsignedinteger]:
    return segment_volume([volume], manifest, only(NearestValueNetwork(*values)), max_voxels=10**6).mask


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("shape", [(7, 4, 5), (2, 9, 1)])
def test_labels_are_correct_in_every_orientation(
    make_manifest: MakeManifest, oblique_affine: MakeAffine, orientation: str, shape: tuple[int, int, int]
) -> None:
    volume = Volume(label_scan(shape), oblique_affine(orientation, spacing_of(orientation)))
    manifest = make_manifest(
        orientation=MODEL_ORIENTATION, spacing_mm=spacing_of(MODEL_ORIENTATION), window=WINDOW, padding_value=-9
    )
    mask = segment(volume, manifest, 0, 1, 2, 3)
    assert mask.shape == shape
    assert mask.dtype == np.uint8
    assert np.array_equal(mask, volume.voxels)


@pytest.mark.parametrize("orientation", ["LPS", "RAS", "SRA", "PIL"])
def test_network_sees_the_scan_along_its_own_axes(
    make_manifest: MakeManifest, oblique_affine: MakeAffine, orientation: str
) -> None:
    volume = Volume(label_scan((6, 5, 4)), oblique_affine(orientation, spacing_of(orientation)))
    change = ornt_transform(axcodes2ornt(orientation), axcodes2ornt(MODEL_ORIENTATION))
    expected = apply_orientation(volume.voxels, change)
    manifest = make_manifest(
        orientation=MODEL_ORIENTATION, spacing_mm=spacing_of(MODEL_ORIENTATION), window=expected.shape
    )
    network = NearestValueNetwork(0, 1, 2, 3)
    segmented = segment_volume([volume], manifest, only(network), max_voxels=10**6)
    assert segmented.windows == len(network.images) == 1
    assert np.array_equal(network.images[0], expected)
    assert np.array_equal(segmented.mask, volume.voxels)


@pytest.mark.parametrize("orientation", ["LPS", "RIA", "ASL"])
@pytest.mark.parametrize("coarser", [(2.0, 2.0, 2.0), (1.7, 0.6, 2.3)])
def test_labels_at_another_spacing_agree_with_scipy(
    make_manifest: MakeManifest, oblique_affine: MakeAffine, orientation: str, coarser: tuple[float, float, float]
) -> None:
    values = (-0.25, -0.05, 0.05, 0.25)
    smooth = ndimage.gaussian_filter(np.random.default_rng(3).normal(size=(18, 14, 12)), 1.5)
    volume = Volume((smooth / np.ptp(smooth)).astype(np.float32), oblique_affine(orientation, spacing_of(orientation)))
    spacing = [mm * factor for mm, factor in zip(spacing_of(MODEL_ORIENTATION), coarser, strict=True)]
    manifest = make_manifest(orientation=MODEL_ORIENTATION, spacing_mm=spacing, window=WINDOW)

    there = ornt_transform(axcodes2ornt(orientation), axcodes2ornt(MODEL_ORIENTATION))
    scan = apply_orientation(volume.voxels, there).astype(np.float64)
    ratios = np.array([round(size / factor) / size for size, factor in zip(scan.shape, coarser, strict=True)])
    image = ndimage.zoom(scan, ratios, order=1, mode="nearest", grid_mode=True)
    logits = [
        ndimage.zoom(-np.abs(image - value), 1 / ratios, order=1, mode="nearest", grid_mode=True) for value in values
    ]
    back = ornt_transform(axcodes2ornt(MODEL_ORIENTATION), axcodes2ornt(orientation))
    expected = apply_orientation(np.argmax(logits, axis=0), back)
    second, first = np.sort(logits, axis=0)[-2:]
    sure = apply_orientation(first - second > TIE, back)

    mask = segment(volume, manifest, *values)
    assert mask.shape == volume.shape
    assert np.array_equal(mask[sure], expected[sure])
    assert sure.mean() > 0.95
    assert (np.bincount(mask.ravel(), minlength=4) > 20).all()


def test_logits_are_interpolated_separately_along_thick_slices(make_manifest: MakeManifest) -> None:
    def resized(image: NDArray[np.float64], ratios: Sequence[float]) -> NDArray[np.float64]:
        across = ndimage.zoom(image, (1, 1, ratios[2]), order=0, mode="nearest", grid_mode=True)
        return ndimage.zoom(across, (*ratios[:2], 1), order=1, mode="nearest", grid_mode=True)

    values = (0, 1, 2, 3)
    voxels = label_scan((6, 17, 5))
    manifest = make_manifest(spacing_mm=(0.8, 1.2, 1.7), separate_axis_above=3)
    image = resized(voxels.astype(np.float64), (8 / 6, 14 / 17, 15 / 5))
    logits = [resized(-np.abs(image - value), (6 / 8, 17 / 14, 5 / 15)) for value in values]
    second, first = np.sort(logits, axis=0)[-2:]
    sure = first - second > TIE
    mask = segment(Volume(voxels, np.diag([1.0, 1.0, 5.0, 1.0])), manifest, *values)
    assert np.array_equal(mask[sure], np.argmax(logits, axis=0)[sure])
    assert sure.mean() > 0.9


def test_later_sigmoid_channels_override_earlier_ones(make_manifest: MakeManifest) -> None:
    voxels = label_scan((7, 4, 5))
    manifest = make_manifest(activation="sigmoid", values=(2, 300, 1), window=WINDOW)
    network = ThresholdNetwork(0.5, 2.5, 1.5)
    mask = segment_volume([Volume(voxels, np.eye(4))], manifest, only(network), max_voxels=10**6).mask
    assert mask.dtype == np.uint16
    assert np.array_equal(mask, np.array([0, 2, 1, 1])[voxels])


@pytest.mark.parametrize(
    ("values", "dtype"), [((9, 0, 255, 3), np.uint8), ((256, 0, 2, 3), np.uint16), ((9, 0, 65535, 256), np.uint16)]
)
def test_label_values_may_differ_from_channel_indices(
    make_manifest: MakeManifest, values: tuple[int, ...], dtype: type[np.unsignedinteger]
) -> None:
    voxels = label_scan((4, 5, 6))
    mask = segment(Volume(voxels, np.eye(4)), make_manifest(values=values), 0, 1, 2, 3)
    assert mask.dtype == dtype
    assert np.array_equal(mask, np.array(values)[voxels])


def test_mask_is_postprocessed_on_the_scans_grid(make_manifest: MakeManifest) -> None:
    voxels = np.zeros((8, 7, 6), dtype=np.int16)
    voxels[0:3, 0:2, 0:2] = 1
    voxels[6, 5, 4] = 1
    kept = voxels.copy()
    kept[6, 5, 4] = 0
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    for least_ml, expected in ((0.009, kept), (0.007, voxels)):
        step = {"step": "remove_small", "labels": [1], "min_volume_ml": least_ml}
        manifest = make_manifest(values=(0, 1), spacing_mm=(2, 2, 2), postprocessing=[step])
        assert np.array_equal(segment(Volume(voxels, affine), manifest, 0, 1), expected)


@pytest.fixture(scope="module")
def model(make_model: MakeModel) -> Model:
    return make_model(orientation=MODEL_ORIENTATION, spacing_mm=spacing_of(MODEL_ORIENTATION))


def write_scan(path: Path, voxels: NDArray[np.generic], affine: Affine, *, qform: int = 1, sform: int = 2) -> None:
    """Writes a NIfTI file whose header has every field that a mask copies, and others."""
    image = nibabel.Nifti1Image(voxels, affine)
    image.header.set_xyzt_units("mm", "sec")
    image.header["descrip"] = b"a patient's name"
    image.header["pixdim"][4:] = 0.25, 1, 2, 3
    image.set_qform(affine, code=qform)
    image.set_sform(affine if sform else None, code=sform)
    nibabel.save(image, path)


def model_run(model: Model) -> ModelRun:
    return ModelRun(model, CPU, SessionCache())


def run(source: Path, target: Path, model: Model, execution: ExecutionOptions = CPU) -> Report:
    return segment_file(
        source, target, ModelRun(model, execution, SessionCache()), limits=LIMITS, monitor=StageMonitor()
    )


@pytest.mark.parametrize(("qform", "sform"), [(1, 2), (1, 0), (0, 3), (4, 4)])
@pytest.mark.parametrize("shape", [(7, 4, 5), (7, 4, 5, 1)])
def test_mask_lies_on_the_scans_grid_bit_for_bit(
    tmp_path: Path, model: Model, oblique_affine: MakeAffine, shape: tuple[int, ...], qform: int, sform: int
) -> None:
    voxels = label_scan(shape)
    affine = oblique_affine("PLI", spacing_of("PLI"))
    write_scan(tmp_path / "scan.nii.gz", voxels, affine, qform=qform, sform=sform)
    run(tmp_path / "scan.nii.gz", tmp_path, model)
    scan = nibabel.Nifti1Image.from_filename(tmp_path / "scan.nii.gz")
    mask = nibabel.Nifti1Image.from_filename(tmp_path / MASK_FILE)
    for field in GEOMETRY:
        assert mask.header[field].tobytes() == scan.header[field].tobytes(), field
    assert mask.affine.tobytes() == scan.affine.tobytes()
    assert mask.get_data_dtype() == np.uint8
    assert mask.shape == shape
    assert np.array_equal(np.asarray(mask.dataobj), voxels)
    assert not mask.header["descrip"].item()


def test_report_describes_the_run(tmp_path: Path, model: Model, oblique_affine: MakeAffine) -> None:
    voxels = label_scan((7, 4, 5))
    affine = oblique_affine("PLI", spacing_of("PLI"))
    source = tmp_path / "scan.nii"
    write_scan(source, voxels, affine)
    clock = StageClock()
    report = segment_file(
        source, tmp_path, model_run(model), limits=ReadLimits(voxels.size), monitor=StageMonitor(clock)
    )
    assert report == Report.model_validate_json((tmp_path / REPORT_FILE).read_bytes())
    assert report.input.sha256 == hashlib.sha256(source.read_bytes()).hexdigest()
    assert report.input.shape == (7, 4, 5)
    assert report.input.spacing_mm == pytest.approx((1.5, 0.8, 3.0), rel=1e-6)
    assert report.input.orientation == "PLI"
    assert np.array(report.input.affine) == pytest.approx(affine, rel=1e-6)
    assert report.model.model_dump() == {
        "name": "test",
        "version": "1",
        "sha256": model.manifest.sha256,
        "manifest_sha256": model.manifest_sha256,
        "crop_models": [],
    }
    names = ("mask.nii.gz", "preview.png")
    assert report.checksums == {name: Checksum.of_file(tmp_path / name) for name in names}
    assert report.providers == ["CPUExecutionProvider"]
    assert report.precision == "fp32"
    assert report.input.cropped_to is None
    assert report.windows == 1 * 3 * 2
    assert [label.voxels for label in report.labels] == np.bincount(voxels.ravel()).tolist()
    assert [label.intensity_mean for label in report.labels] == [0, 1, 2, 3]
    assert report.labels[1].volume_ml == pytest.approx(report.labels[1].voxels * 0.0036)
    assert set(report.timings_s) == {
        "read",
        "model_load",
        "preprocess",
        "network",
        "windows",
        "map",
        "postprocess",
        "report",
        "preview",
        "write",
    }
    assert report.timings_s == clock.seconds
    assert min(report.timings_s.values()) > 0
    assert report.warnings == []


def test_replaced_non_finite_voxels_are_reported(tmp_path: Path, model: Model, oblique_affine: MakeAffine) -> None:
    voxels = label_scan((7, 4, 5)).astype(np.float32)
    voxels[1, 2, 3] = np.nan
    voxels[4, 3, 2] = np.inf
    write_scan(tmp_path / "scan.nii", voxels, oblique_affine("LPS", spacing_of("LPS")))
    report = run(tmp_path / "scan.nii", tmp_path, model)
    message = (
        "2 voxels were NaN, infinite or another fill value; they were set to the lowest value of the others, or to air"
    )
    assert report.warnings == [ReportWarning(WarningCode.FILL_VALUES_REPLACED, message)]
    mask = np.asarray(nibabel.Nifti1Image.from_filename(tmp_path / MASK_FILE).dataobj)
    assert mask[1, 2, 3] == mask[4, 3, 2] == 0


@pytest.mark.filterwarnings("ignore:Specified provider:UserWarning")
def test_unused_provider_is_reported(tmp_path: Path, model: Model, oblique_affine: MakeAffine) -> None:
    write_scan(tmp_path / "scan.nii", label_scan((7, 4, 5)), oblique_affine("LPS", spacing_of("LPS")))
    execution = ExecutionOptions(("NoSuchExecutionProvider", "CPUExecutionProvider"), threads=1)
    report = run(tmp_path / "scan.nii", tmp_path, model, execution)
    assert report.providers == ["CPUExecutionProvider"]
    message = "the model does not run on NoSuchExecutionProvider"
    assert report.warnings == [ReportWarning(WarningCode.PROVIDER_UNUSED, message)]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"sha256": "0" * 64}, "expected sha256 0000"),
        ({"input_channels": 2}, r"expected one input of shape \['any', 1, 5, 4, 3\], got \[\[None, 2, 5, 4, 3\]\]"),
        ({"labels": 3}, r"expected one output of shape \['any', 4, 5, 4, 3\], got \[\[None, 3, 5, 4, 3\]\]"),
        ({"outputs": [{"channel": 0, "value": 1}]}, r"expected one output of shape \['any', 1, 5, 4, 3\]"),
        ({"window": (5, 4, 4)}, "expected one input of shape"),
    ],
)
def test_model_that_does_not_match_its_manifest_is_refused(
    tmp_path: Path, make_model: MakeModel, wrong: dict[str, object], message: str
) -> None:
    write_scan(tmp_path / "scan.nii", label_scan((7, 4, 5)), np.eye(4))
    with pytest.raises(ModelInvalid, match=message):
        run(tmp_path / "scan.nii", tmp_path, make_model(**wrong))
    assert [path.name for path in tmp_path.iterdir()] == ["scan.nii"]


def test_a_single_scan_for_a_model_of_several_channels_is_refused(tmp_path: Path, make_model: MakeModel) -> None:
    write_scan(tmp_path / "scan.nii", label_scan((7, 4, 5)), np.eye(4))
    channels = [{"name": name, "intensity": {"kind": "none"}} for name in ("CT", "PET")]
    with pytest.raises(NotAVolume, match=r"the model takes 2 channels, each a file .*: CT \(_0000\), PET \(_0001\); "):
        run(tmp_path / "scan.nii", tmp_path, make_model(input_channels=2, channels=channels))


def test_scan_above_the_voxel_limit_is_refused(tmp_path: Path, model: Model) -> None:
    write_scan(tmp_path / "scan.nii", label_scan((7, 4, 5)), np.eye(4))
    with pytest.raises(InputTooLarge, match="140 voxels"):
        segment_file(tmp_path / "scan.nii", tmp_path, model_run(model), limits=ReadLimits(139), monitor=StageMonitor())


def test_progress_reports_every_stage_and_window(tmp_path: Path, model: Model, oblique_affine: MakeAffine) -> None:
    write_scan(tmp_path / "scan.nii", label_scan((7, 4, 5)), oblique_affine("LPS", spacing_of("LPS")))
    updates: list[tuple[Stage, float]] = []
    report = segment_file(
        tmp_path / "scan.nii",
        tmp_path,
        model_run(model),
        limits=LIMITS,
        monitor=StageMonitor(progress=lambda stage, share: updates.append((stage, share))),
    )
    assert [share for stage, share in updates if stage == "windows"] == pytest.approx(
        [(done + 1) / report.windows for done in range(report.windows)]
    )
    overall = [overall_progress(stage, share) for stage, share in updates]
    assert overall == sorted(overall)
    assert list(dict.fromkeys(stage for stage, _ in updates)) == [
        "read",
        "model_load",
        "preprocess",
        "windows",
        "postprocess",
        "report",
        "preview",
        "write",
    ]


@pytest.mark.parametrize(
    "stop_at", ["read", "model_load", "preprocess", "windows", "postprocess", "report", "preview", "write"]
)
def test_an_exception_from_progress_ends_the_job_without_a_mask(tmp_path: Path, model: Model, stop_at: Stage) -> None:
    class Cancelled(Exception):
        pass

    def progress(stage: Stage, share: float) -> None:
        if stage == stop_at and (stage != "windows" or share > 0.4):
            raise Cancelled

    write_scan(tmp_path / "scan.nii", label_scan((7, 4, 5)), np.eye(4))
    with pytest.raises(Cancelled):
        segment_file(
            tmp_path / "scan.nii", tmp_path, model_run(model), limits=LIMITS, monitor=StageMonitor(progress=progress)
        )
    assert [path.name for path in tmp_path.iterdir()] == ["scan.nii"]


def test_mask_is_0_outside_the_crop_and_the_crop_is_reported(
    tmp_path: Path, make_model: MakeModel, oblique_affine: MakeAffine
) -> None:
    voxels = np.zeros((9, 11, 8), dtype=np.int16)
    voxels[2:7, 3:9, 1:4] = label_scan((5, 6, 3))
    voxels[2, 3, 1] = voxels[6, 8, 3] = 3
    write_scan(tmp_path / "scan.nii", voxels, oblique_affine("PLI", spacing_of("PLI")))
    fields = {"orientation": MODEL_ORIENTATION, "spacing_mm": spacing_of(MODEL_ORIENTATION)}
    whole = run(tmp_path / "scan.nii", tmp_path, make_model(**fields))
    report = run(tmp_path / "scan.nii", tmp_path, make_model(crop={"kind": "nonzero"}, **fields))
    assert report.input.cropped_to == [(2, 7), (3, 9), (1, 4)]
    assert report.windows < whole.windows
    assert report.labels == whole.labels
    assert np.array_equal(np.asarray(nibabel.Nifti1Image.from_filename(tmp_path / MASK_FILE).dataobj), voxels)


def test_a_crop_of_the_prepared_scan_is_reported_on_the_scans_grid(
    tmp_path: Path, make_model: MakeModel, oblique_affine: MakeAffine
) -> None:
    """The model's axes are other ones than the scan's, and its voxels half as long."""
    voxels = np.zeros((9, 11, 8), dtype=np.int16)
    voxels[2:7, 3:9, 1:4] = 3
    write_scan(tmp_path / "scan.nii", voxels, oblique_affine("PLI", spacing_of("PLI")))
    fields = {
        "orientation": MODEL_ORIENTATION,
        "spacing_mm": [mm / 2 for mm in spacing_of(MODEL_ORIENTATION)],
        "grid": "first_centre",
        "logits_interpolation": "nearest",
    }
    whole = run(tmp_path / "scan.nii", tmp_path, make_model(**fields))
    crop = {"kind": "foreground", "threshold": 2.9, "prepared": True}
    report = run(tmp_path / "scan.nii", tmp_path, make_model(crop=crop, **fields))
    assert whole.input.cropped_to is None
    assert report.input.cropped_to == [(2, 7), (3, 9), (1, 4)]
    assert report.windows < whole.windows
    assert np.array_equal(np.asarray(nibabel.Nifti1Image.from_filename(tmp_path / MASK_FILE).dataobj), voxels)


@pytest.mark.parametrize("sides", ["both", "end"])
@pytest.mark.parametrize("padding", ["constant", "edge", "reflect"])
def test_a_scan_smaller_than_the_window_is_padded_as_the_manifest_asks(
    make_manifest: MakeManifest, padding: Literal["constant", "edge", "reflect"], sides: str
) -> None:
    voxels = label_scan((7, 4, 5))
    manifest = make_manifest(window=(None, None, None), multiple_of=6, padding=padding, padding_sides=sides)
    network = NearestValueNetwork(0, 1, 2, 3)
    segmented = segment_volume([Volume(voxels, np.eye(4))], manifest, only(network), max_voxels=10**6)
    pads = [(0, missing) if sides == "end" else (missing // 2, missing - missing // 2) for missing in (5, 2, 1)]
    assert np.array_equal(network.images[0], np.pad(voxels, pads, mode=padding))
    assert np.array_equal(segmented.mask, voxels)


def test_another_model_segments_the_scan_once_for_all_parts(make_manifest: MakeManifest) -> None:
    voxels = label_scan((7, 6, 5))
    crop = {"kind": "model", "model": "rough", "margin_mm": 0.0}
    part = {"networks": [{"file": NETWORK_FILE, "sha256": "1" * 64}]}
    manifest = make_manifest(sha256=None, crop=crop, parts=[part, {**part, "orientation": "LPS"}])
    asked: list[ModelCrop] = []

    def segment_by(crop: ModelCrop, channels: Mapping[str, Volume]) -> NDArray[np.unsignedinteger]:
        asked.append(crop)
        (volume,) = channels.values()
        found = np.zeros(volume.shape, dtype=np.uint8)
        found[1:5, 2:4, 3:] = 1
        return found

    network = only(NearestValueNetwork(0, 1, 2, 3))
    segmented = segment_volume([Volume(voxels, np.eye(4))], manifest, network, max_voxels=10**6, segment_by=segment_by)
    assert len(asked) == 1
    assert segmented.cropped_to == (slice(1, 5), slice(2, 4), slice(3, 5))
    inside = np.zeros_like(voxels)
    inside[segmented.cropped_to] = voxels[segmented.cropped_to]
    assert np.array_equal(segmented.mask, inside)


def test_intensity_statistics_come_from_the_cropped_scan(make_manifest: MakeManifest) -> None:
    voxels = np.zeros((12, 10, 8), dtype=np.float32)
    voxels[3:6, 2:6, 1:4] = 5 + np.arange(36).reshape(3, 4, 3)
    z_score = [{"name": "CT", "intensity": {"kind": "z_score"}}]
    manifest = make_manifest(channels=z_score, crop={"kind": "nonzero"}, window=(3, 4, 3), values=(0, 1))
    network = NearestValueNetwork(0, 1)
    segment_volume([Volume(voxels, np.eye(4))], manifest, only(network), max_voxels=10**6)
    (image,) = network.images
    assert image.mean() == pytest.approx(0, abs=1e-5)
    assert image.std() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("model_batch", ["batch", 1, 3])
def test_batch_size_does_not_change_the_mask(
    tmp_path: Path, make_model: MakeModel, oblique_affine: MakeAffine, model_batch: int | str
) -> None:
    voxels = label_scan((7, 4, 5))
    write_scan(tmp_path / "scan.nii", voxels, oblique_affine("LPS", spacing_of("LPS")))
    model = make_model(batch=model_batch, orientation=MODEL_ORIENTATION, spacing_mm=spacing_of(MODEL_ORIENTATION))
    report = run(tmp_path / "scan.nii", tmp_path, model, replace(CPU, batch_size=4, threads=2))
    assert report.warnings == []
    assert np.array_equal(np.asarray(nibabel.Nifti1Image.from_filename(tmp_path / MASK_FILE).dataobj), voxels)


def test_a_job_that_does_not_fit_into_memory_is_refused_before_it_runs(make_manifest: MakeManifest) -> None:
    network = NearestValueNetwork(0, 1, 2, 3)
    with pytest.raises(OutOfMemory, match=r"needs 128 MiB more memory, and this worker has 128 MiB available"):
        segment_volume(
            [Volume(label_scan((7, 4, 5)), np.eye(4))],
            make_manifest(),
            only(network),
            max_voxels=10**6,
            resources=Resources(memory=MemoryBudget(available=lambda jobs: 128 * 2**20)),
        )
    assert network.images == []


def test_logits_on_disk_give_the_same_mask_and_a_warning(tmp_path: Path, make_manifest: MakeManifest) -> None:
    class Shrinking:
        """Available memory that drops to 0 after the first request, as if the network had taken it."""

        def __init__(self) -> None:
            self.calls = 0

        def __call__(self, jobs: int) -> int:
            self.calls += 1
            return 2**40 if self.calls == 1 else 0

    voxels = label_scan((17, 4, 5))
    segmented = segment_volume(
        [Volume(voxels, np.eye(4))],
        make_manifest(),
        only(NearestValueNetwork(0, 1, 2, 3)),
        max_voxels=10**6,
        resources=Resources(memory=MemoryBudget(tmp_path, available=Shrinking())),
    )
    assert np.array_equal(segmented.mask, voxels)
    (warning,) = segmented.warnings
    assert warning.code == WarningCode.LOGITS_ON_DISK
    assert warning.message.endswith("they were kept on disk")


def test_a_metaimage_of_a_sheared_scan_is_refused_before_the_model_is_loaded(tmp_path: Path, model: Model) -> None:
    affine = np.eye(4)
    affine[0, 2] = 0.1
    write_scan(tmp_path / "scan.nii", label_scan((7, 4, 5)), affine)
    with pytest.raises(BadRequest, match="mha cannot hold the grid of this scan"):
        segment_file(
            tmp_path / "scan.nii",
            tmp_path,
            model_run(model),
            limits=LIMITS,
            options=SegmentOptions(formats=["nifti", "mha"]),
            monitor=StageMonitor(),
        )


def test_a_dicom_format_for_a_nifti_input_is_refused_before_the_model_is_loaded(tmp_path: Path, model: Model) -> None:
    write_scan(tmp_path / "scan.nii", label_scan((7, 4, 5)), np.eye(4))
    seen: list[Stage] = []
    with pytest.raises(BadRequest, match=r"request.output.formats: dicom-seg refers to the slices of a DICOM series"):
        segment_file(
            tmp_path / "scan.nii",
            tmp_path,
            model_run(model),
            limits=LIMITS,
            options=SegmentOptions(formats=["nifti", "dicom-seg"]),
            monitor=StageMonitor(progress=lambda stage, share: seen.append(stage)),
        )
    assert set(seen) == {"read"}


@pytest.mark.parametrize("kept", [[0, 1, 2, 3, 4, 5], [0, 1, 2, 4, 5]], ids=["even", "uneven"])
def test_a_series_is_written_in_all_formats(tmp_path: Path, make_model: MakeModel, kept: list[int]) -> None:
    # The model labels each value by the nearest label, so each of these values is its label.
    labels = np.select([phantom() == -100, phantom() == 60], [1, 3]).astype(np.int16)
    stack = regular_stack(labels)
    write_series(
        tmp_path / "in", Stack(labels[:, :, kept], stack.row, stack.column, stack.pixel_mm, stack.positions_mm[kept])
    )
    fields = {"orientation": "LPS", "spacing_mm": (0.75, 1.25, 2.5)}
    formats: tuple[OutputFormat, ...] = get_args(OutputFormat)
    (tmp_path / "out").mkdir()
    report = segment_file(
        tmp_path / "in",
        tmp_path / "out",
        model_run(make_model(**fields)),
        limits=LIMITS,
        options=SegmentOptions(InputOptions(tolerate=("uneven_spacing",)), formats),
        monitor=StageMonitor(),
    )
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(result_files(formats).values())
    rasters = ["mask.seg.nrrd", "mask.mha"]
    assert report.files == ["mask.nii.gz", "preview.png", *rasters, "segmentation.dcm", "labelmap.dcm"]
    assert report.empty_segments == ["label 2"]
    assert [warning.code for warning in report.warnings].count(WarningCode.UIDS_GENERATED) == 1
    colours = np.array([label.colour or (0, 0, 0) for label in report.labels])
    for name in report.files[4:]:
        seg = read_segmentation(tmp_path / "out" / name)
        # A label map describes the background, too.
        segments = seg.SegmentSequence[-3:]
        shown = [CIELabColor.from_dicom_value(item.RecommendedDisplayCIELabValue).to_rgb() for item in segments]
        np.testing.assert_allclose(shown, colours[1:], atol=2)
        planes = seg.get_pixels_by_source_instance(
            [f"1.2.3.4.{k + 1}" for k in range(len(kept))], combine_segments=True, assert_missing_frames_are_empty=True
        )
        np.testing.assert_array_equal(planes.transpose(2, 1, 0), labels[:, :, kept])
