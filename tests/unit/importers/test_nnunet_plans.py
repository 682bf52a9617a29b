"""Plans and data sets of nnU-Net as JSON: what a manifest gets of them, and what is refused."""

import json
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from inference_service.core.errors import InputNotFound, ModelInvalid
from inference_service.importers.nnunet.dataset import Dataset
from inference_service.importers.nnunet.fields import read_json
from inference_service.importers.nnunet.model import is_own_trainer
from inference_service.importers.nnunet.plans import Plans, Resampling

Json = dict[str, Any]
NAME = "3d_fullres"
SPLINE: Json = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
ARCHITECTURE: Json = {
    "n_stages": 2,
    "features_per_stage": [8, 16],
    "conv_op": "torch.nn.modules.conv.Conv3d",
    "kernel_sizes": [[3, 3, 3], [3, 3, 3]],
    "strides": [[1, 1, 1], [2, 2, 2]],
    "n_conv_per_stage": [2, 2],
    "n_conv_per_stage_decoder": [1],
    "conv_bias": True,
    "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
    "norm_op_kwargs": {"eps": 1e-5, "affine": True},
    "dropout_op": None,
    "dropout_op_kwargs": None,
    "nonlin": "torch.nn.LeakyReLU",
    "nonlin_kwargs": {"inplace": True},
}
PLANS: Json = {
    "dataset_name": "Dataset001_Some",
    "plans_name": "nnUNetPlans",
    "image_reader_writer": "SimpleITKIO",
    "transpose_forward": [1, 2, 0],
    "foreground_intensity_properties_per_channel": {
        "0": {"mean": 1.0, "std": 0.0, "percentile_00_5": -5, "percentile_99_5": 5.5}
    },
    "configurations": {
        NAME: {
            "patch_size": [32, 40, 24],
            "spacing": [3.0, 0.8, 0.9],
            "normalization_schemes": ["CTNormalization", "ZScoreNormalization"],
            "use_mask_for_norm": [False, True],
            "resampling_fn_data": "resample_data_or_seg_to_shape",
            "resampling_fn_data_kwargs": SPLINE,
            "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
            "resampling_fn_probabilities_kwargs": {**SPLINE, "order": 1},
            "resampling_fn_seg": "resample_data_or_seg_to_shape",
            "resampling_fn_seg_kwargs": {**SPLINE, "order": 1, "is_seg": True},
            "architecture": {
                "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
                "arch_kwargs": ARCHITECTURE,
            },
        },
        "3d_cascade_fullres": {"inherits_from": NAME, "previous_stage": "3d_lowres"},
    },
}
DATASET: Json = {"channel_names": {"0": "CT", "1": "PET"}, "labels": {"background": 0, "liver": 1, "ignore": 2}}
Read = Callable[..., Plans]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Writes plans with changes, each under the keys that lead to it, and reads them."""

    def read_plans(changes: Mapping[tuple[str, ...], object] | None = None) -> Plans:
        plans = deepcopy(PLANS)
        for keys, value in (changes or {}).items():
            place = plans
            for key in keys[:-1]:
                place = place[key]
            place[keys[-1]] = value
        (tmp_path / "plans.json").write_text(json.dumps(plans))
        return Plans.read(tmp_path)

    return read_plans


def of_configuration(*keys: str) -> tuple[str, ...]:
    return "configurations", NAME, *keys


def test_plans_become_fields_of_a_part(read: Read) -> None:
    configuration = read().configuration(NAME)
    fields = configuration.part_fields()
    assert fields["orientation"] == "jik"
    assert fields["spacing_mm"] == [3.0, 0.8, 0.9]
    assert fields["window"] == [32, 40, 24]
    assert (fields["interpolation"], fields["separate_axis_above"]) == ("cubic", 3)
    assert configuration.intensities == (
        {"kind": "ct", "clip": [-5.0, 5.5], "mean": 1.0, "std": 1e-8},
        {"kind": "z_score", "nonzero_only": True, "fill_holes": True},
    )
    assert configuration.architecture.network == "PlainConvUNet"
    assert configuration.architecture.arguments["conv_op"] == "Conv3d"


def test_a_configuration_inherits_from_another_one(read: Read) -> None:
    configuration = read().configuration("3d_cascade_fullres")
    assert configuration.previous_stage == "3d_lowres"
    assert configuration.window == (32, 40, 24)
    loop = {("configurations", NAME, "inherits_from"): "3d_cascade_fullres"}
    with pytest.raises(ModelInvalid, match="inherits from more than"):
        read(loop).configuration("3d_cascade_fullres")


def test_a_network_for_planes_keeps_the_first_axis(read: Read) -> None:
    planes = read({of_configuration("patch_size"): [40, 24], of_configuration("spacing"): [0.8, 0.9]})
    configuration = planes.configuration(NAME)
    assert configuration.window == (1, 40, 24)
    assert configuration.spacing_mm == (None, 0.8, 0.9)
    assert configuration.dimensions == 2


def test_readers_that_reorient_give_directions(read: Read) -> None:
    plans = read({("image_reader_writer",): "NibabelIOWithReorient"})
    assert plans.configuration(NAME).orientation == "ARS"


@pytest.mark.parametrize(
    ("scheme", "intensity"),
    [
        ("RescaleTo01Normalization", {"kind": "min_max"}),
        ("RGBTo01Normalization", {"kind": "fixed_range", "input": [0, 255], "clip": False}),
        ("NoNormalization", {"kind": "none"}),
    ],
)
def test_further_normalizations(read: Read, scheme: str, intensity: Json) -> None:
    plans = read({of_configuration("normalization_schemes"): [scheme] * 2})
    assert plans.configuration(NAME).intensities[1] == intensity


def resampled(function: str, **kwargs: object) -> dict[tuple[str, ...], object]:
    """Changes that give scan, logits and labels the same resampling."""
    return {
        of_configuration(f"resampling_fn_{what}{suffix}"): value
        for what in ("data", "probabilities", "seg")
        for suffix, value in (("", function), ("_kwargs", kwargs))
    }


def test_pytorchs_resampling_is_linear(read: Read) -> None:
    changes = resampled("resample_torch_fornnunet", memefficient_seg_resampling=False, force_separate_z=False)
    configuration = read(changes).configuration(NAME)
    assert configuration.image == configuration.logits == Resampling("linear", None)
    across = resampled("resample_torch_fornnunet", aniso_axis_mode="linear", device="cpu", num_threads=8)
    assert read(across).configuration(NAME).image == Resampling("linear", None)
    for key in ("mode", "aniso_axis_mode"):
        with pytest.raises(ModelInvalid, match=f"kwargs.{key}: "):
            read(resampled("resample_torch_fornnunet", **{key: "nearest"})).configuration(NAME)


@pytest.mark.parametrize(
    ("kwargs", "resampling"),
    [
        # nnU-Net's own defaults differ from what its planner writes.
        ({}, Resampling("cubic", None)),
        ({"order": 1, "force_separate_z": None}, Resampling("linear", 3)),
        ({"order": 1, "force_separate_z": None, "separate_z_anisotropy_threshold": 2.5}, Resampling("linear", 2.5)),
        ({"order": 1, "force_separate_z": True}, Resampling("linear", 0.5)),
        ({"order": 1, "force_separate_z": None, "separate_z_anisotropy_threshold": 0}, Resampling("linear", 0.5)),
        ({"order": 1, "force_separate_z": False, "order_z": 3}, Resampling("linear", None)),
        ({"order": 1, "force_separate_z": True, "order_z": 1}, Resampling("linear", None)),
        ({"order": 0, "force_separate_z": True}, Resampling("nearest", 0.5)),
    ],
)
def test_options_of_splines(read: Read, kwargs: Json, resampling: Resampling) -> None:
    changes = resampled("resample_data_or_seg_to_shape", **kwargs)
    changes[of_configuration("resampling_fn_probabilities_kwargs")] = {"order": 1, **kwargs}
    assert read(changes).configuration(NAME).image == resampling


def test_only_a_cascade_resamples_labels(read: Read) -> None:
    changes = {of_configuration("resampling_fn_seg"): "mine"}
    assert read(changes).configuration(NAME).labels == Resampling("cubic", 3)
    with pytest.raises(ModelInvalid, match=r"resampling_fn_seg: mine is not supported"):
        read(changes).configuration("3d_cascade_fullres")


def test_scans_that_are_not_resampled_keep_their_spacing(read: Read) -> None:
    configuration = read(resampled("no_resampling_hack")).configuration(NAME)
    assert configuration.spacing_mm == (None, None, None)


def test_older_plans_have_no_architecture(read: Read) -> None:
    older = {
        "architecture": None,
        "UNet_class_name": "PlainConvUNet",
        "UNet_base_num_features": 16,
        "unet_max_num_features": 40,
        "n_conv_per_stage_encoder": [2, 2, 2],
        "n_conv_per_stage_decoder": [2, 2],
        "conv_kernel_sizes": [[3, 3, 3]] * 3,
        "pool_op_kernel_sizes": [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
    }
    plans = read({of_configuration(key): value for key, value in older.items()})
    arguments = plans.configuration(NAME).architecture.arguments
    assert arguments["features_per_stage"] == [16, 32, 40]
    assert arguments["norm_op"] == "InstanceNorm3d"
    assert arguments["n_conv_per_stage"] == [2, 2, 2]


def test_the_trainer_of_batch_normalisations_replaces_those_of_the_plans(read: Read) -> None:
    architecture = read().configuration(NAME).architecture
    assert architecture.trained_by("nnUNetTrainer_250epochs") == architecture
    assert architecture.trained_by("nnUNetTrainerBN").arguments["norm_op"] == "BatchNorm3d"


KWARGS = "architecture", "arch_kwargs"


@pytest.mark.parametrize(
    ("keys", "value", "named"),
    [
        (("image_reader_writer",), "Tiff3DIO", "image_reader_writer: Tiff3DIO is not supported"),
        (("label_manager",), "Mine", "label_manager: Mine is not supported"),
        (("transpose_forward",), [0, 0, 1], "transpose_forward: expected the axes"),
        (("transpose_forward",), [0, 1, 10**9], "transpose_forward: expected whole numbers"),
        (("foreground_intensity_properties_per_channel", "0", "mean"), "x", "channel.0.mean: expected a finite number"),
        (("foreground_intensity_properties_per_channel", "0", "std"), 10**400, "std: expected a finite number"),
        (of_configuration("preprocessor_name"), "Mine", "preprocessor_name: Mine is not supported"),
        (of_configuration("patch_size"), [10**6, 8, 8], "patch_size: expected whole numbers from 1 to 4096"),
        (of_configuration("patch_size"), [4096, 4096, 4096], "patch_size: expected 2 or 3 sizes and at most"),
        (of_configuration("patch_size"), [32.5, 8, 8], "patch_size: expected whole numbers"),
        (of_configuration("patch_size"), [], "patch_size: expected 2 or 3"),
        (of_configuration("spacing"), [1.0, 1.0], "spacing: expected 3 positive numbers"),
        (of_configuration("spacing"), [1.0, 0, 1.0], "spacing: expected 3 positive numbers"),
        (of_configuration("normalization_schemes"), ["CTNormalization", "Mine"], "normalization_schemes: Mine is not"),
        (of_configuration("use_mask_for_norm"), [True], "use_mask_for_norm: expected 2 values"),
        (of_configuration("resampling_fn_data"), "mine", "resampling_fn_data: mine is not supported"),
        (of_configuration("resampling_fn_data"), "no_resampling_hack", "supported for all values together"),
        (of_configuration("resampling_fn_data_kwargs", "order"), 4, "order: a spline of order 4"),
        (of_configuration("resampling_fn_data_kwargs", "order_z"), 1, "order_z: 1 is not supported beside"),
        (of_configuration("resampling_fn_data_kwargs", "force_separate_z"), 1, "force_separate_z: expected true or"),
        (of_configuration("resampling_fn_data_kwargs", "force_separate_z"), True, "must separate the axis .* alike"),
        (of_configuration("resampling_fn_data_kwargs", "force_separate_z"), False, "must separate the axis .* alike"),
        (of_configuration("resampling_fn_data_kwargs", "is_seg"), True, "is_seg: expected false"),
        (of_configuration("resampling_fn_data_kwargs", "anti_aliasing"), True, "anti_aliasing: an option of this name"),
        (of_configuration("resampling_fn_data_kwargs", "separate_z_anisotropy_threshold"), "3", "expected a finite"),
        (of_configuration("resampling_fn_probabilities_kwargs", "order"), 3, "logits are interpolated with order 0"),
        (of_configuration("architecture", "network_class_name"), "os.system", "network of the class os.system is not"),
        (of_configuration("architecture", "network_class_name"), "mine.PlainConvUNet", "mine.PlainConvUNet is not"),
        (of_configuration(*KWARGS, "n_stages"), 10**9, "n_stages: expected whole numbers from 1 to 16"),
        (of_configuration(*KWARGS, "features_per_stage"), [8, 10**9], "features_per_stage: expected whole numbers"),
        (of_configuration(*KWARGS, "features_per_stage"), [[[[8]]]], "features_per_stage: expected whole numbers"),
        (of_configuration(*KWARGS, "n_conv_per_stage"), 10**9, "n_conv_per_stage: expected whole numbers"),
        (of_configuration(*KWARGS, "nonlin"), "os.system", "nonlin: os.system is not used"),
        (of_configuration(*KWARGS, "nonlin"), "torch.nn.Module", "nonlin: torch.nn.Module is not used"),
        (of_configuration(*KWARGS, "nonlin_kwargs"), {"inplace": "x"}, "nonlin_kwargs.inplace: expected a finite"),
        (of_configuration(*KWARGS, "block"), "torch.nn.ReLU", "block: torch.nn.ReLU is not used"),
        (of_configuration(*KWARGS, "pretrained"), True, "pretrained: an argument of this name is not known"),
        (of_configuration(), [], "3d_fullres: expected an object"),
        (("configurations",), None, "configurations: expected an object"),
    ],
)  # fmt: skip
def test_what_a_manifest_cannot_say_is_refused(read: Read, keys: tuple[str, ...], value: object, named: str) -> None:
    with pytest.raises(ModelInvalid, match=named):
        read({keys: value}).configuration(NAME)


def test_a_missing_configuration_is_named(read: Read) -> None:
    with pytest.raises(ModelInvalid, match="2d: there is no such configuration; there are: 3d_fullres"):
        read().configuration("2d")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 10**5, b'{"a": NaN', b"1" * 5000])
def test_damaged_json_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "plans.json").write_bytes(content)
    with pytest.raises(ModelInvalid, match=r"plans\.json"):
        read_json(tmp_path / "plans.json")


def test_missing_and_huge_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputNotFound, match=r"has no plans\.json"):
        Plans.read(tmp_path)
    with (tmp_path / "plans.json").open("wb") as file:
        file.truncate(2**24 + 1)
    with pytest.raises(ModelInvalid, match="has more than"):
        Plans.read(tmp_path)


def dataset(folder: Path, **changes: object) -> Dataset:
    (folder / "dataset.json").write_text(json.dumps({**DATASET, **changes}))
    return Dataset(folder)


def test_labels_of_a_data_set(tmp_path: Path) -> None:
    data = dataset(tmp_path, description="Scans", licence="CC-BY-4.0", numTraining=12)
    assert data.channels == ["CT", "PET"]
    assert data.modalities() == ["CT", "PT"]
    assert data.label_fields() == {
        "labels": [{"name": "background", "value": 0}, {"name": "liver", "value": 1}],
        "activation": "softmax",
        "outputs": [{"channel": 0, "value": 0}, {"channel": 1, "value": 1}],
    }
    assert data.facts() == {
        "Description of the data": "Scans",
        "Licence of the data": "CC-BY-4.0",
        "Scans in the training": "12",
    }


def test_values_of_labels_may_be_text_as_in_nnunet(tmp_path: Path) -> None:
    data = dataset(tmp_path, labels={"liver": "1", "background": "0", "spleen": [" 2 "], "ignore": 3})
    assert [(output.name, output.value) for output in data.outputs] == [("background", 0), ("liver", 1), ("spleen", 2)]
    regions = dataset(tmp_path, labels={"whole": ["1", 2], "background": 0, "core": "2"}, regions_class_order=[1, 2])
    assert [(output.name, output.value) for output in regions.outputs] == [("whole", 1), ("core", 2)]
    assert regions.values == [1, 2]


def test_regions_write_in_the_order_of_their_channels(tmp_path: Path) -> None:
    labels = {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}
    data = dataset(tmp_path, labels=labels, regions_class_order=[5, 2])
    assert data.label_fields() == {
        "labels": [{"name": "whole", "value": 5}, {"name": "core", "value": 2}],
        "activation": "sigmoid",
        "outputs": [{"channel": 0, "value": 5}, {"channel": 1, "value": 2}],
    }
    assert data.values == [1, 2]


@pytest.mark.parametrize(
    ("name", "modality"),
    [
        *(("CT", "CT"), ("cta", "CT"), ("T1w", "MR"), ("t2_fse", "MR"), ("FLAIR", "MR"), ("ADC map", "MR")),
        *(("PET", "PT"), ("US", "US"), ("noNorm", None), ("ctrl", None), ("", None)),
    ],
)
def test_the_first_word_of_a_channel_tells_its_modality(tmp_path: Path, name: str, modality: str | None) -> None:
    assert dataset(tmp_path, channel_names={"0": name}).modalities() == [modality]


def test_channels_of_equal_names_stay_apart(tmp_path: Path) -> None:
    data = dataset(tmp_path, channel_names={"0": "MRI", "1": "MRI", "2": "a\\b\n", "3": ""})
    assert data.channels == ["MRI 0", "MRI 1", "a/b", "number 3"]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"channel_names": {}}, "channel_names: expected names"),
        ({"channel_names": {"0": "CT", "2": "PET"}}, "channel_names: expected names"),
        ({"labels": []}, "labels: expected an object"),
        ({"labels": {"liver": 1}}, "labels.background: expected 0"),
        ({"labels": {"background": 1}}, "labels.background: expected 0"),
        ({"labels": {"background": 0, "liver": 2}}, "labels: expected the values 0, 1, .*; liver has 2"),
        ({"labels": {"background": 0, "a": 1, "b": 1}}, "labels: expected the values 0, 1, .*; a value occurs twice"),
        ({"labels": {"background": 0, "liver": 10**6}}, "labels.liver: expected whole numbers"),
        ({"labels": {"background": 0, "liver": []}}, "labels.liver: expected at least one value"),
        ({"labels": {"background": 0, "a": [1, 2], "b": []}}, "labels.b: expected at least one value"),
        ({"labels": {"background": 0, "liver": "1.0"}}, r'labels\.liver: expected whole numbers .*, got "1\.0"'),
        ({"labels": {"background": 0, "liver": [1, "one"]}}, 'labels.liver: expected whole numbers .*, got "one"'),
        ({"labels": {"background": 0, "liver": 1.5}}, r"labels\.liver: expected whole numbers .*, got 1\.5"),
        ({"labels": {"background": 0, "liver": True}}, r"labels\.liver: expected whole numbers .*, got true"),
        ({"labels": {"background": 0, "liver": 1, "ignore": "2"}}, 'labels.ignore: expected whole numbers .*, got "2"'),
        ({"labels": {"background": 0, "liver": 1, "ignore": 3}}, "labels.ignore: expected the value after"),
        ({"labels": {"background": "0", "a": [1, 2]}, "regions_class_order": [1]}, "labels.background: expected 0"),
        ({"labels": {"background": 0, "a": [1, 2], "b": 2}}, "regions_class_order: expected a list"),
        ({"labels": {"background": 0, "a": [1, 2], "b": 2}, "regions_class_order": [1]}, "expected 2 different values"),
        ({"labels": {"background": 0, "a": [1, 2], "b": 2}, "regions_class_order": [1, 1]}, "expected 2 different"),
    ],
)  # fmt: skip
def test_contradictions_of_a_data_set_are_refused(tmp_path: Path, changes: Json, named: str) -> None:
    with pytest.raises(ModelInvalid, match=named):
        dataset(tmp_path, **changes)


@pytest.mark.parametrize(
    ("name", "own"),
    [
        *((f"nnUNetTrainer{ending}", True) for ending in ("", "_250epochs", "NoMirroring", "_4000epochs_NoMirroring")),
        *((f"nnUNetTrainer{ending}", True) for ending in ("_onlyMirror01_1500ep", "DA5ord0", "_DASegOrd0", "Adan1en3")),
        *((f"nnUNetTrainer{ending}", False) for ending in ("MyReLU", "UMambaBot", "_SwinUNETR", "0105ep" * 30 + "x")),
        ("nnUNet_Primus_M_Trainer", False),
    ],
)  # fmt: skip
def test_trainers_of_nnunet_are_known(name: str, own: bool) -> None:
    assert is_own_trainer(name) == own
