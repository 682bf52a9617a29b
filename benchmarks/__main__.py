"""`python -m benchmarks`: runs the cases, prints tables and writes the results file."""

from collections.abc import Callable, Collection, Mapping
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
from inference_service.core.host import usable_cpus

# Width of the tables where the output is not a terminal.
_WIDTH = 150


def options(cases: Mapping[str, Case]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Returns a decorator that adds the options of every benchmark to its command."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        for option in (
            click.option(
                "--scale",
                default=1.0,
                show_default=True,
                type=click.FloatRange(0, 1, min_open=True),
                help="Scale of the volumes' axes; less than 1 tries out the benchmark itself.",
            ),
            click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="The results file."),
            click.option("--rounds", default=3, show_default=True, type=click.IntRange(1), help="Runs of each side."),
            click.option(
                "--only", multiple=True, type=click.Choice(list(cases)), help="A case to run; by default all."
            ),
        ):
            command = option(command)
        return command

    return decorate


@click.command()
@options(CASES)
def main(only: tuple[str, ...], rounds: int, output: Path | None, scale: float) -> None:
    """Measures the engine against MONAI, PyTorch, ONNX Runtime and nnU-Net on this machine's CPU."""
    path = output or free_file(FOLDER, date.today())
    run_cases(CASES, Results(describe_machine(), scale), path, only=only, rounds=rounds)


def run_cases(cases: Mapping[str, Case], results: Results, path: Path, *, only: Collection[str], rounds: int) -> None:
    """Runs cases and prints their results, and writes the results file after each case.

    Args:
        cases: The cases, by name.
        results: Receives the measurements.
        path: Path of the results file.
        only: Names of the cases to run; empty: all.
        rounds: Runs of each side.

    Raises:
        ClickException: Some runs failed.
    """
    console = Console(width=None if Console().is_terminal else _WIDTH)
    for case in cases.values():
        if not only or case.name in only:
            _run_case(case.scaled(results.scale), results, rounds, console)
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
