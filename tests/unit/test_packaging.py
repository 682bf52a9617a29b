"""Contents of the wheel, and its use outside of a clone."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from inference_service.core.settings import Settings, bundled_models_path
from inference_service.embedded.phantom import chest_phantom
from inference_service.formats.nifti import write_volume

REPOSITORY = Path(__file__).parents[2]
MODELS = "inference_service/bundled_models"


def build(project: Path, target: Path) -> ZipFile:
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(target)]
    subprocess.run(command, cwd=project, check=True, capture_output=True)
    (wheel,) = target.glob("*.whl")
    return ZipFile(wheel)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the contents of the wheel, to be put on PYTHONPATH."""
    folder = tmp_path_factory.mktemp("site")
    with build(REPOSITORY, tmp_path_factory.mktemp("wheel")) as wheel:
        wheel.extractall(folder)
    return folder


def run(site: Path, folder: Path, *arguments: str | Path) -> str:
    """The output of Python in a folder, with the wheel before the clone on its path."""
    environment = {name: value for name, value in os.environ.items() if name.lower() not in Settings.model_fields}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        env={**environment, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_models_of_a_clone_are_found_from_any_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MODELS_PATH")
    monkeypatch.chdir(tmp_path)
    assert bundled_models_path() == Settings().models_path == REPOSITORY / "models"


def test_the_wheel_contains_the_package_and_the_served_files_of_the_models(site: Path) -> None:
    held = {path.relative_to(site / MODELS) for path in (site / MODELS).rglob("*") if path.is_file()}
    assert {path.name for path in held} == {"README.md", "manifest.json", "model.onnx"}
    assert {path.parts[0] for path in held} == {"ct-chest", "ct-tissue"}
    assert all(len(path.parts) == 3 for path in held)
    assert {path.name for path in site.iterdir()} == {
        "inference_service",
        *(path.name for path in site.glob("*.dist-info")),
    }


def test_an_installed_wheel_segments_with_its_own_models(site: Path, tmp_path: Path) -> None:
    write_volume(tmp_path / "ct.nii.gz", chest_phantom((24, 20, 16), (8.0, 8.0, 8.0)))
    found = run(
        site, tmp_path, "-c", "from inference_service.core.settings import Settings; print(Settings().models_path)"
    )
    assert found.strip() == str(site / MODELS)
    run(site, tmp_path, "-m", "inference_service", "segment", "ct.nii.gz", "mask.nii.gz", "--model", "ct-tissue")
    assert (tmp_path / "mask.nii.gz").is_file()


def test_a_wheel_can_be_built_without_models(tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(REPOSITORY / name, project / name)
    shutil.copytree(REPOSITORY / "inference_service", project / "inference_service")
    with build(project, tmp_path / "dist") as wheel:
        assert not [name for name in wheel.namelist() if name.startswith(MODELS)]
        assert "inference_service/__main__.py" in wheel.namelist()
