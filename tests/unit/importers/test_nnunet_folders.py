"""Which results folder, folds and postprocessing of a source are imported."""

import json
from pathlib import Path
from typing import Any

import pytest

from inference_service.core.errors import BadRequest, InputNotFound, ModelInvalid
from inference_service.importers.isolation import Isolation
from inference_service.importers.nnunet.model import find_licence
from inference_service.importers.nnunet.postprocessing import LARGEST_COMPONENT, find_postprocessing
from inference_service.importers.nnunet.results_folder import ResultsFolder, choose, choose_folds, find_folders

FULL, LOW = (f"nnUNetTrainer__nnUNetPlans__{name}" for name in ("3d_fullres", "3d_lowres"))


def results(path: Path, *folds: str, checkpoint: str = "final") -> Path:
    """Makes a results folder; of its files, only their names count here."""
    path.mkdir(parents=True, exist_ok=True)
    for fold in folds:
        (path / f"fold_{fold}").mkdir(parents=True)
        (path / f"fold_{fold}" / f"checkpoint_{checkpoint}.pth").touch()
    (path / "plans.json").touch()
    (path / "dataset.json").touch()
    return path


def choice(folder: Path, *names: str, **fields: Any) -> None:
    models = [
        dict(zip(("trainer", "plans_identifier", "configuration"), name.split("__"), strict=True)) for name in names
    ]
    content = {"best_model_or_ensemble": {"selected_model_or_models": models}, **fields}
    (folder / "inference_information.json").write_text(json.dumps(content))


def test_a_results_folder_is_found_at_any_level(tmp_path: Path) -> None:
    folder = results(tmp_path / "nnUNet_results" / "Dataset001_Some" / FULL, "0")
    for source in (folder, folder.parent, folder.parent.parent):
        assert find_folders(source) == [ResultsFolder(folder)]
    assert find_folders(tmp_path) == []
    assert find_folders(folder / "plans.json") == []


def test_the_only_folder_is_chosen_whatever_its_name_is(tmp_path: Path) -> None:
    folder = results(tmp_path / "renamed", "0")
    assert choose(tmp_path, None, None).folder.path == folder
    assert choose(tmp_path, "3d_fullres", ("0",)).folds == ("0",)


def test_of_several_folders_one_is_chosen_by_its_configuration(tmp_path: Path) -> None:
    full, _ = results(tmp_path / FULL, "0"), results(tmp_path / LOW, "0")
    assert choose(tmp_path, "3d_fullres", None).folder.path == full
    with pytest.raises(BadRequest, match=f"{FULL}, {LOW}: choose one by --configuration"):
        choose(tmp_path, None, None)
    with pytest.raises(InputNotFound, match="no configuration 2d; there are"):
        choose(tmp_path, "2d", None)
    results(tmp_path / "nnUNetTrainer_250epochs__nnUNetPlans__3d_fullres", "0")
    for configuration in ("3d_fullres", None):
        with pytest.raises(BadRequest, match="give the folder of one of them"):
            choose(tmp_path, configuration, None)


def test_folders_beside_those_of_results_are_left_out(tmp_path: Path) -> None:
    """Predictions of a configuration, of an ensemble and of cross-validation have plans and a data set too."""
    full = results(tmp_path / "Dataset001_Some" / FULL, "0")
    for name in (f"ensembles/ensemble___{FULL}___{LOW}___0", f"{FULL}/crossval_results_folds_0", "predictions"):
        results(full.parent / name)
    (full.parent / "predictions" / "predict_from_raw_data_args.json").touch()
    for source in (tmp_path, full.parent, full):
        assert find_folders(source) == [ResultsFolder(full)]


def test_folders_of_two_levels_are_found(tmp_path: Path) -> None:
    first = results(tmp_path / "renamed", "0")
    second = results(tmp_path / "Dataset001_Some" / FULL, "0")
    assert find_folders(tmp_path) == [ResultsFolder(first), ResultsFolder(second)]


