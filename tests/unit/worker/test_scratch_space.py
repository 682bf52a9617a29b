"""Temporary files are removed after the death of their job, process or worker."""

import os
import subprocess
import sys
import time
from pathlib import Path
from uuid import uuid4

from inference_service.worker.scratch_space import ScratchSpace

DYING_WORKER = """
import os, signal, sys
from pathlib import Path
from uuid import uuid4
from inference_service.worker.scratch_space import ScratchSpace

with ScratchSpace(Path(sys.argv[1])).folder(uuid4()) as folder:
    (folder / "input").write_text("a scan")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def files(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.is_file()]


def age(folder: Path) -> None:
    """Makes every lock file old enough to be checked."""
    long_ago = time.time() - 3600
    for path in folder.glob("*.lock"):
        os.utime(path, (long_ago, long_ago))


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


def test_only_files_of_dead_workers_are_removed(tmp_path: Path) -> None:
    living = ScratchSpace(tmp_path)
    with living.folder(uuid4()) as folder:
        (folder / "input").write_text("of a living worker")
        subprocess.run([sys.executable, "-c", DYING_WORKER, str(tmp_path)], check=False)
        assert files(tmp_path).count("input") == 2
        starting = ScratchSpace(tmp_path)
        assert starting.remove_abandoned() == 0
        age(tmp_path)
        assert starting.remove_abandoned() == 1
        assert (folder / "input").read_text() == "of a living worker"
        assert files(tmp_path).count("input") == 1
    starting.close()
    living.close()
    assert list(tmp_path.iterdir()) == []
