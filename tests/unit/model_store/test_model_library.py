"""Which of the installed and the stored versions a job runs with."""

from collections.abc import Callable
from pathlib import Path

import pytest
from fake_storage import MemoryStorage

from inference_service.core.errors import ModelNotFound, StorageUnavailable
from inference_service.engine.model_registry import Model
from inference_service.model_store.catalogue import list_everywhere
from inference_service.model_store.model_cache import ModelCache
from inference_service.model_store.model_library import ModelLibrary
from inference_service.model_store.stored_models import StoredModels

Install = Callable[..., Model]


@pytest.fixture
def cache(tmp_path: Path) -> ModelCache:
    (tmp_path / "cache").mkdir()
    return ModelCache(tmp_path / "cache", 2**20)


@pytest.fixture
def library(tmp_path: Path, stored: StoredModels, cache: ModelCache) -> ModelLibrary:
    """The models of another machine, which has none of the first one."""
    return ModelLibrary(tmp_path / "other", (stored, cache))


def find(library: ModelLibrary, name: str, version: str | None = None) -> Model:
    with library.lending() as lend:
        return lend(name, version)


def requests(storage: MemoryStorage, name: str) -> int:
    return [request for request, _ in storage.requests].count(name)


def test_a_stored_model_is_fetched_once(
    library: ModelLibrary, stored: StoredModels, storage: MemoryStorage, install: Install, tmp_path: Path
) -> None:
    model = install()
    stored.push(model)
    found = find(library, "nearest")
    assert (found.manifest, found.manifest_sha256) == (model.manifest, model.manifest_sha256)
    assert found.folder.is_relative_to(tmp_path / "cache")
    assert found.read_network(found.manifest.network_files["model.onnx"])
    storage.requests.clear()
    # Equal, so that the networks stay loaded.
    assert find(library, "nearest") == find(library, "nearest", "1") == found
    assert requests(storage, "fetch") == 0


@pytest.mark.parametrize(
    ("installed", "in_storage", "asked", "place"),
    [
        (["1"], ["2"], None, "cache"),
        (["10"], ["9"], None, "other"),
        (["1"], ["1"], None, "other"),
        (["1"], ["1"], "1", "other"),
        (["1"], ["2"], "1", "other"),
        (["2"], ["1"], "1", "cache"),
        (["1"], [], None, "other"),
    ],
)
def test_the_highest_version_runs_and_an_installed_one_in_place_of_a_stored_one(
    library: ModelLibrary,
    stored: StoredModels,
    install: Install,
    tmp_path: Path,
    installed: list[str],
    in_storage: list[str],
    asked: str | None,
    place: str,
) -> None:
    for version in in_storage:
        stored.push(install(version=version))
    for version in installed:
        install(tmp_path / "other", version=version)
    assert find(library, "nearest", asked).folder.is_relative_to(tmp_path / place)


def test_an_installed_version_needs_no_storage(
    library: ModelLibrary, storage: MemoryStorage, install: Install, tmp_path: Path
) -> None:
    install(tmp_path / "other")
    find(library, "nearest", "1")
    assert not storage.requests


def test_a_version_that_is_not_wholly_installed_is_fetched(
    library: ModelLibrary, stored: StoredModels, install: Install, tmp_path: Path
) -> None:
    stored.push(install())
    (install(tmp_path / "other").folder / "model.onnx").unlink()
    for version in (None, "1"):
        assert find(library, "nearest", version).folder.is_relative_to(tmp_path / "cache")


def test_without_the_storage_the_highest_version_is_unknown(
    library: ModelLibrary, storage: MemoryStorage, install: Install, tmp_path: Path
) -> None:
    def fail(*_: str) -> None:
        raise StorageUnavailable("no answer")

    install(tmp_path / "other")
    storage.before = fail
    with pytest.raises(StorageUnavailable):
        find(library, "nearest")


