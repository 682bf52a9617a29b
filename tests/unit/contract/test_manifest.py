"""The manifest's rules, and manifests for models of nnU-Net and MONAI."""

import json
import re
from collections.abc import Callable, Sequence
from hashlib import sha256

import pytest
from manifests import VALID_MANIFEST
from pydantic import ValidationError

from inference_service.contract.intensity import (
    ClipIntensity,
    CtIntensity,
    FixedRangeIntensity,
    Intensity,
    MinMaxIntensity,
    NoIntensity,
    PercentilesIntensity,
    ZScoreIntensity,
)
from inference_service.contract.labels import LargestComponent
from inference_service.contract.manifest import Manifest
from inference_service.contract.part import NetworkFile, OutputChannel

LABELS = [{"name": "lung", "value": 1}, {"name": "heart", "value": 2}]

# nnU-Net 2: the parts of plans.json and dataset.json that concern inference with the 3d_fullres configuration.
NNUNET_PLANS: dict[str, object] = {
    "dataset_name": "Dataset701_Chest",
    "transpose_forward": [0, 1, 2],
    "image_reader_writer": "SimpleITKIO",
    "foreground_intensity_properties_per_channel": {
        "0": {"mean": 54.6, "std": 132.1, "percentile_00_5": -903.0, "percentile_99_5": 376.0}
    },
    "configuration": {
        "patch_size": [80, 192, 160],
        "spacing": [2.5, 0.78125, 0.78125],
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None},
        "resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None},
    },
}
NNUNET_DATASET: dict[str, object] = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "lung": 1, "heart": 2},
}
NNUNET_REGIONS: dict[str, object] = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3},
    "regions_class_order": [1, 2, 3],
}

# MONAI bundle: the transforms and the inferer of configs/inference.json, by their _target_.
MONAI_CT: dict[str, dict[str, object]] = {
    "Orientationd": {"axcodes": "RAS"},
    "Spacingd": {"pixdim": [1.5, 1.5, 2.0], "mode": "bilinear"},
    "ScaleIntensityRanged": {"a_min": -57, "a_max": 164, "b_min": 0.0, "b_max": 1.0, "clip": True},
    "SlidingWindowInferer": {"roi_size": [96, 96, 64], "overlap": 0.625, "mode": "gaussian", "cval": -1.0},
    "Activationsd": {"softmax": True},
    "AsDiscreted": {"argmax": True},
    "KeepLargestConnectedComponentd": {"applied_labels": [1], "connectivity": 3},
}
MONAI_MR: dict[str, dict[str, object]] = {
    "Orientationd": {"axcodes": "SPL"},
    "Spacingd": {"pixdim": [1.0, 1.0, 1.0], "mode": "bilinear"},
    "NormalizeIntensityd": {"nonzero": True, "channel_wise": True},
    "SlidingWindowInferer": {"roi_size": [240, 240, 160], "overlap": 0.5, "mode": "constant", "cval": 0.0},
    "Activationsd": {"sigmoid": True},
    "AsDiscreted": {"threshold": 0.5},
}


def manifest(**changes: object) -> Manifest:
    return Manifest.model_validate_json(json.dumps({**VALID_MANIFEST, **changes}))


def intensity(**fields: object) -> list[dict[str, object]]:
    return [{"name": "CT", "intensity": fields}]


def intensity_list(*intensities: dict[str, object]) -> list[dict[str, object]]:
    return [{"name": "CT", "intensity": intensities}]


