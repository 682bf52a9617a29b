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
PAGE = "inference_service/gateway/page"


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


def test_the_wheel_contains_the_page_with_its_libraries(site: Path) -> None:
    held = {path.relative_to(site / PAGE) for path in (site / PAGE).rglob("*") if path.is_file()}
    libraries = {Path("web/vendor") / name for name in ("niivue.js", "preact.js", "LICENCES.txt")}
    assert {Path("web/index.html"), Path("routes.py")} | libraries <= held
    assert not {path for path in held if "node_modules" in path.parts or path.suffix == ".json"}
    licences = (site / PAGE / "web/vendor/LICENCES.txt").read_text(encoding="utf-8")
    assert "@niivue/niivue" in licences
    assert "Apache License" in licences


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the project as the images are built from it: without models, and without the page's libraries."""
    folder = tmp_path / "project"
    folder.mkdir()
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE"):
        shutil.copyfile(REPOSITORY / name, folder / name)
    ignored = shutil.ignore_patterns("vendor", "node_modules", "__pycache__")
    shutil.copytree(REPOSITORY / "inference_service", folder / "inference_service", ignore=ignored)
    return folder


def test_a_wheel_can_be_built_without_models_and_page(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WITHOUT_PAGE", "1")
    with build(project, tmp_path / "dist") as wheel:
        assert not [name for name in wheel.namelist() if name.startswith((MODELS, f"{PAGE}/web/vendor"))]
        assert "inference_service/__main__.py" in wheel.namelist()


def test_a_wheel_without_its_page_is_not_built_by_accident(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "bin/npm"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\necho no route to the registry >&2; exit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{broken.parent}:{os.environ['PATH']}")
    with pytest.raises(subprocess.CalledProcessError) as failure:
        build(project, tmp_path / "dist")
    assert b"no route to the registry" in failure.value.stderr
    assert b"WITHOUT_PAGE=1" in failure.value.stderr