def test_a_new_version_is_found_at_once_where_it_is_named_or_the_only_one(
    library: ModelLibrary, stored: StoredModels, storage: MemoryStorage, install: Install
) -> None:
    with pytest.raises(ModelNotFound, match=r"MODELS_PATH holds no model; and MODELS_BUCKET has none of that name"):
        find(library, "nearest")
    stored.push(install())
    assert find(library, "nearest").manifest.version == "1"
    stored.push(install(version="2"))
    with pytest.raises(ModelNotFound, match=r"stored: 1, 2"):
        find(library, "nearest", "3")
    stored.push(install(version="3"))
    assert find(library, "nearest", "3").manifest.version == "3"
    storage.requests.clear()
    for _ in range(3):
        find(library, "nearest")
    assert requests(storage, "list") == 0


def test_a_removed_version_does_not_run_from_the_cache(
    library: ModelLibrary, stored: StoredModels, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inference_service.model_store.stored_models._LISTING_S", 0.0)
    stored.push(install())
    find(library, "nearest")
    stored.remove("nearest", "1")
    with pytest.raises(ModelNotFound):
        find(library, "nearest", "1")


def test_after_the_highest_version_was_removed_the_next_one_runs_at_once(
    library: ModelLibrary, stored: StoredModels, install: Install, tmp_path: Path
) -> None:
    for version in ("1", "2"):
        stored.push(install(version=version))
    assert find(library, "nearest").manifest.version == "2"
    # By another process, so that the listing of this one still has it.
    StoredModels(stored._storage, "models", "of/research").remove("nearest", "2")
    assert find(library, "nearest").manifest.version == "1"
    StoredModels(stored._storage, "models", "of/research").remove("nearest", "1")
    install(tmp_path / "other")
    assert find(library, "nearest").folder.is_relative_to(tmp_path / "other")


def test_a_version_that_is_named_needs_no_listing(
    library: ModelLibrary, stored: StoredModels, storage: MemoryStorage, install: Install
) -> None:
    stored.push(install())
    storage.requests.clear()
    find(library, "nearest", "1")
    assert requests(storage, "list") == 0


def test_names_of_no_model_are_not_remembered(library: ModelLibrary, stored: StoredModels) -> None:
    for number in range(3):
        with pytest.raises(ModelNotFound):
            find(library, f"unknown-{number}")
    assert not stored._listings


def test_a_model_is_found_once_for_each_job(
    library: ModelLibrary, stored: StoredModels, storage: MemoryStorage, install: Install
) -> None:
    """A model of several parts may name another model for each of them."""
    stored.push(install())
    with library.lending() as lend:
        first = lend("nearest", None)
        storage.requests.clear()
        assert lend("nearest", None) is first
    assert not storage.requests


def test_without_stored_models_only_installed_ones_are_found(install: Install, tmp_path: Path) -> None:
    model = install()
    library = ModelLibrary(tmp_path / "models", None)
    assert find(library, "nearest") == model
    with pytest.raises(ModelNotFound, match=r"MODELS_PATH holds nearest$"):
        find(library, "farthest")


def test_the_catalogue_tells_where_each_version_is(
    library: ModelLibrary,
    stored: StoredModels,
    storage: MemoryStorage,
    cache: ModelCache,
    install: Install,
    tmp_path: Path,
) -> None:
    for version in ("1", "2", "10"):
        stored.push(install(version=version))
    find(library, "nearest", "10")
    install(tmp_path / "other", description="Other labels.")
    install(tmp_path / "other", version="3")
    manifest = stored.read_index("nearest", "2").manifest_sha256
    storage.objects["models", f"of/research/nearest/2/{manifest}"] = b"{}"
    entries = list_everywhere(tmp_path / "other", stored, cache, tmp_path / "scratch")
    assert [(entry.version, entry.places) for entry in entries] == [
        ("1", ["installed", "stored"]),
        ("2", ["stored"]),
        ("3", ["installed"]),
        ("10", ["stored", "cached"]),
    ]
    problems = {entry.version: entry.problem for entry in entries}
    assert problems["1"] == "the installed version has another manifest than the stored one"
    assert "manifest.json is not the file" in problems["2"]
    assert (problems["3"], problems["10"]) == ("", "")
    assert [entry.manifest is None for entry in entries] == [False, True, False, False]
