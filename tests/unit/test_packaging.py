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
    # The files of NiiVue and htm contain other packages.
    for package, text in (("@niivue/niivue", "Niivue"), ("htm", "Apache License"), ("preact", "Jason Miller")):
        assert text in licences.partition(f"{package}\n\n")[2]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the project as the images are built from it: without models, and without the page's libraries."""
    folder = tmp_path / "project"
    folder.mkdir()
    for name in (".gitignore", "pyproject.toml", "hatch_build.py", "README.md", "LICENSE"):
        shutil.copyfile(REPOSITORY / name, folder / name)
    ignored = shutil.ignore_patterns("vendor", "node_modules", "__pycache__")
    shutil.copytree(REPOSITORY / "inference_service", folder / "inference_service", ignore=ignored)
    return folder


def fake_npm(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Puts a program of the name npm before all others."""
    program = folder / "bin/npm"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f"#!/bin/sh\nset -e\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")


INSTALLED = """
mkdir -p node_modules/@niivue/niivue/dist node_modules/htm/preact
touch node_modules/@niivue/niivue/dist/niivue.umd.js node_modules/htm/preact/standalone.module.js
touch node_modules/htm/preact/index.d.ts
echo 'the licence of htm' > node_modules/htm/LICENSE
"""


def test_a_wheel_can_be_built_without_models_and_page(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WITHOUT_PAGE", "1")
    left = project / PAGE / "web/vendor/niivue.js"
    left.parent.mkdir()
    left.write_text("of an earlier build")
    with build(project, tmp_path / "dist") as wheel:
        assert not [name for name in wheel.namelist() if name.startswith((MODELS, f"{PAGE}/web/vendor"))]
        assert "inference_service/__main__.py" in wheel.namelist()


def test_the_libraries_are_fetched_again_when_their_lock_has_changed(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = tmp_path / "calls"
    fake_npm(tmp_path, monkeypatch, f"echo $1 >> {calls}\n{INSTALLED}")
    for _ in range(2):
        with build(project, tmp_path / "dist") as wheel:
            assert b"the licence of htm" in wheel.read(f"{PAGE}/web/vendor/LICENCES.txt")
    assert calls.read_text() == "ci\n"
    with (project / PAGE / "package-lock.json").open("a") as lock:
        lock.write("\n")
    build(project, tmp_path / "dist").close()
    assert calls.read_text() == "ci\nci\n"


def test_a_library_without_a_licence_is_refused(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_npm(tmp_path, monkeypatch, f"{INSTALLED}\nmkdir node_modules/fflate")
    with pytest.raises(subprocess.CalledProcessError) as failure:
        build(project, tmp_path / "dist")
    assert b"node_modules/fflate has no licence text" in failure.value.stderr


def test_a_wheel_without_its_page_is_not_built_by_accident(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_npm(tmp_path, monkeypatch, "echo no route to the registry >&2; exit 1")
    with pytest.raises(subprocess.CalledProcessError) as failure:
        build(project, tmp_path / "dist")
    assert b"no route to the registry" in failure.value.stderr
    assert b"WITHOUT_PAGE=1" in failure.value.stderr
