"""Small results folders of nnU-Net with random weights, and scans for them."""

import json
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from numpy.typing import NDArray
from scipy import ndimage

from benchmarks.networks import UNet, architecture_arguments
from benchmarks.nnunet_folder import Planned, make_dataset, make_plans

TRAINER = "nnUNetTrainer"
_FEATURES = 8
# Above the surroundings.
_GREYS = (150, 260)


@dataclass(frozen=True)
class Network:
    """What is trained.

    Attributes:
        configuration: nnU-Net's name.
        window: `patch_size`; its length is the number of axes.
        spacing_mm: `spacing`.
        folds: Folds with a checkpoint.
        mirror_axes: `inference_allowed_mirroring_axes`.
        further_inputs: Channels of a cascade's first stage.
    """

    configuration: str = "3d_fullres"
    window: tuple[int, ...] = (16, 20, 12)
    spacing_mm: tuple[float, ...] = (2.03, 1.61, 1.83)
    folds: tuple[str, ...] = ("0",)
    mirror_axes: tuple[int, ...] | None = (0, 1, 2)
    further_inputs: int = 0


@dataclass(frozen=True)
class DataSet:
    """The data set that a network was trained on.

    Attributes:
        channels: Names.
        schemes: `normalization_schemes`.
        masked: `use_mask_for_norm` of all channels.
        labels: As in dataset.json.
        order: `regions_class_order`.
        reader: `image_reader_writer`.
        transposed: `transpose_forward`.
    """

    channels: tuple[str, ...] = ("CT",)
    schemes: tuple[str, ...] = ("CTNormalization",)
    masked: bool = False
    labels: Mapping[str, int | list[int]] = field(
        default_factory=lambda: {"background": 0, "liver": 1, "kidney": 2, "ignore": 3}
    )
    order: tuple[int, ...] | None = None
    reader: str = "SimpleITKIO"
    transposed: tuple[int, int, int] = (0, 1, 2)

    @property
    def outputs(self) -> int:
        """Output channels of the network."""
        return len(self.labels) - ("ignore" in self.labels) - (self.order is not None)


def small_plans(networks: Sequence[Network], data: DataSet) -> dict[str, Any]:
    """Returns plans of small networks, as nnU-Net's planner writes them."""
    intensities = {"mean": 40.0, "std": 90.0, "percentile_00_5": -120.0, "percentile_99_5": 240.0}
    planned = [
        Planned(each.configuration, each.window, each.spacing_mm, _arguments(each), data.schemes, data.masked)
        for each in networks
    ]
    return make_plans("Dataset700_Small", planned, intensities, reader=data.reader, transposed=data.transposed)


def _arguments(network: Network) -> dict[str, Any]:
    axes = len(network.window)
    return {
        **architecture_arguments(UNet((_FEATURES, 2 * _FEATURES), 2, 0)),
        "conv_op": f"torch.nn.modules.conv.Conv{axes}d",
        "kernel_sizes": [[3] * axes] * 2,
        "strides": [[1] * axes, [2] * axes],
        "n_conv_per_stage": [1, 1],
        "n_conv_per_stage_decoder": [1],
        "norm_op": f"torch.nn.modules.batchnorm.BatchNorm{axes}d",
    }


def write_results(
    folder: Path,
    *networks: Network,
    data: DataSet | None = None,
    change: Callable[[dict[str, Any]], None] = lambda plans: None,
) -> Path:
    """Writes a results folder for each network.

    Args:
        folder: The folder of the data set.
        networks: What was trained; one 3d_fullres if there is none.
        data: The data set.
        change: Changes the plans before anything is written.

    Returns:
        The results folder of the last network.
    """
    networks = networks or (Network(),)
    data = data or DataSet()
    plans = small_plans(networks, data)
    change(plans)
    results = folder
    for number, network in enumerate(networks):
        results = folder / f"{TRAINER}__nnUNetPlans__{network.configuration}"
        results.mkdir(parents=True)
        (results / "plans.json").write_text(json.dumps(plans))
        (results / "dataset.json").write_text(json.dumps(_dataset(data)))
        for fold in network.folds:
            path = results / f"fold_{fold}" / "checkpoint_final.pth"
            path.parent.mkdir()
            torch.save(make_checkpoint(plans, network, data, seed=100 * number + sum(map(ord, fold))), path)
    return results


def _dataset(data: DataSet) -> dict[str, object]:
    order = {} if data.order is None else {"regions_class_order": list(data.order)}
    return make_dataset(data.channels, data.labels, **order)


