"""Finds the results folders in a source, the one that is imported, its folds, and the stage before it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from inference_service.core.errors import BadRequest, InputNotFound, ModelInvalid
from inference_service.importers.nnunet.fields import Fields, one_line, read_json

PLANS_FILE = "plans.json"
DATASET_FILE = "dataset.json"
CHOICE_FILE = "inference_information.json"
CROSS_VALIDATION = "crossval_results_folds_"
"""The beginning of the name of a folder with the predictions of cross-validation, in a results folder."""
_PREDICTIONS_FILE = "predict_from_raw_data_args.json"
_ENSEMBLES = "ensembles"
_SEPARATOR = "__"
_FOLD = re.compile(r"fold_(\d{1,4}|all)")
_ALL = "all"
# The checkpoint from which nnU-Net continues a training.
_UNFINISHED = "latest"
# A results folder lies in the folder of its data set, and that one in nnUNet_results.
_MAX_DEPTH = 2
_MAX_FOLDERS = 1024


@dataclass(frozen=True)
class ResultsFolder:
    """A folder with the networks of one configuration, as nnU-Net's training leaves it.

    Attributes:
        path: The folder; nnU-Net calls it trainer__plans__configuration.
    """

    path: Path

    @property
    def configuration(self) -> str | None:
        """The configuration that the folder's name states; None if it was renamed."""
        parts = self.path.name.split(_SEPARATOR)
        return parts[2] if len(parts) == 3 else None

    def checkpoint(self, fold: str, kind: str) -> Path:
        """Returns the path of a fold's checkpoint, `final` or `best`."""
        return self.path / f"fold_{fold}" / f"checkpoint_{kind}.pth"

    def folds(self, kind: str) -> list[str]:
        """Returns the folds that have a checkpoint: numbers, ascending, then `all`."""
        matches = [_FOLD.fullmatch(path.name) for path in _folders(self.path)]
        names = [match[1] for match in matches if match and self.checkpoint(match[1], kind).is_file()]
        return sorted(names, key=lambda name: (name == _ALL, len(name), name))

    def beside(self, configuration: str) -> "ResultsFolder | None":
        """Returns the folder of another configuration with the same trainer and plans; None if there is none."""
        trainer, plans = (*self.path.name.split(_SEPARATOR), "")[:2]
        path = self.path.parent / _SEPARATOR.join((trainer, plans, configuration))
        return ResultsFolder(path) if is_results_folder(path) else None


@dataclass(frozen=True)
class Chosen:
    """What is imported of a source.

    Attributes:
        folder: The results folder.
        folds: The folds that are asked for, by the user or by nnU-Net's choice; None: all that are there.
        notes: Sentences for the model's card.
    """

    folder: ResultsFolder
    folds: tuple[str, ...] | None
    notes: tuple[str, ...] = ()


def find_folders(source: Path) -> list[ResultsFolder]:
    """Finds the results folders in a source: itself, or folders in it. They may lack files."""
    found: list[Path] = []
    level = [source] if source.is_dir() else []
    for _ in range(_MAX_DEPTH + 1):
        here = [path for path in level if is_results_folder(path)]
        found += here
        above = [path for path in level if path not in here and path.name != _ENSEMBLES]
        level = [child for path in above for child in _folders(path)][:_MAX_FOLDERS]
    return [ResultsFolder(path) for path in found]


def choose(source: Path, configuration: str | None, folds: tuple[str, ...] | None) -> Chosen:
    """Chooses the results folder of a source that is imported.

    Args:
        source: A results folder, or a folder with several.
        configuration: The configuration that is asked for; None: the only one, or the one that nnU-Net chose.
        folds: The folds that are asked for.

    Raises:
        BadRequest: There are several configurations, and neither the user nor nnU-Net chose one.
        InputNotFound: The chosen one is missing.
        ModelInvalid: nnU-Net chose an ensemble of two configurations.
    """
    folders = find_folders(source)
    # Of configurations that have not been trained, one is chosen only if all are such.
    folders = [folder for folder in folders if _has_folds(folder.path)] or folders
    if configuration is not None:
        return Chosen(_only([each for each in folders if _may_be(each, configuration)], folders, configuration), folds)
    # nnU-Net chooses among the results folders of one data set.
    parents = {folder.path.parent for folder in folders}
    if len(parents) == 1 and (path := parents.pop() / CHOICE_FILE).is_file():
        return _by_choice(read_json(path), folders, folds)
    return Chosen(_only(folders, folders, None), folds)


