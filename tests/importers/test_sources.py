"""Sources other than a bundle's folder, bad input, and what an import leaves behind."""

import json
import os
import pickle
import shutil
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from importers.networks import make_unet, write_bundle, write_torchscript

from inference_service.core.errors import (
    BadRequest,
    InputCorrupt,
    InternalError,
    ModelInvalid,
    OutOfMemory,
    TimeLimit,
)
from inference_service.core.settings import Settings
from inference_service.importers import isolation
from inference_service.importers.isolated.builders import build
from inference_service.importers.isolation import Isolation
from inference_service.importers.model_import import Imported
from inference_service.importers.sandbox import find_limits
from inference_service.segmentation.model_checks import verify_model

Import = Callable[..., Imported]
SHORT = {
    "channels": [{"name": "CT", "intensity": {"kind": "fixed_range", "input": [-500, 500], "output": [-1, 1]}}],
    "modality": "CT",
    "spacing_mm": [3, 3, 3],
    "window": [16, 16, 16],
    "labels": [{"name": "background", "value": 0}, {"name": "bone", "value": 1}],
}


class Saving(torch.nn.Module):  # type: ignore[misc]
    """Writes a file when it is loaded."""

    def __init__(self, file: str) -> None:
        super().__init__()
        self.file = file
        self.training = False

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Returns the window."""
        return image

    @torch.jit.export  # type: ignore[untyped-decorator]
    def __getstate__(self) -> tuple[str, bool]:
        return (self.file, self.training)

    @torch.jit.export  # type: ignore[untyped-decorator]
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.file = state[0]
        self.training = state[1]
        torch.save(torch.zeros(1), state[0])


def models(folder: Path) -> list[str]:
    """All files in the folder of models."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) if folder.exists() else []


def short_config(folder: Path, **fields: object) -> Path:
    path = folder / "short.json"
    path.write_text(json.dumps({**SHORT, **fields}))
    return path


def test_a_bundle_is_installed_with_its_card_and_its_record(
    run_import: Import, tmp_path: Path, small_scan: Callable[..., Path]
) -> None:
    source = write_bundle(tmp_path / "bundle", {"model": make_unet().state_dict()})
    imported = run_import(source, name="bones", version="1.2", compare=(small_scan((40, 44, 50)),))
    assert models(tmp_path / "models") == [
        "bones",
        "bones/1.2",
        *(f"bones/1.2/{name}" for name in ("README.md", "import.json", "manifest.json", "model.onnx")),
    ]
    record = json.loads((imported.folder / "import.json").read_text())
    assert record["source"]["kind"] == "MONAI bundle"
    assert len(record["source"]["sha256"]) == 64
    assert record["networks"][0]["error"] < 1e-5
    assert record["networks"][0]["details"]["versions"]["torch"] == torch.__version__
    assert record["comparison"]["agreement"] >= 0.9995
    assert set(record["comparison"]["peak_bytes"]) == {"source", "this service"}
    card = (imported.folder / "README.md").read_text()
    assert "| 1 | bone |" in card
    assert record["source"]["sha256"] in card
    assert f"Dice: bone {record['comparison']['dice']['bone']:.4f}" in card
    verified = verify_model(Settings(models_path=tmp_path / "models"), "bones", None)
    assert verified["labels"] == {0: "background", 1: "bone"}
    with pytest.raises(BadRequest, match="already"):
        run_import(source, name="bones", version="1.2")


def test_a_zip_of_a_bundle_is_unpacked_and_removed(run_import: Import, tmp_path: Path) -> None:
    write_bundle(tmp_path / "pack" / "bundle-v1", {"model": make_unet().state_dict()})
    archive = shutil.make_archive(str(tmp_path / "source"), "zip", tmp_path / "pack")
    assert run_import(Path(archive)).model.kind == "MONAI bundle"


