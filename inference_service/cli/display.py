"""Output of the command line: tables, JSON, and progress as bars on a terminal or as plain lines elsewhere."""

import json
import sys
import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, Self, TypeVar
from uuid import UUID

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from inference_service.contract.report import LabelReport
from inference_service.core.progress import STAGES
from inference_service.jobs.job_store import Job
from inference_service.jobs.schema import JobState

# A plain line is printed for each new activity, for each further tenth of the work, and after a minute without one.
_PLAIN_STEP = 0.1
_PLAIN_S = 60.0
# Columns of output that does not go to a terminal.
_PLAIN_WIDTH = 200

Key = TypeVar("Key", bound=Hashable)


def console(*, stderr: bool = False) -> Console:
    """Returns a console that prints brackets as text, not as markup, and keeps long lines in a file whole."""
    screen = Console(stderr=stderr, markup=False, highlight=False)
    if not screen.is_terminal:
        screen.width = _PLAIN_WIDTH
    return screen


def printable(text: str) -> str:
    """Removes control characters, by which the author of a file or a model could change the terminal."""
    return "".join(character for character in text if character == "\n" or character.isprintable())


def print_json(value: object, *, indent: int | None = 2) -> None:
    """Prints a value as JSON; UUIDs and times become strings. Without indent it is one line, which appears at once."""
    sys.stdout.write(json.dumps(value, indent=indent, default=str) + "\n")
    sys.stdout.flush()


@dataclass(frozen=True)
class _Shown:
    """The last plain line of a piece of work.

    Attributes:
        activity: The activity.
        share: The share that was done.
        at_s: When the line was printed.
        begun_s: When the activity began.
    """

    activity: str
    share: float
    at_s: float
    begun_s: float


class ProgressDisplay(Generic[Key]):
    """Shows the progress of several pieces of work.

    Args:
        target: The console to print on.
        names: The displayed name of each piece of work, by its key.
    """

    def __init__(self, target: Console, names: Mapping[Key, str]) -> None:
        self._target = target
        self._names = names
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[activity]}"),
            TimeElapsedColumn(),
            console=target,
            disable=not target.is_terminal,
        )
        self._tasks: dict[Key, TaskID] = {}
        self._shown: dict[Key, _Shown] = {}

    def __enter__(self) -> Self:
        self._bars.start()
        self._tasks = {key: self._bars.add_task(name, total=1.0, activity="") for key, name in self._names.items()}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def say(self, text: str) -> None:
        """Prints a line above the bars."""
        self._target.print(text, soft_wrap=True)

    def show(self, key: Key, activity: str, share: float, *, detail: str = "") -> None:
        """Shows the current activity of a piece of work.

        Args:
            key: The piece of work.
            activity: Its activity.
            share: The share of the work that is done, 0…1.
            detail: More about the activity, which a terminal shows, and plain lines leave out.
        """
        if self._target.is_terminal:
            shown_activity = f"{activity}, {detail}" if detail else activity
            self._bars.update(self._tasks[key], completed=share, activity=shown_activity)
            return
        now_s = time.monotonic()
        shown = self._shown.get(key)
        begun_s = now_s if shown is None or shown.activity != activity else shown.begun_s
        if shown is None or begun_s == now_s or share >= shown.share + _PLAIN_STEP or now_s >= shown.at_s + _PLAIN_S:
            self._shown[key] = _Shown(activity, share, now_s, begun_s)
            since = f", for {now_s - begun_s:.0f} s" if now_s - begun_s >= _PLAIN_S else ""
            self._target.print(f"{self._names[key]}: {share:4.0%} {activity}{since}")


def show_job(display: ProgressDisplay[UUID], job: Job) -> None:
    """Shows the progress of a job."""
    activity = job.stage if job.state is JobState.RUNNING and job.stage else job.state
    display.show(job.id, activity, job.progress)


def object_address(job: Job, name: str) -> str | None:
    """Returns the s3:// address of one of a job's result files; None if the job has none."""
    return f"s3://{job.result['bucket']}/{job.result[name]}" if job.result and name in job.result else None


def job_table(job: Job) -> Table:
    """Returns a table of a job's fields without the empty ones."""
    table = Table(show_header=False, box=None)
    rows: dict[str, object] = {
        "job": job.id,
        "state": job.state,
        "model": f"{job.model_name} {job.model_version}" if job.model_name else (job.request or {}).get("model"),
        "priority": (job.request or {}).get("priority"),
        "submitted by": job.submitted_by,
        "tenant": job.tenant,
        "traceparent": job.traceparent,
        "attempt": job.attempt,
        "worker": job.lease_owner,
        "providers": ", ".join(job.providers or []),
        "progress": f"{job.progress:.0%} {job.stage or ''}",
        "created": job.created_at,
        "started": job.started_at,
        "finished": job.finished_at,
        "error": f"{job.error_code}: {job.error_message}" if job.error_code else None,
        "remedy": job.remedy,
        "warnings": "\n".join(f"{warning['code']}: {warning['message']}" for warning in job.warnings or ()),
        **{name: object_address(job, name) for name in sorted(job.result or {}) if name != "bucket"},
    }
    for name, value in rows.items():
        if value:
            table.add_row(name, str(value))
    return table


def timings_table(timings_s: Mapping[str, Mapping[str, float]]) -> Table:
    """Returns a table with the seconds of each stage, one column per job."""
    table = Table("stage", *(f"{name}, s" for name in timings_s), title="Stage timings", title_justify="left")
    for stage in STAGES:
        if any(stage in timings for timings in timings_s.values()):
            table.add_row(stage, *(f"{timings.get(stage, 0):.2f}" for timings in timings_s.values()))
    table.add_section()
    table.add_row("total", *(f"{sum(timings.values()):.2f}" for timings in timings_s.values()))
    return table


def labels_table(labels: "Sequence[LabelReport]") -> Table:
    """Returns a table with the volume and the intensity of each label."""
    table = Table("label", "name", "volume, mL", "mean", "std", title="Labels", title_justify="left")
    for label in labels:
        mean = "-" if label.intensity_mean is None else f"{label.intensity_mean:.0f}"
        std = "-" if label.intensity_std is None else f"{label.intensity_std:.0f}"
        table.add_row(str(label.value), label.name, f"{label.volume_ml:.1f}", mean, std)
    return table
