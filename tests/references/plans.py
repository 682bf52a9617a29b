"""nnU-Net's plans as JSON: made small, extended by a cascade, and written as older versions wrote them."""

from collections.abc import Iterable
from copy import deepcopy
from typing import TypeAlias

from references.datasets import Training

Json: TypeAlias = dict[str, "Json"] | list["Json"] | str | int | float | bool | None
Object: TypeAlias = dict[str, Json]

BATCH = 2
FIRST_FEATURES = 8
LOW_RESOLUTION = "3d_lowres"
FULL_RESOLUTION = "3d_fullres"
CASCADE = "3d_cascade_fullres"


def small(plans: Object, trainings: Iterable[Training]) -> Object:
    """The plans with the windows and strides of the trainings, and few features."""
    plans = deepcopy(plans)
    configurations = _object(plans["configurations"])
    plans_name = plans["plans_name"]
    for training in trainings:
        name = training.configuration
        if name == LOW_RESOLUTION:
            configurations[name] = _object(deepcopy(configurations[FULL_RESOLUTION])) | {
                "data_identifier": f"{plans_name}_{name}",
                "next_stage": CASCADE,
            }
        elif name == CASCADE:
            configurations[name] = {"inherits_from": FULL_RESOLUTION, "previous_stage": LOW_RESOLUTION}
            name = FULL_RESOLUTION
        _shrink(_object(configurations[name]), training)
    kept = {training.configuration for training in trainings} | {FULL_RESOLUTION}
    plans["configurations"] = {name: value for name, value in configurations.items() if name in kept}
    return plans


def _shrink(configuration: Object, training: Training) -> None:
    axes = len(training.window)
    stages = len(training.strides) + 1
    strides: list[Json] = [list(stride) for stride in ((1,) * axes, *training.strides)]
    configuration["patch_size"] = list(training.window)
    configuration["batch_size"] = BATCH
    if training.spacing_mm:
        configuration["spacing"] = list(training.spacing_mm)
    architecture = _object(_object(configuration["architecture"])["arch_kwargs"])
    blocks = "n_blocks_per_stage" if "n_blocks_per_stage" in architecture else "n_conv_per_stage"
    # nnU-Net keeps the kernels flat along an axis until its stride has made the voxels about cubic.
    flat = axes == 3 and training.strides[0][0] == 1
    kernels: list[Json] = [[1, 3, 3] if flat and stage == 0 else [3] * axes for stage in range(stages)]
    architecture |= {
        "n_stages": stages,
        "features_per_stage": [FIRST_FEATURES * 2**stage for stage in range(stages)],
        "kernel_sizes": kernels,
        "strides": strides,
        blocks: [1 if blocks == "n_blocks_per_stage" else 2] * stages,
        "n_conv_per_stage_decoder": [1] * (stages - 1),
    }


def in_old_format(plans: Object) -> Object:
    """The plans without `architecture`: with the network's numbers among those of the configuration."""
    plans = deepcopy(plans)
    for value in _object(plans["configurations"]).values():
        configuration = _object(value)
        if "architecture" not in configuration:
            continue
        architecture = _object(configuration.pop("architecture"))
        numbers = _object(architecture["arch_kwargs"])
        features = _list(numbers["features_per_stage"])
        strides = [_list(stride) for stride in _list(numbers["strides"])]
        configuration |= {
            "UNet_class_name": str(architecture["network_class_name"]).rpartition(".")[2],
            "UNet_base_num_features": features[0],
            "unet_max_num_features": features[-1],
            "n_conv_per_stage_encoder": numbers.get("n_conv_per_stage", numbers.get("n_blocks_per_stage")),
            "n_conv_per_stage_decoder": numbers["n_conv_per_stage_decoder"],
            "num_pool_per_axis": [sum(step != 1 for step in steps) for steps in zip(*strides, strict=True)],
            "pool_op_kernel_sizes": numbers["strides"],
            "conv_kernel_sizes": numbers["kernel_sizes"],
        }
    return plans


def _object(value: Json) -> Object:
    if not isinstance(value, dict):
        raise TypeError(f"expected a JSON object, got {value!r}")
    return value


def _list(value: Json) -> list[Json]:
    if not isinstance(value, list):
        raise TypeError(f"expected a JSON array, got {value!r}")
    return value
