"""Weights of TotalSegmentator: the same labels as its own pipeline, and refusals of folders that contradict it."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from importers.nnunet_folders import write_scan
from importers.totalsegmentator_folders import (
    BODY,
    FAST,
    FAST_MR,
    FAST_TRAINER,
    FASTEST,
    PARTS,
    Weights,
    predict,
    total_parts,
)
from numpy.typing import NDArray
from scipy import ndimage

from inference_service.contract.crops import ModelCrop
from inference_service.core.errors import BadRequest, InputNotFound, ModelInvalid, ModelNotFound
from inference_service.core.settings import Settings
from inference_service.importers.model_import import Imported
from inference_service.importers.totalsegmentator.tasks import TASKS, VERSION
from inference_service.segmentation.local_run import segment_locally
from inference_service.segmentation.model_checks import verify_model

Import = Callable[..., Imported]


@pytest.fixture(scope="module")
def names() -> dict[str, list[str]]:
    """The labels of each part, as the package has them."""
    package = pytest.importorskip("totalsegmentator.map_to_binary")
    return {
        dataset: list(package.class_map_5_parts[package.map_taskid_to_partname_ct[int(dataset[7:10])]].values())
        for dataset in PARTS
    }


def test_tasks_are_those_of_the_package() -> None:
    """Data sets, crops, folds and labels of each task, in the version that is installed."""
    config = pytest.importorskip("totalsegmentator.map_tasks_config")
    maps = pytest.importorskip("totalsegmentator.map_to_binary")
    assert version("totalsegmentator").startswith(VERSION)
    folders = {key: value["foldername"] for key, value in config.TASK_ID_WEIGHTS_CONFIGS.items()}
    for task in TASKS:
        name, _, mode = task.name.rpartition("_") if task.name.endswith(("_fast", "_fastest")) else (task.name, "", "")
        entry = config.TASK_CONFIGS[name]
        entry = entry["sub_modes"][mode or "default"] if "sub_modes" in entry else entry
        entry = {**config.DEFAULT_CONFIG, **entry}
        ids = entry["task_id"] if isinstance(entry["task_id"], list) else [entry["task_id"]]
        assert task.datasets == tuple(folders[number] for number in ids)
        if task.refused:
            continue
        assert task.resampled == (entry["resample"] is not None)
        assert (task.all_folds, task.modality == "MR") == (entry["folds"] is None, task_modality(name) == "MR")
        assert task.crop == tuple(entry["crop"] or ())
        assert not task.counts or sum(task.counts) == len(maps.class_map[name])
        assert task.removed == tuple(maps.class_map.get(f"{name}_auxiliary", ()))
        if task.crop:
            label_names = set(maps.class_map[task.crop_task.removesuffix("_fastest").removesuffix("_fast")].values())
            assert label_names.issuperset(task.crop)
        assert task.margin_mm == (entry["crop_addon"][0] if entry["crop_model"] else 20)


def task_modality(name: str) -> str:
    return str(pytest.importorskip("totalsegmentator.registry").task_modality(name))


def fast(names: dict[str, list[str]], dataset: str = FAST, spacing_mm: float = 3.0, **fields: Any) -> Weights:
    """The weights of a lower resolution: all labels of the five parts in one network."""
    labels = [name for part in names.values() for name in part]
    values: dict[str, Any] = {"found": (5, 51), "spacing_mm": (spacing_mm,) * 3, "trainer": FAST_TRAINER}
    return Weights(dataset, labels, **{**values, **fields})


def write_total(root: Path, names: dict[str, list[str]] | None = None) -> list[Path]:
    return [part.write(root) for part in total_parts(names)]


def segmented(imported: Imported, scan: Path) -> NDArray[np.unsignedinteger]:
    """The mask of a scan by the command `segment`."""
    settings = Settings(models_path=imported.folder.parents[1], onnx_providers=["CPUExecutionProvider"])
    target = scan.with_name(f"{imported.manifest.name}.nii")
    segment_locally(
        scan, target, settings, model=imported.manifest.name, version=None, progress=lambda stage, share: None
    )
    return np.asarray(nibabel.nifti1.load(target).dataobj)


def dice(one: NDArray[np.generic], other: NDArray[np.generic]) -> dict[int, float]:
    values = set(np.unique(one)) | set(np.unique(other))
    return {
        int(value): 2
        * float(np.sum((one == value) & (other == value)) / (np.sum(one == value) + np.sum(other == value)))
        for value in values - {0}
    }


def test_the_five_parts_are_one_model_with_the_labels_of_a_replica(run_import: Import, tmp_path: Path) -> None:
    """TotalSegmentator's pipeline in SciPy: to RAS, resampled to integers, each part, merged, and back by order 0."""
    results = write_total(tmp_path / "weights")
    imported = run_import(tmp_path / "weights", name="total")
    assert imported.model.kind == "TotalSegmentator weights"
    manifest = imported.manifest
    assert [label.value for label in manifest.labels] == list(range(118))
    assert [len(part.outputs) for part in manifest.parts] == [1 + count for count in PARTS.values()]
    assert {(part.overlap, part.grid, part.orientation) for part in manifest.parts} == {(0.2, "centres", "SAR")}
    scan = write_scan(tmp_path / "scan.nii.gz", shape=(40, 44, 24), spacing_mm=(1.9, 1.2, 2.3))
    image = nibabel.nifti1.load(scan)
    canonical = nibabel.as_closest_canonical(image)
    zoom = np.array(canonical.header.get_zooms()) / 1.5
    resampled = ndimage.zoom(canonical.get_fdata(), zoom, order=1, mode="nearest").astype(np.int32)
    box = tuple(slice(found.min(), found.max() + 1) for found in np.nonzero(resampled))
    assert resampled[box].shape != resampled.shape
    labels = np.zeros(resampled.shape, dtype=np.uint8)
    before = 0
    for folder, count in zip(results, PARTS.values(), strict=True):
        found = predict(folder, resampled[box], overlap=0.2)
        labels[box] = np.where(found > 0, found + before, labels[box])
        before += count
    back = ndimage.zoom(labels, np.array(canonical.shape) / labels.shape, order=0, mode="nearest")
    to_file = nibabel.orientations.ornt_transform(
        nibabel.orientations.axcodes2ornt("RAS"), nibabel.io_orientation(image.affine)
    )
    expected = nibabel.orientations.apply_orientation(back, to_file)
    mask = segmented(imported, scan)
    assert len(np.unique(expected)) > 5
    assert np.mean(mask == expected) >= 0.9995
    assert min(dice(mask, expected).values()) >= 0.998


