"""Plans, preprocesses, trains, compares and exports one data set, each by nnU-Net's own functions.

The folders of nnU-Net are those that its environment variables name.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from nnunetv2.evaluation.find_best_configuration import (
    dumb_trainer_config_plans_to_trained_models_dict,
    find_best_configuration,
)
from nnunetv2.experiment_planning.plan_and_preprocess_api import (
    extract_fingerprints,
    plan_experiments,
    preprocess,
)
from nnunetv2.model_sharing.model_export import export_pretrained_model
from nnunetv2.postprocessing.remove_connected_components import determine_postprocessing
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoMirroring import (
    nnUNetTrainer_onlyMirror01,
    nnUNetTrainerNoMirroring,
)

from references.cache import Fold
from references.datasets import DataSet, Training
from references.plans import CASCADE, FULL_RESOLUTION, small

# nnU-Net finds a trainer by importing all of them, among them those that need torchvision, which has no wheel for
# PyTorch's CPU build.
TRAINERS = {
    trainer.__name__: trainer for trainer in (nnUNetTrainer, nnUNetTrainerNoMirroring, nnUNetTrainer_onlyMirror01)
}
_AUGMENTING_PROCESSES = "nnUNet_n_proc_DA"
STEPS = 40
VALIDATION_STEPS = 4
LEARNING_RATE = 0.02
BEST = "checkpoint_best.pth"
FINAL = "checkpoint_final.pth"


def plan(data_set: DataSet, preprocessed: Path) -> str:
    """Lets nnU-Net plan, makes the plans small, and preprocesses by them; returns the name of the plans."""
    number = [data_set.number]
    extract_fingerprints(number, num_processes=1)
    plans_name = str(plan_experiments(number, data_set.planner))
    path = preprocessed / data_set.folder_name / f"{plans_name}.json"
    plans = small(json.loads(path.read_text(encoding="utf-8")), data_set.trainings)
    path.write_text(json.dumps(plans, indent=2), encoding="utf-8")
    stages = {training.configuration.replace(CASCADE, FULL_RESOLUTION) for training in data_set.trainings}
    preprocess(number, plans_name, sorted(stages), [1])
    return plans_name


@dataclass(frozen=True)
class Work:
    """A planned data set, and the folder of all its files."""

    data_set: DataSet
    plans_name: str
    home: Path

    @property
    def preprocessed(self) -> Path:
        """nnU-Net's preprocessed files."""
        return self.home / "preprocessed" / self.data_set.folder_name

    def results_folder(self, training: Training) -> Path:
        """The folder of one configuration, as a user has it."""
        name = f"{training.trainer}__{self.plans_name}__{training.configuration}"
        return self.home / "results" / self.data_set.folder_name / name


def train(work: Work, training: Training) -> None:
    """Trains all folds of a configuration, and predicts each fold's validation cases."""
    os.environ[_AUGMENTING_PROCESSES] = "0"
    for fold in training.folds:
        torch.manual_seed(0)
        np.random.seed(0)
        plans = json.loads((work.preprocessed / f"{work.plans_name}.json").read_text(encoding="utf-8"))
        trainer = TRAINERS[training.trainer](
            plans=plans | {"continue_training": False},
            configuration=training.configuration,
            fold=fold,
            dataset_json=json.loads((work.preprocessed / "dataset.json").read_text(encoding="utf-8")),
            device=torch.device("cpu"),
        )
        trainer.num_epochs = training.epochs
        trainer.num_iterations_per_epoch = STEPS
        trainer.num_val_iterations_per_epoch = VALIDATION_STEPS
        trainer.initial_lr = LEARNING_RATE
        trainer.run_training()
        trainer.perform_actual_validation(save_probabilities=len(work.data_set.compared) > 1)


def choose(work: Work) -> None:
    """Lets nnU-Net choose the best configuration and its postprocessing.

    Where there are none to compare, it determines the postprocessing on the predicted validation cases.
    """
    data_set = work.data_set
    if data_set.compared:
        (trainer,) = {training.trainer for training in data_set.trainings}
        models = dumb_trainer_config_plans_to_trained_models_dict([trainer], list(data_set.compared), [work.plans_name])
        find_best_configuration(data_set.number, models, num_processes=1, folds=data_set.trainings[-1].folds)
        return
    for training in data_set.trainings:
        folder = work.results_folder(training)
        determine_postprocessing(
            str(fold_folder(folder, training.folds[0]) / "validation"),
            str(work.preprocessed / "gt_segmentations"),
            str(folder / "plans.json"),
            str(folder / "dataset.json"),
            num_processes=1,
        )


def export(work: Work, training: Training, archive: Path) -> None:
    """Writes the zip of one configuration, with both checkpoints."""
    export_pretrained_model(
        work.data_set.number,
        str(archive),
        configurations=(training.configuration,),
        trainer=training.trainer,
        plans_identifier=work.plans_name,
        folds=training.folds,
        save_checkpoints=(FINAL, BEST),
    )


def fold_folder(folder: Path, fold: Fold) -> Path:
    """The folder of one fold."""
    return folder / f"fold_{fold}"