def test_a_configuration_that_is_not_trained_is_not_chosen(tmp_path: Path) -> None:
    low = results(tmp_path / LOW)
    assert choose(tmp_path, None, None).folder.path == low
    full = results(tmp_path / FULL, "0")
    assert choose(tmp_path, None, None).folder.path == full


def test_the_choice_of_nnunet_is_followed(tmp_path: Path) -> None:
    full, low = results(tmp_path / FULL, "0", "1"), results(tmp_path / LOW, "0", "1")
    choice(tmp_path, LOW, folds=[0, 1])
    chosen = choose(tmp_path, None, None)
    assert (chosen.folder.path, chosen.folds) == (low, ("0", "1"))
    assert choose(tmp_path, None, ("1",)).folds == ("1",)
    assert choose(tmp_path, "3d_fullres", None).folder.path == full
    choice(tmp_path, FULL, LOW)
    with pytest.raises(
        ModelInvalid, match=f"ensemble of {FULL} and {LOW}.*--configuration 3d_fullres or --configuration 3d_lowres"
    ):
        choose(tmp_path, None, None)
    choice(tmp_path, FULL, "nnUNetTrainer__nnUNetResEncUNetMPlans__3d_fullres")
    with pytest.raises(ModelInvalid, match=r"ensemble of .* can be imported: give its folder"):
        choose(tmp_path, None, None)
    choice(tmp_path, "nnUNetTrainer__nnUNetPlans__2d")
    with pytest.raises(InputNotFound, match=r"2d, which is not in the source"):
        choose(tmp_path, None, None)


def test_a_source_with_one_folder_is_taken_against_the_choice(tmp_path: Path) -> None:
    full = results(tmp_path / FULL, "0")
    choice(tmp_path, FULL, LOW)
    for source in (tmp_path, full):
        chosen = choose(source, None, None)
        assert chosen.folder.path == full
        assert f"nnU-Net's choice was {FULL} with {LOW}" in chosen.notes[0]


def test_of_several_data_sets_none_is_chosen(tmp_path: Path) -> None:
    """A choice in one of them says nothing about a folder of the same name in another."""
    first, second = tmp_path / "Dataset001_One", tmp_path / "Dataset002_Two"
    for dataset in (first, second):
        results(dataset / FULL, "0")
    choice(first, FULL, folds=[0])
    for configuration in (None, "3d_fullres"):
        with pytest.raises(BadRequest, match=f"Dataset001_One/{FULL}, Dataset002_Two/{FULL}: give the folder of one"):
            choose(tmp_path, configuration, None)


@pytest.mark.parametrize("content", ["[]", "{}", '{"best_model_or_ensemble": {"selected_model_or_models": [{}]}}'])
def test_a_damaged_choice_is_refused(tmp_path: Path, content: str) -> None:
    results(tmp_path / FULL, "0")
    (tmp_path / "inference_information.json").write_text(content)
    with pytest.raises(ModelInvalid, match=r"inference_information\.json"):
        choose(tmp_path, None, None)


def test_folds_that_are_there(tmp_path: Path) -> None:
    folder = ResultsFolder(results(tmp_path / FULL, "10", "2", "0", "all"))
    folds, notes = choose_folds(folder, None, "final")
    assert folds == ["0", "2", "10"]
    assert "`all` is left out" in notes[0]
    assert "fold 1, 3, 4, 5, 6, 7, 8, 9 is not there" in notes[1]
    assert choose_folds(folder, ["all"], "final") == (["all"], [])
    # nnU-Net's folders of results have the folds in this order.
    assert choose_folds(folder, ["10", "0"], "final") == (["0", "10"], [])
    assert choose_folds(ResultsFolder(results(tmp_path / LOW, "all")), None, "final") == (["all"], [])