@pytest.mark.slow
@pytest.mark.parametrize(("task", "scan"), [("total", "chest_cta.nii.gz"), ("total_fastest", "example_ct.nii.gz")])
def test_labels_of_real_scans_are_those_of_totalsegmentator(
    run_import: Import, tmp_path: Path, real_scans: Path, names: dict[str, list[str]], task: str, scan: str
) -> None:
    weights = tmp_path / "weights"
    for part in total_parts(names):
        part.write(weights, window=(40, 48, 56))
    fast(names, FASTEST, 6.0).write(weights)
    comparison = run_import(weights, task=task, compare=(real_scans / scan,)).comparison
    assert comparison is not None
    assert comparison.dice
    assert comparison.agreement >= 0.999


@pytest.mark.parametrize("task", ["total_fast", "total_mr_fast", "body_fast"])
def test_labels_are_those_of_totalsegmentator(
    run_import: Import, tmp_path: Path, names: dict[str, list[str]], task: str
) -> None:
    weights = fast(names)
    if task == "total_mr_fast":
        # Intensities depend on where nnU-Net crops the resampled scan.
        weights = fast(names, FAST_MR, trainer="nnUNetTrainer_2000epochs_NoMirroring", channel="MR")
        weights = replace(weights, labels=weights.labels[:50], found=(5, 50))
    elif task == "body_fast":
        # Components are removed on the grid of 6 mm.
        weights = Weights(BODY, ["body_trunc", "body_extremities"], (2, 1), 0.0, (6.0,) * 3, "nnUNetTrainer")
    source = weights.write(tmp_path / "weights").parent
    scan = write_scan(tmp_path / "scan.nii.gz", shape=(60, 52, 44), spacing_mm=(1.9, 2.1, 1.6))
    imported = run_import(source, name="fast", compare=(scan,))
    comparison = imported.comparison
    assert imported.model.facts["Task"] == task
    assert comparison is not None
    assert len(comparison.dice) > (task != "body_fast")
    # nnU-Net adds logits in half precision.
    assert comparison.agreement >= 0.999
    assert min(comparison.dice.values()) >= 0.99