def test_defaults() -> None:
    plain = manifest()
    assert (plain.interpolation, plain.separate_axis_above) == ("linear", None)
    assert (plain.overlap, plain.placement, plain.blending, plain.padding_value) == (0.5, "snap", "gaussian", 0.0)
    assert plain.postprocessing == ()


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"name": "../x"}, "name"),
        ({"name": "Upper"}, "name"),
        ({"name": "-dash"}, "name"),
        ({"name": "n" * 65}, "name"),
        ({"name": "ct-lung\n"}, "name"),
        ({"version": "v1"}, "version"),
        ({"version": "1.2.3.4"}, "version"),
        ({"version": "1."}, "version"),
        ({"version": ".."}, "version"),
        ({"description": ""}, "description"),
        ({"licence": ""}, "licence"),
        ({"intended_use": ""}, "intended_use"),
        ({"modality": "XR"}, "modality"),
        ({"sha256": "0" * 63}, "sha256"),
        ({"sha256": "A" * 64}, "sha256"),
        ({"channels": []}, "channels"),
        ({"channels": [{"name": "", "intensity": {"kind": "none"}}]}, "channels.0.name"),
        ({"channels": intensity(kind="magic")}, "channels.0.intensity"),
        ({"channels": intensity(kind="none", clip=True)}, "channels.0.intensity.none.clip"),
        ({"channels": intensity_list()}, "channels.0.intensity"),
        ({"channels": intensity_list({"kind": "none"}, {"kind": "none", "clip": True})},
         "channels.0.intensity.1.none.clip"),
        ({"channels": intensity(kind="ct", clip=[3, 3], mean=0, std=1)}, "channels.0.intensity.ct.clip"),
        ({"channels": intensity(kind="ct", clip=[0, 3], mean=0, std=0)}, "channels.0.intensity.ct.std"),
        ({"channels": intensity(kind="ct", clip=[0, 3], std=1)}, "channels.0.intensity.ct.mean"),
        ({"channels": intensity(kind="percentiles", percentiles=[5, 101])},
         "channels.0.intensity.percentiles.percentiles.1"),
        ({"channels": intensity(kind="percentiles", percentiles=[95, 5])},
         "channels.0.intensity.percentiles.percentiles"),
        ({"channels": intensity(kind="min_max", output=[1, 0])}, "channels.0.intensity.min_max.output"),
        ({"channels": intensity(kind="fixed_range", input=[1, 0])}, "channels.0.intensity.fixed_range.input"),
        ({"orientation": "RAR"}, ""),
        ({"orientation": "RA"}, ""),
        ({"orientation": "ras"}, ""),
        ({"orientation": "RASL"}, ""),
        ({"spacing_mm": [1, 1]}, "spacing_mm.2"),
        ({"spacing_mm": [1, 0, 1]}, "spacing_mm.1"),
        ({"interpolation": "magic"}, "interpolation"),
        ({"separate_axis_above": 0}, "separate_axis_above"),
        ({"window": [96, 96]}, "window.2"),
        ({"window": [96, 96, 0]}, "window.2"),
        ({"window": [96, 96, 1.5]}, "window.2"),
        ({"overlap": 1}, "overlap"),
        ({"overlap": -0.1}, "overlap"),
        ({"placement": "random"}, "placement"),
        ({"blending": "max"}, "blending"),
        ({"blending": {"sigma": 0}}, "blending.sigma"),
        ({"padding_value": float("nan")}, "padding_value"),
        ({"padding_value": float("inf")}, "padding_value"),
        ({"activation": "relu"}, "activation"),
        ({"labels": []}, "labels"),
        ({"labels": [{"name": "lung", "value": 65536}]}, "labels.0.value"),
        ({"labels": [{"name": "lung", "value": -1}]}, "labels.0.value"),
        ({"labels": [{"name": "lung", "value": 1, "colour": [0, 0, 256]}]}, "labels.0.colour.2"),
        ({"labels": [{"name": "lung", "value": 1,
                      "modifier": {"scheme": "SCT", "value": "7771000", "meaning": "Left"}}]}, "labels.0"),
        ({"labels": [{"name": "lung", "value": 1}, {"name": "lung", "value": 2}]}, ""),
        ({"labels": [{"name": "lung", "value": 1}, {"name": "heart", "value": 1}]}, ""),
        ({"activation": "sigmoid"}, ""),
        ({"postprocessing": [{"step": "largest_component", "labels": [7]}]}, ""),
        ({"postprocessing": [{"step": "largest_component", "labels": [1], "becomes": 7}]}, ""),
        ({"postprocessing": [{"step": "largest_component", "labels": []}]},
         "postprocessing.0.largest_component.labels"),
        ({"postprocessing": [{"step": "remove_small", "labels": [1], "min_volume_ml": 0}]},
         "postprocessing.0.remove_small.min_volume_ml"),
        *(({"postprocessing": [{"step": "remove_small", "labels": [1], "min_volume_ml": 1, "min_share": share}]},
           "postprocessing.0.remove_small.min_share") for share in (-0.1, 1.1, float("nan"))),
        ({"postprocessing": [{"step": "fill", "labels": [1]}]}, "postprocessing.0"),
        ({"unknown": 1}, "unknown"),
    ],
)  # fmt: skip
def test_an_invalid_value_is_refused_and_its_field_named(changes: dict[str, object], field: str) -> None:
    with pytest.raises(ValidationError) as caught:
        manifest(**changes)
    assert ".".join(str(part) for part in caught.value.errors()[0]["loc"]) == field


