"""Versions of models are there whole, or not at all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from inference_service.core.errors import BadRequest
from inference_service.engine.model_folder import install, staging, uninstall

KILLED = """
import os, signal, sys
from pathlib import Path
from inference_service.engine.model_folder import staging

with staging(Path(sys.argv[1])) as folder:
    (folder / "model.onnx").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def grow(folder: Path) -> Path:
    version = folder / "ct-lung" / "1"
    version.mkdir(parents=True)
    (version / "model.onnx").write_text("network")
    return version


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_version_is_moved_and_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[str] = []

    def note(descriptor: int) -> None:
        flushed.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)

    monkeypatch.setattr(os, "fsync", note)
    target = tmp_path / "models" / "ct-lung" / "1"
    with staging(tmp_path / "models") as staged:
        install(grow(staged), target)
    assert names(target) == ["model.onnx"]
    assert target.stat().st_mode & 0o777 == 0o755
    # The files and their names, before the folder appears; then the names that lead to it.
    assert flushed == ["model.onnx", "1", "ct-lung", "models"]
    assert names(tmp_path / "models") == ["ct-lung"]


def test_an_installed_version_is_not_replaced(tmp_path: Path) -> None:
    target = grow(tmp_path)
    with staging(tmp_path) as staged, pytest.raises(BadRequest, match="has a version 1 already"):
        install(grow(staged), target)


def test_what_a_killed_process_leaves_is_removed_by_the_next_one(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert len(names(tmp_path)) == 2
    with staging(tmp_path) as staged:
        assert names(tmp_path) == sorted([staged.name, f"{staged.name}.lock"])
    assert names(tmp_path) == []


def test_a_version_is_removed_with_the_folder_of_its_model(tmp_path: Path) -> None:
    first = grow(tmp_path)
    second = first.with_name("2")
    second.mkdir()
    uninstall(first)
    assert names(tmp_path / "ct-lung") == ["2"]
    uninstall(second)
    assert names(tmp_path) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_version_in_a_folder_that_cannot_be_written_stays(tmp_path: Path) -> None:
    target = grow(tmp_path)
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(BadRequest, match="cannot be removed: Permission denied"):
            uninstall(target)
    finally:
        tmp_path.chmod(0o700)
    assert names(target) == ["model.onnx"]


def test_a_version_on_a_read_only_disk_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = grow(tmp_path)

    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(BadRequest, match="cannot be removed: Read-only file system"):
        uninstall(target)
    assert names(target) == ["model.onnx"]
