"""What a results folder of nnU-Net says about its accuracy, and how the card repeats it."""

import json
from pathlib import Path

import pytest

from inference_service.importers.card import _stated_dice
from inference_service.importers.nnunet.cross_validation import find_cross_validation
from inference_service.importers.nnunet.dataset import Output
from inference_service.importers.nnunet.results_folder import ResultsFolder
from inference_service.importers.sources import StatedDice

OUTPUTS = [Output("background", 0, (0,)), Output("whole", 1, (1, 2)), Output("core", 2, (2,))]
MEANS = {"(1, 2)": {"Dice": 0.9}, "2": {"Dice": 0.8}, "7": {"Dice": 0.7}}


@pytest.fixture
def folder(tmp_path: Path) -> ResultsFolder:
    path = tmp_path / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    path.mkdir()
    return ResultsFolder(path)


def summary(folder: ResultsFolder, place: str, means: object = MEANS, mean: object = 0.85) -> None:
    file = folder.path / place / "summary.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"foreground_mean": {"Dice": mean}, "mean": means, "metric_per_case": []}))


def find(folder: ResultsFolder, *, postprocessed: bool = False) -> StatedDice | None:
    return find_cross_validation(folder, ["0", "1"], OUTPUTS, postprocessed=postprocessed)


def test_the_results_of_the_same_folds_are_stated(folder: ResultsFolder) -> None:
    assert find(folder) is None
    summary(folder, "crossval_results_folds_0")
    assert find(folder) == StatedDice(
        "crossval_results_folds_0/summary.json, folds 0, without postprocessing", 0.85, {"whole": 0.9, "core": 0.8}
    )
    summary(folder, "crossval_results_folds_0_1", mean=0.5)
    summary(folder, "crossval_results_folds_0_1/postprocessed", mean=0.6)
    plain, processed = find(folder), find(folder, postprocessed=True)
    assert plain is not None
    assert processed is not None
    assert (plain.where, plain.mean) == (
        "crossval_results_folds_0_1/summary.json, folds 0, 1, without postprocessing",
        0.5,
    )
    assert (processed.where, processed.mean) == (
        "crossval_results_folds_0_1/postprocessed/summary.json, folds 0, 1, with postprocessing",
        0.6,
    )


def test_the_mean_of_the_choice_is_stated_where_there_is_no_summary(folder: ResultsFolder) -> None:
    choice = {"all_results": {folder.path.name: 0.75, "other": 0.9}}
    (folder.path.parent / "inference_information.json").write_text(json.dumps(choice))
    assert find(folder) == StatedDice("inference_information.json, without postprocessing", 0.75)


@pytest.mark.parametrize(
    ("means", "mean", "stated"),
    [
        ([], 0.5, None),
        ({"2": []}, 0.5, None),
        ({"2": {"Dice": float("nan")}, "(1, 2)": {"Dice": 0.5}}, float("nan"), StatedDice("", None, {"whole": 0.5})),
        ({"2": {"Dice": "<b>"}, "x": {}}, 10**300, StatedDice("", None)),
    ],
)
def test_odd_results_state_nothing(
    folder: ResultsFolder, means: object, mean: object, stated: StatedDice | None
) -> None:
    summary(folder, "crossval_results_folds_0_1", means, mean)
    found = find(folder)
    assert (found is None) == (stated is None)
    if found is not None and stated is not None:
        assert (found.mean, found.labels) == (stated.mean, stated.labels)


def test_the_card_says_whose_claim_it_is() -> None:
    lines = _stated_dice(StatedDice("summary.json, folds 0", 0.85, {"a|b": 0.9}))
    assert "From summary.json, folds 0. This service has not measured it." in lines
    assert lines[-4:] == ["|---|---|", "| a\\|b | 0.9000 |", "| mean | 0.8500 |", ""]
    assert _stated_dice(None) == []
