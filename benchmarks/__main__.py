"""`python -m benchmarks`: runs the cases, prints tables, writes the results' file."""

from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory

import click
from rich.console import Console

from benchmarks.cases import CASES, Case
from benchmarks.inputs import write_inputs
from benchmarks.machine import describe_machine
from benchmarks.measurement import Failure, Measurement
from benchmarks.results import FOLDER, Results, free_file
from benchmarks.rounds import compare_labels, run_rounds
from benchmarks.tables import case_tables, summary_table
from benchmarks.workspace import Workspace
from inference_service.machine import usable_cpus

# Wide enough for the tables where the output is no terminal.
_WIDTH = 150


@click.command()
@click.option("--only", multiple=True, type=click.Choice(list(CASES)), help="A case to run; all, where none is named.")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1), help="How often each side runs.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="The results' file.")
@click.option(
    "--scale", default=1.0, show_default=True, type=click.FloatRange(0, 1, min_open=True),
    help="Makes the volumes smaller, to try the benchmark itself.",
)  # fmt: skip
def main(only: tuple[str, ...], rounds: int, output: Path | None, scale: float) -> None:
    """Measures the engine against MONAI, PyTorch, ONNX Runtime and nnU-Net on this machine's CPU."""
    console = Console(width=None if Console().is_terminal else _WIDTH)
    path = output or free_file(FOLDER, date.today())
    results = Results(describe_machine(), scale)
    for case in CASES.values():
        if not only or case.name in only:
            _run_case(case.scaled(scale), results, rounds, console)
            results.write(path)
    console.print(summary_table(results))
    console.print(f"written to {path}", soft_wrap=True)
    if results.failures:
        raise click.ClickException(f"{len(results.failures)} runs failed")


def _run_case(case: Case, results: Results, rounds: int, console: Console) -> None:
    def tell(outcome: Measurement | Failure) -> None:
        head = f"{case.name} · round {outcome.round} · {outcome.subject} · {outcome.side}"
        if isinstance(outcome, Failure):
            results.failures.append(outcome)
            console.print(f"{head}: failed with status {outcome.status}")
        else:
            results.measurements.append(outcome)
            console.print(f"{head}: {outcome.run.seconds:.3f} s, peak {outcome.run.peak_mb:.0f} MB")

    with TemporaryDirectory(prefix="benchmarks-") as folder:
        workspace = Workspace(Path(folder))
        console.print(f"{case.name}: writing networks and inputs")
        write_inputs(case, workspace)
        run_rounds(case, workspace, rounds=rounds, threads=usable_cpus(), tell=tell)
        results.agreements.extend(compare_labels(case, workspace))
    for table in case_tables(case, results):
        console.print(table)


if __name__ == "__main__":
    main()
