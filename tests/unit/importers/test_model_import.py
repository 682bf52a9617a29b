"""The frame of every import, with an importer that needs no further package."""

import errno
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import pytest

from inference_service.core import files
from inference_service.core.errors import BadRequest, ConfigurationError, InputNotFound, InputTooLarge, ModelInvalid
from inference_service.core.files import input_sha256
from inference_service.core.settings import Settings
from inference_service.engine.model_registry import Model, find_model
from inference_service.importers import model_import
from inference_service.importers.card import write_card
from inference_service.importers.isolation import no_progress
from inference_service.importers.model_import import Imported, import_model
from inference_service.importers.networks import ExportedNetwork, with_checksums
from inference_service.importers.request import ImportRequest
from inference_service.importers.source_files import hash_source
from inference_service.importers.sources import ImportedModel, ImportOptions, NetworkCopy, Taken


class Installed:
    """Reads a model that is installed elsewhere."""

    kind = "installed model"
    options = frozenset({"config"})

    def __init__(self, model: Model, **changes: object) -> None:
        self._manifest = model.manifest.model_dump(mode="json", exclude_unset=True)
        self._changes = changes

    def recognises(self, source: Path) -> bool:
        return True

    def read(self, source: Path, options: ImportOptions) -> ImportedModel:
        own = ("name", "version", "licence", "sha256", "networks", "outputs")
        manifest = {field: value for field, value in self._manifest.items() if field not in own}
        copy = NetworkCopy("model.onnx", source / "model.onnx")
        return ImportedModel(
            self.kind, {**manifest, **self._changes}, (copy,), "MIT", (Taken("all", "manifest"),), ["A sentence."]
        )


@pytest.fixture
def run(tmp_path: Path, make_model: Callable[..., Model], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Imported]:
    """Imports a model that lies elsewhere, with some fields of its manifest changed."""
    model = make_model()
    monkeypatch.setattr(model_import, "_PACKAGES", ())

    def run_import(*, request: dict[str, object] | None = None, **changes: object) -> Imported:
        monkeypatch.setattr(
            model_import, "find_importer", lambda source, task=None: (Installed(model, **changes), source)
        )
        values = {"source": model.folder, "name": "copy", "version": "1", **(request or {})}
        settings = Settings(models_path=tmp_path / "models", work_path=tmp_path)
        return import_model(ImportRequest(**values), settings, no_progress)  # type: ignore[arg-type]

    return run_import


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_a_model_is_installed_whole(run: Callable[..., Imported], tmp_path: Path) -> None:
    imported = run()
    assert find_model(tmp_path / "models", "copy").manifest == imported.manifest
    assert left(imported.folder) == ["README.md", "import.json", "manifest.json", "model.onnx"]
    assert left(tmp_path / "models") == ["copy"]
    assert (imported.folder / "manifest.json").stat().st_mode & 0o777 == 0o644
    record = json.loads((imported.folder / "import.json").read_text())
    assert (record["assumed"], record["taken"]) == (["A sentence."], [{"what": "all", "where": "manifest"}])
    assert "- A sentence." in (imported.folder / "README.md").read_text()
    assert imported.manifest.licence == "MIT"


def test_values_of_a_ct_below_air_count_as_in_the_source(run: Callable[..., Imported]) -> None:
    assert not run(modality="CT").manifest.air_floor
    assert run(modality="CT", air_floor=True, request={"version": "2"}).manifest.air_floor
    assert run(modality="MR", request={"version": "3"}).manifest.air_floor


@pytest.mark.parametrize(
    ("request_", "named"),
    [
        ({"name": "../up"}, "--name"),
        ({"name": "Liver"}, "--name"),
        ({"name": "a\n"}, "--name"),
        ({"version": "../1"}, "--version"),
        ({"version": "v1"}, "--version"),
    ],
)
def test_a_name_that_no_model_can_have_is_refused_first(
    run: Callable[..., Imported], tmp_path: Path, request_: dict[str, str], named: str
) -> None:
    with pytest.raises(BadRequest, match=named):
        run(request=request_)
    assert left(tmp_path / "models") == []


def test_an_existing_version_is_not_replaced(run: Callable[..., Imported], tmp_path: Path) -> None:
    first = run()
    before = (first.folder / "import.json").stat()
    with pytest.raises(BadRequest, match="has a version 1 already"):
        run()
    assert (first.folder / "import.json").stat() == before
    assert run(request={"version": "2"}).folder.name == "2"


def test_another_import_that_was_faster_is_not_replaced(
    run: Callable[..., Imported], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow_card(*values: object) -> str:
        (tmp_path / "models" / "copy" / "1").mkdir(parents=True)
        return write_card(*values)  # type: ignore[arg-type]

    monkeypatch.setattr(model_import, "write_card", slow_card)
    with pytest.raises(BadRequest, match="already"):
        run()
    assert left(tmp_path / "models" / "copy" / "1") == []
    assert left(tmp_path / "models") == ["copy"]


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"window": [0, 1, 1]}, "window"), ({"unknown": 1}, "unknown"), ({"labels": []}, "labels")],
)
def test_an_invalid_manifest_leaves_nothing(
    run: Callable[..., Imported], tmp_path: Path, changes: dict[str, object], named: str
) -> None:
    with pytest.raises(ModelInvalid, match=named):
        run(**changes)
    assert left(tmp_path / "models") == []