@pytest.mark.parametrize("field", [name for name in VALID_MANIFEST if name != "sha256"])
def test_each_field_without_a_default_is_required(field: str) -> None:
    without = {name: value for name, value in VALID_MANIFEST.items() if name != field}
    with pytest.raises(ValidationError, match="Field required"):
        Manifest.model_validate_json(json.dumps(without))


SHA256 = VALID_MANIFEST["sha256"]
NETWORKS = [{"file": "fold_0.onnx", "sha256": "a" * 64}, {"file": "fold_1.onnx", "sha256": "b" * 64}]
OTHER_CHANNEL = {"name": "PET", "intensity": {"kind": "none"}}


def test_a_manifest_of_one_network_is_completed() -> None:
    model = manifest()
    assert model.networks == (NetworkFile(file="model.onnx", sha256=str(SHA256)),)
    assert model.outputs == (OutputChannel(channel=0, value=0), OutputChannel(channel=1, value=1))
    assert model.all_parts == model.every_part == (model,)
    assert model.networks_sha256 == SHA256


def test_a_channel_may_have_several_intensities() -> None:
    model = manifest(channels=intensity_list({"kind": "clip", "range": [0, 9]}, {"kind": "none"}))
    assert model.channels[0].intensities == (ClipIntensity(kind="clip", range=(0, 9)), NoIntensity(kind="none"))


def test_several_networks_are_identified_together() -> None:
    model = manifest(sha256=None, networks=NETWORKS)
    assert list(model.network_files) == ["fold_0.onnx", "fold_1.onnx"]
    assert model.networks_sha256 == sha256(b"a" * 64 + b"b" * 64).hexdigest()
    external = manifest(sha256=None, networks=[{**NETWORKS[0], "external_data": {"fold_0.data": "c" * 64}}])
    assert external.networks_sha256 == sha256(b"a" * 64 + b"c" * 64).hexdigest()


def test_parts_and_first_stages_inherit_what_they_leave_out() -> None:
    coarse = {"networks": NETWORKS[:1], "spacing_mm": [3, 3, 3]}
    fine = {"networks": NETWORKS[1:], "orientation": "LPS", "first_stage": coarse}
    plain = {"networks": [{"file": "model.onnx", "sha256": SHA256}], "outputs": [{"channel": 0, "value": 1}]}
    model = manifest(sha256=None, overlap=0.25, parts=[fine, plain])
    first_stage, with_stage, last = model.every_part
    assert model.all_parts == (with_stage, last)
    assert (first_stage.orientation, first_stage.spacing_mm, first_stage.overlap) == ("LPS", (3, 3, 3), 0.25)
    assert (with_stage.orientation, with_stage.spacing_mm, with_stage.overlap) == ("LPS", (1.5, 1, 2), 0.25)
    assert (last.orientation, last.first_stage, last.overlap) == ("RAS", None, 0.25)
    assert [len(part.outputs) for part in model.every_part] == [2, 2, 1]
    assert [part.values for part in model.every_part] == [[1], [1], [1]]


