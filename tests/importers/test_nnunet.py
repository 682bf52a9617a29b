"""Small results folders of nnU-Net, imported and compared with nnU-Net's own predictor."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from importers.nnunet_folders import DataSet, Network, write_results, write_scan
from manifests import VALID_MANIFEST
from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape, resample_data_or_seg_to_shape
from numpy.typing import NDArray
from scipy import ndimage

from inference_service.contract.crops import NonzeroCrop
from inference_service.contract.manifest import Manifest
from inference_service.core.errors import BadRequest, InputNotFound, ModelInvalid
from inference_service.imaging.geometry import Spacing, Volume
from inference_service.importers.model_import import Imported
from inference_service.importers.nnunet import model
from inference_service.segmentation.preparation.crop import crop_box
from inference_service.segmentation.preparation.intensities import filled_nonzero
from inference_service.segmentation.preparation.preprocessing import preprocess

Import = Callable[..., Imported]
REGIONS: dict[str, int | list[int]] = {"background": 0, "whole tumour": [1, 2, 3], "core": [2, 3], "enhancing": [3]}


def postprocessing(folder: Path, folds: str, *labels: int | list[int]) -> None:
    """Writes the postprocessing that nnU-Net determines for folds."""
    function = "remove_all_but_largest_component_from_segmentation"
    results = folder / f"crossval_results_folds_{folds}"
    results.mkdir()
    steps = {
        "postprocessing_fns": [function] * len(labels),
        "postprocessing_kwargs": [{"labels_or_regions": each} for each in labels],
    }
    (results / "postprocessing.json").write_text(json.dumps(steps))


def check_parity(imported: Imported, labels: int, agreement: float = 0.999) -> None:
    """Checks that nnU-Net's own predictor gives the same labels; its sums in half precision decide a few."""
    comparison = imported.comparison
    assert comparison is not None
    assert comparison.agreement >= agreement
    assert len(comparison.dice) == labels
    assert min(comparison.dice.values()) >= agreement


def test_folds_mirroring_and_postprocessing(run_import: Import, tmp_path: Path) -> None:
    source = write_results(tmp_path / "Dataset700_Small", Network(folds=("0", "3")))
    postprocessing(source, "0_3", [1, 2], 2)
    summary = {"foreground_mean": {"Dice": 0.5}, "mean": {"1": {"Dice": 0.25}, "2": {"Dice": 0.75}}}
    (source / "crossval_results_folds_0_3" / "summary.json").write_text(json.dumps(summary))
    imported = run_import(source, compare=(write_scan(tmp_path / "scan.nii.gz"),))
    check_parity(imported, 2)
    manifest = imported.manifest
    # Both folds are one network.
    assert [network.file for network in manifest.networks] == ["model.onnx"]
    assert manifest.mirror_axes == (0, 1, 2)
    assert manifest.orientation == "kji"
    assert manifest.modality == "CT"
    assert [(label.name, label.value) for label in manifest.labels] == [("background", 0), ("liver", 1), ("kidney", 2)]
    assert [step.labels for step in manifest.postprocessing] == [(1, 2), (2,)]
    assert any("fold 1, 2 is not there" in sentence for sentence in imported.model.assumed)
    card = (imported.folder / "README.md").read_text()
    assert "crossval_results_folds_0_3/postprocessing.json" in card
    assert "- Trainer: nnUNetTrainer" in card
    assert "- Configuration: 3d_fullres" in card
    assert "- Folds: 0, 3" in card
    assert "- Mirroring: along the axes 0, 1, 2 of the windows, used: each window runs 8 times" in card
    assert "From crossval_results_folds_0_3/summary.json, folds 0, 3, without postprocessing." in card
    assert "| kidney | 0.7500 |" in card
    assert json.loads((imported.folder / "import.json").read_text())["stated_dice"]["mean"] == 0.5


def test_folds_too_large_for_one_file_are_several_networks(
    run_import: Import, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "_MAX_WEIGHTS_OF_A_FILE", 1)
    source = write_results(tmp_path / "Dataset700_Small", Network(folds=("0", "3")))
    imported = run_import(source, compare=(write_scan(tmp_path / "scan.nii.gz"),), mirroring=False)
    check_parity(imported, 2)
    files = [network.file for network in imported.manifest.networks]
    assert files == ["3d_fullres_fold_0.onnx", "3d_fullres_fold_3.onnx"]