def test_a_network_of_another_shape_leaves_nothing(run: Callable[..., Imported], tmp_path: Path) -> None:
    with pytest.raises(ModelInvalid, match="expected one output"):
        run(labels=[{"name": "a", "value": 1}], outputs=[])
    assert left(tmp_path / "models") == []


def test_an_importer_without_predictor_has_nothing_to_compare_with(
    run: Callable[..., Imported], tmp_path: Path
) -> None:
    with pytest.raises(BadRequest, match="no predictor"):
        run(request={"compare": (tmp_path / "scan.nii.gz",)})
    assert left(tmp_path / "models") == []


def test_a_missing_package_is_named(run: Callable[..., Imported], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_import, "_PACKAGES", ("no_such_package",))
    with pytest.raises(ConfigurationError, match=r"no_such_package.*inference-service\[import\]"):
        run()


def test_a_bad_file_of_labels_is_named(run: Callable[..., Imported], tmp_path: Path) -> None:
    labels = tmp_path / "labels.json"
    with pytest.raises(BadRequest, match=r"labels\.json"):
        run(request={"labels": labels})
    labels.write_text('{"labels": [{"name": "x"}]}')
    with pytest.raises(BadRequest, match=r"labels\.0\.value"):
        run(request={"labels": labels})


def test_each_network_of_parts_and_stages_gets_its_checksum() -> None:
    networks = [ExportedNetwork(f"{name}.onnx", name * 64, {f"{name}.data": "0" * 64}) for name in ("a", "b", "c")]
    fields = {
        "parts": [
            {"networks": [{"file": "a.onnx"}, {"file": "b.onnx", "output": "x"}]},
            {"first_stage": {"networks": [{"file": "c.onnx"}]}, "networks": [{"file": "a.onnx"}]},
        ]
    }
    completed = with_checksums(fields, networks)
    assert completed == {
        "parts": [
            {
                "networks": [
                    {"file": "a.onnx", "sha256": "a" * 64, "external_data": {"a.data": "0" * 64}},
                    {"file": "b.onnx", "sha256": "b" * 64, "external_data": {"b.data": "0" * 64}, "output": "x"},
                ]
            },
            {
                "first_stage": {
                    "networks": [{"file": "c.onnx", "sha256": "c" * 64, "external_data": {"c.data": "0" * 64}}]
                },
                "networks": [{"file": "a.onnx", "sha256": "a" * 64, "external_data": {"a.data": "0" * 64}}],
            },
        ]
    }


@pytest.mark.parametrize(
    ("option", "value", "named"),
    [
        ("folds", ("0",), "--folds"),
        ("label_table", Path("a.csv"), "--label-table"),
        ("mirroring", False, "--no-mirroring"),
    ],
)
def test_an_option_that_the_source_would_ignore_is_refused(
    run: Callable[..., Imported], tmp_path: Path, option: str, value: object, named: str
) -> None:
    with pytest.raises(BadRequest, match=f"kind installed model takes no {named}"):
        run(request={option: value})
    assert left(tmp_path / "models") == []
    assert run(request={"config": tmp_path, "modality": "MR"}).manifest.modality == "MR"


def test_text_of_a_source_is_no_markup_in_the_card(run: Callable[..., Imported]) -> None:
    card = (run(description="<b>a</b> | [b](c)").folder / "README.md").read_text()
    assert r"\<b\>a\</b\> \| \[b\](c)" in card


def test_a_model_that_crops_the_scan_is_named_with_its_version(run: Callable[..., Imported]) -> None:
    finder = run(request={"name": "finder", "version": "3"})
    imported = run(request={"name": "cropped"}, crop={"kind": "model", "model": "finder"})
    assert "- Crops scans to the labels of: finder 3, which must be installed" in (
        (imported.folder / "README.md").read_text()
    )
    record = json.loads((imported.folder / "import.json").read_text())
    sha256 = hashlib.sha256((finder.folder / "manifest.json").read_bytes()).hexdigest()
    assert record["crop_models"] == [{"name": "finder", "version": "3", "manifest_sha256": sha256}]


def test_files_that_cannot_be_read_are_found_before_the_source_is_read(
    run: Callable[..., Imported], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "weights").symlink_to(source / "nowhere")
    seen: list[str] = []
    monkeypatch.setattr(Installed, "read", lambda *_: seen.append("read"))
    with pytest.raises(InputNotFound, match="link that leads to no file"):
        run(request={"source": source})
    assert (seen, left(tmp_path / "models")) == ([], [])


def test_the_hash_is_that_of_all_files_or_the_source_is_refused(
    run: Callable[..., Imported], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = shutil.copytree(run().folder, tmp_path / "source")
    imported = run(request={"version": "3", "source": source})
    assert imported.record["source"] == {
        "name": source.name,
        "kind": "installed model",
        "sha256": input_sha256(source),
    }
    monkeypatch.setattr(files, "MAX_FILES", 0)
    with pytest.raises(InputTooLarge, match=r"more than 0 files, .*: give a folder with the files of the model alone"):
        run(request={"version": "2"})
    assert left(tmp_path / "models") == ["copy"]


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    (tmp_path / "weights.pth").touch()
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InputNotFound, match=r"^weights\.pth of the source cannot be read: Permission denied$"):
        hash_source(tmp_path)


def test_a_hostile_network_meets_no_onnx_runtime_here(
    run: Callable[..., Imported], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The isolated process, which has limits, loads it."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    assert run().folder.name == "1"
