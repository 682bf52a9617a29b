"""Where the references lie, and what is in them."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypeAlias

Fold: TypeAlias = int | Literal["all"]

VARIABLE = "REFERENCE_CACHE"
_DEFAULT = Path.home() / ".cache" / "inference-service" / "references"
_INDEX = "index.json"

# Raise it when references that were made before no longer serve.
RECIPE = 2


@dataclass(frozen=True)
class Prediction:
    """What the other software's predictor made of one scan. Paths are relative to the cache.

    Attributes:
        scan: Name of the scan.
        images: The scan's files, one for each channel.
        variant: Name of the way to predict.
        folds: Folds of the ensemble, in its order.
        checkpoint: File name of the weights.
        mirroring: Whether mirrored windows were averaged, along the axes that the checkpoint allows.
        half_sums: Whether overlapping windows and folds were added in half precision, as nnU-Net does.
        labels: The mask.
        postprocessed: The mask after the steps of `postprocessing.pkl`, or None.
        probabilities: An npz file with the array `probabilities`, on the scan's grid in the reader's axes.
        stages: An npz file: `data` is the input of the windows, `logits` their mean, both on the model's grid.
        dice: Dice of each foreground label or region with the truth.
        seconds: Time from the scan's files to the mask.
    """

    scan: str
    images: list[str]
    variant: str
    folds: list[Fold]
    checkpoint: str
    mirroring: bool
    half_sums: bool
    labels: str
    postprocessed: str | None
    probabilities: str
    stages: str
    dice: dict[str, float]
    seconds: float


@dataclass(frozen=True)
class Reference:
    """A trained configuration with its predictions. Paths are relative to the cache.

    Attributes:
        data_set: Name of the data set.
        configuration: nnU-Net's name of the configuration.
        folder: The results folder, as a user has it.
        archive: The zip of `nnUNetv2_export_model_to_zip`.
        old_folder: The same fold 0 with plans of the older format, or None.
        postprocessing: `postprocessing.pkl`, or None.
        choice: `inference_information.json`, or None.
        truths: The folder with the true labels of the scans.
        versions: The versions of the packages that decide.
    """

    data_set: str
    configuration: str
    folder: str
    archive: str
    old_folder: str | None
    postprocessing: str | None
    choice: str | None
    truths: str
    versions: dict[str, str]
    predictions: list[Prediction]


def cache_folder() -> Path:
    """The folder that `REFERENCE_CACHE` names, or one in the user's cache."""
    return Path(os.environ.get(VARIABLE) or _DEFAULT)


def data_set_folder(name: str) -> Path:
    """The folder of one data set."""
    return cache_folder() / "nnunet" / name


def relative(path: Path) -> str:
    """A path as references have it."""
    return str(path.relative_to(cache_folder()))


def write_index(data_set: str, references: list[Reference]) -> None:
    """Records a data set as complete."""
    content = {"recipe": RECIPE, "references": [asdict(reference) for reference in references]}
    (data_set_folder(data_set) / _INDEX).write_text(json.dumps(content, indent=2), encoding="utf-8")


def read_index(data_set: str) -> list[Reference]:
    """The references of a data set; none if it is incomplete or was made by another recipe."""
    path = data_set_folder(data_set) / _INDEX
    if not path.is_file():
        return []
    content = json.loads(path.read_text(encoding="utf-8"))
    if content["recipe"] != RECIPE:
        return []
    return [
        Reference(**reference | {"predictions": [Prediction(**made) for made in reference["predictions"]]})
        for reference in content["references"]
    ]
