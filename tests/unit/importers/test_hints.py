"""What is said of a source that no importer recognises, and sources that lie in the only folder of another one."""

import errno
import zipfile
from pathlib import Path

import pytest

from inference_service.core.errors import InputNotFound, UnsupportedFormat
from inference_service.importers.nnunet.model import NnunetModel
from inference_service.importers.registry import find_importer

RESULTS = "nnUNetTrainer__nnUNetPlans__3d_fullres"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A results folder of nnU-Net; of its files, only their names count here."""
    folder = tmp_path / "nnUNet_results" / "Dataset001_Some" / RESULTS
    (folder / "fold_0" / "validation").mkdir(parents=True)
    (folder / "crossval_results_folds_0").mkdir()
    for name in ("plans.json", "dataset.json", "fold_0/checkpoint_final.pth", "crossval_results_folds_0/plans.json"):
        (folder / name).write_text("{}")
    return folder


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "spleen"
    for name in ("configs/inference.json", "configs/metadata.json", "models/model.pt", "docs/README.md"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    with zipfile.ZipFile(folder / "models" / "model.pt", "w") as file:
        file.writestr("model/data.pkl", b"")
    return folder


def refusal(source: Path) -> str:
    with pytest.raises(UnsupportedFormat) as caught:
        find_importer(source)
    return caught.value.message


@pytest.mark.parametrize(
    "name",
    ["fold_0", "fold_0/validation", "fold_0/checkpoint_final.pth", "plans.json", "crossval_results_folds_0"],
)
def test_a_part_of_a_results_folder_names_the_folder(results: Path, name: str) -> None:
    part = results / name
    assert f"{part.name} is a part of the nnU-Net results folder {RESULTS}: give that folder" in refusal(part)


@pytest.mark.parametrize("name", ["configs", "configs/inference.json", "models", "models/model.pt", "docs/README.md"])
def test_a_part_of_a_bundle_names_the_folder(bundle: Path, name: str) -> None:
    part = bundle / name
    assert f"{part.name} is a part of the MONAI bundle spleen: give that folder" in refusal(part)


def test_a_folder_that_is_too_high_names_the_one_to_give(results: Path, bundle: Path, tmp_path: Path) -> None:
    root = tmp_path / "home" / "nnunet" / "results"
    root.parent.mkdir(parents=True)
    results.parents[1].rename(root)
    (tmp_path / "home" / "config.json").touch()
    assert refusal(tmp_path / "home").endswith(". It has nnunet/results: give that")
    bundle.rename(tmp_path / "home" / "spleen")
    assert refusal(tmp_path / "home").endswith(". It has spleen: give that")
    (tmp_path / "home" / "other.zip").write_bytes(b"PK\x05\x06" + bytes(18))
    assert refusal(tmp_path / "home").endswith(". It has other.zip, spleen: give one of them")


def test_the_only_folder_is_entered(results: Path, bundle: Path, tmp_path: Path) -> None:
    for source in (results, bundle):
        folder = tmp_path / f"of {source.name}" / "a" / "b"
        folder.mkdir(parents=True)
        importer, found = find_importer(source)
        assert found == source
        source.rename(folder / source.name)
        again, found = find_importer(tmp_path / f"of {source.name}")
        assert again is importer
        assert found.is_relative_to(folder.parent)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("weights.tar.gz", "weights.tar.gz must be unpacked first: only zips are taken as they are"),
        ("model.pth", "model.pth holds weights without their network: give the nnU-Net results folder"),
        ("inference.json", "inference.json is a config of a MONAI bundle, whose folder has it in configs/"),
        ("plans.json", "plans.json is a file of an nnU-Net results folder, which has folders fold_0"),
        ("dataset.json", "dataset.json is the description of nnU-Net's data; the models lie in nnUNet_results"),
        ("plans.pkl", "plans.pkl is a file of nnU-Net 1; models of nnU-Net 2 can be imported"),
    ],
)
def test_a_part_without_its_model_is_named(tmp_path: Path, name: str, said: str) -> None:
    path = tmp_path / "inside" / name
    path.parent.mkdir()
    path.write_bytes(b"\x80\x02")
    assert said in refusal(path)
    if path.suffix in (".json", ".pkl"):
        assert said in refusal(path.parent)


def test_a_folder_that_must_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(path: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", str(path / "closed"))

    monkeypatch.setattr(NnunetModel, "recognises", lambda self, source: forbidden(source))
    with pytest.raises(InputNotFound, match="closed cannot be read: its permissions forbid it"):
        find_importer(tmp_path)


def test_other_sources_have_no_hint(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    for source in (tmp_path, tmp_path / "notes.txt"):
        assert refusal(source).endswith("TorchScript file, ONNX file")
