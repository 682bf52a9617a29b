"""A results folder in the format of nnU-Net v2, with random weights; its plans, for tests too."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.models import CT_CLIP, CT_MEAN, CT_STD, SPACING_MM
from benchmarks.networks import ARCHITECTURE, NAMED_ARGUMENTS, UNet, architecture_arguments

CHECKPOINT = "checkpoint_final.pth"
_CONFIGURATION = "3d_fullres"
_RESAMPLING = "resample_data_or_seg_to_shape"
_AXES = (0, 1, 2)


@dataclass(frozen=True)
class Planned:
    """One configuration of a network in plans.

    Attributes:
        name: Its name.
        window: `patch_size`.
        spacing_mm: `spacing`.
        schemes: `normalization_schemes`, one for each channel.
        masked: `use_mask_for_norm` of all channels.
        arguments: `arch_kwargs` of a PlainConvUNet.
    """

    name: str
    window: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    arguments: Mapping[str, object]
    schemes: Sequence[str] = ("CTNormalization",)
    masked: bool = False


def write_nnunet_folder(folder: Path, unet: UNet, weights: Path) -> None:
    """Writes `plans.json`, `dataset.json` and the checkpoint of fold 0."""
    import torch

    fold = folder / "fold_0"
    fold.mkdir(parents=True)
    planned = Planned(_CONFIGURATION, (unet.window,) * 3, (SPACING_MM,) * 3, architecture_arguments(unet))
    ct = {"mean": CT_MEAN, "std": CT_STD, "percentile_00_5": CT_CLIP[0], "percentile_99_5": CT_CLIP[1]}
    plans = make_plans("Dataset001_Benchmark", [planned], ct)
    labels = {"background": 0} | {f"label {value}": value for value in range(1, unet.labels)}
    (folder / "dataset.json").write_text(json.dumps(make_dataset(["CT"], labels)), encoding="utf-8")
    (folder / "plans.json").write_text(json.dumps(plans), encoding="utf-8")
    checkpoint = {
        "trainer_name": "nnUNetTrainer",
        "init_args": {"configuration": _CONFIGURATION},
        "inference_allowed_mirroring_axes": None,
        "network_weights": torch.load(weights, weights_only=True),
    }
    torch.save(checkpoint, fold / CHECKPOINT)


def make_dataset(channels: Sequence[str], labels: Mapping[str, object], **fields: object) -> dict[str, object]:
    """Returns the content of dataset.json.

    Args:
        channels: Names of the channels.
        labels: Values of each label, or of each region.
        fields: Further fields.
    """
    names = {str(number): name for number, name in enumerate(channels)}
    return {"channel_names": names, "labels": dict(labels), "numTraining": 1, "file_ending": ".nii.gz", **fields}


def make_plans(
    dataset: str,
    configurations: Sequence[Planned],
    intensities: Mapping[str, float],
    *,
    reader: str = "SimpleITKIO",
    transposed: Sequence[int] = _AXES,
) -> dict[str, object]:
    """Returns plans as nnU-Net's default planner writes them.

    Args:
        dataset: Name of the data set.
        configurations: The configurations.
        intensities: `foreground_intensity_properties_per_channel` of every channel.
        reader: `image_reader_writer`.
        transposed: `transpose_forward`.
    """
    first = configurations[0]
    return {
        "dataset_name": dataset,
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": list(first.spacing_mm),
        "original_median_shape_after_transp": list(first.window),
        "image_reader_writer": reader,
        "transpose_forward": list(transposed),
        "transpose_backward": [list(transposed).index(axis) for axis in _AXES],
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            str(channel): dict(intensities) for channel in range(len(first.schemes))
        },
        "configurations": {planned.name: _configuration(planned) for planned in configurations},
    }


def _configuration(planned: Planned) -> dict[str, object]:
    """The configuration of nnU-Net's default planner, which resamples images by cubic splines and logits linearly."""
    resampling = {"is_seg": False, "order_z": 0, "force_separate_z": None}
    return {
        "data_identifier": f"nnUNetPlans_{planned.name}",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(planned.window),
        "median_image_size_in_voxels": list(planned.window),
        "spacing": list(planned.spacing_mm),
        "normalization_schemes": list(planned.schemes),
        "use_mask_for_norm": [planned.masked] * len(planned.schemes),
        "resampling_fn_data": _RESAMPLING,
        "resampling_fn_data_kwargs": {**resampling, "order": 3},
        "resampling_fn_seg": _RESAMPLING,
        "resampling_fn_seg_kwargs": {**resampling, "is_seg": True, "order": 1},
        "resampling_fn_probabilities": _RESAMPLING,
        "resampling_fn_probabilities_kwargs": {**resampling, "order": 1},
        "architecture": {
            "network_class_name": ARCHITECTURE,
            "arch_kwargs": dict(planned.arguments),
            "_kw_requires_import": list(NAMED_ARGUMENTS),
        },
        "batch_dice": False,
    }
