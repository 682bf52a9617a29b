"""Temporary files are removed after the death of their job or process."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import pytest

from inference_service.core.scratch_space import ScratchSpace, scratch_folder

DYING_PROCESS = """
import os, signal, sys
from pathlib import Path
from inference_service.core.scratch_space import scratch_folder

with scratch_folder(Path(sys.argv[1])) as folder:
    (folder / "input").write_text("a scan")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def leave_files(folder: Path) -> None:
    """Runs a process that is killed while it has a temporary file."""
    subprocess.run([sys.executable, "-c", DYING_PROCESS, str(folder)], check=False)


def files(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.is_file()]


def test_a_folder_is_private_and_removed_after_its_block(tmp_path: Path) -> None:
    scratch_space = ScratchSpace(tmp_path)
    with scratch_space.folder(uuid4()) as folder:
        (folder / "input").write_text("a scan")
        assert folder.stat().st_mode & 0o077 == folder.parent.stat().st_mode & 0o077 == 0
    assert not folder.exists()
    scratch_space.close()
    assert list(tmp_path.iterdir()) == []


def test_files_of_a_dead_child_are_removed(tmp_path: Path) -> None:
    scratch_space = ScratchSpace(tmp_path)
    job_id = uuid4()
    with scratch_space.folder(job_id) as mine, scratch_space.folder(uuid4()) as another:
        (mine / "input").write_text("a scan")
        scratch_space.remove(job_id, os.getpid() + 1)
        assert mine.exists()
        scratch_space.remove(job_id, os.getpid())
        assert not mine.exists()
        assert another.exists()
        mine.mkdir()
    scratch_space.close()


def test_only_files_of_dead_processes_are_removed(tmp_path: Path) -> None:
    living = ScratchSpace(tmp_path)
    with living.folder(uuid4()) as folder:
        (folder / "input").write_text("of a living process")
        leave_files(tmp_path)
        assert files(tmp_path).count("input") == 2
        assert living.remove_abandoned() == 1
        assert (folder / "input").read_text() == "of a living process"
        assert files(tmp_path).count("input") == 1
        assert living.remove_abandoned() == 0
    living.close()
    assert list(tmp_path.iterdir()) == []


def test_the_next_process_removes_the_files_of_a_killed_one(tmp_path: Path) -> None:
    leave_files(tmp_path)
    assert files(tmp_path).count("input") == 1
    with scratch_folder(tmp_path) as folder:
        assert list(folder.iterdir()) == []
        assert files(tmp_path).count("input") == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["FIFO", "socket", "folder", "link to a FIFO", "link to nothing"])
def test_a_lock_that_is_no_file_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Anyone may create such a file in the system's folder for temporary files; opening a FIFO waits for a writer."""
    lock = tmp_path / "inference-service-odd.lock"
    if kind == "FIFO":
        os.mkfifo(lock)
    elif kind == "socket":
        # By its name alone, because the path of a socket has at most 107 bytes.
        monkeypatch.chdir(tmp_path)
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(lock.name)
    elif kind == "folder":
        lock.mkdir()
    else:
        if kind == "link to a FIFO":
            os.mkfifo(tmp_path / "fifo")
        lock.symlink_to(tmp_path / "fifo")
    leave_files(tmp_path)
    with scratch_folder(tmp_path):
        assert files(tmp_path).count("input") == 0
    assert os.path.lexists(lock)
