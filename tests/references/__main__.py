"""`make references`: trains, predicts and keeps what is missing, one data set after the other, on one core.

The cache is the folder that REFERENCE_CACHE names, or `~/.cache/inference-service/references`.
"""

import argparse
import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from references.cache import cache_folder, data_set_folder, read_index
from references.datasets import DATA_SETS

SCREEN = Console(width=120, highlight=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Makes the references and prints the mean Dice of each; returns the exit status."""
    parser = argparse.ArgumentParser(prog="make references", description=__doc__)
    parser.add_argument("--only", choices=sorted(DATA_SETS), nargs="+", default=list(DATA_SETS), help="only these")
    parser.add_argument("--again", action="store_true", help="replace those that the cache has")
    options = parser.parse_args(arguments)
    os.nice(19 - os.nice(0))
    for name in options.only:
        start = time.monotonic()
        with _alone():
            if (options.again or not read_index(name)) and not _make(name):
                return 1
        for reference in read_index(name):
            scores = [score for made in reference.predictions for score in made.dice.values()]
            SCREEN.print(
                f"{name} {reference.configuration}: {len(reference.predictions)} predictions, "
                f"mean Dice {sum(scores) / len(scores):.3f}, lowest {min(scores):.3f}"
            )
        SCREEN.print(f"{name}: {time.monotonic() - start:.0f} s, {data_set_folder(name)}")
    return 0


@contextmanager
def _alone() -> Iterator[None]:
    """Waits for another process that makes references in the same cache."""
    cache_folder().mkdir(parents=True, exist_ok=True)
    with (cache_folder() / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _make(name: str) -> bool:
    home = data_set_folder(name)
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    log = home / "log.txt"
    with log.open("w") as output:
        done = subprocess.run(
            [sys.executable, "-m", "references.build", name],
            env=os.environ | _environment(home),
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode:
        SCREEN.print(f"{name}: failed, status {done.returncode}: {log}")
        SCREEN.print(*log.read_text(errors="replace").splitlines()[-20:], sep="\n", markup=False)
    return done.returncode == 0


def _environment(home: Path) -> dict[str, str]:
    """nnU-Net's folders, and one thread and one process for each of its steps."""
    folders = {f"nnUNet_{name}": str(home / name) for name in ("raw", "preprocessed", "results")}
    single = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    return {**folders, **single, "nnUNet_def_n_proc": "1", "nnUNet_n_proc_DA": "1", "nnUNet_compile": "false"}


if __name__ == "__main__":
    sys.exit(main())
