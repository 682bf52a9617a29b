"""Makes the references of one data set: `python -m references.build NAME`, which `make references` runs for each."""

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import torch

from references.cache import Prediction, Reference, cache_folder, data_set_folder, relative, write_index
from references.datasets import DATA_SETS, DataSet, Training
from references.plans import CASCADE, LOW_RESOLUTION, in_old_format
from references.prediction import Model, Output, check_same_labels, predict_all, variants
from references.raw_data import write_data_set, write_tests
from references.training import Work, choose, export, fold_folder, plan, train

# They decide how a scan is read, resampled and predicted.
PACKAGES = (
    "SimpleITK",
    "acvl_utils",
    "batchgenerators",
    "dynamic_network_architectures",
    "nibabel",
    "nnunetv2",
    "numpy",
    "scipy",
    "scikit-image",
    "torch",
)
MIN_DICE = 0.7


def build(data_set: DataSet) -> None:
    """Trains, predicts and records a data set.

    Raises:
        ValueError: nnU-Net's ways to predict differ, or a network has not learnt its labels.
    """
    home = data_set_folder(data_set.name)
    for name in ("raw", "preprocessed", "results"):
        (home / name).mkdir(parents=True)
    write_data_set(data_set, home / "raw" / data_set.folder_name)
    scans = write_tests(data_set, home)
    work = Work(data_set, plan(data_set, home / "preprocessed"), home)
    for training in data_set.trainings:
        train(work, training)
    choose(work)
    references = [_reference(work, training, scans) for training in data_set.trainings]
    shutil.rmtree(home / "preprocessed")
    write_index(data_set.name, references)


def _reference(work: Work, training: Training, scans: Mapping[str, Sequence[Path]]) -> Reference:
    folder = work.results_folder(training)
    archive = work.home / "archives" / f"{training.configuration}.zip"
    archive.parent.mkdir(exist_ok=True)
    export(work, training, archive)
    postprocessing = next(folder.rglob("postprocessing.pkl"), None)
    predictions = _predictions(work, training, Model(folder, postprocessing), scans)
    old = _old_folder(work, training, predictions) if training.folds == (0, 1, 2, 3, 4) else None
    choice = folder.parent / "inference_information.json"
    return Reference(
        data_set=work.data_set.name,
        configuration=training.configuration,
        folder=relative(folder),
        archive=relative(archive),
        old_folder=relative(old) if old else None,
        postprocessing=relative(postprocessing) if postprocessing else None,
        choice=relative(choice) if choice.is_file() else None,
        truths=relative(work.home / "truth"),
        versions={name: version(name) for name in PACKAGES},
        predictions=predictions,
    )


def _predictions(work: Work, training: Training, model: Model, scans: Mapping[str, Sequence[Path]]) -> list[Prediction]:
    folder = work.home / "predictions"
    predictions = []
    for variant in variants(training):
        output = Output(folder / training.configuration / variant.name)
        previous = Output(folder / LOW_RESOLUTION / variant.name) if training.configuration == CASCADE else None
        predictions += predict_all(model, variant, scans, output, previous)
    for name, score in predictions[0].dice.items():
        if score < MIN_DICE:
            raise ValueError(f"expected a Dice of at least {MIN_DICE} for {name}, got {score:.3f}")
    return predictions


def _old_folder(work: Work, training: Training, predictions: Sequence[Prediction]) -> Path:
    """A copy of fold 0 with plans of the older format."""
    source = work.results_folder(training)
    target = work.home / "old-format" / source.name
    shutil.copytree(fold_folder(source, 0), fold_folder(target, 0), ignore=shutil.ignore_patterns("validation"))
    shutil.copy(source / "dataset.json", target)
    plans = in_old_format(json.loads((source / "plans.json").read_text(encoding="utf-8")))
    (target / "plans.json").write_text(json.dumps(plans, indent=2), encoding="utf-8")
    first = next(made for made in predictions if made.variant == "first")
    check_same_labels(target, first, cache_folder())
    return target


if __name__ == "__main__":
    torch.set_num_threads(1)
    build(DATA_SETS[sys.argv[1]])