def test_regions_of_two_masked_channels_with_transposed_axes(run_import: Import, tmp_path: Path) -> None:
    data = DataSet(
        channels=("T1", "FLAIR"),
        schemes=("ZScoreNormalization",) * 2,
        masked=True,
        labels=REGIONS,
        order=(1, 2, 3),
        reader="NibabelIOWithReorient",
        transposed=(2, 0, 1),
    )
    # Thick slices, which are resampled apart.
    source = write_results(
        tmp_path / "Dataset700_Small", Network(window=(12, 16, 20), spacing_mm=(6.0, 1.6, 1.5), folds=("3",)), data=data
    )
    scans = [
        write_scan(tmp_path / f"scan_{n:04}.nii.gz", shape=(10, 34, 38), spacing_mm=(6.4, 1.7, 1.4), seed=n)
        for n in (1, 2)
    ]
    imported = run_import(source, compare=tuple(scans))
    check_parity(imported, 3)
    assert imported.manifest.orientation == "RSA"
    assert imported.manifest.modality == "MR"
    assert imported.manifest.activation == "sigmoid"


def test_a_network_for_planes(run_import: Import, tmp_path: Path) -> None:
    data = DataSet(channels=("T2",), schemes=("ZScoreNormalization",))
    network = Network("2d", (20, 24), (1.4, 1.5), mirror_axes=(0, 1))
    source = write_results(tmp_path / "Dataset700_Small", network, data=data)
    imported = run_import(source, compare=(write_scan(tmp_path / "scan.nii.gz"),))
    check_parity(imported, 2)
    assert imported.manifest.window == (1, 20, 24)
    assert imported.manifest.spacing_mm == (None, 1.4, 1.5)
    assert imported.manifest.mirror_axes == (1, 2)


