"""Installed models, and a storage in memory."""

from collections.abc import Callable
from pathlib import Path

import pytest
from fake_storage import MemoryStorage

from inference_service.contract.manifest import MANIFEST_FILE
from inference_service.engine.model_registry import Model, read_model
from inference_service.model_store.stored_models import StoredModels

BUCKET = "models"
Install = Callable[..., Model]


@pytest.fixture
def install(tmp_path: Path, make_model: Callable[..., Model]) -> Install:
    """Installs a model of one network with a card."""

    def install(folder: Path | None = None, name: str = "nearest", version: str = "1", **fields: object) -> Model:
        made = make_model(name=name, version=version, **fields)
        target = (folder or tmp_path / "models") / name / version
        target.mkdir(parents=True)
        (target / MANIFEST_FILE).write_text(made.manifest.model_dump_json())
        (target / "model.onnx").write_bytes((made.folder / "model.onnx").read_bytes())
        (target / "README.md").write_text(f"# {name} {version}\n")
        return read_model(target)

    return install


@pytest.fixture
def storage() -> MemoryStorage:
    return MemoryStorage()


@pytest.fixture
def stored(storage: MemoryStorage) -> StoredModels:
    return StoredModels(storage, BUCKET, "of/research")
