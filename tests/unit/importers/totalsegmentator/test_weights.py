"""Where a source has the data sets of TotalSegmentator."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from inference_service.core.errors import BadRequest, InputCorrupt
from inference_service.importers.registry import NNUNET_TASK, find_importer
from inference_service.importers.totalsegmentator.weights import find_weights, opened

NAME = "Dataset297_TotalSegmentator_total_3mm_1559subj"
OTHER = "Dataset298_TotalSegmentator_total_6mm_1559subj"


def results_folder(dataset: Path, *, stated: str = "Dataset001_Liver", name: str = "") -> Path:
    folder = dataset / "nnUNetTrainerNoMirroring__nnUNetPlans__3d_fullres"
    folder.mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps({"dataset_name": stated}))
    (folder / "dataset.json").write_text(json.dumps({"name": name}))
    return folder


def find_datasets(source: Path, *, chosen: bool = False) -> Mapping[str, Path]:
    return find_weights(source).datasets(chosen=chosen)


def test_a_data_set_is_found_in_each_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = results_folder(tmp_path / "weights" / NAME)
    assert find_datasets(tmp_path / "weights" / NAME) == {NAME: results.parent}
    assert find_datasets(results) == {NAME: results}
    monkeypatch.chdir(results.parent)
    assert find_datasets(Path()) == {NAME: results.parent}
    shutil.make_archive(str(tmp_path / "weights" / OTHER), "zip", tmp_path / "weights", NAME)
    found = find_datasets(tmp_path / "weights")
    assert found == {NAME: results.parent, OTHER: tmp_path / "weights" / f"{OTHER}.zip"}


@pytest.mark.parametrize("fields", [{"stated": NAME}, {"name": NAME}])
def test_a_renamed_data_set_is_known_by_its_files(tmp_path: Path, fields: dict[str, str]) -> None:
    results = results_folder(tmp_path / "mine", **fields)
    assert find_datasets(tmp_path) == find_datasets(tmp_path / "mine") == {NAME: results.parent}
    assert find_datasets(results) == {NAME: results}


def test_plans_that_were_copied_for_another_training_do_not_count(tmp_path: Path) -> None:
    results = results_folder(tmp_path / "Dataset045_Mine", stated=NAME)
    for count, found in ((117, {NAME: results.parent}), (3, {})):
        labels = {f"label {value}": value for value in range(1 + count)}
        (results / "dataset.json").write_text(json.dumps({"labels": labels}))
        assert find_datasets(tmp_path) == found


@pytest.mark.parametrize(
    ("name", "count", "own"),
    [("Dataset113_ToothFairy3", 3, False), ("Dataset113_ToothFairy3", 77, True), (NAME, 3, True)],
)
def test_a_name_that_others_may_give_needs_the_number_of_labels(
    tmp_path: Path, name: str, count: int, own: bool
) -> None:
    results = results_folder(tmp_path / name, stated=name)
    labels = {f"label {value}": value for value in range(1 + count)}
    (results / "dataset.json").write_text(json.dumps({"labels": labels}))
    assert find_datasets(tmp_path) == ({name: results.parent} if own else {})


def test_a_data_set_may_be_taken_for_nnunets(tmp_path: Path) -> None:
    results_folder(tmp_path / NAME, stated=NAME)
    assert find_importer(tmp_path / NAME)[0].kind == "TotalSegmentator weights"
    assert find_importer(tmp_path / NAME, task=NNUNET_TASK)[0].kind == "nnU-Net results folder"


def test_results_folders_of_several_data_sets_may_lie_in_one_folder(tmp_path: Path) -> None:
    results = [
        results_folder(tmp_path / stated, stated=stated).rename(tmp_path / f"part {number}")
        for number, stated in enumerate((NAME, OTHER))
    ]
    assert find_datasets(tmp_path) == {NAME: results[0], OTHER: results[1]}


def test_a_renamed_zip_is_known_by_its_files(tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    for name, dataset, stated in (("a", NAME, "Dataset001_Liver"), ("b", "renamed", OTHER)):
        results_folder(tmp_path / dataset, stated=stated)
        shutil.make_archive(str(weights / name), "zip", tmp_path, dataset)
    (weights / "damaged.zip").write_bytes(b"PK\x03\x04")
    assert find_datasets(weights) == {NAME: weights / "a.zip", OTHER: weights / "b.zip"}


def test_other_sources_have_none(tmp_path: Path) -> None:
    assert find_datasets(tmp_path / "missing") == {}
    assert find_datasets(results_folder(tmp_path / "Dataset001_Liver")) == {}
    (tmp_path / NAME / "inside").mkdir(parents=True)
    assert find_datasets(tmp_path / NAME) == find_datasets(tmp_path / NAME / "inside") == {}
    damaged = results_folder(tmp_path / "Dataset002_Lung")
    (damaged / "plans.json").write_text("[")
    assert find_datasets(damaged) == {}


def test_other_data_sets_are_not_passed_over(tmp_path: Path) -> None:
    results_folder(tmp_path / NAME)
    results_folder(tmp_path / "Dataset001_Liver")
    shutil.make_archive(str(tmp_path / "lung"), "zip", tmp_path, "Dataset001_Liver")
    with pytest.raises(BadRequest, match=rf"\({NAME}\) and others of nnU-Net \(Dataset001_Liver, lung.zip\): choose a"):
        find_datasets(tmp_path)
    assert find_datasets(tmp_path, chosen=True) == {NAME: tmp_path / NAME}


def test_a_data_set_is_not_chosen_among_two_of_one_name(tmp_path: Path) -> None:
    results_folder(tmp_path / NAME)
    results_folder(tmp_path / "copy", stated=NAME)
    with pytest.raises(BadRequest, match=rf"data set {NAME} more than once \({NAME}, copy\): give one of them"):
        find_datasets(tmp_path, chosen=True)


def test_a_zip_is_unpacked(tmp_path: Path) -> None:
    results = results_folder(tmp_path / NAME)
    archive = Path(shutil.make_archive(str(tmp_path / "weights"), "zip", tmp_path, NAME))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    unpacked = opened(NAME, archive, scratch)
    assert (unpacked / NAME / results.name / "plans.json").is_file()
    assert opened(NAME, results, scratch) == results
    archive.write_bytes(b"PK\x03\x04 damaged")
    with pytest.raises(InputCorrupt):
        opened(OTHER, archive, scratch)
