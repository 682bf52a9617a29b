"""The parts of `make references` that need neither PyTorch nor nnU-Net: phantoms, files, plans and the cache."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from references import cache
from references.cache import Prediction, Reference
from references.datasets import DATA_SETS, DataSet, Training
from references.phantoms import Draw, Grid, abdomen, draw, head, pelvis
from references.plans import Object, in_old_format, small
from references.raw_data import read_labels, write_data_set, write_tests

from inference_service.imaging.geometry import orientation, reorientation, spacing_mm

OBLIQUE = Grid((19, 23, 17), (5.0, 4.5, 6.0), "LIA", (10, -15, 5))
COARSE = Grid((18, 20, 16), (6.0, 5.0, 7.0))
PHANTOMS = pytest.mark.parametrize("patient", [abdomen, head, pelvis], ids=lambda patient: patient.__name__)
DATA_SET = pytest.mark.parametrize("data_set", DATA_SETS.values(), ids=DATA_SETS.keys())


def test_a_grid_has_its_spacing_and_order() -> None:
    assert spacing_mm(OBLIQUE.affine) == pytest.approx(OBLIQUE.spacing_mm)
    assert orientation(OBLIQUE.affine) == OBLIQUE.order
    middle = (np.array(OBLIQUE.shape) - 1) / 2
    np.testing.assert_allclose(OBLIQUE.affine @ [*middle, 1], [0, 0, 0, 1], atol=1e-9)


@PHANTOMS
def test_the_order_of_the_voxels_moves_no_label(patient: Draw) -> None:
    ras = Grid((20, 22, 18), (5.5, 5.0, 6.0), "RAS")
    pir = Grid((22, 18, 20), (5.0, 6.0, 5.5), "PIR")
    _, expected = draw(patient(3), ras, 3)
    _, drawn = draw(patient(3), pir, 3)
    np.testing.assert_array_equal(reorientation("PIR", "RAS").apply(drawn), expected)


@PHANTOMS
def test_a_phantom_has_all_its_labels_and_no_symmetry(patient: Draw) -> None:
    _, labels = draw(patient(0), Grid((30, 30, 30), (4.0, 4.0, 4.0)), 0)
    assert set(np.unique(labels)) == set(range(labels.max() + 1))
    for axis in range(3):
        assert (np.flip(labels, axis) != labels).any()
        assert (np.swapaxes(labels, axis, (axis + 1) % 3) != labels).any()


def test_a_head_is_0_around_the_brain_and_in_its_ventricle() -> None:
    (t1, flair), _ = draw(head(0), Grid((40, 40, 40), (3.0, 3.0, 3.0)), 0)
    zero = (t1 == 0) & (flair == 0)
    assert zero[0].all()
    assert zero[12:-12, 12:-12, 12:-12].any()
    assert ((t1 == 0) & (flair != 0)).any()


@DATA_SET
def test_a_data_set_is_written_as_nnunet_reads_it(data_set: DataSet, tmp_path: Path) -> None:
    write_data_set(replace(data_set, size=2, grid=COARSE), tmp_path / "raw")
    description = json.loads((tmp_path / "raw" / "dataset.json").read_text())
    assert len(description["channel_names"]) == len(data_set.channels)
    images = sorted((tmp_path / "raw" / "imagesTr").iterdir())
    assert len(images) == 2 * len(data_set.channels)
    labels = read_labels(tmp_path / "raw" / "labelsTr" / "case_000.nii.gz")
    assert labels.shape == nib.Nifti1Image.from_filename(images[0]).shape
    assert (labels == description["labels"].get("ignore", 255)).any() == bool(data_set.ignored_slices)


def test_splits_hold_out_each_case_once(tmp_path: Path) -> None:
    write_data_set(replace(DATA_SETS["CascadeCT"], size=5, grid=COARSE), tmp_path / "raw")
    splits = json.loads((tmp_path / "raw" / "splits_final.json").read_text())
    assert sorted(case for split in splits for case in split["val"]) == [f"case_00{number}" for number in range(5)]
    assert all(set(split["train"]).isdisjoint(split["val"]) for split in splits)


@DATA_SET
def test_scans_to_predict_lie_where_their_grids_are(data_set: DataSet, tmp_path: Path) -> None:
    files = write_tests(data_set, tmp_path)
    assert files.keys() == data_set.tests.keys()
    for name, test in data_set.tests.items():
        for image in [*files[name], tmp_path / "truth" / f"{name}.nii.gz"]:
            scan = nib.Nifti1Image.from_filename(image)
            assert scan.shape == test.grid.shape
            assert scan.affine == pytest.approx(test.grid.affine, abs=1e-4)


def planned() -> Object:
    architecture: Object = {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {"n_conv_per_stage": [2] * 6, "conv_op": "torch.nn.modules.conv.Conv3d"},
    }
    configuration: Object = {"data_identifier": "nnUNetPlans_3d_fullres", "architecture": architecture}
    return {"plans_name": "nnUNetPlans", "configurations": {"3d_fullres": configuration, "2d": {}}}


def configuration_of(plans: Object, name: str) -> Mapping[str, object]:
    configurations = plans["configurations"]
    assert isinstance(configurations, dict)
    found = configurations[name]
    assert isinstance(found, dict)
    return found


def test_small_plans_have_a_cascade_and_few_features() -> None:
    low = Training("3d_lowres", (0,), (8, 12, 16), ((2, 2, 2),), spacing_mm=(4.0, 3.0, 2.0))
    cascade = Training("3d_cascade_fullres", (0,), (16, 20, 24), ((1, 2, 2), (2, 2, 2)))
    plans = small(planned(), (low, cascade))
    assert configuration_of(plans, "3d_cascade_fullres") == {
        "inherits_from": "3d_fullres",
        "previous_stage": "3d_lowres",
    }
    lowres = configuration_of(plans, "3d_lowres")
    assert lowres["next_stage"] == "3d_cascade_fullres"
    assert lowres["patch_size"] == [8, 12, 16]
    assert lowres["data_identifier"] == "nnUNetPlans_3d_lowres"
    assert configuration_of(plans, "3d_fullres")["patch_size"] == [16, 20, 24]


def test_the_old_format_has_the_numbers_of_the_network() -> None:
    training = Training("3d_fullres", (0,), (16, 20, 24), ((1, 2, 2), (2, 2, 2)))
    old = configuration_of(in_old_format(small(planned(), (training,))), "3d_fullres")
    assert "architecture" not in old
    assert old["UNet_class_name"] == "PlainConvUNet"
    assert (old["UNet_base_num_features"], old["unet_max_num_features"]) == (8, 32)
    assert old["num_pool_per_axis"] == [1, 2, 2]
    assert old["conv_kernel_sizes"] == [[1, 3, 3], [3, 3, 3], [3, 3, 3]]
    assert old["pool_op_kernel_sizes"] == [[1, 1, 1], [1, 2, 2], [2, 2, 2]]


def reference() -> Reference:
    prediction = Prediction(
        scan="oblique",
        images=["scans/oblique_0000.nii.gz"],
        variant="default",
        folds=[0, "all"],
        checkpoint="checkpoint_final.pth",
        mirroring=True,
        half_sums=True,
        labels="labels.nii.gz",
        postprocessed=None,
        probabilities="probabilities.npz",
        stages="stages.npz",
        dice={"liver": 0.9},
        seconds=1.5,
    )
    return Reference(
        data_set="X",
        configuration="2d",
        folder="results",
        archive="2d.zip",
        old_folder=None,
        postprocessing=None,
        choice=None,
        truths="truth",
        versions={"nnunetv2": "2.8.1"},
        predictions=[prediction],
    )


def test_the_cache_returns_what_was_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFERENCE_CACHE", str(tmp_path))
    assert cache.read_index("X") == []
    cache.data_set_folder("X").mkdir(parents=True)
    cache.write_index("X", [reference()])
    assert cache.read_index("X") == [reference()]
    monkeypatch.setattr(cache, "RECIPE", cache.RECIPE + 1)
    assert cache.read_index("X") == []
