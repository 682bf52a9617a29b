"""What the command line shows: tables, and progress as a bar on a terminal and as plain lines elsewhere."""

import json
import sys
from collections.abc import Hashable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Generic, Self, TypeVar
from uuid import UUID

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from inference_service.core.progress import STAGES
from inference_service.jobs.job_store import Job
from inference_service.jobs.schema import JobState

if TYPE_CHECKING:  # the report's own module needs the worker's part
    from inference_service.contract.report import LabelReport

# Plain lines come with each change of what is done and with each further tenth.
_PLAIN_STEP = 0.1
_FILE_WIDTH = 200

Key = TypeVar("Key", bound=Hashable)


def console(*, stderr: bool = False) -> Console:
    """The console for what comes from outside: brackets in it are text, not markup. A file's lines are not cut."""
    screen = Console(stderr=stderr, markup=False, highlight=False)
    if not screen.is_terminal:
        screen.width = _FILE_WIDTH
    return screen


def print_json(value: object) -> None:
    """Prints JSON; UUIDs and times as text."""
    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")


class ProgressDisplay(Generic[Key]):
    """Shows how far some pieces of work are.

    Args:
        target: Where to.
        names: What each piece is called, by its key.
    """

    def __init__(self, target: Console, names: Mapping[Key, str]) -> None:
        self._target, self._names = target, names
        self._bars = Progress(
            TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[doing]}"),
            TimeElapsedColumn(), console=target, disable=not target.is_terminal,
        )  # fmt: skip
        self._tasks: dict[Key, TaskID] = {}
        self._said: dict[Key, tuple[str, float]] = {}

    def __enter__(self) -> Self:
        self._bars.start()
        self._tasks = {key: self._bars.add_task(name, total=1.0, doing="") for key, name in self._names.items()}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def show(self, key: Key, doing: str, share: float) -> None:
        """Shows what is being done with a piece of work, and the share of all its work that is done."""
        if self._target.is_terminal:
            self._bars.update(self._tasks[key], completed=share, doing=doing)
            return
        said_doing, said_share = self._said.get(key, ("", 0.0))
        if doing != said_doing or share >= said_share + _PLAIN_STEP:
            self._said[key] = (doing, share)
            self._target.print(f"{self._names[key]}: {share:4.0%} {doing}")


def show_job(display: ProgressDisplay[UUID], job: Job) -> None:
    """Shows a job as its row stands now."""
    doing = job.stage if job.state is JobState.RUNNING and job.stage else job.state
    display.show(job.id, doing, job.progress)


def object_address(job: Job, name: str) -> str | None:
    """Where a result of a job lies, None where it has none."""
    return f"s3://{job.result['bucket']}/{job.result[name]}" if job.result and name in job.result else None


def job_table(job: Job) -> Table:
    """A job's row, without what is empty."""
    table = Table(show_header=False, box=None)
    rows: dict[str, object] = {
        "job": job.id,
        "state": job.state,
        "model": f"{job.model_name} {job.model_version}" if job.model_name else (job.request or {}).get("model"),
        "priority": (job.request or {}).get("priority"),
        "attempt": job.attempt,
        "worker": job.lease_owner,
        "providers": ", ".join(job.providers or []),
        "progress": f"{job.progress:.0%} {job.stage or ''}",
        "created": job.created_at,
        "started": job.started_at,
        "finished": job.finished_at,
        "error": f"{job.error_code}: {job.error_message}" if job.error_code else None,
        **{name: object_address(job, name) for name in sorted(job.result or {}) if name != "bucket"},
    }
    for name, value in rows.items():
        if value:
            table.add_row(name, str(value))
    return table


def timings_table(timings_s: Mapping[str, Mapping[str, float]]) -> Table:
    """Seconds of each stage, one column for each of some jobs."""
    table = Table("stage", *(f"{name}, s" for name in timings_s), title="Stage timings", title_justify="left")
    for stage in STAGES:
        if any(stage in timings for timings in timings_s.values()):
            table.add_row(stage, *(f"{timings.get(stage, 0):.2f}" for timings in timings_s.values()))
    table.add_section()
    table.add_row("all", *(f"{sum(timings.values()):.2f}" for timings in timings_s.values()))
    return table


def labels_table(labels: "Sequence[LabelReport]") -> Table:
    """Volume and intensity of each label."""
    table = Table("label", "name", "volume, mL", "mean", "std", title="Labels", title_justify="left")
    for label in labels:
        spread = (
            ("-", "-")
            if label.intensity_mean is None
            else (f"{label.intensity_mean:.0f}", f"{label.intensity_std:.0f}")
        )
        table.add_row(str(label.value), label.name, f"{label.volume_ml:.1f}", *spread)
    return table
