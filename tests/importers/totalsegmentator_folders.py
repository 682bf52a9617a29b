"""Small folders of TotalSegmentator's weights: its names and label counts, and networks that find a few labels."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from importers.nnunet_folders import DataSet, Network, make_checkpoint, small_plans
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from numpy.typing import NDArray
from scipy import ndimage

from benchmarks.nnunet_folder import make_dataset

TRAINER = "nnUNetTrainerNoMirroring"
FAST_TRAINER = "nnUNetTrainer_4000epochs_NoMirroring"
PARTS = {
    "Dataset291_TotalSegmentator_part1_organs_1559subj": 24,
    "Dataset292_TotalSegmentator_part2_vertebrae_1532subj": 26,
    "Dataset293_TotalSegmentator_part3_cardiac_1559subj": 18,
    "Dataset294_TotalSegmentator_part4_muscles_1559subj": 23,
    "Dataset295_TotalSegmentator_part5_ribs_1559subj": 26,
}
FAST = "Dataset297_TotalSegmentator_total_3mm_1559subj"
FASTEST = "Dataset298_TotalSegmentator_total_6mm_1559subj"
BODY = "Dataset300_body_6mm_1559subj"
FAST_MR = "Dataset852_TotalSegMRI_total_3mm_1088subj"
# Weights of the head for labels that are never found.
_NEVER = -50.0


@dataclass(frozen=True)
class Weights:
    """The weights of one data set.

    Attributes:
        dataset: Its folder.
        labels: Names of the labels, without the background.
        found: The labels of bodies with the lower and the higher grey value, counted from 1; None: they have none.
        shift: Taken off the logits of these labels, so that bodies become smaller.
        spacing_mm: Of the plans.
        trainer: Of the results folder.
        seed: Of the random weights.
        folds: Folds with a checkpoint, of the same weights.
        channel: Name of the channel; the scans of CT have intensities of their own.
    """

    dataset: str
    labels: Sequence[str]
    found: tuple[int | None, int | None]
    shift: float = 0.0
    spacing_mm: tuple[float, float, float] = (1.5, 1.5, 1.5)
    trainer: str = TRAINER
    seed: int = 0
    channel: str = "CT"
    folds: tuple[str, ...] = ("0",)

    def write(self, root: Path, window: tuple[int, int, int] = (20, 24, 16)) -> Path:
        """Writes the folder of the data set; returns the results folder in it."""
        network = Network(window=window, spacing_mm=self.spacing_mm, mirror_axes=None)
        few = DataSet(
            labels={"background": 0, "grey": 1, "bright": 2},
            reader="NibabelIOWithReorient",
            schemes=("CTNormalization" if self.channel == "CT" else "ZScoreNormalization",),
        )
        plans = small_plans([network], few)
        plans["dataset_name"] = self.dataset
        checkpoint = make_checkpoint(plans, network, few, seed=self.seed)
        checkpoint["trainer_name"] = self.trainer
        _widen(checkpoint["network_weights"], (0, *self.found), 1 + len(self.labels), self.shift)
        results = root / self.dataset / f"{self.trainer}__nnUNetPlans__3d_fullres"
        results.mkdir(parents=True)
        (results / "plans.json").write_text(json.dumps(plans))
        labels = {"background": 0, **{name: number for number, name in enumerate(self.labels, 1)}}
        (results / "dataset.json").write_text(json.dumps(make_dataset([self.channel], labels)))
        for fold in self.folds:
            (results / f"fold_{fold}").mkdir()
            torch.save(checkpoint, results / f"fold_{fold}" / "checkpoint_final.pth")
        return results


def _widen(weights: dict[str, torch.Tensor], places: Sequence[int | None], outputs: int, shift: float) -> None:
    """Puts the outputs of each head into their places among more of them."""
    for key in [key for key in weights if ".seg_layers." in key]:
        is_bias = key.endswith("bias")
        wide = torch.full((outputs, *weights[key].shape[1:]), _NEVER if is_bias else 0.0)
        for few, place in zip(weights[key], places, strict=True):
            if place is not None:
                wide[place] = few - (shift if is_bias and place else 0.0)
        weights[key] = wide


def total_parts(names: Mapping[str, Sequence[str]] | None = None) -> list[Weights]:
    """The five parts of the task `total`, with given names of labels or made-up ones."""
    # Later parts find less, so that labels of all parts remain.
    found = ((5, 24), (None, 20), (7, None), (12, None), (None, 18))
    shifts = (0.0, 0.5, 2.0, 4.0, 4.0)
    labels = names or {
        dataset: [f"{dataset.split('_')[2]} {number}" for number in range(1, 1 + count)]
        for dataset, count in PARTS.items()
    }
    return [
        Weights(dataset, labels[dataset], each, shift, seed=number)
        for number, (dataset, each, shift) in enumerate(zip(PARTS, found, shifts, strict=True))
    ]


def predict(results: Path, image: NDArray[np.int32], overlap: float) -> NDArray[np.intp]:
    """The labels of an image in RAS at the spacing of the plans, by NumPy and SciPy alone but for the network.

    Args:
        results: A results folder.
        image: Shape (i, j, k), with voxels other than 0 at each side.
        overlap: Of the windows.
    """
    plans = json.loads((results / "plans.json").read_text())
    labels = len(json.loads((results / "dataset.json").read_text())["labels"])
    network = _network(plans, results, labels)
    window = plans["configurations"]["3d_fullres"]["patch_size"]
    ct = plans["foreground_intensity_properties_per_channel"]["0"]
    scan = image.T.astype(np.float32)
    scan = (np.clip(scan, ct["percentile_00_5"], ct["percentile_99_5"]) - ct["mean"]) / ct["std"]
    missing = [max(0, size - length) for size, length in zip(window, scan.shape, strict=True)]
    padded = np.pad(scan, [(each // 2, each - each // 2) for each in missing]).astype(np.float32)
    peak = np.zeros(window)
    peak[tuple(size // 2 for size in window)] = 1
    weights = ndimage.gaussian_filter(peak, [size / 8 for size in window], mode="constant")
    total, sums = np.zeros(padded.shape), np.zeros((labels, *padded.shape))
    sides = [_starts(length, size, (1 - overlap) * size) for length, size in zip(padded.shape, window, strict=True)]
    for start in np.array(np.meshgrid(*sides, indexing="ij")).reshape(3, -1).T:
        box = tuple(slice(first, first + size) for first, size in zip(start, window, strict=True))
        with torch.inference_mode():
            logits = network(torch.from_numpy(padded[box][None, None]))[0].numpy()
        sums[:, *box] += logits * weights
        total[box] += weights
    inside = tuple(slice(each // 2, each // 2 + size) for each, size in zip(missing, scan.shape, strict=True))
    return np.asarray(np.argmax((sums / total)[:, *inside], axis=0).T)


def _network(plans: dict[str, Any], results: Path, labels: int) -> torch.nn.Module:
    configuration = PlansManager(plans).get_configuration("3d_fullres")
    network = get_network_from_plans(
        configuration.network_arch_class_name,
        configuration.network_arch_init_kwargs,
        configuration.network_arch_init_kwargs_req_import,
        1,
        labels,
        deep_supervision=False,
    ).eval()
    checkpoint = torch.load(results / "fold_0" / "checkpoint_final.pth", weights_only=False)
    network.load_state_dict(checkpoint["network_weights"])
    return network


def _starts(length: int, window: int, step: float) -> list[int]:
    count = int(np.ceil((length - window) / step)) + 1
    actual = (length - window) / (count - 1) if count > 1 else 0.0
    return [int(np.round(actual * number)) for number in range(count)]