def resampled(**values: object) -> Callable[[dict[str, Any]], None]:
    """Changes how scan, logits and labels are resampled: the function, or keywords of all of them."""

    def change(plans: dict[str, Any]) -> None:
        for configuration in plans["configurations"].values():
            for key in ("data", "probabilities", "seg"):
                function = f"resampling_fn_{key}"
                if "function" in values:
                    configuration |= {function: values["function"], f"{function}_kwargs": values["kwargs"]}
                else:
                    configuration[f"{function}_kwargs"] |= values

    return change


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        resampled(function="resample_torch_fornnunet", kwargs={"is_seg": False, "force_separate_z": None}),
        resampled(function="no_resampling_hack", kwargs={}),
        resampled(order=1),
        resampled(order=0),
        resampled(force_separate_z=False),
        resampled(order=1, order_z=1),
        resampled(function="resample_data_or_seg_to_shape", kwargs={"order": 1}),
    ],
    ids=["torch", "none", "linear", "nearest", "together", "linear-across", "defaults"],
)
def test_further_ways_to_resample(run_import: Import, tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    source = write_results(tmp_path / "Dataset700_Small", Network(mirror_axes=None), change=change)
    thick = write_scan(tmp_path / "scan.nii.gz", shape=(34, 28, 11), spacing_mm=(1.53, 1.79, 6.1))
    # Few voxels are of the second label.
    check_parity(run_import(source, compare=(thick,)), 2, 0.99)


@pytest.mark.slow
def test_the_axis_of_slices_that_are_hardly_thicker_is_resampled_apart(run_import: Import, tmp_path: Path) -> None:
    """The scan's spacings decide on the way there, and those of the plans on the way back."""
    network = Network(spacing_mm=(2.0, 1.9, 1.8), mirror_axes=None)
    source = write_results(tmp_path / "Dataset700_Small", network, change=resampled(force_separate_z=True))
    imported = run_import(source, compare=(write_scan(tmp_path / "scan.nii.gz"),))
    assert imported.manifest.separate_axis_above == 0.5
    check_parity(imported, 2)


def cascade(folder: Path) -> Path:
    """Writes both stages of a cascade, and returns the second one."""
    stages = (
        Network("3d_lowres", (12, 12, 12), (3.1, 2.9, 3.3), mirror_axes=None),
        Network("3d_cascade_fullres", mirror_axes=None, further_inputs=2),
    )

    def change(plans: dict[str, Any]) -> None:
        plans["configurations"]["3d_fullres"] = plans["configurations"]["3d_cascade_fullres"]
        plans["configurations"]["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}

    return write_results(folder, *stages, change=change)


@pytest.mark.parametrize(
    ("scan_mm", "plan_mm"),
    [((1.5, 1.2, 2.0), (1.0, 1.0, 1.3)), ((1.0, 1.0, 1.0), (1.4, 1.6, 1.3)), ((6.0, 1.1, 1.2), (5.0, 1.0, 0.8))],
)
def test_labels_of_a_first_stage_are_resampled_as_nnunet_does(scan_mm: Spacing, plan_mm: Spacing) -> None:
    """Labels that cross the ragged border of the non-zero voxels, outside of which nnU-Net gives them the label -1."""
    random = np.random.default_rng(0)
    shape = (26, 30, 28)

    def noise(sigma: float) -> NDArray[np.float64]:
        return np.asarray(ndimage.gaussian_filter(random.standard_normal(shape), sigma))

    places = np.stack(np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij"))
    voxels = np.where(np.linalg.norm(places, axis=0) + 1.2 * noise(1.2) < 0.75, 100, 0).astype(np.float32)
    mask = np.where(noise(1.5) > 0.08, 2, noise(1.5) > 0.05).astype(np.uint8)
    cropped, labels, _ = crop_to_nonzero(voxels[np.newaxis], mask[np.newaxis].astype(np.int16))
    size = compute_new_shape(cropped.shape[1:], scan_mm, plan_mm)
    expected = resample_data_or_seg_to_shape(
        labels, size, scan_mm, plan_mm, is_seg=True, order=1, force_separate_z=None
    )
    fields = {
        "orientation": "ijk",
        "spacing_mm": plan_mm,
        "separate_axis_above": 3,
        "window": (8, 8, 8),
        "labels": [{"name": f"label {value}", "value": value} for value in range(3)],
        "first_stage": {"networks": [{"file": "low.onnx", "sha256": "1" * 64}]},
    }
    manifest = Manifest.model_validate({**VALID_MANIFEST, **fields})
    volume = Volume(voxels, np.diag([*scan_mm, 1.0]))
    box = crop_box([volume], NonzeroCrop(kind="nonzero"))
    prepared = preprocess([volume.cropped(box)], manifest, max_voxels=2**20)
    prepared.write_label_channels(mask[box], [1, 2], inside=filled_nonzero([voxels[box]]))
    # Rounding decides a few of equal shares.
    assert np.mean(prepared.image[1] + 2 * prepared.image[2] != np.maximum(expected[0], 0)) < 1e-4


def test_a_cascade_needs_both_of_its_stages(run_import: Import, tmp_path: Path) -> None:
    source = cascade(tmp_path / "Dataset700_Small")
    archive = shutil.make_archive(str(tmp_path / "both"), "zip", tmp_path, "Dataset700_Small")
    imported = run_import(
        Path(archive), configuration="3d_cascade_fullres", compare=(write_scan(tmp_path / "scan.nii.gz"),)
    )
    # A label of the first stage that half precision decides changes the logits around it. In single precision, the
    # labels of trained cascades are equal: test_nnunet_references.
    check_parity(imported, 2, 0.99)
    first = imported.manifest.first_stage
    assert first is not None
    assert first.spacing_mm == (3.1, 2.9, 3.3)
    low = source.parent / source.name.replace("3d_cascade_fullres", "3d_lowres")
    plans = json.loads((low / "plans.json").read_text())
    plans["configurations"]["3d_lowres"]["previous_stage"] = "2d"
    (low / "plans.json").write_text(json.dumps(plans))
    with pytest.raises(ModelInvalid, match="more than two stages is not supported: 3d_lowres has a previous_stage too"):
        run_import(source, name="three")
    shutil.rmtree(low)
    with pytest.raises(InputNotFound, match="first one, 3d_lowres"):
        run_import(source, name="alone")


def test_one_of_several_configurations_is_chosen(run_import: Import, tmp_path: Path) -> None:
    dataset = tmp_path / "Dataset700_Small"
    write_results(dataset, Network("3d_lowres"), Network(folds=("0", "all")))
    with pytest.raises(BadRequest, match="choose one by --configuration"):
        run_import(dataset)
    with pytest.raises(InputNotFound, match="no configuration 2d"):
        run_import(dataset, configuration="2d")
    selected: list[dict[str, str]] = []
    choice = {"folds": [0], "best_model_or_ensemble": {"selected_model_or_models": selected}}
    for configuration in ("3d_fullres", "3d_lowres"):
        selected.append({"trainer": "nnUNetTrainer", "plans_identifier": "nnUNetPlans", "configuration": configuration})
    (dataset / "inference_information.json").write_text(json.dumps(choice))
    with pytest.raises(ModelInvalid, match=r"ensemble of .*3d_lowres.* or --configuration 3d_lowres"):
        run_import(dataset)
    selected.pop()
    (dataset / "inference_information.json").write_text(json.dumps(choice))
    imported = run_import(dataset)
    assert "3d_fullres" in imported.manifest.description
    assert imported.model.facts["Folds"] == "0"
