"""A model folder in the format of nnU-Net v2, with random weights."""

import json
from pathlib import Path

from benchmarks.models import CT_CLIP, CT_MEAN, CT_STD, SPACING_MM
from benchmarks.networks import ARCHITECTURE, NAMED_ARGUMENTS, UNet, architecture_arguments

CHECKPOINT = "checkpoint_final.pth"
_CONFIGURATION = "3d_fullres"
_RESAMPLING = "resample_data_or_seg_to_shape"


def write_nnunet_folder(folder: Path, unet: UNet, weights: Path) -> None:
    """Writes `plans.json`, `dataset.json` and the checkpoint of fold 0."""
    import torch

    fold = folder / "fold_0"
    fold.mkdir(parents=True)
    (folder / "dataset.json").write_text(json.dumps(_data_set(unet)), encoding="utf-8")
    (folder / "plans.json").write_text(json.dumps(_plans(unet)), encoding="utf-8")
    checkpoint = {
        "trainer_name": "nnUNetTrainer",
        "init_args": {"configuration": _CONFIGURATION},
        "inference_allowed_mirroring_axes": None,
        "network_weights": torch.load(weights, weights_only=True),
    }
    torch.save(checkpoint, fold / CHECKPOINT)


def _data_set(unet: UNet) -> dict[str, object]:
    return {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0} | {f"label {value}": value for value in range(1, unet.labels)},
        "numTraining": 1,
        "file_ending": ".nii.gz",
    }


def _plans(unet: UNet) -> dict[str, object]:
    spacing_mm = [SPACING_MM] * 3
    patch = [unet.window] * 3
    return {
        "dataset_name": "Dataset001_Benchmark",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": spacing_mm,
        "original_median_shape_after_transp": patch,
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            "0": {"mean": CT_MEAN, "std": CT_STD, "percentile_00_5": CT_CLIP[0], "percentile_99_5": CT_CLIP[1]}
        },
        "configurations": {_CONFIGURATION: _configuration(unet, spacing_mm, patch)},
    }


def _configuration(unet: UNet, spacing_mm: list[float], patch: list[int]) -> dict[str, object]:
    """The configuration of nnU-Net's default planner, which resamples images by cubic splines and logits linearly."""
    return {
        "data_identifier": f"nnUNetPlans_{_CONFIGURATION}",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": patch,
        "median_image_size_in_voxels": patch,
        "spacing": spacing_mm,
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": _RESAMPLING,
        "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None},
        "resampling_fn_seg": _RESAMPLING,
        "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, "order_z": 0, "force_separate_z": None},
        "resampling_fn_probabilities": _RESAMPLING,
        "resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None},
        "architecture": {
            "network_class_name": ARCHITECTURE,
            "arch_kwargs": architecture_arguments(unet),
            "_kw_requires_import": list(NAMED_ARGUMENTS),
        },
        "batch_dice": False,
    }