def test_a_missing_fold_is_named(tmp_path: Path) -> None:
    folder = ResultsFolder(results(tmp_path / FULL, "0", "1"))
    with pytest.raises(InputNotFound, match=r"no checkpoint_final\.pth of fold 3, 4; there are those of 0, 1"):
        choose_folds(folder, ["0", "3", "4"], "final")
    with pytest.raises(InputNotFound, match=r"no fold with a checkpoint_best\.pth; give --checkpoint final"):
        choose_folds(folder, None, "best")


def test_an_unfinished_training_is_named(tmp_path: Path) -> None:
    folder = ResultsFolder(results(tmp_path / FULL, "0", checkpoint="latest"))
    with pytest.raises(
        InputNotFound, match=r"no fold with a checkpoint_final\.pth; checkpoint_latest\.pth is that of a"
    ):
        choose_folds(folder, None, "final")


def test_the_stage_before_lies_beside(tmp_path: Path) -> None:
    folder = ResultsFolder(results(tmp_path / FULL, "0"))
    assert folder.beside("3d_lowres") is None
    low = results(tmp_path / LOW, "0")
    assert folder.beside("3d_lowres") == ResultsFolder(low)


def test_the_licence_lies_between_the_results_and_the_source(tmp_path: Path) -> None:
    folder = results(tmp_path / "source" / "Dataset001_Some" / FULL, "0")
    (tmp_path / "LICENSE").write_text("Apache License Version 2.0")
    assert find_licence(folder, tmp_path / "source") is None
    (folder.parent / "LICENSE").write_text("MIT License")
    assert find_licence(folder, tmp_path / "source") == "MIT"


def postprocessing(folder: Path, content: object, folds: str = "0_1") -> None:
    place = folder / f"crossval_results_folds_{folds}"
    place.mkdir(exist_ok=True)
    (place / "postprocessing.json").write_text(json.dumps(content))


def steps(*labels: object, **more: object) -> dict[str, Any]:
    return {
        "postprocessing_fns": [LARGEST_COMPONENT] * len(labels),
        "postprocessing_kwargs": [{"labels_or_regions": each, **more} for each in labels],
    }


def test_postprocessing_of_the_same_folds_is_taken(tmp_path: Path) -> None:
    folder = ResultsFolder(results(tmp_path / FULL, "0", "1"))
    assert find_postprocessing(folder, ["0", "1"], Isolation(tmp_path)).steps == ()
    postprocessing(folder.path, steps([1, 2, 3], 2, [[1, 3], 2], background_label=0))
    found = find_postprocessing(folder, ["0", "1"], Isolation(tmp_path))
    assert found.place == "crossval_results_folds_0_1/postprocessing.json"
    assert [step["labels"] for step in found.manifest_steps()] == [[1, 2, 3], [2], [1, 2, 3]]
    assert all(step["together"] for step in found.manifest_steps())
    other = find_postprocessing(folder, ["0"], Isolation(tmp_path))
    assert not other.steps
    assert "crossval_results_folds_0_1 is left out" in other.notes[0]


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({}, "postprocessing_fns: expected a list"),
        ({**steps(1), "postprocessing_fns": []}, "expected one object for each step"),
        ({**steps(1), "postprocessing_fns": ["mine"]}, "postprocessing_fns: mine is not supported"),
        (steps(1, background_label=2), "removed voxels must become 0"),
        (steps(1, connectivity=1), "expected labels_or_regions alone"),
        (steps("1"), "expected whole numbers"),
        (steps([10**6]), "expected whole numbers"),
        (steps([[[1]]]), "expected whole numbers"),
    ],
)
def test_other_postprocessing_is_refused(tmp_path: Path, content: object, named: str) -> None:
    folder = ResultsFolder(results(tmp_path / FULL, "0", "1"))
    postprocessing(folder.path, content)
    with pytest.raises(ModelInvalid, match=named):
        find_postprocessing(folder, ["0", "1"], Isolation(tmp_path))
