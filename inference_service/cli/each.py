"""The option --each: how a run over many scans shows its progress, its failures and its end."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import click

from inference_service.cli.display import ProgressDisplay, console, print_json, printable
from inference_service.cli.exit_codes import ExitCode, exit_code
from inference_service.cohort.cohort_run import CohortRun
from inference_service.cohort.result_folder import RESERVED_NAMES, TABLE_FILE, open_results
from inference_service.cohort.scan_folder import list_scans
from inference_service.core.errors import BadRequest, ServiceError

_BAR = "scans"


class _Screen:
    """Shows a run on standard error: a bar, and a line for each failure."""

    def __init__(self, display: ProgressDisplay[str], total: int) -> None:
        self._display = display
        self._total = total

    def show(self, done: int, share: float, detail: str) -> None:
        self._display.show(_BAR, f"{done} of {self._total} done", share, detail=printable(detail))

    def failed(self, scan: str, error: ServiceError) -> None:
        self._display.say(failure_line(scan, error))


def failure_line(scan: str, error: ServiceError) -> str:
    """Returns the one line about a failure."""
    return " ".join(printable(f"{scan}: {error.code}: {error.message}").split())


@contextmanager
def each_scan(
    folder: Path, out: Path, request: Mapping[str, object], *, channels: int | None = None, work_path: Path | None
) -> Iterator[CohortRun]:
    """Opens a run over the scans of a folder; at its end, however it ends, `results.csv` is written.

    Args:
        folder: The folder with the scans.
        out: The folder of the results.
        request: The model and the options, which must be those of earlier runs into the folder.
        channels: Number of the model's channels, if it is known.
        work_path: The folder for temporary files; None: the system's.

    Raises:
        BadRequest: OUT lies in the folder of scans, or it cannot be used.
        InputError: There is no scan in the folder.
    """
    if out.resolve().is_relative_to(folder.resolve()):
        raise BadRequest("OUT lies in the folder of scans, and would be taken for a scan: choose another OUT")
    found = list_scans(folder, channels=channels, reserved=RESERVED_NAMES)
    with (
        open_results(out, request, work_path=work_path) as results,
        ProgressDisplay(console(stderr=True), {_BAR: _BAR}) as display,
    ):
        if found.others:
            display.say(printable(f"no scans, and left out: {_few(found.others)}"))
        run = CohortRun(found.scans, results, _Screen(display, len(found.scans)))
        try:
            yield run
        except BaseException:
            display.say(f"stopped with {run.done} of {len(run.scans)} scans done: run the same command again to go on")
            raise
        finally:
            run.write_table()


def report_end(run: CohortRun, *, unfinished: int = 0, as_json: bool) -> None:
    """Prints what became of the scans, and exits with a code if some failed.

    Args:
        run: The run.
        unfinished: Number of jobs that are not finished.
        as_json: Whether to print JSON.
    """
    table = run.results.folder.absolute() / TABLE_FILE
    failures = {name: {"code": error.code, "message": error.message} for name, error in run.failures.items()}
    counts = {"finished": run.finished, "skipped": run.skipped, "failed": len(failures), "unfinished": unfinished}
    if as_json:
        print_json({**counts, "failures": failures, "table": str(table)})
    else:
        texts = {
            "finished": "segmented",
            "skipped": "skipped: finished by an earlier run",
            "failed": "failed: the next run tries them again",
            "unfinished": "submitted and not finished: run the same command again to fetch them",
        }
        for name, count in counts.items():
            if count or name == "finished":
                click.echo(f"{count} {texts[name]}")
        click.echo(table)
    if run.failures:
        raise SystemExit(_common_code(run.failures))


def _common_code(failures: Mapping[str, ServiceError]) -> ExitCode:
    """Returns REJECTED if all failures are refusals, and otherwise the code of a graver one."""
    codes = {exit_code(error) for error in failures.values()}
    return next(code for code in (ExitCode.FAILED, ExitCode.UNAVAILABLE, ExitCode.REJECTED) if code in codes)


def _few(names: tuple[str, ...], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