def test_a_comparison_needs_no_certain_names_of_folders(
    run_import: Import, tmp_path: Path, names: dict[str, list[str]]
) -> None:
    """Neither of the data set nor of the trainer; but TotalSegmentator needs the first fold."""
    source = fast(names, trainer="nnUNetTrainer_4000epochs_NoMirroring_again").write(tmp_path / "weights")
    dataset = source.parent.rename(tmp_path / "weights" / "mine")
    scan = write_scan(tmp_path / "scan.nii.gz", shape=(60, 52, 44), spacing_mm=(1.9, 2.1, 1.6))
    imported = run_import(dataset, compare=(scan,))
    assert imported.model.facts["Task"] == "total_fast"
    assert imported.comparison is not None
    assert imported.comparison.agreement >= 0.999
    (dataset / source.name / "fold_0").rename(dataset / source.name / "fold_1")
    with pytest.raises(BadRequest, match=r"TotalSegmentator needs fold_0/checkpoint_final\.pth for this comparison"):
        run_import(dataset, name="other", folds=("1",), compare=(scan,))


def test_a_region_of_interest_is_cropped_to_as_totalsegmentator_does(
    run_import: Import, tmp_path: Path, names: dict[str, list[str]]
) -> None:
    weights = tmp_path / "weights"
    write_total(weights, names)
    rough = run_import(fast(names, FASTEST, 6.0, found=(None, 5)).write(weights).parent, name="rough").manifest
    roi = [label.name for label in rough.labels if label.value == 5]
    scan = write_scan(tmp_path / "scan.nii.gz", shape=(60, 52, 44), spacing_mm=(1.9, 2.1, 1.6))
    with pytest.raises(BadRequest, match="no predictor of its own"):
        run_import(weights, task="total", name="liver", roi=tuple(roi), compare=(scan,))
    imported = run_import(weights, task="total", name="liver", roi=tuple(roi), crop_by="rough", compare=(scan,))
    assert [label.value for label in imported.manifest.labels] == [0, 5]
    assert len(imported.networks) == 1
    crop = imported.manifest.scan_crop
    assert isinstance(crop, ModelCrop)
    assert (crop.model, crop.version, crop.labels, crop.if_empty) == ("rough", "1", (5,), "nothing")
    assert imported.comparison is not None
    assert imported.comparison.agreement >= 0.999
    assert imported.comparison.dice["liver"] >= 0.99
    settings = Settings(models_path=tmp_path / "models", onnx_providers=["CPUExecutionProvider"])
    assert verify_model(settings, "liver", None)["labels"] == {0: "background", 5: "liver"}


def test_a_part_by_itself_is_a_model_of_its_own(run_import: Import, tmp_path: Path) -> None:
    part = total_parts()[2]
    results = part.write(tmp_path / "weights")
    imported = run_import(results)
    assert [label.value for label in imported.manifest.labels] == list(range(19))
    assert imported.manifest.networks[0].file == "model.onnx"
    assert imported.model.reference is None
    archives = tmp_path / "archives"
    archives.mkdir()
    shutil.make_archive(str(archives / part.dataset), "zip", tmp_path / "weights", part.dataset)
    for source in (archives, archives / f"{part.dataset}.zip"):
        again = run_import(source, name=source.stem[:8].lower())
        assert again.manifest.networks[0].sha256 == imported.manifest.networks[0].sha256


def test_a_task_that_nnunet_resamples_averages_its_folds(run_import: Import, tmp_path: Path) -> None:
    labels = ("pleural_effusion", "pericardial_effusion", "other")
    weights = Weights("Dataset315_thoraxCT", labels, (1, 2), trainer="nnUNetTrainer", folds=("0", "1"))
    imported = run_import(weights.write(tmp_path))
    assert imported.model.facts["Task"] == "pleural_pericard_effusion"
    manifest = imported.manifest
    assert (manifest.grid, manifest.orientation, manifest.overlap) == ("edges", "SAR", 0.5)
    assert [network.file for network in manifest.networks] == ["model.onnx"]
    assert any("--crop-by names an installed model" in sentence for sentence in imported.model.assumed)


def test_codes_and_colours_come_from_the_table_of_the_package(
    run_import: Import, tmp_path: Path, names: dict[str, list[str]]
) -> None:
    part = total_parts({**names, next(iter(PARTS)): ["unheard-of", *names[next(iter(PARTS))][1:]]})[0]
    imported = run_import(part.write(tmp_path / "weights"))
    labels = {label.name: label for label in imported.manifest.labels}
    kidney = labels["kidney_right"]
    assert kidney.type is not None
    assert kidney.modifier is not None
    assert (kidney.type.meaning, kidney.modifier.meaning, kidney.colour) == ("Kidney", "Right", (34, 102, 136))
    assert labels["unheard-of"].type is None
    assert any("does not have unheard-of" in sentence for sentence in imported.model.assumed)


