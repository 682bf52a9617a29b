"""The results of one run of the benchmark, and their file."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path

from benchmarks.measurement import Agreement, Failure, Measurement
from benchmarks.summary import DETAILS, SUMMARY, Figure, Measured, work_out

FOLDER = Path(__file__).parent / "results"


@dataclass
class Results:
    """The results so far.

    Attributes:
        machine: Description of the machine, see `describe_machine`.
        scale: Scale of the volumes; the goals of the summary are meant for 1.
        measurements: One for each run that finished.
        agreements: Comparisons of labels.
        failures: Runs that did not finish.
        summary: Figures that have goals.
        details: Other figures.
    """

    machine: dict[str, object]
    scale: float
    measurements: list[Measurement] = field(default_factory=list)
    agreements: list[Agreement] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    summary: Mapping[str, Figure] = field(default_factory=lambda: SUMMARY)
    details: Mapping[str, Figure] = field(default_factory=lambda: DETAILS)

    @property
    def measured(self) -> Measured:
        """The measurements and agreements that figures are computed from."""
        return Measured(self.measurements, self.agreements)

    def write(self, path: Path) -> None:
        """Writes the results so far, and replaces what was written before."""
        measured = self.measured
        content = {
            "machine": self.machine,
            "scale": self.scale,
            "summary": work_out(self.summary, measured),
            "details": work_out(self.details, measured),
            "medians": [asdict(median) for median in measured.medians],
            "agreements": [asdict(agreement) for agreement in self.agreements],
            "failures": [asdict(failure) for failure in self.failures],
            "measurements": [asdict(measurement) for measurement in self.measurements],
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def free_file(folder: Path, day: date, *, about: str = "") -> Path:
    """Path of the day's results file, numbered where it exists already; `about` becomes a part of its name."""
    name = f"{day.isoformat()}-{about}" if about else day.isoformat()
    path = folder / f"{name}.json"
    count = 1
    while path.exists():
        count += 1
        path = folder / f"{name}-{count}.json"
    return path
