import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from manifests import VALID_MANIFEST
from onnx import TensorProto, helper

from inference_service.core.errors import ModelError, ModelInvalid, ModelNotFound, StorageUnavailable
from inference_service.engine.model_registry import (
    Model,
    find_model,
    list_models,
    read_model,
    take_inventory,
)
from inference_service.engine.onnx_file import NetworkContent

# Version 8 of the format, an empty graph and an empty set of operators.
NETWORK = b"\x08\x08\x3a\x00\x42\x00"
VALID = {**VALID_MANIFEST, "sha256": hashlib.sha256(NETWORK).hexdigest()}


def install(models_path: Path, name: str, version: str, **changes: object) -> Path:
    folder = models_path / name / version
    folder.mkdir(parents=True)
    manifest = {**VALID, "name": name, "version": version, **changes}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "model.onnx").write_bytes(NETWORK)
    return folder


def read_networks(model: Model) -> list[NetworkContent]:
    return [model.read_network(network) for network in model.manifest.network_files.values()]


def test_a_model_is_found_by_name_and_version(tmp_path: Path) -> None:
    folder = install(tmp_path, "ct-lung", "1.2")
    model = find_model(tmp_path, "ct-lung", "1.2")
    assert (model.folder, model.manifest.name, model.manifest.version) == (folder, "ct-lung", "1.2")
    assert model.read_network(model.manifest.networks[0]) == NetworkContent(NETWORK)


@pytest.mark.parametrize(
    ("versions", "highest"),
    [(["2", "10"], "10"), (["1.2", "1.10"], "1.10"), (["1.9.9", "2"], "2"), (["1", "1.1"], "1.1")],
)
def test_the_highest_version_is_the_default(tmp_path: Path, versions: list[str], highest: str) -> None:
    for version in versions:
        install(tmp_path, "ct-lung", version)
    assert find_model(tmp_path, "ct-lung").manifest.version == highest
    assert [folder.name for folder in list_models(tmp_path)] == versions


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("../outside", None), ("/etc", None), ("..", None), (".", None), ("", None), ("CT-lung", None), ("a/b", None),
        ("ct-lung\0", None), ("ct-lung\n", None), ("ct-lung", ".."), ("ct-lung", "../1"), ("ct-lung", ""),
        ("ct-lung", "1\n"), ("ct-lung", "latest"),
    ],
)  # fmt: skip
def test_names_and_versions_cannot_leave_the_models_folder(tmp_path: Path, name: str, version: str | None) -> None:
    models_path = tmp_path / "models"
    install(models_path, "ct-lung", "1")
    install(tmp_path, "outside", "1")
    with pytest.raises(ModelNotFound):
        find_model(models_path, name, version)


def test_the_error_for_a_missing_model_lists_the_installed_ones(tmp_path: Path) -> None:
    install(tmp_path, "ct-lung", "1")
    install(tmp_path, "ct-lung", "2")
    with pytest.raises(ModelNotFound, match=r"no version 3; installed: 1, 2$"):
        find_model(tmp_path, "ct-lung", "3")
    install(tmp_path, "ct-bone", "1")
    with pytest.raises(ModelNotFound, match=r"^model 'ct-heart' is not installed; MODELS_PATH holds ct-bone, ct-lung$"):
        find_model(tmp_path, "ct-heart")
    with pytest.raises(ModelNotFound, match=r"^model 'ct-lung' is not installed; MODELS_PATH holds no model$"):
        find_model(tmp_path / "missing", "ct-lung")


def test_list_models_is_sorted_and_skips_other_files(tmp_path: Path) -> None:
    folders = [install(tmp_path, name, version) for name, version in (("a", "2"), ("a", "10"), ("b", "1"))]
    (tmp_path / "README.md").touch()
    (tmp_path / "Not A Model" / "1").mkdir(parents=True)
    (tmp_path / "a" / "draft").mkdir()
    (tmp_path / "a" / "3").touch()
    (tmp_path / "c").touch()
    assert list_models(tmp_path) == folders
    assert list_models(tmp_path / "missing") == []