def test_torchscript_with_configs_is_a_bundle(
    run_import: Import, tmp_path: Path, small_scan: Callable[..., Path]
) -> None:
    source = write_torchscript(tmp_path / "model.ts", extra=True, network=make_unet())
    imported = run_import(source, compare=(small_scan((40, 44, 50)),))
    assert imported.model.kind == "MONAI bundle"
    assert imported.comparison is not None
    assert imported.comparison.agreement >= 0.9995
    other = write_torchscript(tmp_path / "other.ts", extra=True)
    with pytest.raises(ModelInvalid, match="another network"):
        run_import(other, name="other")


def test_torchscript_needs_a_short_config(run_import: Import, tmp_path: Path) -> None:
    source = write_torchscript(tmp_path / "model.pt")
    with pytest.raises(ModelInvalid, match="window"):
        run_import(source)
    imported = run_import(source, config=short_config(tmp_path))
    assert imported.manifest.labels[1].name == "bone"
    assert imported.networks[0].error is not None
    whole = run_import(source, name="whole", config=short_config(tmp_path, window=[None, None, None], multiple_of=8))
    assert whole.manifest.multiple_of == 8


def test_the_graph_of_an_onnx_file_says_the_rest(run_import: Import, tmp_path: Path) -> None:
    first = run_import(write_torchscript(tmp_path / "model.pt"), name="first", config=short_config(tmp_path))
    imported = run_import(first.folder / "model.onnx")
    assert imported.manifest.window == (16, 16, 16)
    assert [label.name for label in imported.manifest.labels] == ["background", "label 1"]
    assert any("numbered" in sentence for sentence in imported.model.assumed)
    assert imported.networks[0].error is None
    labels = tmp_path / "labels.json"
    labels.write_text(json.dumps({"labels": SHORT["labels"]}))
    named = run_import(first.folder / "model.onnx", name="named", labels=labels)
    assert named.manifest.labels[1].name == "bone"


def test_float16_is_stated_with_its_error(run_import: Import, tmp_path: Path) -> None:
    source = write_bundle(tmp_path / "bundle", {"model": make_unet().state_dict()})
    imported = run_import(source, float16=True, bf16=True)
    error = imported.networks[0].error
    assert error is not None
    assert 1e-6 < error < 2e-2
    assert (imported.folder / "model.onnx").stat().st_size < 40_000
    assert imported.manifest.precisions == ("fp32", "bf16")


class Hostile:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("saved_by", ["torch", "pickle"])
def test_a_hostile_pickle_is_refused_and_runs_nothing(run_import: Import, tmp_path: Path, saved_by: str) -> None:
    proof = tmp_path / "ran"
    checkpoint: object = {"model": make_unet().state_dict(), "more": Hostile(proof)}
    if saved_by == "pickle":
        checkpoint = pickle.dumps(Hostile(proof))
    source = write_bundle(tmp_path / "bundle", checkpoint)
    with pytest.raises(ModelInvalid, match="refused, and nothing of it was run"):
        run_import(source)
    assert not proof.exists()
    assert models(tmp_path / "models") == []


@pytest.mark.parametrize(
    ("checkpoint", "named"),
    [
        ({"model": make_unet(channels=(4, 16)).state_dict()}, "another network"),
        ({"model": {"x": torch.zeros(1)}}, "another network"),
        ({"other": 1}, "no weights"),
        ({}, "no weights"),
        (b"no checkpoint", "refused"),
        (b"", "damaged"),
    ],
    ids=["architecture", "keys", "entry", "empty", "text", "no-bytes"],
)
def test_wrong_weights_are_refused(run_import: Import, tmp_path: Path, checkpoint: object, named: str) -> None:
    with pytest.raises(ModelInvalid, match=named):
        run_import(write_bundle(tmp_path / "bundle", checkpoint))
    assert models(tmp_path / "models") == []


def test_numbers_of_numpy_in_a_checkpoint_are_taken(run_import: Import, tmp_path: Path) -> None:
    weights = {f"module.{key}": value for key, value in make_unet().state_dict().items()}
    checkpoint = {"model": weights, "loss": np.float64(0.5), "curve": np.arange(3)}
    assert run_import(write_bundle(tmp_path / "bundle", checkpoint)).networks[0].error is not None


