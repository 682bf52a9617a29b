"""Runs the examples of the README's section "Enqueue a job" verbatim."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from inference_service import Client
from inference_service.contract.task_message import InputReference
from inference_service.embedded.stack import Stack
from inference_service.jobs.schema import JobState
from inference_service.jobs.storage.object_storage import Storage

README = Path(__file__).parents[2] / "README.md"
SECTION = README.read_text(encoding="utf-8").partition("## Enqueue a job")[2].partition("\n## ")[0]
LIMIT_S = 60.0


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", SECTION, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, scan: Path, stack: Stack) -> Path:
    """A working directory with the files that the README expects; volumes/ct/1.nii.gz is in the storage."""
    shutil.copyfile(scan, tmp_path / "ct.nii.gz")
    reference = InputReference(bucket="volumes", key="ct/1.nii.gz")
    Storage(stack.settings).store("volumes", reference.key, scan, content_type="application/gzip")
    return tmp_path


def run(command: list[str], folder: Path, stack: Stack) -> str:
    environment = {**os.environ, **stack.environment}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_python_client(folder: Path, stack: Stack) -> None:
    output = run([sys.executable, "-c", blocks("python")[0]], folder, stack)
    assert "succeeded 100%" in output
    assert {path.name for path in (folder / "result").iterdir()} == {"mask.nii.gz", "report.json", "preview.png"}


def test_the_raw_message(folder: Path, stack: Stack, client: Client) -> None:
    before = {job.id for job in client.list(limit=1000)}
    run([sys.executable, "-c", blocks("python")[1]], folder, stack)
    deadline = time.monotonic() + LIMIT_S
    while not (new := {job.id for job in client.list(limit=1000)} - before):
        assert time.monotonic() < deadline, "the message led to no job"
        time.sleep(0.1)
    assert client.wait(new.pop(), timeout_s=LIMIT_S).state is JobState.SUCCEEDED


def test_the_shell_commands(folder: Path, stack: Stack) -> None:
    (block,) = blocks("sh")
    lines = [line for line in block.splitlines() if line]
    assert len(lines) == 3
    for line in lines:
        program, *arguments = shlex.split(line)
        assert program == "inference-service"
        run([sys.executable, "-m", "inference_service", *arguments], folder, stack)
