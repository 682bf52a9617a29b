"""The commands of stored models, on a storage in memory."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from fake_storage import MemoryStorage

from inference_service.cli.main import main
from inference_service.core.settings import get_settings

MODEL = "ct-tissue"
MODELS = Path(__file__).parents[3] / "models"


def run(*arguments: str | Path, typed: str | None = None) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], input=typed)
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    return result


@pytest.fixture(autouse=True)
def storage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> MemoryStorage:
    """A storage with a bucket of models, which is empty, and an installed model."""
    made = MemoryStorage()
    monkeypatch.setattr("inference_service.jobs.storage.object_storage.Storage", lambda *_, **__: made)
    monkeypatch.setenv("MODELS_BUCKET", "models")
    monkeypatch.setenv("MODELS_CACHE_PATH", str(tmp_path / "cache"))
    monkeypatch.setenv("MODELS_PATH", str(tmp_path / "models"))
    shutil.copytree(MODELS / MODEL, tmp_path / "models" / MODEL)
    get_settings.cache_clear()
    return made


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], Path]:
    """Goes on as on another machine, which has no models."""

    def go() -> Path:
        monkeypatch.setenv("MODELS_PATH", str(tmp_path / "other"))
        get_settings.cache_clear()
        return tmp_path / "other"

    return go


def test_a_model_is_pushed_and_pulled(elsewhere: Callable[[], Path]) -> None:
    address = f"s3://models/{MODEL}/1/"
    assert run("models", "push", MODEL).stdout == f"stored: {address}\n"
    again = json.loads(run("models", "push", MODEL, "1", "--json").stdout)
    assert again == {"name": MODEL, "version": "1", "address": address, "new": False}
    target = elsewhere() / MODEL / "1"
    assert run("models", "pull", MODEL).stdout == f"fetched: {target}\n"
    assert run("models", "pull", MODEL).stdout == f"there before: {target}\n"
    assert run("models", "verify", MODEL).exit_code == 0
    assert {path.name for path in target.iterdir()} == {"README.md", "manifest.json", "model.onnx"}


def test_a_model_is_fetched_into_the_cache_ahead_of_jobs(elsewhere: Callable[[], Path], tmp_path: Path) -> None:
    run("models", "push", MODEL)
    assert not elsewhere().exists()
    pulled = json.loads(run("models", "pull", MODEL, "--cache", "--json").stdout)
    assert pulled["new"] is True
    assert Path(pulled["folder"]).is_relative_to(tmp_path / "cache")
    assert json.loads(run("models", "pull", MODEL, "--cache", "--json").stdout)["new"] is False
    (listed,) = json.loads(run("models", "list", "--stored", "--json").stdout)
    assert (listed["places"], listed["problem"]) == (["stored", "cached"], None)
    assert listed["manifest"]["name"] == MODEL


def test_models_are_listed_with_their_places(tmp_path: Path) -> None:
    run("models", "push", MODEL)
    manifest = tmp_path / "models" / MODEL / "1" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "description": "Other tissue."}))
    shown = run("models", "list", "--stored").stdout
    assert "installed, stored" in shown
    assert f"{MODEL} 1: the installed version has another manifest than the stored one" in shown
    assert "installed" not in run("models", "list").stdout


def test_a_changed_model_is_not_pushed(storage: MemoryStorage, tmp_path: Path) -> None:
    with (tmp_path / "models" / MODEL / "1" / "model.onnx").open("ab") as network:
        network.write(b"\0")
    result = run("models", "push", MODEL)
    assert (result.exit_code, storage.objects) == (3, {})
    assert "error: model_invalid: " in result.stderr


def test_other_files_under_a_stored_version_are_refused(tmp_path: Path, elsewhere: Callable[[], Path]) -> None:
    run("models", "push", MODEL)
    (tmp_path / "models" / MODEL / "1" / "README.md").write_text("another card")
    result = run("models", "push", MODEL)
    assert (result.exit_code, result.stdout) == (3, "")
    assert "error: bad_request: model ct-tissue 1 is stored already, with other files" in result.stderr
    refused = run("models", "pull", MODEL)
    assert (refused.exit_code, refused.stdout) == (3, "")
    assert "error: bad_request: model ct-tissue 1 is installed already, with other files" in refused.stderr


def test_a_version_is_removed_after_a_question(storage: MemoryStorage, tmp_path: Path) -> None:
    run("models", "push", MODEL)
    asked = run("models", "remove", MODEL, "1", "--stored", typed="n\n")
    assert (asked.exit_code, "Remove model ct-tissue 1 from MODELS_BUCKET? [y/N]" in asked.stderr) == (1, True)
    assert storage.objects
    assert run("models", "remove", MODEL, "1", "--stored", typed="y\n").exit_code == 0
    assert not storage.objects
    assert (tmp_path / "models" / MODEL / "1").is_dir()
    removed = run("models", "remove", MODEL, "1", "--yes", "--json")
    assert json.loads(removed.stdout) == {"name": MODEL, "version": "1", "removed_from": "MODELS_PATH"}
    assert list((tmp_path / "models").iterdir()) == []


@pytest.mark.parametrize("place", [[], ["--stored"]], ids=["installed", "stored"])
@pytest.mark.parametrize(("name", "version"), [(MODEL, "7"), ("../volumes", "1"), (MODEL, "..")])
def test_only_a_version_that_is_there_is_removed(tmp_path: Path, place: list[str], name: str, version: str) -> None:
    (tmp_path / "volumes" / "1").mkdir(parents=True)
    result = run("models", "remove", name, version, "--yes", *place)
    assert result.exit_code == 3
    assert "error: model_not_found: " in result.stderr
    assert (tmp_path / "volumes" / "1").is_dir()


def test_a_bundled_model_on_a_read_only_disk_is_not_removed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    result = run("models", "remove", MODEL, "1", "--yes")
    assert result.exit_code == 3
    assert "error: bad_request: model ct-tissue 1 cannot be removed: Read-only file system" in result.stderr
    assert (tmp_path / "models" / MODEL / "1" / "model.onnx").exists()


@pytest.mark.parametrize(
    "arguments",
    [["push", MODEL], ["pull", MODEL], ["list", "--stored"], ["show", MODEL, "--stored"]],
    ids=lambda arguments: arguments[0],
)
def test_without_a_bucket_nothing_is_stored(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    monkeypatch.delenv("MODELS_BUCKET")
    get_settings.cache_clear()
    result = run("models", *arguments)
    assert result.exit_code == 2
    assert "MODELS_BUCKET is not set, so no models are stored" in result.stderr


def test_a_model_that_is_not_stored_is_named() -> None:
    result = run("models", "pull", MODEL)
    assert (result.exit_code, result.stderr) == (
        3,
        "error: model_not_found: model 'ct-tissue' is not stored in MODELS_BUCKET\n",
    )


def test_the_card_is_shown_with_the_facts_of_the_manifest(tmp_path: Path, elsewhere: Callable[[], Path]) -> None:
    card = tmp_path / "models" / MODEL / "1" / "README.md"
    card.write_text("# A card\n\n- **bold** \x1b[31mred\x07\n\n| a | b |\n|---|---|\n| 1 | 2 |\n")
    shown = run("models", "show", MODEL).stdout
    assert "A card" in shown
    assert "# A card" not in shown
    assert "\x1b" not in shown
    assert "\x07" not in shown
    for fact in ("ct-tissue 1", "intended use", "Apache-2.0", "model.onnx", "0 background"):
        assert fact in shown
    run("models", "push", MODEL)
    elsewhere()
    assert run("models", "show", MODEL, "--stored").stdout == shown
    manifest = json.loads(run("models", "show", MODEL, "1", "--stored", "--json").stdout)
    assert (manifest["name"], manifest["version"]) == (MODEL, "1")


def test_a_model_without_a_card_is_shown_by_its_facts(tmp_path: Path) -> None:
    (tmp_path / "models" / MODEL / "1" / "README.md").unlink()
    assert "intended use" in run("models", "show", MODEL).stdout