def test_a_network_that_onnx_runtime_computes_otherwise_is_refused(
    run_import: Import, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inference_service.importers.networks.MAX_ERROR", 0.0)
    with pytest.raises(ModelInvalid, match=r"differs from PyTorch by \d\.\de-0[678]"):
        run_import(write_bundle(tmp_path / "bundle", {"model": make_unet().state_dict()}))
    assert models(tmp_path / "models") == []


class Random(torch.nn.Module):  # type: ignore[misc]
    """Gives something else each time, which no export can."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Returns noise."""
        return torch.cat([image, image + torch.rand(image.shape)], 1)


def test_a_network_with_noise_is_refused(run_import: Import, tmp_path: Path) -> None:
    source = write_torchscript(tmp_path / "model.ts", network=Random().eval())
    with pytest.raises(ModelInvalid, match="differs from PyTorch"):
        run_import(source, config=short_config(tmp_path))


class Escaping(torch.nn.Module):  # type: ignore[misc]
    """Reads a file from TorchScript."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Returns the bytes of a file."""
        return image + torch.from_file("/etc/hostname", size=1, dtype=torch.uint8)


def test_torchscript_that_reaches_beyond_its_tensors_is_refused(run_import: Import, tmp_path: Path) -> None:
    source = write_torchscript(tmp_path / "model.pt", network=Escaping())
    with pytest.raises(ModelInvalid, match="aten::from_file"):
        run_import(source, config=short_config(tmp_path))


def test_a_zip_that_leads_out_of_its_folder_is_refused(run_import: Import, tmp_path: Path) -> None:
    archive = tmp_path / "source.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("../outside", "x")
    with pytest.raises(InputCorrupt, match="out of the folder"):
        run_import(archive)
    assert not (tmp_path / "outside").exists()


def test_the_memory_of_the_process_is_limited(
    run_import: Import, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolation, "available_memory_bytes", lambda: 0)
    source = write_torchscript(tmp_path / "model.pt")
    with pytest.raises(OutOfMemory):
        run_import(source, config=short_config(tmp_path, window=[640, 640, 640]))
    assert models(tmp_path / "models") == []


def test_secrets_do_not_reach_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTGRES_PASSWORD", "secret")
    assert "POSTGRES_PASSWORD" not in isolation.child_environment()
    assert "PATH" in isolation.child_environment()


def test_a_torchscript_file_that_writes_while_it_is_loaded_is_refused(tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch calls TorchScript deprecated
        torch.jit.script(Saving(str(proof))).save(str(tmp_path / "x.ts"))
    with pytest.raises(ModelInvalid, match=r"operator aten::save.*nothing of it was run"):
        build("torchscript", {"file": str(tmp_path / "x.ts")})
    assert not proof.exists()


def test_a_torchscript_file_is_exported_by_a_process_that_writes_nowhere_else(tmp_path: Path) -> None:
    if not find_limits().writing:
        pytest.skip("the kernel has no Landlock")
    source = write_torchscript(tmp_path / "model.pt")
    other = tmp_path / "other"
    other.mkdir()
    task = {
        "builder": "torchscript",
        "arguments": {"file": str(source)},
        "input_shape": [1, 16, 16, 16],
        "free_axes": [],
        "count": 1,
        "float16": False,
        **{name: str(other / name) for name in ("target", "windows", "logits")},
    }
    with pytest.raises(InternalError, match="exporting a network failed") as failure:
        Isolation(tmp_path).run("export", task)
    assert "PermissionError" in str(failure.value.__cause__)
    Isolation(tmp_path).run("export", task, writes_to=[other])
    assert sorted(path.name for path in other.iterdir()) == ["logits.npy", "target", "windows.npy"]


def test_a_step_that_takes_too_long_is_ended_and_leaves_nothing(run_import: Import, tmp_path: Path) -> None:
    source = write_torchscript(tmp_path / "model.pt")
    with pytest.raises(TimeLimit, match=r"reading the network took longer than 0\.01 s"):
        run_import(source, config=short_config(tmp_path), time_limit_s=0.01)
    assert models(tmp_path / "models") == []