def choose_folds(folder: ResultsFolder, asked: Sequence[str] | None, kind: str) -> tuple[list[str], list[str]]:
    """Chooses the folds of a folder.

    Args:
        folder: The folder.
        asked: The folds that are asked for; None: all numbered ones, or else `all`, as nnU-Net does.
        kind: The checkpoint of each, `final` or `best`.

    Returns:
        The folds, and sentences for the model's card.

    Raises:
        InputNotFound: A fold or its checkpoint is missing.
    """
    there = folder.folds(kind)
    if asked is not None:
        missing = [fold for fold in asked if fold not in there]
        if missing:
            raise InputNotFound(
                f"{folder.path.name} has no checkpoint_{kind}.pth of fold {one_line(missing)}; there are those of "
                f"{one_line(there) or 'no fold'}"
            )
        return [fold for fold in there if fold in asked], []
    if not there:
        other = next((name for name in ("final", "best") if folder.folds(name)), None)
        hint = f"; give --checkpoint {other}" if other else ""
        if folder.folds(_UNFINISHED):
            hint = f"{hint}; checkpoint_{_UNFINISHED}.pth is that of a training that has not ended"
        raise InputNotFound(f"{folder.path.name} has no fold with a checkpoint_{kind}.pth{hint}")
    numbered = [fold for fold in there if fold != _ALL]
    notes = (
        ["Fold `all` is left out, as nnU-Net does where there are others."] if len(there) > len(numbered) > 0 else []
    )
    gaps = [str(fold) for fold in range(int(numbered[-1]))] if numbered else []
    if missing := [fold for fold in gaps if fold not in numbered]:
        notes.append(f"Of {folder.path.name}, fold {one_line(missing)} is not there; the mean is that of the others.")
    return numbered or there, notes


def _by_choice(choice: Fields, folders: Sequence[ResultsFolder], folds: tuple[str, ...] | None) -> Chosen:
    """Follows `inference_information.json`, where the source has what it names."""
    best = choice.child("best_model_or_ensemble")
    models = [Fields(each, choice.file) for each in best.items("selected_model_or_models") if isinstance(each, dict)]
    names = [
        _SEPARATOR.join(model.text(key) for key in ("trainer", "plans_identifier", "configuration")) for model in models
    ]
    by_name = {folder.path.name: folder for folder in folders}
    if len(folders) == 1:
        (only,) = folders
        note = f"nnU-Net's choice was {' with '.join(names)} ({CHOICE_FILE}); the source has {only.path.name} alone."
        if names != [only.path.name]:
            return Chosen(only, folds, (note,))
    if len(names) != 1:
        raise ModelInvalid(
            f"{CHOICE_FILE} chooses an ensemble of {' and '.join(names)}: the mean of their probabilities is not "
            f"supported. One of them can be imported: {_ways_out([model.text('configuration') for model in models])}"
        )
    if names[0] not in by_name:
        raise InputNotFound(f"{CHOICE_FILE} chooses {names[0]}, which is not in the source")
    chosen = folds
    if chosen is None and "folds" in choice:
        chosen = tuple(str(fold) for fold in choice.items("folds"))
    return Chosen(by_name[names[0]], chosen)


def _ways_out(configurations: Sequence[str]) -> str:
    """How one of several results folders is chosen."""
    if len(set(configurations)) < len(configurations):
        return "give its folder"
    return one_line([f"--configuration {name}" for name in configurations], " or ")


def _only(found: Sequence[ResultsFolder], folders: Sequence[ResultsFolder], configuration: str | None) -> ResultsFolder:
    several = len({folder.path.parent for folder in found or folders}) > 1
    names = one_line([f"{each.path.parent.name}/" * several + each.path.name for each in found or folders])
    if not found:
        raise InputNotFound(f"the source has no configuration {configuration}; there are: {names}")
    if len(found) > 1:
        configurations = [each.configuration or "" for each in found]
        by_configuration = not several and "" not in configurations and len(set(configurations)) == len(found)
        remedy = "choose one by --configuration" if by_configuration else "give the folder of one of them"
        raise BadRequest(f"the source has several results folders, {names}: {remedy}")
    return found[0]


def _may_be(folder: ResultsFolder, configuration: str) -> bool:
    return folder.configuration in (None, configuration)


def is_results_folder(path: Path) -> bool:
    """Returns True for a folder with folds, or with plans and a data set; one of them may be missing."""
    if (path / PLANS_FILE).is_file() and (path / DATASET_FILE).is_file():
        # Folders with predictions have both files too.
        return not (path.name.startswith(CROSS_VALIDATION) or (path / _PREDICTIONS_FILE).is_file())
    return _has_folds(path)


def _has_folds(path: Path) -> bool:
    return any(_FOLD.fullmatch(child.name) and any(child.glob("checkpoint_*.pth")) for child in _folders(path))


def _folders(path: Path) -> list[Path]:
    return sorted(child for child in path.iterdir() if child.is_dir()) if path.is_dir() else []