ON_NETWORK = {"step": "largest_component", "labels": [1], "grid": "network"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sha256": None}, "a network is required: sha256 of model.onnx, or networks"),
        ({"networks": NETWORKS}, "sha256 is that of model.onnx: leave it out"),
        ({"parts": [{"networks": NETWORKS}]}, "a manifest with parts has no sha256 of its own"),
        ({"sha256": None, "networks": NETWORKS, "parts": [{"networks": NETWORKS}]}, "has no networks of its own"),
        ({"sha256": None, "parts": [{}]}, "a network is required"),
        ({"sha256": None, "parts": [{"networks": NETWORKS}, {"networks": NETWORKS, "window": [64, 1, 32]}]},
         "parts that share fold_0.onnx must describe it alike"),
        ({"sha256": None, "networks": [NETWORKS[0], {**NETWORKS[0], "output": "aux"}]}, "must describe it alike"),
        ({"sha256": None, "parts": [{"networks": NETWORKS, "channels": [OTHER_CHANNEL]}]},
         "a part has channels that the manifest does not have: ['PET']"),
        ({"outputs": [{"channel": 0, "value": 7}]}, "outputs have values that no label has: [7]"),
        ({"outputs": [{"channel": 1, "value": 1}]}, "each output channel once, from 0 on, got [1]"),
        ({"outputs": [{"channel": 0, "value": 1}] * 2}, "each output channel once, from 0 on, got [0, 0]"),
        ({"first_stage": {"first_stage": {}}}, "a first stage has no first stage of its own"),
        ({"first_stage": {"outputs": [{"channel": 0, "value": 0}]}}, "a first stage needs an output with a value"),
        ({"grid": "first_centre", "interpolation": "area"}, "interpolation area needs the grid edges"),
        ({"grid": "centres", "interpolation": "area"}, "interpolation area needs the grid edges"),
        ({"truncate_resampled": True, "intensity_before_resampling": True}, "truncate_resampled needs intensities"),
        ({"crop": {"kind": "nonzero", "prepared": True, "margin_mm": 1}}, "a crop of the resampled scan has no margin"),
        ({"crop": {"kind": "nonzero", "prepared": True}, "intensity_before_resampling": True},
         "a crop of the resampled scan has no margin, and intensities that are normalised after it"),
        ({"crop": [{"kind": "body"}, {"kind": "nonzero"}]}, "the second one of the prepared scan"),
        ({"crop": [{"kind": "foreground", "prepared": True}, {"kind": "nonzero", "prepared": True}]},
         "of two crops, the first one is of the scan"),
        ({"crop": {"kind": "foreground", "channel": 1}}, "crop.channel is 1, and the part has 1 channels"),
        ({"crop": {"kind": "foreground", "prepared": True},
          "outputs": [{"channel": 0, "value": 1}, {"channel": 1, "value": 0}]},
         "needs the background as the first output"),
        ({"box_voxels": [8, 8, 8], "outputs": [{"channel": 0, "value": 1}, {"channel": 1, "value": 0}]},
         "needs the background as the first output"),
        ({"box_voxels": [8, 8, 8], "crop": {"kind": "foreground", "prepared": True}}, "exclude one another"),
        ({"size_voxels": [8, 8, 8], "spacing_mm": [1, None, None]}, "size_voxels takes the place of spacing_mm"),
        ({"size_voxels": [8, 8, 8], "spacing_mm": [None] * 3, "grid": "first_centre"}, "on the grid edges"),
        ({"postprocessing": [ON_NETWORK]}, "a step on the grid of the network needs one part"),
        ({"postprocessing": [{**ON_NETWORK, "grid": "scan"}, ON_NETWORK], "logits_interpolation": "nearest"},
         "steps on the grid of the network come before"),
    ],
)  # fmt: skip
def test_contradictions_of_parts_and_networks_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(message)):
        manifest(**changes)


@pytest.mark.parametrize("file", ["../model.onnx", "folder/model.onnx", ".hidden", "", "/etc/passwd", "a\\b", "a\n"])
@pytest.mark.parametrize("external", [False, True])
def test_a_network_lies_in_the_folder_of_its_manifest(file: str, external: bool) -> None:
    named = (
        {"file": "a.onnx", "sha256": SHA256, "external_data": {file: SHA256}}
        if external
        else {"file": file, "sha256": SHA256}
    )
    with pytest.raises(ValidationError, match="should match pattern"):
        manifest(sha256=None, networks=[named])


