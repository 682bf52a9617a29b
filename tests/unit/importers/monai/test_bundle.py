"""What the manifest says for each part of a bundle's config, and what is refused."""

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from inference_service.core.errors import InputNotFound, ModelInvalid
from inference_service.importers.monai.bundle import MonaiBundle
from inference_service.importers.sources import ImportedModel, ImportOptions, LabelChoice

Read = Callable[..., ImportedModel]

LOAD = {"_target_": "LoadImaged", "keys": "image"}
FIRST = {"_target_": "EnsureChannelFirstd", "keys": "image"}
ORIENT = {"_target_": "Orientationd", "keys": "image", "axcodes": "LPS"}
SPACE = {"_target_": "Spacingd", "keys": "image", "pixdim": [1.5, 1.5, 2.0], "mode": "bilinear"}
SCALE = {"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": -100, "a_max": 300, "b_min": 0, "b_max": 1}
NORMALISE = {"_target_": "NormalizeIntensityd", "keys": "image"}
CROP = {"_target_": "CropForegroundd", "keys": "image", "source_key": "image"}
SOFTMAX = {"_target_": "Activationsd", "keys": "pred", "softmax": True}
SIGMOID = {"_target_": "Activationsd", "keys": "pred", "sigmoid": True}
ARGMAX = {"_target_": "AsDiscreted", "keys": "pred", "argmax": True}
THRESHOLD = {"_target_": "AsDiscreted", "keys": "pred", "threshold": 0.5}
INVERT = {
    "_target_": "Invertd",
    "keys": "pred",
    "transform": "@preprocessing",
    "orig_keys": "image",
    "nearest_interp": False,
}
RESIZE = {"_target_": "Resized", "keys": "image", "spatial_size": [64, 48, 32], "mode": "trilinear"}
PAD = {"_target_": "SpatialPadd", "keys": "image", "spatial_size": 64}
BOX = {"_target_": "ResizeWithPadOrCropd", "keys": "image", "spatial_size": 128}
SAVE = {"_target_": "SaveImaged", "keys": "pred", "output_dir": "$@bundle_root + '/eval'"}

