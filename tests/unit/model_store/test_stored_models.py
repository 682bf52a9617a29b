"""Versions are stored whole, never changed, and verified when they are fetched."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_storage import MemoryStorage

from inference_service.contract.model_index import ModelIndex
from inference_service.core.errors import BadRequest, ModelInvalid, ModelNotFound, StorageUnavailable
from inference_service.engine.model_registry import Model, find_model
from inference_service.jobs.storage.object_storage import StoredObject
from inference_service.model_store.stored_models import StoredModels

Install = Callable[..., Model]
PREFIX = "of/research/nearest/1/"
INDEX = ("models", f"{PREFIX}index.json")


def key(index: ModelIndex, file: str) -> tuple[str, str]:
    return "models", f"{PREFIX}{index.files[file].sha256}"


def listed(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_a_pushed_version_is_pulled(stored: StoredModels, install: Install, tmp_path: Path) -> None:
    model = install()
    (model.folder / ".notes").write_text("hidden")
    shares: list[float] = []
    assert stored.push(model, shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1
    index = stored.find_index("nearest", None)
    assert sorted(index.files) == ["README.md", "manifest.json", "model.onnx"]
    shares.clear()
    other = tmp_path / "other"
    assert stored.pull(index, other, shares.append)
    assert (shares == sorted(shares), shares[-1]) == (True, 1)
    assert listed(other) == [
        "nearest",
        "nearest/1",
        *(f"nearest/1/{name}" for name in ("README.md", "manifest.json", "model.onnx")),
    ]
    assert find_model(other, "nearest") == Model(model.manifest, model.manifest_sha256, other / "nearest" / "1")
    assert not stored.pull(index, other)


def test_the_index_is_stored_last_and_a_part_of_a_version_is_none(
    stored: StoredModels, storage: MemoryStorage, install: Install
) -> None:
    model = install()

    def fail(name: str, _key: str) -> None:
        if name == "store" and [name for name, _ in storage.requests].count("store") == 3:
            raise StorageUnavailable("no answer")

    storage.before = fail
    with pytest.raises(StorageUnavailable):
        stored.push(model)
    assert len(storage.objects) == 2
    assert stored.versions("nearest", again=True) == []
    with pytest.raises(ModelNotFound, match="model nearest 1 is not stored"):
        stored.read_index("nearest", "1")
    storage.before = lambda name, key: None
    storage.requests.clear()
    assert stored.push(model)
    assert stored.versions("nearest", again=True) == ["1"]
    # Files that were stored before are not stored again.
    assert [name for name, _ in storage.requests].count("store") == 1


def test_equal_content_is_pushed_once_and_another_is_refused(
    stored: StoredModels, storage: MemoryStorage, install: Install
) -> None:
    model = install()
    assert stored.push(model)
    before = dict(storage.objects)
    assert not stored.push(model)
    (model.folder / "README.md").write_text("changed")
    with pytest.raises(BadRequest, match="model nearest 1 is stored already, with other files: give these another"):
        stored.push(model)
    assert storage.objects == before


def test_a_missing_object_of_a_stored_version_is_stored_again(
    stored: StoredModels, storage: MemoryStorage, install: Install
) -> None:
    model = install()
    stored.push(model)
    before = dict(storage.objects)
    del storage.objects[key(stored.read_index("nearest", "1"), "model.onnx")]
    assert not stored.push(model)
    assert storage.objects == before


@pytest.mark.parametrize("conditional", [True, False])
def test_two_pushes_at_once_do_not_mix(install: Install, tmp_path: Path, *, conditional: bool) -> None:
    storage = MemoryStorage(conditional=conditional)
    stored = StoredModels(storage, "models", "of/research")
    mine, theirs = install(), install(tmp_path / "theirs", description="Other labels.")
    storage.before = _another_push_between(storage, lambda: StoredModels(storage, "models", "of/research").push(theirs))
    if conditional:
        with pytest.raises(BadRequest, match="with other files"):
            stored.push(mine)
        winner = theirs
    else:
        # The index replaces the other one, whole.
        assert stored.push(mine)
        winner = mine
    index = stored.read_index("nearest", "1")
    assert index.manifest_sha256 == winner.manifest_sha256
    assert stored.pull(index, tmp_path / "pulled")
    if conditional:
        assert len(storage.objects) == 1 + len({file.sha256 for file in index.files.values()})


def test_a_push_whose_index_was_replaced_at_once_is_refused(install: Install, tmp_path: Path) -> None:
    storage = MemoryStorage(conditional=False)
    mine, theirs = install(), install(tmp_path / "theirs", description="Other labels.")

    def replace(name: str, key: str) -> None:
        if name == "read" and any(request == "create" for request, _ in storage.requests):
            storage.before = lambda name, key: None
            del storage.objects[INDEX]
            assert StoredModels(storage, "models", "of/research").push(theirs)

    storage.before = replace
    with pytest.raises(BadRequest, match="with other files"):
        StoredModels(storage, "models", "of/research").push(mine)
    stored = StoredModels(storage, "models", "of/research")
    assert stored.pull(stored.read_index("nearest", "1"), tmp_path / "pulled")


def _another_push_between(storage: MemoryStorage, push: Callable[[], bool]) -> Callable[[str, str], None]:
    """Lets another push end just before the index is stored."""

    def before(name: str, _key: str) -> None:
        if name == "create":
            storage.before = lambda name, key: None
            assert push()

    return before


def test_two_equal_pushes_at_once_both_succeed(stored: StoredModels, storage: MemoryStorage, install: Install) -> None:
    model = install()
    storage.before = _another_push_between(storage, lambda: StoredModels(storage, "models", "of/research").push(model))
    assert not stored.push(model)


def test_a_file_that_changes_while_it_is_pushed_is_not_stored(
    stored: StoredModels, storage: MemoryStorage, install: Install
) -> None:
    model = install()

    def change(name: str, _key: str) -> None:
        if name == "store":
            (model.folder / "model.onnx").write_bytes(b"x" * (model.folder / "model.onnx").stat().st_size)

    storage.before = change
    with pytest.raises(ModelInvalid, match=r"model\.onnx has changed while it was pushed"):
        stored.push(model)
    assert not any(content.startswith(b"xx") for content in storage.objects.values())
    assert stored.versions("nearest") == []


def test_a_changed_network_is_not_pushed(stored: StoredModels, storage: MemoryStorage, install: Install) -> None:
    model = install()
    (model.folder / "model.onnx").write_bytes(b"changed")
    with pytest.raises(ModelInvalid, match=r"model\.onnx is missing, or is not the file of its manifest"):
        stored.push(model)
    assert not storage.objects


def test_a_file_with_a_name_that_is_not_plain_is_refused(stored: StoredModels, install: Install) -> None:
    model = install()
    (model.folder / "notes (1).txt").write_text("x")
    with pytest.raises(ModelInvalid, match=r"cannot be stored: files\.notes \(1\)\.txt"):
        stored.push(model)


def change_index(storage: MemoryStorage, **changes: object) -> None:
    content = json.loads(storage.objects[INDEX])
    storage.objects[INDEX] = json.dumps({**content, **changes}).encode()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"files": {"../../evil": {"sha256": "0" * 64, "size_bytes": 1}}}, "index.json is invalid at files"),
        ({"version": "2"}, "index.json is for nearest 2"),
        ({"name": "../x"}, "index.json is invalid at name"),
    ],
)
def test_a_changed_index_is_refused(
    stored: StoredModels, storage: MemoryStorage, install: Install, changes: dict[str, object], message: str
) -> None:
    stored.push(install())
    change_index(storage, **changes)
    with pytest.raises(ModelInvalid, match=message):
        stored.read_index("nearest", "1")
    assert stored.inventory({}) == []


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"x" * (2**20 + 1)])
def test_a_damaged_index_is_refused(
    stored: StoredModels, storage: MemoryStorage, install: Install, content: bytes
) -> None:
    stored.push(install())
    storage.objects[INDEX] = content
    with pytest.raises(ModelInvalid, match=r"the stored model nearest 1.*index\.json"):
        stored.read_index("nearest", "1")


def test_an_index_that_lacks_a_network_of_the_manifest_is_refused_before_networks_are_fetched(
    stored: StoredModels, storage: MemoryStorage, install: Install, tmp_path: Path
) -> None:
    stored.push(install())
    files = json.loads(storage.objects[INDEX])["files"]
    change_index(storage, files={**files, "model.onnx": files["README.md"]})
    storage.requests.clear()
    with pytest.raises(ModelInvalid, match=r"its index\.json lacks the model\.onnx of its manifest"):
        stored.pull(stored.read_index("nearest", "1"), tmp_path / "other")
    assert [name for name, _ in storage.requests].count("fetch") == 1
    assert listed(tmp_path / "other") == []


@pytest.mark.parametrize("file", ["manifest.json", "model.onnx", "README.md"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content[:-1], "is not the file that its index.json lists"),
        (lambda content: content + b"\0", "is not the file that its index.json lists"),
        (lambda content: bytes([content[0] ^ 1]) + content[1:], "is not the file that its index.json lists"),
        (None, "lacks its"),
    ],
    ids=["shorter", "longer", "changed", "missing"],
)
def test_a_changed_object_is_refused_and_nothing_of_it_stays(
    stored: StoredModels,
    storage: MemoryStorage,
    install: Install,
    tmp_path: Path,
    file: str,
    change: Callable[[bytes], bytes] | None,
    message: str,
) -> None:
    stored.push(install())
    index = stored.read_index("nearest", "1")
    content = storage.objects.pop(key(index, file))
    if change is not None:
        storage.objects[key(index, file)] = change(content)
    with pytest.raises(ModelInvalid, match=message):
        stored.pull(index, tmp_path / "other")
    assert listed(tmp_path / "other") == []


def test_a_version_that_is_removed_while_it_is_fetched_is_not_invalid(
    stored: StoredModels, storage: MemoryStorage, install: Install, tmp_path: Path
) -> None:
    stored.push(install())
    index = stored.read_index("nearest", "1")

    def remove(name: str, key: str) -> None:
        if (name, key) == ("fetch", f"{PREFIX}{index.files['model.onnx'].sha256}"):
            storage.objects.clear()

    storage.before = remove
    with pytest.raises(StorageUnavailable, match="model nearest 1 was removed while it was fetched"):
        stored.pull(index, tmp_path / "other")


def test_an_installed_version_with_other_files_is_not_replaced(
    stored: StoredModels, install: Install, tmp_path: Path
) -> None:
    stored.push(install())
    install(tmp_path / "other", description="Other labels.")
    with pytest.raises(BadRequest, match="model nearest 1 is installed already, with other files"):
        stored.pull(stored.read_index("nearest", "1"), tmp_path / "other")


def test_a_version_is_removed_with_its_index_first(
    stored: StoredModels, storage: MemoryStorage, install: Install
) -> None:
    stored.push(install())
    stored.push(install(version="2"))
    kept = {key: content for key, content in storage.objects.items() if "/nearest/2/" in key[1]}
    storage.requests.clear()
    stored.remove("nearest", "1")
    assert storage.objects == kept
    removed = [key for name, key in storage.requests if name == "remove"]
    assert removed[0] == INDEX[1]
    with pytest.raises(ModelNotFound, match="model nearest 1 is not stored"):
        stored.remove("nearest", "1")


@pytest.mark.parametrize(("name", "version"), [("../volumes", "1"), ("nearest", "../2"), ("Nearest", None)])
def test_no_name_leads_elsewhere(stored: StoredModels, storage: MemoryStorage, name: str, version: str | None) -> None:
    for call in (stored.find_index, stored.read_index, stored.remove):
        with pytest.raises(ModelNotFound, match="is not the name and version of a model"):
            call(name, version)  # type: ignore[arg-type]
    assert not storage.requests


def test_versions_are_sorted_as_numbers_and_listed_now_and_then(
    stored: StoredModels, storage: MemoryStorage, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version in ("10", "9", "9.1"):
        stored.push(install(version=version))
    storage.objects["models", "of/research/nearest/x/index.json"] = b""
    storage.objects["models", "of/research/nearest/11/other.json"] = b""
    storage.requests.clear()
    assert stored.versions("nearest") == stored.versions("nearest") == ["9", "9.1", "10"]
    assert len(storage.requests) == 1
    monkeypatch.setattr("inference_service.model_store.stored_models._LISTING_S", 0.0)
    stored.versions("nearest")
    assert len(storage.requests) == 2


def test_an_inventory_reads_only_new_indexes(stored: StoredModels, storage: MemoryStorage, install: Install) -> None:
    known: dict[StoredObject, ModelIndex] = {}
    stored.push(install())
    assert [index.title for index in stored.inventory(known)] == ["nearest 1"]
    stored.push(install(version="2"))
    storage.requests.clear()
    assert [index.title for index in stored.inventory(known)] == ["nearest 1", "nearest 2"]
    assert [name for name, _ in storage.requests] == ["list", "read"]
    stored.remove("nearest", "1")
    assert [index.title for index in stored.inventory(known)] == ["nearest 2"]
    assert len(known) == 1