class StrictConfig(dict[str, object]):
    """A configuration whose entries are removed as they are used, so that unused entries remain visible."""

    def part(self, key: str) -> "StrictConfig":
        value = self.pop(key)
        assert isinstance(value, dict)
        return StrictConfig(value)

    def numbers(self, key: str) -> list[float]:
        value = self.pop(key)
        assert isinstance(value, list)
        return value

    def number(self, key: str) -> float:
        value = self.pop(key)
        assert isinstance(value, int | float)
        return value


def nnunet_intensity(scheme: object, masked: object, fingerprint: StrictConfig) -> dict[str, object]:
    if scheme == "CTNormalization":
        clip = [fingerprint.pop("percentile_00_5"), fingerprint.pop("percentile_99_5")]
        return {"kind": "ct", "clip": clip, "mean": fingerprint.pop("mean"), "std": fingerprint.pop("std")}
    fingerprint.clear()
    kinds: dict[object, dict[str, object]] = {
        "ZScoreNormalization": {"kind": "z_score", "nonzero_only": masked, "fill_holes": masked},
        "RescaleTo01Normalization": {"kind": "min_max"},
        "RGBTo01Normalization": {"kind": "fixed_range", "input": [0, 255], "clip": False},
        "NoNormalization": {"kind": "none"},
    }
    return kinds[scheme]


def nnunet_labels(dataset: StrictConfig) -> dict[str, object]:
    labels = dataset.part("labels")
    if "regions_class_order" not in dataset:
        named = [{"name": name, "value": value} for name, value in labels.items()]
        return {"activation": "softmax", "labels": named}
    labels.pop("background")
    regions = zip(labels, dataset.numbers("regions_class_order"), strict=True)
    return {"activation": "sigmoid", "labels": [{"name": name, "value": value} for name, value in regions]}


