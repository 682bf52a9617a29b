from collections.abc import Callable, Mapping
from pathlib import Path

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray

from inference_service.contract.manifest import MANIFEST_FILE
from inference_service.contract.report import Report
from inference_service.contract.result_files import MASK_FILE
from inference_service.core.errors import ModelInvalid, ModelNotFound, OutOfMemory
from inference_service.core.execution import ExecutionOptions
from inference_service.core.settings import Settings
from inference_service.engine.model_registry import Model, read_model
from inference_service.engine.session import Session
from inference_service.engine.session_cache import SessionCache
from inference_service.formats.read_limits import ReadLimits
from inference_service.segmentation.crop_models import CropModels
from inference_service.segmentation.model_checks import verify_model
from inference_service.segmentation.pipeline import ModelRun, segment_file
from inference_service.segmentation.resources import StageMonitor

Install = Callable[..., Model]

CPU = ExecutionOptions(("CPUExecutionProvider",), threads=1)
LIMITS = ReadLimits(10**6)
NO_FIELDS: Mapping[str, object] = {}


@pytest.fixture
def install(tmp_path: Path, make_model: Callable[..., Model]) -> Install:
    """Installs a model whose label is the nearest of 0…3, cropped to what another one finds."""

    def install(
        name: str,
        to: str | None = None,
        *,
        crop: Mapping[str, object] | list[Mapping[str, object]] = NO_FIELDS,
        version: str = "1",
        **fields: object,
    ) -> Model:
        if isinstance(crop, list):
            fields["crop"] = crop
        elif to is not None:
            fields["crop"] = {"kind": "model", "model": to, "margin_mm": 0.0, **crop}
        made = make_model(name=name, version=version, **fields)
        folder = tmp_path / "models" / name / version
        folder.mkdir(parents=True)
        (folder / MANIFEST_FILE).write_text(made.manifest.model_dump_json())
        (folder / "model.onnx").write_bytes((made.folder / "model.onnx").read_bytes())
        return read_model(folder)

    return install


def scan_with_spots(path: Path) -> NDArray[np.int16]:
    """Labels 1 to 3 in boxes of their own, in a scan that differs on every axis."""
    voxels = np.zeros((14, 12, 9), dtype=np.int16)
    voxels[1:3, 1:4, 2:7] = 1
    voxels[6:9, 5:8, 3:6] = 2
    voxels[11:13, 9:11, 7:9] = 3
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([1.0, 1.0, 1.0, 1.0])), path)
    return voxels


def segmented(
    model: Model, folder: Path, progress: Callable[[str, float], None], sessions: SessionCache | None = None
) -> tuple[Report, NDArray[np.uint8]]:
    report = segment_file(
        folder / "scan.nii",
        folder,
        ModelRun(model, CPU, sessions or SessionCache()),
        limits=LIMITS,
        monitor=StageMonitor(progress=progress),
    )
    return report, np.asarray(nibabel.Nifti1Image.from_filename(folder / MASK_FILE).dataobj)


@pytest.mark.parametrize(
    ("labels", "margin_mm", "kept"),
    [
        ([2], 0.0, ((6, 9), (5, 8), (3, 6))),
        ([2, 3], 0.0, ((6, 13), (5, 11), (3, 9))),
        ([], 1.5, ((0, 14), (0, 12), (1, 9))),
        ([2], 2.0, ((4, 11), (3, 10), (1, 8))),
    ],
)
def test_a_scan_is_cropped_to_the_labels_of_another_model(
    tmp_path: Path, install: Install, labels: list[int], margin_mm: float, kept: tuple[tuple[int, int], ...]
) -> None:
    rough = install("rough")
    fine = install("fine", to="rough", crop={"labels": labels, "margin_mm": margin_mm})
    sessions = SessionCache()
    voxels = scan_with_spots(tmp_path / "scan.nii")
    seen: list[tuple[str, float]] = []
    report, mask = segmented(fine, tmp_path, lambda stage, share: seen.append((stage, share)), sessions)
    box = tuple(slice(*side) for side in kept)
    expected = np.zeros_like(voxels)
    expected[box] = voxels[box]
    assert np.array_equal(mask, expected)
    whole = all(side == (0, size) for side, size in zip(kept, voxels.shape, strict=True))
    assert report.input.cropped_to == (None if whole else list(kept))
    assert report.model.name == "fine"
    assert [(each.name, each.version, each.manifest_sha256) for each in report.model.crop_models] == [
        ("rough", "1", rough.manifest_sha256)
    ]
    loaded = [sessions.load(model, CPU).sessions["model.onnx"]._loaded is not None for model in (rough, fine)]
    assert loaded == [False, True]
    # The windows of the other model belong to the preprocessing.
    stages = [stage for stage, _ in seen]
    assert stages.index("windows") > len(stages) - 1 - stages[::-1].index("preprocess")
    assert max(share for stage, share in seen if stage == "preprocess") == 1


def test_the_whole_scan_is_kept_where_the_other_model_finds_nothing(tmp_path: Path, install: Install) -> None:
    install("rough", values=(0, 1, 2, 7))
    fine = install("fine", to="rough", crop={"labels": [1]})
    voxels = scan_with_spots(tmp_path / "scan.nii")
    voxels[voxels == 1] = 3
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), tmp_path / "scan.nii")
    report, mask = segmented(fine, tmp_path, lambda stage, share: None)
    assert np.array_equal(mask, voxels)
    assert report.input.cropped_to is None