@pytest.mark.parametrize(("field", "value"), [("name", "other"), ("version", "2")])
def test_a_manifest_that_contradicts_its_folder_is_refused(tmp_path: Path, field: str, value: str) -> None:
    folder = install(tmp_path, "ct-lung", "1")
    (folder / "manifest.json").write_text(json.dumps({**VALID, field: value}))
    with pytest.raises(ModelInvalid, match=r"^model ct-lung 1: manifest\.json is for "):
        read_model(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"name": "ct-lung"}', b'{"name" "ct-lung"}'])
def test_an_invalid_manifest_is_refused(tmp_path: Path, content: bytes) -> None:
    folder = install(tmp_path, "ct-lung", "1")
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(ModelInvalid, match="ct-lung 1"):
        find_model(tmp_path, "ct-lung")


HALF_COPIED: dict[str, tuple[Callable[[Path], object], type[ModelError], str]] = {
    "empty folder": (lambda folder: empty(folder), ModelNotFound, "manifest.json"),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), ModelNotFound, "manifest.json"),
    "no network": (lambda folder: (folder / "model.onnx").unlink(), ModelNotFound, "model.onnx"),
    "empty manifest": (lambda folder: cut(folder / "manifest.json", 0), ModelInvalid, "a part of manifest.json"),
    "half a manifest": (lambda folder: cut(folder / "manifest.json", 100), ModelInvalid, "a part of manifest.json"),
    "empty network": (lambda folder: cut(folder / "model.onnx", 0), ModelInvalid, "a part of model.onnx"),
    "half a network": (lambda folder: cut(folder / "model.onnx", 3), ModelInvalid, "a part of model.onnx"),
    "a FIFO": (lambda folder: replace_by_fifo(folder / "model.onnx"), ModelNotFound, "model.onnx"),
    "a link to nothing": (lambda folder: replace_by_link(folder / "manifest.json"), ModelNotFound, "manifest.json"),
}


def empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def replace_by_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def replace_by_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nothing")


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", HALF_COPIED)
def test_a_half_copied_version_is_skipped_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    damage, error, missing = HALF_COPIED[kind]
    complete = install(tmp_path, "ct-lung", "1")
    damage(install(tmp_path, "ct-lung", "2"))
    assert find_model(tmp_path, "ct-lung").folder == complete
    assert list_models(tmp_path) == [complete]
    assert caplog.messages[0] == f"model ct-lung: version 2 is skipped: it lacks {missing}"
    # Where no other version will do, the job gets the error of the file.
    with pytest.raises(error, match=r"^model ct-lung 2"):
        read_networks(find_model(tmp_path, "ct-lung", "2"))
    shutil.rmtree(complete)
    with pytest.raises(error, match=r"^model ct-lung 2"):
        read_networks(find_model(tmp_path, "ct-lung"))


@pytest.mark.parametrize("cause", [errno.EIO, errno.ESTALE, errno.EACCES])
@pytest.mark.parametrize("call", ["stat", "open", "read_bytes", "iterdir"])
def test_an_error_while_reading_a_model_is_transient(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, cause: int
) -> None:
    """The other version is not taken instead: which one runs would depend on the state of the disk."""
    install(tmp_path, "ct-lung", "1")
    install(tmp_path, "ct-lung", "2")
    usable = getattr(Path, call)

    def fail_for_version_2(path: Path, *args: object, **kwargs: object) -> object:
        if "2" in path.parts or call == "iterdir":
            raise OSError(cause, os.strerror(cause), str(path))
        return usable(path, *args, **kwargs)

    monkeypatch.setattr(Path, call, fail_for_version_2)
    with pytest.raises(StorageUnavailable, match=f"^this worker cannot read its models: {os.strerror(cause)}$"):
        find_model(tmp_path, "ct-lung")


def test_models_that_can_be_read_are_listed_beside_one_that_cannot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    readable = install(tmp_path, "ct-lung", "1")
    broken = install(tmp_path, "ct-bone", "1").parent
    (tmp_path / "ct-loop").symlink_to("ct-loop")
    stat = Path.stat

    def fail_for_broken(path: Path, **options: bool) -> os.stat_result:
        if path.is_relative_to(broken):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", fail_for_broken)
    inventory = take_inventory(tmp_path)
    assert inventory.folders == list_models(tmp_path) == [readable]
    assert len(inventory.errors) == 1
    assert "model ct-bone is skipped: this worker cannot read its models" in caplog.text
    with pytest.raises(StorageUnavailable):
        find_model(tmp_path, "ct-bone")
    shutil.rmtree(readable.parent)
    with pytest.raises(StorageUnavailable):
        list_models(tmp_path)