def from_nnunet(plans: dict[str, object], dataset: dict[str, object]) -> Manifest:
    """The manifest of an nnU-Net model; asserts that its whole configuration was used."""
    config = StrictConfig(json.loads(json.dumps(plans)))
    data = StrictConfig(json.loads(json.dumps(dataset)))
    configuration = config.part("configuration")
    fingerprints = config.part("foreground_intensity_properties_per_channel")
    schemes = configuration.numbers("normalization_schemes")
    masks = configuration.numbers("use_mask_for_norm")
    channels = []
    for (index, name), scheme, masked in zip(data.part("channel_names").items(), schemes, masks, strict=True):
        fingerprint = fingerprints.part(index)
        channels.append({"name": name, "intensity": nnunet_intensity(scheme, masked, fingerprint)})
        assert not fingerprint
    # SimpleITK returns the axes of the file in reversed order.
    assert config.pop("image_reader_writer") == "SimpleITKIO"
    orientation = "".join("kji"[int(axis)] for axis in config.numbers("transpose_forward"))
    resampling = configuration.part("resampling_fn_data_kwargs")
    back = configuration.part("resampling_fn_probabilities_kwargs")
    assert back == {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    fields: dict[str, object] = {
        "description": config.pop("dataset_name"),
        "channels": channels,
        "orientation": orientation,
        "spacing_mm": configuration.numbers("spacing"),
        "interpolation": {1: "linear", 3: "cubic"}[int(resampling.number("order"))],
        "separate_axis_above": None if resampling.pop("force_separate_z") is False else 3,
        "window": configuration.numbers("patch_size"),
        "overlap": 0.5,
        "placement": "even",
        "blending": {"kind": "gaussian", "centre": "voxel"},
        **nnunet_labels(data),
    }
    assert resampling == {"is_seg": False, "order_z": 0}
    assert (config, data, configuration, fingerprints) == ({}, {}, {}, {})
    return manifest(**fields)


def test_a_manifest_describes_an_nnunet_model() -> None:
    model = from_nnunet(NNUNET_PLANS, NNUNET_DATASET)
    intensity = CtIntensity(kind="ct", clip=(-903.0, 376.0), mean=54.6, std=132.1)
    assert [(channel.name, channel.intensities) for channel in model.channels] == [("CT", (intensity,))]
    assert (model.orientation, model.spacing_mm, model.window) == ("kji", (2.5, 0.78125, 0.78125), (80, 192, 160))
    assert (model.interpolation, model.separate_axis_above, model.placement) == ("cubic", 3, "even")
    assert model.activation == "softmax"
    assert [(label.name, label.value) for label in model.labels] == [("background", 0), ("lung", 1), ("heart", 2)]


def test_nnunet_regions_become_sigmoid_channels_in_order() -> None:
    model = from_nnunet(NNUNET_PLANS, NNUNET_REGIONS)
    assert model.activation == "sigmoid"
    assert [(label.name, label.value) for label in model.labels] == [("whole", 1), ("core", 2), ("enhancing", 3)]


@pytest.mark.parametrize(
    ("scheme", "masked", "kind"),
    [
        ("ZScoreNormalization", True, ZScoreIntensity(kind="z_score", nonzero_only=True, fill_holes=True)),
        ("ZScoreNormalization", False, ZScoreIntensity(kind="z_score")),
        ("RescaleTo01Normalization", False, MinMaxIntensity(kind="min_max", output=(0.0, 1.0))),
        ("RGBTo01Normalization", False, FixedRangeIntensity(kind="fixed_range", input=(0.0, 255.0), clip=False)),
        ("NoNormalization", False, NoIntensity(kind="none")),
    ],
)
def test_every_nnunet_normalisation_has_an_intensity_kind(scheme: str, masked: bool, kind: Intensity) -> None:
    configuration = StrictConfig(NNUNET_PLANS).part("configuration")
    configuration |= {"normalization_schemes": [scheme], "use_mask_for_norm": [masked]}
    model = from_nnunet({**NNUNET_PLANS, "configuration": configuration}, NNUNET_DATASET)
    assert model.channels[0].intensities == (kind,)


def test_an_nnunet_transposition_becomes_an_orientation() -> None:
    assert from_nnunet({**NNUNET_PLANS, "transpose_forward": [2, 0, 1]}, NNUNET_DATASET).orientation == "ikj"


MonaiPart = Callable[[StrictConfig], dict[str, object]]


def monai_range(config: StrictConfig) -> dict[str, object]:
    fields = {
        "kind": "fixed_range",
        "input": [config.pop("a_min"), config.pop("a_max")],
        "output": [config.pop("b_min"), config.pop("b_max")],
        "clip": config.pop("clip"),
    }
    return {"channels": intensity(**fields)}


def monai_normalise(config: StrictConfig) -> dict[str, object]:
    assert config.pop("channel_wise") is True
    return {"channels": intensity(kind="z_score", nonzero_only=config.pop("nonzero"))}


def monai_percentiles(config: StrictConfig) -> dict[str, object]:
    fields = {
        "kind": "percentiles",
        "percentiles": [config.pop("lower"), config.pop("upper")],
        "output": [config.pop("b_min"), config.pop("b_max")],
        "clip": config.pop("clip"),
    }
    return {"channels": intensity(**fields)}


def monai_spacing(config: StrictConfig) -> dict[str, object]:
    kinds: dict[object, str] = {"bilinear": "linear", 3: "cubic"}
    return {
        "spacing_mm": config.pop("pixdim"),
        "interpolation": kinds[config.pop("mode")],
        "grid": "first_centre",
    }


def monai_inferer(config: StrictConfig) -> dict[str, object]:
    return {
        "window": config.pop("roi_size"),
        "overlap": config.pop("overlap"),
        "blending": config.pop("mode"),
        "padding_value": config.pop("cval"),
    }


def monai_activation(config: StrictConfig) -> dict[str, object]:
    (activation,) = (name for name in ("softmax", "sigmoid") if config.pop(name, False))
    return {"activation": activation}


def monai_discrete(config: StrictConfig) -> dict[str, object]:
    assert config.popitem() in (("argmax", True), ("threshold", 0.5))
    return {}


def monai_largest(config: StrictConfig) -> dict[str, object]:
    assert config.pop("connectivity") == 3
    return {"postprocessing": [{"step": "largest_component", "labels": config.pop("applied_labels")}]}


MONAI: dict[str, MonaiPart] = {
    "Orientationd": lambda config: {"orientation": config.pop("axcodes")},
    "Spacingd": monai_spacing,
    "ScaleIntensityRanged": monai_range,
    "ScaleIntensityRangePercentilesd": monai_percentiles,
    "NormalizeIntensityd": monai_normalise,
    "SlidingWindowInferer": monai_inferer,
    "Activationsd": monai_activation,
    "AsDiscreted": monai_discrete,
    "KeepLargestConnectedComponentd": monai_largest,
}


def from_monai(bundle: dict[str, dict[str, object]], labels: Sequence[dict[str, object]]) -> Manifest:
    """The manifest of a MONAI bundle; asserts that its whole configuration was used."""
    fields: dict[str, object] = {"labels": labels, "placement": "snap"}
    for target, arguments in bundle.items():
        config = StrictConfig(arguments)
        fields |= MONAI[target](config)
        assert not config, target
    return manifest(**fields)


def test_a_manifest_describes_a_monai_bundle() -> None:
    model = from_monai(MONAI_CT, [{"name": "background", "value": 0}, *LABELS])
    assert model.channels[0].intensities == (FixedRangeIntensity(kind="fixed_range", input=(-57.0, 164.0)),)
    assert (model.orientation, model.spacing_mm, model.interpolation) == ("RAS", (1.5, 1.5, 2.0), "linear")
    assert (model.window, model.overlap, model.placement) == ((96, 96, 64), 0.625, "snap")
    assert (model.blending, model.padding_value, model.activation) == ("gaussian", -1.0, "softmax")
    assert model.postprocessing == (LargestComponent(step="largest_component", labels=(1,)),)


def test_a_manifest_describes_a_monai_bundle_of_regions() -> None:
    model = from_monai(MONAI_MR, LABELS)
    assert model.channels[0].intensities == (ZScoreIntensity(kind="z_score", nonzero_only=True),)
    assert (model.orientation, model.blending, model.activation) == ("SPL", "constant", "sigmoid")


def test_a_monai_bundle_scales_by_percentiles() -> None:
    scaling: dict[str, object] = {"lower": 1, "upper": 99, "b_min": -1.0, "b_max": 1.0, "clip": False}
    bundle = {name: part for name, part in MONAI_CT.items() if name != "ScaleIntensityRanged"}
    model = from_monai({**bundle, "ScaleIntensityRangePercentilesd": scaling}, LABELS)
    expected = PercentilesIntensity(kind="percentiles", percentiles=(1.0, 99.0), output=(-1.0, 1.0), clip=False)
    assert model.channels[0].intensities == (expected,)


def channels(*names: str, **fields: object) -> list[dict[str, object]]:
    return [{"name": name, "intensity": {"kind": "none"}, **fields} for name in names]


def test_channels_of_one_name_get_one_scan() -> None:
    manifest = Manifest.model_validate(VALID_MANIFEST | {"channels": channels("PET", "CT", "CT")})
    assert manifest.channel_names == ("PET", "CT")
    different = channels("CT", modality="CT") + channels("CT", modality="PT")
    with pytest.raises(ValidationError, match="must have the same modality"):
        Manifest.model_validate(VALID_MANIFEST | {"channels": different})


def test_the_number_of_scans_is_limited() -> None:
    names = [str(number) for number in range(17)]
    assert len(Manifest.model_validate(VALID_MANIFEST | {"channels": channels(*names[:16], "0")}).channel_names) == 16
    with pytest.raises(ValidationError, match="at most 16 channels"):
        Manifest.model_validate(VALID_MANIFEST | {"channels": channels(*names)})