CONFIG: dict[str, Any] = {
    "bundle_root": "/workspace/bundle",
    "network_def": {"_target_": "UNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 3, "channels": [4, 8]},
    "preprocessing": {"_target_": "Compose", "transforms": [LOAD, FIRST, ORIENT, SPACE, SCALE]},
    "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [96, 96, 64], "overlap": 0.5},
    "postprocessing": {"_target_": "Compose", "transforms": [SOFTMAX, INVERT, ARGMAX, SAVE]},
    "checkpointloader": {"_target_": "CheckpointLoader", "load_path": "$@bundle_root + '/models/model.pt'"},
}
METADATA: dict[str, Any] = {
    "description": "A test.",
    "network_data_format": {
        "inputs": {"image": {"modality": "MRI", "num_channels": 1, "channel_def": {"0": "T2"}}},
        "outputs": {"pred": {"num_channels": 3, "channel_def": {"0": "background", "1": "liver", "2": "tumour"}}},
    },
}


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Reads a bundle with some items of its config replaced."""

    def read_bundle(
        *,
        metadata: dict[str, Any] = METADATA,
        labels: LabelChoice | None = None,
        others: dict[str, Any] | None = None,
        **items: object,
    ) -> ImportedModel:
        config = deepcopy(CONFIG) | items | (others or {})
        for step in ("preprocessing", "postprocessing"):
            if isinstance(config[step], list):
                config[step] = {"_target_": "Compose", "transforms": config[step]}
        folder = tmp_path / "bundle"
        for name in ("configs", "models"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / "configs" / "inference.json").write_text(json.dumps(config, indent=1))
        (folder / "configs" / "metadata.json").write_text(json.dumps(metadata))
        if not any((folder / "models").iterdir()):
            (folder / "models" / "model.pt").touch()
        assert MonaiBundle().recognises(folder)
        return MonaiBundle().read(folder, ImportOptions(tmp_path, labels=labels))

    return read_bundle


def test_a_whole_bundle_becomes_a_manifest(read: Read) -> None:
    model = read()
    assert model.manifest == {
        "description": "A test.",
        "intended_use": "Not stated by the source. Not a medical device.",
        "modality": "MR",
        "channels": [
            {
                "name": "T2",
                "intensity": [
                    {"kind": "fixed_range", "input": (-100.0, 300.0), "output": (0.0, 1.0), "clip": False},
                ],
            }
        ],
        "orientation": "LPS",
        "spacing_mm": (1.5, 1.5, 2.0),
        "grid": "first_centre",
        "interpolation": "linear",
        "intensity_before_resampling": False,
        "window": (96, 96, 64),
        "overlap": 0.5,
        "placement": "snap",
        "blending": "constant",
        "padding": "constant",
        "padding_value": 0.0,
        "activation": "softmax",
        "interpolate": "probabilities",
        "logits_interpolation": "linear",
        "labels": [
            {"name": "background", "value": 0},
            {"name": "liver", "value": 1},
            {"name": "tumour", "value": 2},
        ],
        "outputs": [{"channel": 0, "value": 0}, {"channel": 1, "value": 1}, {"channel": 2, "value": 2}],
        "postprocessing": [],
    }
    (network,) = model.networks
    assert (network.file, getattr(network, "input_shape", None)) == ("model.onnx", (1, 96, 96, 64))


@pytest.mark.parametrize(
    ("transform", "steps"),
    [
        (SCALE | {"clip": True, "b_min": 1, "b_max": -1}, ["fixed_range", "linear"]),
        (SCALE | {"b_min": None, "b_max": None}, ["fixed_range"]),
        ({"_target_": "ScaleIntensityd", "keys": "image", "minv": None, "maxv": None, "factor": 0.5}, ["linear"]),
        ({"_target_": "ScaleIntensityd", "keys": ["image"]}, ["min_max"]),
        ({"_target_": "monai.transforms.NormalizeIntensityD", "keys": "image", "nonzero": True}, ["z_score"]),
        (NORMALISE | {"subtrahend": 100, "divisor": [20.0]}, ["linear"]),
        (
            {
                "_target_": "ScaleIntensityRangePercentilesd",
                "keys": "image",
                "lower": 1,
                "upper": 99,
                "b_min": 0,
                "b_max": 1,
            },
            ["percentiles"],
        ),
        (
            {
                "_target_": "ScaleIntensityRangePercentilesd",
                "keys": "image",
                "lower": 5,
                "upper": 95,
                "b_min": 0,
                "b_max": 1,
                "relative": True,
            },
            ["percentiles"],
        ),
        ({"_target_": "ClipIntensityPercentilesd", "keys": "image", "lower": 0.5, "upper": None}, ["clip_percentiles"]),
        ({"_target_": "ThresholdIntensityd", "keys": "image", "threshold": 5, "cval": 5}, ["clip"]),
        ({"_target_": "ShiftIntensityd", "keys": "image", "offset": 3}, ["linear"]),
    ],
)
def test_intensities_are_mapped(read: Read, transform: dict[str, Any], steps: list[str]) -> None:
    manifest: Any = read(preprocessing=[LOAD, FIRST, ORIENT, SPACE, transform]).manifest
    assert [step["kind"] for step in manifest["channels"][0]["intensity"]] == steps


def test_intensities_before_the_resampling_stay_before_it(read: Read) -> None:
    assert read(preprocessing=[LOAD, ORIENT, NORMALISE, SPACE]).manifest["intensity_before_resampling"] is True
    assert read(preprocessing=[LOAD, ORIENT, NORMALISE, SPACE, SCALE]).manifest["intensity_before_resampling"] is True
    assert read(preprocessing=[LOAD, ORIENT, SCALE, SPACE, NORMALISE]).manifest["intensity_before_resampling"] is False


def test_without_orientation_and_spacing_the_axes_and_the_grid_are_the_scans(read: Read) -> None:
    manifest = read(preprocessing=[LOAD, NORMALISE]).manifest
    assert (manifest["orientation"], manifest["spacing_mm"]) == ("ijk", (None, None, None))


def test_images_that_are_joined_become_channels(read: Read) -> None:
    keys = ["t1", "t2"]
    both = [{**each, "keys": keys} for each in (LOAD, FIRST, ORIENT, SPACE)]
    metadata = deepcopy(METADATA)
    metadata["network_data_format"]["inputs"]["image"] |= {"num_channels": 2, "channel_def": {"0": "T1", "1": "T2"}}
    manifest = read(
        metadata=metadata,
        network_def=CONFIG["network_def"] | {"in_channels": 2},
        preprocessing=[
            *both,
            SCALE | {"keys": "t1"},
            NORMALISE | {"keys": "t2"},
            {"_target_": "ConcatItemsd", "keys": keys, "name": "image"},
        ],
    ).manifest
    kinds = [[step["kind"] for step in channel["intensity"]] for channel in manifest["channels"]]  # type: ignore[attr-defined]
    assert kinds == [["fixed_range"], ["z_score"]]


@pytest.mark.parametrize(
    ("transforms", "threshold", "prepared"),
    [
        ([LOAD, ORIENT, CROP, SPACE, NORMALISE], 0.0, False),
        ([LOAD, ORIENT, SCALE, CROP, SPACE], -100.0, False),
        ([LOAD, ORIENT, SPACE, SCALE | {"clip": True}, CROP], 0.0, True),
        ([LOAD, ORIENT, SPACE, CROP, SCALE | {"clip": True}], 0.25, True),
        ([LOAD, ORIENT, SPACE, CROP | {"select_fn": "$lambda v: v > -20"}, SCALE], 0.2, True),
    ],
)
def test_a_crop_has_the_threshold_of_its_place(
    read: Read, transforms: list[dict[str, Any]], threshold: float, prepared: bool
) -> None:
    crop = read(preprocessing=transforms).manifest["crop"]
    assert isinstance(crop, dict)
    assert (crop["threshold"], crop["prepared"]) == (pytest.approx(threshold), prepared)


@pytest.mark.parametrize(
    ("inferer", "padding", "expected"),
    [
        (
            {"_target_": "SlidingWindowInferer", "roi_size": 64, "mode": "gaussian", "padding_mode": "replicate"},
            None,
            {"window": (64, 64, 64), "overlap": 0.25, "blending": "gaussian", "padding": "edge"},
        ),
        (
            {"_target_": "SlidingWindowInferer", "roi_size": [64, 64, -1], "overlap": [0.5, 0.5, 0.5], "cval": -1},
            None,
            {"window": (64, 64, None), "overlap": 0.5, "padding_value": -1.0},
        ),
        (
            {"_target_": "SlidingWindowInferer", "roi_size": 64, "mode": "gaussian", "sigma_scale": 0.25},
            {"_target_": "SpatialPadd", "keys": "image", "spatial_size": 64, "mode": "edge", "method": "end"},
            {
                "blending": {"kind": "gaussian", "sigma": 0.25, "centre": "middle"},
                "padding": "edge",
                "padding_sides": "end",
            },
        ),
        (
            {"_target_": "SimpleInferer"},
            {"_target_": "DivisiblePadd", "keys": "image", "k": 32},
            {"window": (None, None, None), "multiple_of": 32, "padding_sides": "both"},
        ),
    ],
)
def test_inferers_are_mapped(
    read: Read, inferer: dict[str, Any], padding: dict[str, Any] | None, expected: dict[str, object]
) -> None:
    transforms = [LOAD, ORIENT, SPACE, SCALE, *([] if padding is None else [padding])]
    manifest = read(preprocessing=transforms, inferer=inferer).manifest
    assert {key: manifest[key] for key in expected} == expected


def test_a_slice_inferer_makes_windows_of_one_plane(read: Read) -> None:
    network = CONFIG["network_def"] | {"spatial_dims": 2}
    inferer = {"_target_": "SliceInferer", "roi_size": [128, 96], "spatial_dim": 2}
    model = read(network_def=network, inferer=inferer)
    assert model.manifest["window"] == (128, 96, 1)
    assert getattr(model.networks[0], "input_shape", None) == (1, 128, 96)


@pytest.mark.parametrize(
    ("transforms", "expected"),
    [
        ([SOFTMAX, ARGMAX, INVERT | {"nearest_interp": True}], ("softmax", "logits", "nearest")),
        ([SOFTMAX, INVERT, ARGMAX], ("softmax", "probabilities", "linear")),
        ([INVERT, SOFTMAX, ARGMAX], ("softmax", "logits", "linear")),
        ([INVERT, ARGMAX], ("softmax", "logits", "linear")),
        ([SOFTMAX, INVERT | {"nearest_interp": True}, ARGMAX], ("softmax", "logits", "nearest")),
        ([ARGMAX, SAVE | {"resample": True}], ("softmax", "logits", "nearest")),
        ([SOFTMAX, INVERT, SAVE], ("softmax", "probabilities", "linear")),
    ],
)
def test_the_decision_has_its_place(read: Read, transforms: list[dict[str, Any]], expected: tuple[str, ...]) -> None:
    manifest = read(postprocessing=transforms).manifest
    assert (manifest["activation"], manifest["interpolate"], manifest["logits_interpolation"]) == expected


def test_a_sigmoid_of_one_channel_has_its_threshold(read: Read) -> None:
    metadata = deepcopy(METADATA)
    metadata["network_data_format"]["outputs"]["pred"] = {"channel_def": {"0": "lesion"}}
    network = CONFIG["network_def"] | {"out_channels": 1}
    steps = [SIGMOID, INVERT, THRESHOLD | {"threshold": 0.3}]
    manifest = read(metadata=metadata, network_def=network, postprocessing=steps).manifest
    assert manifest["labels"] == [{"name": "lesion", "value": 1}]
    assert manifest["outputs"] == [{"channel": 0, "value": 1, "threshold": 0.3}]
    logits = read(metadata=metadata, network_def=network, postprocessing=[THRESHOLD | {"threshold": 0.0}]).manifest
    assert logits["outputs"] == [{"channel": 0, "value": 1, "threshold": 0.5}]


def test_the_labels_are_cleaned_and_renamed(read: Read) -> None:
    steps = [
        ARGMAX,
        {"_target_": "RemoveSmallObjectsd", "keys": "pred", "min_size": 100},
        {"_target_": "KeepLargestConnectedComponentd", "keys": "pred", "applied_labels": 2},
    ]
    model = read(postprocessing=steps)
    assert model.manifest["postprocessing"] == [
        {
            "step": "remove_small",
            "labels": [1, 2],
            "min_volume_ml": pytest.approx(99.5 * 0.0045),
            "connectivity": "faces",
            "grid": "network",
        },
        {"step": "largest_component", "labels": [2], "grid": "network"},
    ]
    together = {"_target_": "KeepLargestConnectedComponentd", "keys": "pred", "independent": False}
    assert read(postprocessing=[SOFTMAX, INVERT, ARGMAX, together]).manifest["postprocessing"] == [
        {"step": "largest_component", "labels": [1, 2], "together": True}
    ]
    later = read(postprocessing=[SOFTMAX, INVERT, ARGMAX, {"_target_": "FillHolesd", "keys": "pred"}])
    assert later.manifest["postprocessing"] == [{"step": "fill_holes", "labels": [1, 2]}]
    renamed = {"_target_": "MapLabelValued", "keys": "pred", "orig_labels": [0, 1, 2], "target_labels": [0, 7, 7]}
    manifest = read(postprocessing=[ARGMAX, renamed]).manifest
    assert manifest["labels"] == [{"name": "background", "value": 0}, {"name": "liver", "value": 7}]
    swapped = renamed | {"target_labels": [0, 2, 1]}
    largest = {"_target_": "KeepLargestConnectedComponentd", "keys": "pred", "applied_labels": [1]}
    assert read(postprocessing=[SOFTMAX, INVERT, ARGMAX, swapped, largest]).manifest["postprocessing"] == [
        {"step": "largest_component", "labels": [1]}
    ]
    filtered = read(
        postprocessing=[ARGMAX, {"_target_": "LabelFilterd", "keys": "pred", "applied_labels": [2]}]
    ).manifest
    assert filtered["outputs"] == [{"channel": 0, "value": 0}, {"channel": 1, "value": 0}, {"channel": 2, "value": 2}]


def test_a_scan_is_resized_or_brought_to_a_box(read: Read) -> None:
    resized = read(preprocessing=[LOAD, ORIENT, SCALE, RESIZE]).manifest
    assert (resized["size_voxels"], resized["spacing_mm"], resized["grid"]) == ((64, 48, 32), (None,) * 3, "edges")
    assert resized["intensity_before_resampling"]
    boxed = read(preprocessing=[LOAD, ORIENT, SPACE, BOX, NORMALISE]).manifest
    assert (boxed["box_voxels"], boxed["intensity_before_resampling"]) == ((128,) * 3, False)
    assert read(preprocessing=[LOAD, NORMALISE, SPACE, BOX]).manifest["intensity_before_resampling"]
    assert read(preprocessing=[LOAD, NORMALISE, BOX]).manifest["intensity_before_resampling"]


def test_arguments_for_several_keys_are_those_of_the_image(read: Read) -> None:
    keys = ["label", "image"]
    steps = [
        {"_target_": "LoadImaged", "keys": keys},
        {"_target_": "AddChanneld", "keys": keys},
        {"_target_": "Spacingd", "keys": keys, "pixdim": [1, 1, 2], "mode": ["nearest", "bilinear"]},
        {"_target_": "NormalizeIntensityd", "keys": "$monai.utils.CommonKeys.IMAGE", "nonzero": "True"},
    ]
    model = read(preprocessing=steps)
    assert model.manifest["interpolation"] == "linear"
    assert model.manifest["channels"][0]["intensity"][0]["nonzero_only"]  # type: ignore[index]
    assert model.reference is not None
    transforms = model.reference.arguments["config"]["preprocessing"]["transforms"]  # type: ignore[index]
    assert transforms[1] == {
        "_target_": "EnsureChannelFirstd",
        "keys": keys,
        "channel_dim": "no_channel",
        "allow_missing_keys": True,
    }


def test_values_in_checkpoints_are_loaded_by_the_process_that_builds_the_network(read: Read, tmp_path: Path) -> None:
    (tmp_path / "bundle" / "models").mkdir(parents=True)
    for name in ("search.pt", "model.pt"):
        (tmp_path / "bundle" / "models" / name).touch()
    network = {
        "_target_": "DiNTS",
        "in_channels": 1,
        "num_classes": 3,
        "dints_space": {"_target_": "TopologyInstance", "arch_code": ["$@found['a']"], "device": "$torch.device(0)"},
        "node_a": "$torch.from_numpy(@found['node_a'])",
    }
    items = {"found": "$torch.load('/elsewhere/bundle/models/search.pt')", "network_def": network}
    (recipe,) = read(**items).networks
    found = {"_checkpoint_": str(tmp_path / "bundle" / "models" / "search.pt")}
    assert recipe.arguments["arguments"] == {  # type: ignore[union-attr]
        "in_channels": 1,
        "num_classes": 3,
        "dints_space": {
            "_class_": "TopologyInstance",
            "_arguments_": {"arch_code": [{**found, "_keys_": ["a"]}], "device": "cpu"},
        },
        "node_a": {**found, "_keys_": ["node_a"]},
    }
    with pytest.raises(InputNotFound, match=r"other\.pt"):
        read(**(items | {"found": "$torch.load('models/other.pt')"}))


def test_the_name_of_a_network_may_end_like_that_of_a_transform(read: Read) -> None:
    (recipe,) = read(network_def={"_target_": "DAF3D", "in_channels": 1, "out_channels": 3}).networks
    assert recipe.arguments["network"] == "DAF3D"  # type: ignore[union-attr]


def test_lists_of_files_are_no_labels(read: Read) -> None:
    files = {"labels": "$list(glob.glob('/data/*.nii.gz'))"}
    assert read(others=files).manifest["labels"]


def test_images_are_padded_to_what_the_network_takes(read: Read) -> None:
    network = CONFIG["network_def"] | {"strides": [2, [2, 2, 1]]}
    manifest = read(inferer={"_target_": "SimpleInferer"}, network_def=network).manifest
    assert (manifest["window"], manifest["multiple_of"]) == ((None, None, None), 4)


def test_the_only_weights_are_taken_where_the_config_names_none(read: Read, tmp_path: Path) -> None:
    folder = tmp_path / "bundle" / "models"
    folder.mkdir(parents=True)
    (folder / "best.pth").touch()
    model = read(checkpointloader=None)
    (recipe,) = model.networks
    assert recipe.arguments["checkpoint"] == str(folder / "best.pth")  # type: ignore[union-attr]
    assert any("best.pth" in note for note in model.assumed)


EVALUATOR = {
    "_target_": "SupervisedEvaluator",
    "val_data_loader": {"_target_": "DataLoader", "dataset": {"_target_": "Dataset", "transform": "@prepare"}},
    "network": "$@other_network.to(@device)",
    "inferer": "@other_inferer",
    "postprocessing": "@decide",
}
OTHERS = {
    "device": "$torch.device('cpu')",
    "prepare": {"_target_": "Compose", "transforms": [LOAD, FIRST, NORMALISE]},
    "other_network": {"_target_": "UNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 3, "channels": [2, 2]},
    "other_inferer": {"_target_": "SlidingWindowInferer", "roi_size": 32},
    "decide": {"_target_": "Compose", "transforms": [ARGMAX]},
}


def test_the_evaluator_says_which_steps_are_run(read: Read) -> None:
    model = read(evaluator=EVALUATOR, others=OTHERS)
    assert model.manifest["window"] == (32, 32, 32)
    assert model.manifest["spacing_mm"] == (None, None, None)
    assert model.manifest["interpolate"] == "logits"
    (recipe,) = model.networks
    assert recipe.arguments["arguments"]["channels"] == [2, 2]  # type: ignore[union-attr, index]
    by_python = {
        "val_data_loader": "$scripts.loader(@dataset)",
        "network": "$torch.compile(@network_def)",
        "postprocessing": None,
    }
    assert read(evaluator=EVALUATOR | by_python, others=OTHERS).manifest["spacing_mm"] == (1.5, 1.5, 2.0)


def test_an_evaluator_without_an_inferer_takes_the_whole_image(read: Read) -> None:
    assert read(evaluator=EVALUATOR | {"inferer": None}, others=OTHERS, inferer=None).manifest["window"] == (None,) * 3


def test_an_evaluator_of_the_bundles_own_is_named(read: Read) -> None:
    model = read(evaluator=EVALUATOR | {"_target_": "scripts.Evaluator"}, others=OTHERS)
    assert any("scripts.Evaluator" in note for note in model.assumed)


def test_an_expression_makes_components_of_monai(read: Read) -> None:
    items = {
        "network_def": "$monai.networks.nets.UNet(spatial_dims=3, in_channels=1, out_channels=@labels_count)",
        "inferer": "$monai.inferers.SlidingWindowInferer(roi_size=[64, 64, 32], overlap=0.75)",
    }
    model = read(**items, others={"labels_count": 3})
    assert (model.manifest["window"], model.manifest["overlap"]) == ((64, 64, 32), 0.75)
    (recipe,) = model.networks
    assert recipe.arguments["arguments"] == {"spatial_dims": 3, "in_channels": 1, "out_channels": 3}  # type: ignore[union-attr]


def test_arguments_of_the_postprocessing_are_those_of_the_prediction(read: Read) -> None:
    keys = ["label", "pred"]
    steps = [
        SOFTMAX,
        INVERT | {"keys": keys, "orig_keys": ["label", "image"], "nearest_interp": [True, False]},
        {"_target_": "AsDiscreted", "keys": keys, "argmax": [False, True], "to_onehot": 3},
    ]
    assert read(postprocessing=steps).manifest["interpolate"] == "probabilities"


@pytest.mark.parametrize(
    ("arguments", "steps"),
    [
        ({"b_max": None}, [("fixed_range", (0.0, 1.0)), ("clip", (0.25, 3.4e38))]),
        ({"b_min": None}, [("fixed_range", (0.0, 1.0)), ("clip", (-3.4e38, 0.75))]),
        ({"b_min": None, "b_max": None, "clip": False}, [("fixed_range", (0.0, 1.0))]),
        ({}, [("fixed_range", (0.25, 0.75))]),
    ],
)
def test_a_single_bound_clips(read: Read, arguments: dict[str, Any], steps: list[tuple[str, object]]) -> None:
    scale = SCALE | {"b_min": 0.25, "b_max": 0.75, "clip": True} | arguments
    manifest: Any = read(preprocessing=[LOAD, ORIENT, scale]).manifest
    found = manifest["channels"][0]["intensity"]
    assert [(each["kind"], each.get("output", each.get("range"))) for each in found] == steps
    percentiles = scale | {"_target_": "ScaleIntensityRangePercentilesd", "lower": 1, "upper": 99}
    percentiles = {key: value for key, value in percentiles.items() if key not in ("a_min", "a_max")}
    manifest = read(preprocessing=[LOAD, ORIENT, percentiles]).manifest
    found = manifest["channels"][0]["intensity"]
    assert [each.get("output", each.get("range")) for each in found] == [bounds for _, bounds in steps]


def test_the_highest_sigmoid_is_the_highest_logit_where_it_is_not_interpolated(read: Read) -> None:
    for steps in ([SIGMOID, ARGMAX, INVERT], [INVERT, SIGMOID, ARGMAX], [SIGMOID, INVERT | NEAREST, ARGMAX]):
        assert read(postprocessing=steps).manifest["activation"] == "softmax"


NEAREST = {"nearest_interp": True}
LAMBDA = {"_target_": "Lambdad", "keys": "pred", "func": "$lambda x: torch.where(x[[2]] > 0, 4, 1)"}
GIVEN = {
    "labels": [{"name": "whole tumour", "value": 2}, {"name": "core", "value": 1}, {"name": "enhancing", "value": 4}],
    "outputs": [{"channel": 1, "value": 2}, {"channel": 0, "value": 1}, {"channel": 2, "value": 4}],
}


def test_given_labels_stand_for_python_that_maps_them(read: Read) -> None:
    steps = [SIGMOID, INVERT, THRESHOLD, LAMBDA]
    with pytest.raises(ModelInvalid, match=r"line \d+, postprocessing#transforms#3: Lambdad: .*--labels"):
        read(postprocessing=steps)
    model = read(postprocessing=steps, labels=LabelChoice.model_validate(GIVEN))
    assert [output["value"] for output in model.manifest["outputs"]] == [2, 1, 4]  # type: ignore[attr-defined]
    assert any("Lambdad" in note for note in model.assumed)


def test_given_labels_stand_for_all_that_maps_labels(read: Read) -> None:
    given = LabelChoice.model_validate({"labels": GIVEN["labels"], "outputs": GIVEN["outputs"]})
    renamed = {"_target_": "MapLabelValued", "keys": "pred", "orig_labels": [0], "target_labels": [0]}
    own = {"_target_": "scripts.transforms.MergeClassesd", "keys": "pred"}
    largest = {"_target_": "KeepLargestConnectedComponentd", "keys": "pred", "applied_labels": [2]}
    metadata = {"network_data_format": {"outputs": {"pred": {"num_channels": 1}}}}
    steps = [ARGMAX, largest, renamed, renamed, own]
    model = read(postprocessing=steps, labels=given, metadata=metadata)
    assert model.manifest["postprocessing"] == [{"step": "largest_component", "labels": [4], "grid": "network"}]
    assert sum("left out" in note for note in model.assumed) == 3
    with pytest.raises(ModelInvalid, match="maps none"):
        read(postprocessing=[own, ARGMAX], labels=given)


def test_labels_after_a_renaming_that_is_left_out_are_the_new_ones(read: Read) -> None:
    given = LabelChoice.model_validate(
        {
            "labels": [{"name": "liver", "value": 5}, {"name": "tumour", "value": 6}],
            "outputs": [{"channel": 0, "value": None}, {"channel": 1, "value": 5}, {"channel": 2, "value": 6}],
        }
    )
    swapped = {"_target_": "MapLabelValued", "keys": "pred", "orig_labels": [1, 2], "target_labels": [2, 1]}
    further = swapped | {"orig_labels": [2], "target_labels": [9]}
    largest = {"_target_": "KeepLargestConnectedComponentd", "keys": "pred"}
    for label, value in ((9, 5), (1, 6)):
        steps = [INVERT, ARGMAX, swapped, further, largest | {"applied_labels": label}]
        model = read(postprocessing=steps, labels=given)
        assert model.manifest["postprocessing"] == [{"step": "largest_component", "labels": [value]}]
    python = {"_target_": "scripts.Rename", "keys": "pred"}
    assert read(postprocessing=[INVERT, ARGMAX, python, largest], labels=given).manifest["postprocessing"]
    with pytest.raises(ModelInvalid, match=r"KeepLargestConnectedComponentd\(applied_labels\): .*own Python"):
        read(postprocessing=[INVERT, ARGMAX, python, largest | {"applied_labels": 1}], labels=given)


def test_channels_that_may_overlap_are_not_cleaned_as_labels(read: Read) -> None:
    given = LabelChoice.model_validate(GIVEN)
    largest = {"_target_": "KeepLargestConnectedComponentd", "keys": "pred"}
    with pytest.raises(ModelInvalid, match="may overlap"):
        read(postprocessing=[SIGMOID, INVERT, THRESHOLD, largest], labels=given)
    assert read(postprocessing=[SIGMOID, INVERT, THRESHOLD, LAMBDA, largest], labels=given).manifest["postprocessing"]
    metadata = deepcopy(METADATA)
    metadata["network_data_format"]["outputs"]["pred"] = {"channel_def": {"0": "lesion"}}
    network = CONFIG["network_def"] | {"out_channels": 1}
    steps = [SIGMOID, INVERT, THRESHOLD, largest | {"applied_labels": 1}]
    manifest = read(metadata=metadata, network_def=network, postprocessing=steps).manifest
    assert manifest["postprocessing"] == [{"step": "largest_component", "labels": [1]}]


def test_the_first_reason_is_one_that_no_option_changes(read: Read) -> None:
    own = {"_target_": "scripts.transforms.Own", "keys": "image"}
    detector = {"_target_": "RetinaNet", "spatial_dims": 3, "feature_extractor": "$scripts.extractor()"}
    with pytest.raises(ModelInvalid, match=r"network_def: RetinaNet: .*segment volumes"):
        read(preprocessing=[LOAD, own], network_def=detector)
    with pytest.raises(ModelInvalid, match=r"scripts\.transforms\.Own is Python .*--config"):
        read(preprocessing=[LOAD, own], network_def={"_target_": "scripts.Net", "in_channels": 1, "out_channels": 3})
    with pytest.raises(ModelInvalid, match=r"scripts\.Net is Python .*--allow-code"):
        read(network_def={"_target_": "scripts.Net", "in_channels": 1, "out_channels": 3})


def test_modules_of_the_bundle_are_named_and_not_imported(read: Read) -> None:
    model = read(imports=["$import glob", "$import scripts.monai_utils"])
    assert [note for note in model.assumed if "scripts.monai_utils" in note]


SLIDING = CONFIG["inferer"]
NETWORK = CONFIG["network_def"]


@pytest.mark.parametrize(
    ("items", "named"),
    [
        ({"preprocessing": [LOAD, {"_target_": "Lambdad", "keys": "image", "func": "$lambda x: x"}]}, "Lambdad"),
        ({"preprocessing": [LOAD, {"_target_": "scripts.transforms.Own", "keys": "image"}]}, "scripts.transforms.Own"),
        ({"preprocessing": [LOAD, {"_target_": "Resized", "keys": "image", "spatial_size": 96}]}, "Resized"),
        ({"preprocessing": [LOAD, {"_target_": "RandFlipd", "keys": "image"}]}, "RandFlipd"),
        ({"preprocessing": [LOAD, SPACE, ORIENT]}, "Orientationd"),
        ({"preprocessing": [LOAD, PAD, ORIENT]}, "halves would be exchanged"),
        ({"preprocessing": [LOAD, PAD | {"method": "end"}, ORIENT]}, "halves would be exchanged"),
        ({"preprocessing": [LOAD, CROP | {"k_divisible": 8}, ORIENT]}, "k_divisible"),
        ({"preprocessing": [LOAD, SCALE | {"b_min": None, "b_max": None, "clip": True}]}, "where values are clipped"),
        ({"preprocessing": [LOAD, SPACE, SPACE]}, "resampled twice"),
        ({"preprocessing": [LOAD, SPACE | {"diagonal": True}]}, "diagonal"),
        ({"preprocessing": [LOAD, SPACE | {"mode": 5}]}, "mode"),
        ({"preprocessing": [LOAD, SPACE | {"padding_mode": "zeros"}]}, "padding_mode"),
        ({"preprocessing": [LOAD, SPACE | {"min_pixdim": [1, 1, 1]}]}, "min_pixdim"),
        ({"preprocessing": [LOAD, NORMALISE, SPACE, NORMALISE]}, "both before and after"),
        ({"preprocessing": [LOAD, SPACE, CROP, NORMALISE]}, "CropForegroundd"),
        ({"preprocessing": [LOAD, NORMALISE, CROP]}, "depend on the whole scan"),
        ({"preprocessing": [LOAD, CROP | {"select_fn": "$lambda x: x < 3"}]}, "select_fn"),
        ({"preprocessing": [LOAD, CROP | {"source_key": "label"}]}, "label"),
        ({"preprocessing": [LOAD, SCALE | {"a_min": "low"}]}, "a_min"),
        ({"preprocessing": [LOAD, SCALE | {"a_min": 300}]}, "a_min"),
        ({"preprocessing": [LOAD, {"_target_": "CastToTyped", "keys": "image", "dtype": "$torch.int16"}]}, "int16"),
        ({"preprocessing": [LOAD | {"keys": ["t1", "t2"]}]}, "network's input"),
        ({"preprocessing": []}, "no preprocessing"),
        ({"inferer": {"_target_": "PatchInferer"}}, "PatchInferer"),
        ({"inferer": {"_target_": "scripts.Inferer"}}, "scripts.Inferer"),
        ({"inferer": SLIDING | {"roi_size": [96, 96]}}, "roi_size"),
        ({"inferer": SLIDING | {"overlap": [0.5, 0.5, 0.25]}}, "overlap"),
        ({"inferer": SLIDING | {"with_coord": True}}, "with_coord"),
        ({"inferer": SLIDING | {"padding_mode": "circular"}}, "circular"),
        ({"network_def": NETWORK | {"spatial_dims": 2}}, "2 dimensions"),
        ({"network_def": {"_target_": "FlexibleUNet", "in_channels": 1, "out_channels": 3}}, "2 dimensions"),
        ({"inferer": {"_target_": "SliceInferer", "roi_size": [32, 32]}}, "a network for planes"),
        ({"network_def": "$monai.networks.nets.vista3d132(in_channels=1)"}, "vista3d132: a network of this class"),
        ({"network_def": "$monai.networks.nets.UNet(3, 1, 3)"}, "monai.networks.nets.UNet"),
        ({"evaluator": EVALUATOR | {"mode": "train"}}, "mode"),
        ({"evaluator": EVALUATOR | {"prepare_batch": "$lambda batch, device, _: batch"}}, "prepare_batch"),
        ({"evaluator": EVALUATOR | {"iteration_update": "$scripts.update"}}, "iteration_update"),
        ({"evaluator": {"_target_": "EnsembleEvaluator", "networks": []}}, "several networks"),
        ({"network_def": {"_target_": "scripts.networks.Net"}}, "scripts.networks.Net"),
        ({"network_def": {"_target_": "monai.networks.nets.RetinaNet"}}, "RetinaNet"),
        ({"network_def": NETWORK | {"dints_space": {"_target_": "monai.networks.nets.Cell"}}}, "dints_space"),
        ({"network_def": {"_target_": "monai.bundle.scripts.run"}}, "run"),
        ({"network_def": NETWORK | {"channels": "$torch.save('x')"}}, "torch.save"),
        ({"inferer": {"_target_": "SlidingWindowInferer", "roi_size": "$torch.load('x')['roi']"}}, "roi_size"),
        ({"network_def": NETWORK | {"out_channels": 4}}, "contradict"),
        ({"network_def": NETWORK | {"in_channels": 4}}, "contradict"),
        ({"checkpointloader": {"_target_": "CheckpointLoader", "load_path": "../../model.pt"}}, "outside the bundle"),
        ({"checkpointloader": {"_target_": "CheckpointLoader", "load_path": "/model.pt"}}, "outside the bundle"),
        ({"postprocessing": [SIGMOID, INVERT, THRESHOLD]}, "may overlap"),
        ({"postprocessing": [SOFTMAX, THRESHOLD]}, "threshold"),
        ({"postprocessing": [SIGMOID, INVERT, ARGMAX]}, "highest of several sigmoids"),
        ({"postprocessing": [ARGMAX | {"dim": 1}]}, "AsDiscreted(dim)"),
        ({"postprocessing": [INVERT, SOFTMAX, INVERT, ARGMAX]}, "inverted already"),
        (
            {"postprocessing": [SOFTMAX, {"_target_": "FillHolesd", "keys": "pred"}, ARGMAX]},
            "before labels are decided",
        ),
        ({"postprocessing": [ARGMAX, SOFTMAX]}, "after the decision"),
        ({"postprocessing": [ARGMAX, {"_target_": "LabelToContourd", "keys": "pred"}]}, "LabelToContourd"),
        ({"preprocessing": [LOAD, {"_target_": "Lambdad", "keys": "image", "func": "$lambda x: x"}]}, "own, which is"),
        ({"preprocessing": [{"_target_": "LoadImage"}]}, "only transforms of dictionaries"),
        ({"preprocessing": [LOAD, RESIZE | {"mode": "area"}]}, "'area'"),
        ({"preprocessing": [LOAD, RESIZE | {"spatial_size": [64, 64]}]}, "three axes"),
        ({"preprocessing": [LOAD, RESIZE, ORIENT]}, "after Resized"),
        ({"preprocessing": [LOAD, SPACE, RESIZE]}, "resampled twice"),
        ({"preprocessing": [LOAD, RESIZE], "postprocessing": [ARGMAX, INVERT | {"nearest_interp": True}]}, "Resized"),
        ({"preprocessing": [LOAD, SPACE, SCALE, BOX, NORMALISE]}, "between intensities"),
        ({"preprocessing": [LOAD, BOX, SPACE]}, "padded before"),
        ({"preprocessing": [LOAD, BOX | {"mode": "edge"}]}, "padding with 0"),
        (
            {"preprocessing": [LOAD | {"meta_keys": "${'_target_': 'os.system', 'command': 'id'}"}]},
            "keys that begin with _",
        ),
        ({"preprocessing": [LOAD, SCALE | {"a_max": float("inf")}]}, "finite"),
        ({"preprocessing": [LOAD, SCALE | {"a_max": 10**400}]}, "finite"),
        (
            {
                "postprocessing": [
                    ARGMAX,
                    {"_target_": "LabelFilterd", "keys": "pred", "applied_labels": float("inf")},
                ]
            },
            "whole numbers",
        ),
        ({"postprocessing": [ARGMAX, {"_target_": "scripts.Post", "keys": "pred"}]}, "own Python"),
        ({"postprocessing": [ARGMAX, INVERT | {"transform": "@other"}], "other": {"_target_": "Compose"}}, "inverts"),
        ({"postprocessing": [ARGMAX, INVERT | {"orig_keys": None}]}, "orig_keys"),
        (
            {
                "preprocessing": [LOAD],
                "postprocessing": [ARGMAX, {"_target_": "RemoveSmallObjectsd", "keys": "pred"}],
            },
            "millilitres",
        ),
    ],
)
def test_what_a_manifest_cannot_say_is_refused_by_name(read: Read, items: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelInvalid) as refused:
        read(**items)
    assert named in str(refused.value)


def test_missing_weights_are_named(read: Read) -> None:
    with pytest.raises(InputNotFound, match=r"models/other.pt"):
        read(checkpointloader={"_target_": "CheckpointLoader", "load_path": "models/other.pt"})


LOADER = {"_target_": "CheckpointLoader", "load_path": "models/model.pt"}
OTHER_LOADER = {"_target_": "CheckpointLoader", "load_path": "models/pretrain.pt"}


@pytest.mark.parametrize(
    "items",
    [
        {"checkpointloader": OTHER_LOADER | {"_disabled_": True}},
        {"pretraining": OTHER_LOADER, "evaluator": {"_target_": "SupervisedEvaluator", "val_handlers": [LOADER]}},
        {"again": LOADER},
    ],
)
def test_the_checkpoint_is_the_one_that_the_evaluator_loads(read: Read, items: dict[str, Any]) -> None:
    where = {each.what: each.where for each in read(**items).taken}
    assert where["its weights"] == "models/model.pt"


@pytest.mark.parametrize(
    ("items", "named"),
    [
        ({"pretraining": OTHER_LOADER}, "models/pretrain.pt"),
        (
            {"checkpointloader": None, "initialize": ["$@network.load_state_dict(torch.load('x'))"]},
            "initialize#0: it loads weights by Python",
        ),
    ],
)
def test_weights_that_are_in_doubt_are_refused(read: Read, items: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelInvalid) as refused:
        read(**items)
    assert named in str(refused.value)


def test_unnamed_labels_are_asked_for(read: Read) -> None:
    with pytest.raises(ModelInvalid, match="--labels"):
        read(metadata={})
