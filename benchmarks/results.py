"""All that one run of the benchmark has found, and its file."""

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
    """Grows while the benchmark runs.

    Attributes:
        machine: See `machine`.
        scale: Of the volumes; only at 1 does the summary say what its goals are about.
        summary: The figures that have goals.
        details: The others.
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
        """What figures are worked out from."""
        return Measured(self.measurements, self.agreements)

    def write(self, path: Path) -> None:
        """Writes everything there is so far, in place of what was written before."""
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
    """The day's file, or the next name that no earlier run of the day has taken; `about` becomes a part of it."""
    name = f"{day.isoformat()}-{about}" if about else day.isoformat()
    path, count = folder / f"{name}.json", 1
    while path.exists():
        count += 1
        path = folder / f"{name}-{count}.json"
    return path