def test_a_crop_needs_a_region_and_a_model_that_has_it(run_import: Import, tmp_path: Path) -> None:
    source = total_parts()[0].write(tmp_path / "weights")
    rough = run_import(source, name="rough").manifest
    name = rough.labels[3].name
    for fields, error, message in (
        ({"crop_by": "rough"}, BadRequest, "--crop-by needs --roi"),
        ({"crop_by": "other", "roi": (name,)}, ModelNotFound, "not installed"),
        ({"roi": ("heart",)}, BadRequest, "no label heart"),
    ):
        with pytest.raises(error, match=message):
            run_import(source, name="fine", **fields)
    other = total_parts()[1].write(tmp_path / "weights")
    label = f"{total_parts()[1].labels[0]}"
    with pytest.raises(BadRequest, match=f"model rough 1 has no label {label}"):
        run_import(other, name="fine", crop_by="rough/1", roi=(label,))


def change(results: Path, file: str, edit: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads((results / file).read_text())
    edit(content)
    (results / file).write_text(json.dumps(content))


def test_parts_that_contradict_one_another_are_refused(run_import: Import, tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    results = write_total(weights)

    def refused(error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            run_import(weights)
        assert not (tmp_path / "models" / "test").exists()

    def spacing(plans: dict[str, Any]) -> None:
        plans["configurations"]["3d_fullres"]["spacing"] = [3.0, 3.0, 3.0]

    kept = (results[1] / "plans.json").read_text()
    change(results[1], "plans.json", spacing)
    refused(ModelInvalid, r"Dataset292_\w+ has a spacing of \[3.0, 3.0, 3.0\] mm")
    (results[1] / "plans.json").write_text(kept)
    kept = (results[3] / "dataset.json").read_text()
    change(results[3], "dataset.json", lambda dataset: dataset["labels"].pop("part4 23"))
    refused(ModelInvalid, "describes 23 labels, and the network of fold_0 has 24 outputs")
    (results[3] / "dataset.json").write_text(kept.replace("part4 7", "part2 7"))
    refused(ModelInvalid, "two parts have a label 'part2 7'")
    shutil.rmtree(results[3].parent)
    refused(InputNotFound, "lacks Dataset294_TotalSegmentator_part4_muscles_1559subj")
    fewer = total_parts()[3]
    Weights(fewer.dataset, fewer.labels[:-1], fewer.found).write(weights)
    refused(ModelInvalid, "Dataset294_TotalSegmentator_part4_muscles_1559subj has 22 labels, and")


class Hostile:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.path}",)


def test_a_comparison_runs_nothing_of_checkpoints_that_are_not_imported(run_import: Import, tmp_path: Path) -> None:
    """TotalSegmentator takes the final checkpoint, whichever is imported, and data sets to crop to."""
    pytest.importorskip("totalsegmentator")
    weights = Weights(BODY, ["body_trunc", "body_extremities"], (2, 1), 0.0, (6.0,) * 3, "nnUNetTrainer")
    source = weights.write(tmp_path / "weights")
    final, best = (source / "fold_0" / f"checkpoint_{kind}.pth" for kind in ("final", "best"))
    final.rename(best)
    proof = tmp_path / "ran"
    torch.save({**torch.load(best, weights_only=False), "logging": Hostile(proof)}, final)
    scan = write_scan(tmp_path / "scan.nii.gz")
    with pytest.raises(ModelInvalid, match=r"checkpoint_final\.pth is refused, and nothing of it was run"):
        run_import(source.parent, checkpoint="best", compare=(scan,))
    assert not proof.exists()


def test_a_comparison_imports_no_python_that_plans_of_other_data_sets_name(
    run_import: Import, tmp_path: Path, names: dict[str, list[str]]
) -> None:
    pytest.importorskip("totalsegmentator")
    weights = tmp_path / "weights"
    write_total(weights, names)
    results = fast(names, FASTEST, 6.0, found=(None, 5)).write(weights)
    run_import(results.parent, name="rough")

    def hostile(plans: dict[str, Any]) -> None:
        plans["configurations"]["3d_fullres"]["architecture"]["network_class_name"] = "antigravity.Net"

    change(results, "plans.json", hostile)
    scan = write_scan(tmp_path / "scan.nii.gz", shape=(60, 52, 44), spacing_mm=(1.9, 2.1, 1.6))
    roi = (names[next(iter(PARTS))][4],)
    with pytest.raises(ModelInvalid, match=r"network_class_name: a network of the class antigravity\.Net"):
        run_import(weights, task="total", name="part", roi=roi, crop_by="rough", compare=(scan,))