def test_a_manifest_that_is_too_large_is_refused(tmp_path: Path) -> None:
    folder = install(tmp_path, "ct-lung", "1")
    with (folder / "manifest.json").open("ab") as file:
        file.truncate(2**30)
    with pytest.raises(ModelInvalid, match=r"manifest\.json has 1073741824 bytes; at most 1048576 are read"):
        find_model(tmp_path, "ct-lung")


def test_the_error_for_an_invalid_manifest_names_the_field(tmp_path: Path) -> None:
    install(tmp_path, "ct-lung", "1", overlap=2)
    with pytest.raises(ModelInvalid, match=r"manifest\.json is invalid at overlap: "):
        find_model(tmp_path, "ct-lung")


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def install_folds(models_path: Path, version: str) -> Path:
    """A model of two networks, the second with tensors in a file of their own."""
    weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    weights.external_data.add(key="location", value="fold_1.data")
    graph = helper.make_graph([], "g", [], [], [weights])
    second = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    networks = [
        {"file": "fold_0.onnx", "sha256": sha256(NETWORK)},
        {"file": "fold_1.onnx", "sha256": sha256(second), "external_data": {"fold_1.data": sha256(bytes(8))}},
    ]
    folder = install(models_path, "ct-folds", version, sha256=None, networks=networks)
    (folder / "model.onnx").rename(folder / "fold_0.onnx")
    (folder / "fold_1.onnx").write_bytes(second)
    (folder / "fold_1.data").write_bytes(bytes(8))
    return folder


def test_the_networks_of_a_model_are_read_with_their_external_data(tmp_path: Path) -> None:
    folder = install_folds(tmp_path, "1")
    first, second = read_networks(read_model(folder))
    assert first == NetworkContent(NETWORK)
    assert second == NetworkContent((folder / "fold_1.onnx").read_bytes(), {"fold_1.data": bytes(8)})


@pytest.mark.parametrize("file", ["fold_0.onnx", "fold_1.onnx", "fold_1.data"])
@pytest.mark.parametrize("absent", [True, False])
def test_a_version_without_all_of_its_files_is_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, file: str, absent: bool
) -> None:
    complete = install_folds(tmp_path, "1")
    damaged = install_folds(tmp_path, "2")
    if absent:
        (damaged / file).unlink()
    else:
        replace_by_fifo(damaged / file)
    assert list_models(tmp_path) == [complete]
    assert f"model ct-folds: version 2 is skipped: it lacks {file}" in caplog.text
    with pytest.raises(ModelNotFound, match=f"^model ct-folds 2 has no {file}$"):
        read_networks(find_model(tmp_path, "ct-folds", "2"))


@pytest.mark.parametrize("file", ["fold_0.onnx", "fold_1.onnx"])
def test_a_version_with_half_a_network_is_skipped(tmp_path: Path, file: str) -> None:
    complete = install_folds(tmp_path, "1")
    cut(install_folds(tmp_path, "2") / file, 3)
    assert find_model(tmp_path, "ct-folds").folder == complete


@pytest.mark.parametrize("file", ["fold_0.onnx", "fold_1.onnx", "fold_1.data"])
def test_a_changed_file_is_refused(tmp_path: Path, file: str) -> None:
    folder = install_folds(tmp_path, "1")
    content = (folder / file).read_bytes()
    (folder / file).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ModelInvalid, match=rf"^model ct-folds 1: expected sha256 [0-9a-f]{{64}} of {file}, got "):
        read_networks(read_model(folder))


def test_external_data_that_the_manifest_does_not_list_are_refused(tmp_path: Path) -> None:
    folder = install_folds(tmp_path, "1")
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["networks"][1]["external_data"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ModelInvalid, match="external data that its manifest does not list"):
        read_networks(read_model(folder))


def test_a_network_with_a_wrong_sha256_is_refused(tmp_path: Path) -> None:
    folder = install(tmp_path, "ct-lung", "1")
    (folder / "model.onnx").write_bytes(NETWORK + b"!")
    with pytest.raises(ModelInvalid, match=r"expected sha256 [0-9a-f]{64} .*, got [0-9a-f]{64}"):
        read_networks(read_model(folder))