def test_nothing_is_segmented_where_the_other_model_finds_nothing_and_the_crop_asks_for_that(
    tmp_path: Path, install: Install
) -> None:
    install("rough", values=(0, 1, 2, 7))
    fine = install("fine", to="rough", crop={"labels": [1], "if_empty": "nothing"})
    voxels = scan_with_spots(tmp_path / "scan.nii")
    voxels[voxels == 1] = 3
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), tmp_path / "scan.nii")
    report, mask = segmented(fine, tmp_path, lambda stage, share: None)
    assert not mask.any()
    assert report.windows == 0
    assert report.input.cropped_to == [(0, 0)] * 3


def test_the_resampled_scan_is_cropped_within_the_labels_of_another_model(tmp_path: Path, install: Install) -> None:
    install("rough")
    model_crop = {"kind": "model", "model": "rough", "labels": [2, 3], "margin_mm": 2.0}
    fine = install("fine", crop=[model_crop, {"kind": "nonzero", "prepared": True}])
    voxels = scan_with_spots(tmp_path / "scan.nii")
    report, mask = segmented(fine, tmp_path, lambda stage, share: None)
    assert np.array_equal(mask, np.where(voxels > 1, voxels, 0))
    assert report.input.cropped_to == [(6, 13), (5, 11), (3, 9)]


def test_models_that_crop_others_may_be_cropped(tmp_path: Path, install: Install) -> None:
    install("roughest")
    install("rough", to="roughest", crop={"labels": [2, 3]})
    fine = install("fine", to="rough")
    voxels = scan_with_spots(tmp_path / "scan.nii")
    voxels[:6] = 0
    report, mask = segmented(fine, tmp_path, lambda stage, share: None)
    assert np.array_equal(mask, voxels)
    assert report.input.cropped_to == [(6, 13), (5, 11), (3, 9)]


def test_verify_runs_the_other_model_too(tmp_path: Path, install: Install) -> None:
    install("rough")
    install("fine", to="rough")
    settings = Settings(models_path=tmp_path / "models", onnx_providers=["CPUExecutionProvider"])
    assert verify_model(settings, "fine", None)["model"] == "fine 1"
    (tmp_path / "models" / "rough" / "1" / "model.onnx").write_bytes(b"changed")
    with pytest.raises(ModelInvalid, match="expected sha256"):
        verify_model(settings, "fine", None)


def test_the_memory_of_another_model_is_freed_where_it_fails(
    tmp_path: Path, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(session: Session, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        raise OutOfMemory("too large")

    rough = install("rough")
    fine = install("fine", to="rough")
    sessions = SessionCache()
    scan_with_spots(tmp_path / "scan.nii")
    monkeypatch.setattr(Session, "run", fail)
    with pytest.raises(OutOfMemory):
        segmented(fine, tmp_path, lambda stage, share: None, sessions)
    assert sessions.load(rough, CPU).sessions["model.onnx"]._loaded is None


@pytest.mark.parametrize(
    ("to", "crop", "message"),
    [
        ("missing", {}, r"model fine 1 crops the scan by another model: model 'missing' is not installed"),
        ("rough", {"version": "3"}, r"by another model: model 'rough' has no version 3; installed: 1, 2"),
    ],
)
def test_a_missing_model_is_refused(install: Install, to: str, crop: dict[str, object], message: str) -> None:
    install("rough")
    install("rough", version="2")
    with pytest.raises(ModelNotFound, match=message):
        CropModels.of(install("fine", to=to, crop=crop))


def test_the_highest_version_is_taken_where_none_is_named(install: Install) -> None:
    install("rough")
    newest = install("rough", version="2")
    ((found, others),) = CropModels.of(install("fine", to="rough")).crops.values()
    assert found == newest
    assert not others.crops


@pytest.mark.parametrize("length", [1, 2, 3])
def test_cycles_are_refused(install: Install, length: int) -> None:
    names = [f"model-{number}" for number in range(length)]
    models = [install(name, to=names[(number + 1) % length]) for number, name in enumerate(names)]
    titles = ", ".join(f"{name} 1" for name in [*names, names[0]])
    with pytest.raises(ModelInvalid, match=f"^models crop the scan by one another: {titles}$"):
        CropModels.of(models[0])


def channels(*names: str) -> list[dict[str, object]]:
    return [{"name": name, "intensity": {"kind": "none"}} for name in names]


@pytest.mark.parametrize(
    ("names", "accepted"),
    [(["T1", "T2"], True), (["T2"], True), (["FLAIR"], True), (["T2", "FLAIR"], False), (["T1", "T2", "T3"], False)],
)
def test_the_other_model_takes_a_part_of_the_channels(install: Install, names: list[str], *, accepted: bool) -> None:
    install("rough", channels=channels(*names), input_channels=len(names))
    fine = install("fine", to="rough", channels=channels("T1", "T2"), input_channels=2)
    if accepted:
        assert len(CropModels.of(fine).crops) == 1
        return
    with pytest.raises(ModelInvalid, match=r"model fine 1 has no channels \['.*'\], which model rough 1 needs to crop"):
        CropModels.of(fine)


def test_labels_that_the_other_model_lacks_are_refused(install: Install) -> None:
    install("rough")
    fine = install("fine", to="rough", crop={"labels": [3, 4, 9]})
    with pytest.raises(ModelInvalid, match=r"crops to labels that model rough 1 does not have: \[4, 9\]"):
        CropModels.of(fine)
