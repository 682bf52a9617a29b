"""Predicts scans with nnU-Net's own predictor, and keeps its input and its logits."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from batchgenerators.utilities.file_and_folder_operations import load_pickle
from nnunetv2.inference import predict_from_raw_data
from nnunetv2.inference.export_prediction import export_prediction_from_logits
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.postprocessing.remove_connected_components import load_postprocess_save
from nnunetv2.utilities.label_handling.label_handling import convert_labelmap_to_one_hot

from references.cache import Fold, Prediction, relative
from references.datasets import Training
from references.raw_data import ENDING, read_labels
from references.training import BEST, FINAL, TRAINERS


@dataclass(frozen=True)
class Variant:
    """A way to predict."""

    name: str
    folds: tuple[Fold, ...]
    checkpoint: str = FINAL
    mirroring: bool = False
    half_sums: bool = True


@dataclass(frozen=True)
class Model:
    """A results folder, and its `postprocessing.pkl`, if nnU-Net determined one."""

    folder: Path
    postprocessing: Path | None


@dataclass(frozen=True)
class Output:
    """Where the predictions of one variant go."""

    folder: Path

    def labels(self, scan: str) -> Path:
        return self.folder / "labels" / f"{scan}{ENDING}"

    def postprocessed(self, scan: str) -> Path:
        return self.folder / "postprocessed" / f"{scan}{ENDING}"

    def probabilities(self, scan: str) -> Path:
        return self.folder / "probabilities" / f"{scan}.npz"

    def stages(self, scan: str) -> Path:
        return self.folder / "stages" / f"{scan}.npz"

    def make(self) -> None:
        for name in ("labels", "postprocessed", "probabilities", "stages"):
            (self.folder / name).mkdir(parents=True)


def variants(training: Training) -> list[Variant]:
    """As a user predicts; without mirroring, then in single precision; the first fold alone, and its best weights."""
    first = training.folds[:1]
    ways = [
        Variant("default", training.folds, mirroring=True),
        Variant("plain", training.folds),
        Variant("single", training.folds, half_sums=False),
        Variant("best", first, BEST),
    ]
    if len(training.folds) > 1:
        ways.append(Variant("first", first))
    return ways


def predict_all(
    model: Model, variant: Variant, scans: Mapping[str, Sequence[Path]], output: Output, previous: Output | None
) -> list[Prediction]:
    """Predicts all scans in one way, and checks the first against nnU-Net's own way from files to files.

    Args:
        previous: The predictions of the stage before, for a cascade.
    """
    output.make()
    predictor = _predictor(model.folder, variant)
    predictions: list[Prediction] = []
    for scan, images in scans.items():
        before = previous.labels(scan) if previous else None
        with nullcontext() if variant.half_sums else _single_precision():
            seconds = _predict(predictor, images, output, scan, before)
        if not predictions and variant.half_sums:
            _check_alike(predictor, images, output.labels(scan), before)
        if model.postprocessing:
            _postprocess(predictor, model.postprocessing, output.labels(scan), output.postprocessed(scan))
        predictions.append(
            Prediction(
                scan=scan,
                images=[relative(image) for image in images],
                variant=variant.name,
                folds=list(variant.folds),
                checkpoint=variant.checkpoint,
                mirroring=variant.mirroring,
                half_sums=variant.half_sums,
                labels=relative(output.labels(scan)),
                postprocessed=relative(output.postprocessed(scan)) if model.postprocessing else None,
                probabilities=relative(output.probabilities(scan)),
                stages=relative(output.stages(scan)),
                dice=_dice(model.folder, output.labels(scan), images[0].parents[1] / "truth" / f"{scan}{ENDING}"),
                seconds=round(seconds, 2),
            )
        )
    return predictions


def check_same_labels(folder: Path, prediction: Prediction, root: Path) -> None:
    """Checks that a copy of a results folder makes the same labels.

    Raises:
        ValueError: It does not.
    """
    variant = Variant(prediction.variant, tuple(prediction.folds), prediction.checkpoint, prediction.mirroring)
    _check_alike(_predictor(folder, variant), [root / image for image in prediction.images], root / prediction.labels)


def _predictor(folder: Path, variant: Variant) -> nnUNetPredictor:
    """nnU-Net's predictor, with its defaults for overlap and weights."""
    predictor = nnUNetPredictor(
        use_mirroring=variant.mirroring,
        perform_everything_on_device=False,
        device=torch.device("cpu"),
        allow_tqdm=False,
    )
    with _known_trainers():
        predictor.initialize_from_trained_model_folder(str(folder), variant.folds, variant.checkpoint)
    return predictor


