"""Runs the sides of a case in turn, each in a process of its own."""

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter

from benchmarks.cases import Case, Subject
from benchmarks.measurement import Agreement, Failure, Measurement, Run, Side, Task
from benchmarks.side import RESULT_MARK
from benchmarks.watch import DeviceWatch
from benchmarks.workspace import Workspace

_REPOSITORY = Path(__file__).parents[1]
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "nnUNet_def_n_proc")
_MAX_RUN_S = 3600

Tell = Callable[[Measurement | Failure], None]


def run_rounds(case: Case, workspace: Workspace, *, rounds: int, threads: int, tell: Tell) -> None:
    """Runs every side on every subject in each round; every other round backwards, so that no side is always first.

    Args:
        case: The case to run.
        workspace: Holds its inputs.
        rounds: Rounds asked for.
        threads: Threads that each side may use.
        tell: Called with each measurement and each failure.
    """
    for number in range(1, case.rounds(rounds) + 1):
        for subject in case.subjects:
            for side in case.sides if number % 2 else reversed(case.sides):
                tell(_run_side(case, subject, side, workspace, number, threads))


def compare_labels(case: Case, workspace: Workspace) -> list[Agreement]:
    """Compares the labels that the sides of a case have written; pairs without both files are left out."""
    agreements = []
    for subject in case.subjects:
        for side, reference in case.compared:
            ours, theirs = (workspace.labels(case.name, subject, name) for name in (side, reference))
            if ours.exists() and theirs.exists():
                share = float(np.mean(np.load(ours) == np.load(theirs)))
                agreements.append(Agreement(case.name, subject.name, side, reference, share))
    return agreements


def _run_side(
    case: Case, subject: Subject, side: Side, workspace: Workspace, number: int, threads: int
) -> Measurement | Failure:
    compared = {name for pair in case.compared for name in pair}
    task = Task(
        workspace=workspace.root,
        model=subject.imported or case.name,
        network=subject.network,
        side=side,
        source=workspace.source(subject),
        labels=workspace.labels(case.name, subject, side.name) if side.name in compared else None,
        threads=threads,
    )
    command = [sys.executable, "-m", "benchmarks.side", TypeAdapter(Task).dump_json(task).decode()]
    with DeviceWatch() if side.on_gpu else nullcontext() as device:
        process = subprocess.run(
            command,
            cwd=_REPOSITORY,
            env=os.environ | dict.fromkeys(_THREADS, str(threads)),
            capture_output=True,
            text=True,
            check=False,
            timeout=_MAX_RUN_S,
        )
    results = [line.removeprefix(RESULT_MARK) for line in process.stdout.splitlines() if line.startswith(RESULT_MARK)]
    if process.returncode or not results:
        sys.stderr.write(process.stderr)
        return Failure(case.name, subject.name, side.name, number, process.returncode)
    run = TypeAdapter(Run).validate_json(results[-1])
    if device is not None:
        run = replace(run, device_mb=device.peak_mb)
    return Measurement(case.name, subject.name, subject.shape, side.name, number, run)