def make_checkpoint(plans: dict[str, Any], network: Network, data: DataSet, seed: int = 0) -> dict[str, Any]:
    """Returns a checkpoint with random weights, except for the last layer."""
    architecture = PlansManager(deepcopy(plans)).get_configuration(network.configuration)
    inputs = len(data.channels) + network.further_inputs
    torch.manual_seed(seed)
    built = get_network_from_plans(
        architecture.network_arch_class_name,
        architecture.network_arch_init_kwargs,
        architecture.network_arch_init_kwargs_req_import,
        inputs,
        data.outputs,
        deep_supervision=False,
    ).eval()
    _fit_head(built, network, data)
    return {
        "network_weights": built.state_dict(),
        "optimizer_state": {"state": {}, "param_groups": []},
        "logging": {"train_losses": [np.float32(0.5)], "epoch_start_timestamps": [1.0]},
        "_best_ema": np.float64(0.7),
        "current_epoch": 1,
        "init_args": {"plans": plans, "configuration": network.configuration, "fold": 0, "dataset_json": {}},
        "trainer_name": TRAINER,
        "inference_allowed_mirroring_axes": network.mirror_axes,
    }


def _fit_head(built: torch.nn.Module, network: Network, data: DataSet) -> None:
    """Fits the last layer to labels that depend on the values of the channels, so that few voxels nearly tie."""
    axes = len(network.window)
    bodies = _bodies((*(12,) * (3 - axes), *network.window))[(6,) * (3 - axes)]
    # As the normalization does.
    offset, scale = (80, 90) if "CTNormalization" in data.schemes else (bodies.mean(), bodies.std())
    random = np.random.default_rng(1)
    values = (bodies - offset) / scale + 0.05 * random.standard_normal((len(data.channels), *bodies.shape))
    mean = values.mean(axis=0).ravel()
    outside, grey, bright = (np.array([0, *_GREYS]) - offset) / scale
    if data.order:
        limits = [0.7 * outside + 0.3 * grey, 0.3 * outside + 0.7 * grey, 0.7 * grey + 0.3 * bright]
        wanted = 4 * (mean - np.array(limits)[:, None])
    else:
        levels = np.array([outside, grey, bright])[:, None]
        wanted = 4 * levels * mean - 2 * levels**2
    labels = wanted.argmax(axis=0).reshape(network.window)
    further = [labels == number + 1 for number in range(network.further_inputs)]
    image = torch.from_numpy(np.stack([*values, *further]).astype(np.float32))[None]
    head = built.decoder.seg_layers[-1]
    found: list[torch.Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, given: found.append(given[0]))
    with torch.inference_mode():
        built(image)
        hook.remove()
        features = found[0][0].flatten(1).T
        # Each grey value counts alike, however many voxels have it.
        nearest = np.abs(mean - np.array([outside, grey, bright])[:, None]).argmin(axis=0)
        weights = torch.from_numpy(1 / np.bincount(nearest)[nearest, None]).float().sqrt()
        features = torch.cat([features, torch.ones(len(features), 1)], 1)
        targets = torch.from_numpy(wanted.T.astype(np.float32))
        solution = torch.linalg.lstsq(weights * features, weights * targets).solution
        head.weight.copy_(solution[:-1].T.reshape(head.weight.shape))
        head.bias.copy_(solution[-1])


def write_scan(
    path: Path,
    *,
    shape: tuple[int, int, int] = (34, 28, 30),
    spacing_mm: tuple[float, float, float] = (1.53, 1.79, 1.71),
    seed: int = 1,
) -> Path:
    """Writes a scan with a few bodies of three grey values, on an oblique grid, LPS, with a border of zeros."""
    random = np.random.default_rng(seed)
    values = _bodies(shape) - 40 + 4 * random.standard_normal(shape)
    values = np.round(values).astype(np.int16)
    values[:3] = 0
    turn = np.deg2rad(9)
    rotation = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag([-spacing_mm[0], -spacing_mm[1], spacing_mm[2]])
    affine[:3, 3] = (20, -30, 10)
    nibabel.save(nibabel.Nifti1Image(values, affine), path)
    return path


def _bodies(shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Three balls of two grey values in a volume of 0, with blurred edges."""
    values = np.zeros(shape)
    places = np.stack(np.meshgrid(*(np.arange(size) / size for size in shape), indexing="ij"), axis=-1)
    balls = ((0.35, 0.4, 0.5), 0.27, 0), ((0.75, 0.6, 0.45), 0.22, 1), ((0.5, 0.85, 0.8), 0.1, 0)
    for centre, radius, grey in balls:
        values[np.linalg.norm(places - centre, axis=-1) < radius] = _GREYS[grey]
    return ndimage.gaussian_filter(values, 0.8)