def _predict(
    predictor: nnUNetPredictor, images: Sequence[Path], output: Output, scan: str, previous: Path | None
) -> float:
    """Does what `predict_from_files_sequential` does for one scan, and returns the seconds to the labels."""
    start = time.perf_counter()
    plans = predictor.plans_manager
    configuration = predictor.configuration_manager
    data, labels, properties = configuration.preprocessor_class(verbose=False).run_case(
        [str(image) for image in images],
        str(previous) if previous else None,
        plans,
        configuration,
        predictor.dataset_json,
    )
    if previous:
        foreground = predictor.label_manager.foreground_labels
        data = np.vstack((data, convert_labelmap_to_one_hot(labels[0], foreground, data.dtype)))
    logits = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(data)).cpu()
    given = (logits, properties, configuration, plans, predictor.dataset_json)
    export_prediction_from_logits(*given, str(output.labels(scan)).removesuffix(ENDING))
    seconds = time.perf_counter() - start
    export_prediction_from_logits(*given, str(output.probabilities(scan).with_suffix("")), save_probabilities=True)
    np.savez_compressed(output.stages(scan), data=data, logits=logits.numpy())
    return seconds


def _postprocess(predictor: nnUNetPredictor, steps: Path, labels: Path, target: Path) -> None:
    """Does what `nnUNetv2_apply_postprocessing` does for one scan."""
    functions, arguments = load_pickle(str(steps))
    reader = predictor.plans_manager.image_reader_writer_class()
    load_postprocess_save(str(labels), str(target), reader, functions, arguments)


def _check_alike(
    predictor: nnUNetPredictor, images: Sequence[Path], labels: Path, previous: Path | None = None
) -> None:
    again = labels.parents[1] / "again"
    again.mkdir(exist_ok=True)
    predictor.predict_from_files_sequential(
        [[str(image) for image in images]],
        [str(again / labels.name.removesuffix(ENDING))],
        folder_with_segs_from_prev_stage=str(previous.parent) if previous else None,
    )
    if not np.array_equal(read_labels(labels), read_labels(again / labels.name)):
        raise ValueError(f"expected the same labels of predict_from_files_sequential as in {labels}")


def _dice(folder: Path, made: Path, truth: Path) -> dict[str, float]:
    """Dice of each foreground label or region; 1 where both are empty."""
    found, true = read_labels(made), read_labels(truth)
    labels: dict[str, int | list[int]] = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))["labels"]
    scores = {}
    for name, values in labels.items():
        if name in ("background", "ignore"):
            continue
        one, other = np.isin(found, values), np.isin(true, values)
        voxels = one.sum() + other.sum()
        scores[name] = float(2 * (one & other).sum() / voxels) if voxels else 1.0
    return scores


@contextmanager
def _known_trainers() -> Iterator[None]:
    with patch.object(predict_from_raw_data, "recursive_find_trainer_class_by_name", TRAINERS.__getitem__):
        yield


@contextmanager
def _single_precision() -> Iterator[None]:
    """Lets nnU-Net add up windows in single precision, to show where its half precision decides a label."""
    weights = partial(predict_from_raw_data.compute_gaussian, dtype=torch.float32)
    with patch.object(torch, "half", torch.float32), patch.object(predict_from_raw_data, "compute_gaussian", weights):
        yield
