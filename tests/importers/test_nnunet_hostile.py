"""Results folders that are damaged, contradict themselves, or hold more than weights and plain values."""

import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from importers.nnunet_folders import write_results

from inference_service.core.errors import InputCorrupt, InputNotFound, InputTooLarge, ModelInvalid, ServiceError
from inference_service.importers import isolation, source_files
from inference_service.importers.isolated.nnunet_network import describe_checkpoints, nnunet_network
from inference_service.importers.isolated.nnunet_plans import CheckedPlans
from inference_service.importers.isolated.nnunet_postprocessing import read_postprocessing
from inference_service.importers.isolation import Isolation
from inference_service.importers.model_import import Imported
from inference_service.importers.nnunet.plans import Plans
from inference_service.importers.nnunet.postprocessing import find_postprocessing
from inference_service.importers.nnunet.results_folder import ResultsFolder

Import = Callable[..., Imported]
CHECKPOINT = Path("fold_0") / "checkpoint_final.pth"
FULLRES = ("configurations", "3d_fullres")
PICKLE = Path("crossval_results_folds_0") / "postprocessing.pkl"


class Hostile:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A results folder with one fold."""
    return write_results(tmp_path / "Dataset700_Small")


@pytest.fixture
def refused(run_import: Import, tmp_path: Path) -> Callable[..., None]:
    """Imports a source that is refused, and checks that nothing was written."""

    def check(source: Path, error: type[ServiceError], named: str, **request: Any) -> None:
        with pytest.raises(error, match=named):
            run_import(source, **request)
        models = tmp_path / "models"
        assert not models.exists() or list(models.iterdir()) == []

    return check


def change_checkpoint(results: Path, **entries: object) -> None:
    content = torch.load(results / CHECKPOINT, weights_only=False)
    torch.save({**content, **entries}, results / CHECKPOINT)


def change_json(path: Path, *keys: str, value: object) -> None:
    content = json.loads(path.read_text())
    place = content
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    path.write_text(json.dumps(content))


def builder_arguments(results: Path, **changes: object) -> dict[str, object]:
    architecture = Plans.read(results).configuration("3d_fullres").architecture
    return {
        "network": architecture.network,
        "arguments": {**architecture.arguments, **changes},
        "inputs": 1,
        "outputs": 3,
        "checkpoint": str(results / CHECKPOINT),
        "trainer": "nnUNetTrainer",
    }


@pytest.mark.parametrize("saved_by", ["torch", "pickle"])
def test_a_hostile_pickle_runs_nothing(
    results: Path, refused: Callable[..., None], tmp_path: Path, saved_by: str
) -> None:
    proof = tmp_path / "ran"
    if saved_by == "torch":
        change_checkpoint(results, logging=Hostile(proof))
    else:
        (results / CHECKPOINT).write_bytes(pickle.dumps(Hostile(proof)))
    refused(results, ModelInvalid, r"checkpoint_final\.pth is refused, and nothing of it was run")
    assert not proof.exists()


def test_missing_files_are_named(results: Path, refused: Callable[..., None]) -> None:
    refused(results, InputNotFound, "no checkpoint_final.pth of fold 1", folds=("0", "1"))
    (results / "plans.json").rename(results / "elsewhere.json")
    refused(results, InputNotFound, r"has no plans\.json")
    (results / "plans.json").write_text("{")
    refused(results, ModelInvalid, r"plans\.json is not valid JSON")


@pytest.mark.parametrize(
    ("entries", "named"),
    [
        ({"init_args": None}, "has no init_args"),
        ({"network_weights": {}}, "has no weights under 'network_weights'"),
        ({"network_weights": {"x": torch.zeros(1)}}, "another network than nnU-Net's"),
        ({"trainer_name": "a b"}, "has no trainer_name"),
        ({"inference_allowed_mirroring_axes": (0, 3)}, "no axes of windows"),
    ],
)
def test_checkpoints_that_are_not_those_of_nnunet(results: Path, entries: dict[str, object], named: str) -> None:
    change_checkpoint(results, **entries)
    with pytest.raises(ModelInvalid, match=named):
        describe_checkpoints({"files": [str(results / CHECKPOINT)]})


def test_the_checkpoint_of_another_configuration(results: Path, refused: Callable[..., None]) -> None:
    change_checkpoint(results, init_args={"configuration": "2d"})
    refused(results, ModelInvalid, "2d: there is no such configuration")


def test_a_renamed_folder_of_another_configuration(results: Path, refused: Callable[..., None]) -> None:
    renamed = results.rename(results.with_name("renamed"))
    refused(renamed, InputNotFound, "renamed has checkpoints of 3d_fullres, not of 2d", configuration="2d")


def test_the_checkpoint_of_another_architecture(results: Path, refused: Callable[..., None]) -> None:
    arguments = ("configurations", "3d_fullres", "architecture", "arch_kwargs")
    change_json(results / "plans.json", *arguments, "features_per_stage", value=[4, 16])
    refused(results, ModelInvalid, r"fold_0/checkpoint_final\.pth \(trained by nnUNetTrainer\) is of another network")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        # The weights would take 57 GB.
        ({"features_per_stage": [8192, 8192], "kernel_sizes": [[9] * 3] * 2}, "more than 536870912 weights"),
        ({"kernel_sizes": [[3, 3, 3]]}, "describes no network PlainConvUNet"),
        ({"nonlin_kwargs": {"inplaces": True}}, "describes no network PlainConvUNet"),
        ({"nonlin": "Module"}, "operator Module is not used"),
        ({"block": "ReLU"}, "block ReLU is not used"),
    ],
)
def test_networks_are_checked_before_they_take_memory(results: Path, changes: dict[str, object], named: str) -> None:
    with pytest.raises(ModelInvalid, match=named):
        nnunet_network(builder_arguments(results, **changes))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_weights_of_a_parallel_or_compiled_network(results: Path, prefix: str) -> None:
    weights = torch.load(results / CHECKPOINT, weights_only=False)["network_weights"]
    change_checkpoint(results, network_weights={prefix + key: value for key, value in weights.items()})
    built = nnunet_network(builder_arguments(results)).state_dict()
    assert all(torch.equal(built[key], value) for key, value in weights.items())


def test_weights_that_are_not_finite(results: Path) -> None:
    checkpoint = torch.load(results / CHECKPOINT, weights_only=False)
    checkpoint["network_weights"]["encoder.stages.0.0.convs.0.conv.weight"][0, 0, 0, 0, 0] = torch.nan
    torch.save(checkpoint, results / CHECKPOINT)
    with pytest.raises(ModelInvalid, match=r"weights that are not finite: encoder\.stages\.0"):
        nnunet_network(builder_arguments(results))


def test_a_number_of_labels_that_contradicts_the_network(results: Path, refused: Callable[..., None]) -> None:
    labels = {"background": 0, "liver": 1, "kidney": 2, "spleen": 3}
    change_json(results / "dataset.json", "labels", value=labels)
    refused(results, ModelInvalid, "dataset.json describes 4 labels, and the network of fold_0 has 3 outputs")


def test_windows_that_do_not_fit_the_network(results: Path, refused: Callable[..., None]) -> None:
    change_json(results / "plans.json", "configurations", "3d_fullres", "patch_size", value=[15, 16, 16])
    refused(results, ModelInvalid, "the network fails on a window of shape")


def test_zips_are_unpacked_within_limits(
    results: Path, refused: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = Path(shutil.make_archive(str(tmp_path / "good"), "zip", results.parent.parent, results.parent.name))
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr("../outside", "x")
    refused(archive, InputCorrupt, "out of the folder")
    assert not (tmp_path / "outside").exists()
    bomb = tmp_path / "bomb.zip"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(f"{results.name}/plans.json", b"0" * 2**20)
    monkeypatch.setattr(source_files.unpack_named, "__kwdefaults__", {"max_bytes": 2**18})
    refused(bomb, InputTooLarge, "unpacks to more than")


def write_pickle(results: Path, content: object) -> ResultsFolder:
    path = results / PICKLE
    path.parent.mkdir()
    with path.open("wb") as file:
        file.write(content) if isinstance(content, bytes) else pickle.dump(content, file)
    return ResultsFolder(results)


def test_a_pickle_of_postprocessing_is_read_as_data(results: Path, tmp_path: Path) -> None:
    from nnunetv2.postprocessing.remove_connected_components import remove_all_but_largest_component_from_segmentation

    labels = list(np.array([1, 2]))
    content = (
        [remove_all_but_largest_component_from_segmentation] * 2,
        [
            {"labels_or_regions": labels},
            {"labels_or_regions": np.int64(2)},
        ],
    )
    found = find_postprocessing(write_pickle(results, content), ["0"], Isolation(tmp_path))
    assert found.steps == [[1, 2], [2]]
    assert found.place == "crossval_results_folds_0/postprocessing.pkl"


def many() -> object:
    """A list that stands for 10⁹ values."""
    value: object = 0
    for _ in range(3):
        value = [value] * 1000
    return value


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "damaged"),
        (b"\x80\x04N.", "damaged"),
        (np.float64(1.5), "holds a scalar that is no integer"),
        ((many(), []), "unfolds to more than"),
        (([], [{"labels_or_regions": [[[[1]]]]}]), "has not the form"),
        (pickle.dumps(([print], [])), "it holds builtins.print"),
    ],
    ids=["empty", "none", "float", "many", "deep", "builtin"],
)
def test_other_pickles_are_refused(results: Path, content: object, named: str) -> None:
    write_pickle(results, content)
    with pytest.raises(ModelInvalid, match=named):
        read_postprocessing({"file": str(results / PICKLE)})


def test_a_pickle_that_asks_for_memory_ends_its_process_alone(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolation, "available_memory_bytes", lambda: 0)
    # LONG_BINPUT with the index 2³² - 1: 32 GiB of references.
    folder = write_pickle(results, b"\x80\x04Nr\xff\xff\xff\xff.")
    with pytest.raises(ServiceError, match="memory"):
        find_postprocessing(folder, ["0"], Isolation(tmp_path))


def test_hostile_postprocessing_runs_nothing(results: Path, refused: Callable[..., None], tmp_path: Path) -> None:
    proof = tmp_path / "ran"
    write_pickle(results, ([Hostile(proof)], []))
    refused(results, ModelInvalid, r"postprocessing\.pkl is refused, and nothing of it was run: it holds posix\.system")
    assert not proof.exists()


@pytest.mark.parametrize(
    ("keys", "value", "named"),
    [
        (("image_reader_writer",), "os", "image_reader_writer: os is not supported"),
        (("label_manager",), "os", "label_manager: os is not supported"),
        ((*FULLRES, "preprocessor_name"), "os", "preprocessor_name: os is not supported"),
        ((*FULLRES, "resampling_fn_data"), "deepcopy", "resampling_fn_data: deepcopy is not supported"),
        ((*FULLRES, "normalization_schemes"), ["os"], "normalization_schemes: os is not supported"),
        ((*FULLRES, "architecture", "network_class_name"), "os.system", r"network_class_name: .* os\.system"),
        ((*FULLRES, "architecture", "arch_kwargs", "conv_op"), "antigravity.x", r"conv_op: antigravity\.x"),
        ((*FULLRES, "architecture", "arch_kwargs", "more"), "antigravity.x", "more: an argument of this name"),
    ],
)
def test_no_name_in_plans_leads_to_python_that_is_not_known(
    results: Path, keys: tuple[str, ...], value: object, named: str
) -> None:
    """Plans of a data set that was not imported may be read by the source's own predictor."""
    change_json(results / "plans.json", *keys, value=value)
    with pytest.raises(ModelInvalid, match=named):
        CheckedPlans(json.loads((results / "plans.json").read_text())).get_configuration("3d_fullres")
