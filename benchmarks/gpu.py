"""`python -m benchmarks.gpu`: benchmarks on an NVIDIA GPU. Needs onnxruntime-gpu, and PyTorch for CUDA."""

import re
import subprocess
from datetime import date
from pathlib import Path

import click

from benchmarks.__main__ import options, run_cases
from benchmarks.cases import GPU_CASES
from benchmarks.machine import describe_gpu, describe_machine
from benchmarks.results import FOLDER, Results, free_file
from benchmarks.summary import GPU_DETAILS, GPU_SUMMARY


@click.command()
@options(GPU_CASES)
def main(only: tuple[str, ...], rounds: int, output: Path | None, scale: float) -> None:
    """Measures the engine against MONAI and PyTorch on this machine's first NVIDIA GPU."""
    try:
        gpu = describe_gpu()
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        raise click.ClickException("this machine has no NVIDIA GPU, or no nvidia-smi that finds it") from error
    card = re.sub(r"[^a-z0-9]+", "-", gpu["gpu_name"].lower()).strip("-")
    results = Results({**describe_machine(), **gpu}, scale, summary=GPU_SUMMARY, details=GPU_DETAILS)
    run_cases(
        GPU_CASES, results, output or free_file(FOLDER, date.today(), about=f"gpu-{card}"), only=only, rounds=rounds
    )


if __name__ == "__main__":
    main()
