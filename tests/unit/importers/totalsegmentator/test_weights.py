"""Where a source has the data sets of TotalSegmentator."""

import shutil
from pathlib import Path

import pytest

from inference_service.core.errors import InputCorrupt
from inference_service.importers.totalsegmentator.weights import find_datasets, opened

NAME = "Dataset297_TotalSegmentator_total_3mm_1559subj"
OTHER = "Dataset298_TotalSegmentator_total_6mm_1559subj"


def results_folder(dataset: Path) -> Path:
    folder = dataset / "nnUNetTrainerNoMirroring__nnUNetPlans__3d_fullres"
    folder.mkdir(parents=True)
    for name in ("plans.json", "dataset.json"):
        (folder / name).write_text("{}")
    return folder


def test_a_data_set_is_found_in_each_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = results_folder(tmp_path / "weights" / NAME)
    assert find_datasets(tmp_path / "weights" / NAME) == {NAME: results.parent}
    assert find_datasets(results) == {NAME: results}
    monkeypatch.chdir(results.parent)
    assert find_datasets(Path()) == {NAME: results.parent}
    results_folder(tmp_path / "weights" / "Dataset001_Liver")
    shutil.make_archive(str(tmp_path / "weights" / OTHER), "zip", tmp_path / "weights", NAME)
    found = find_datasets(tmp_path / "weights")
    assert found == {NAME: results.parent, OTHER: tmp_path / "weights" / f"{OTHER}.zip"}


def test_other_sources_have_none(tmp_path: Path) -> None:
    assert find_datasets(tmp_path / "missing") == {}
    assert find_datasets(results_folder(tmp_path / "Dataset001_Liver")) == {}
    (tmp_path / NAME / "inside").mkdir(parents=True)
    assert find_datasets(tmp_path / NAME / "inside") == {}


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
