"""The folder of a cohort's results: a folder for each scan, `results.csv`, and the journal by which a run goes on.

A result is written under a hidden name and renamed when it is complete, so a folder with a scan's name is complete.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO
from uuid import UUID

from pydantic import ValidationError

from inference_service.cohort.scan_folder import FolderScan
from inference_service.contract.report import Report
from inference_service.contract.result_files import REPORT_FILE
from inference_service.contract.results_table import Row, failure_row, label_rows, write_table
from inference_service.core.errors import BadRequest
from inference_service.core.files import input_sha256

TABLE_FILE = "results.csv"
JOURNAL_FILE = "scans.jsonl"
RESERVED_NAMES = (TABLE_FILE, JOURNAL_FILE)
_UNFINISHED = ".unfinished"


@dataclass(frozen=True)
class JournalEntry:
    """The last entry of the journal about a scan.

    Attributes:
        fingerprint: The scan's fingerprint; None: nothing is known of its files, so that it begins again.
        job_id: Its job; None: it has none.
    """

    fingerprint: str | None
    job_id: UUID | None = None


class ResultFolder:
    """The results of one run or of several that continue one another.

    Args:
        folder: The folder.
        journal: The journal, open for appending.
        entries: The last entry about each scan.
        work_path: The folder for temporary files; None: the system's.
    """

    def __init__(self, folder: Path, journal: TextIO, entries: dict[str, JournalEntry], work_path: Path | None) -> None:
        self.folder = folder
        self._journal = journal
        self._entries = entries
        self._work_path = work_path

    def is_finished(self, scan: FolderScan, fingerprint: str) -> bool:
        """Returns True if there is a complete result of this scan.

        Raises:
            BadRequest: There is something else under the scan's name.
            InputError: The scan's files cannot be read.
        """
        if not os.path.lexists(self.folder / scan.name):
            return False
        report = self._report(scan.name)
        if report is None:
            raise BadRequest(f"OUT holds {scan.name!r}, which is no complete result: move it away, and run this again")
        entry = self._entries.get(scan.name)
        if entry is not None and entry.fingerprint == fingerprint:
            return True
        # The times of unchanged files may have changed, as those of a copy of the folder.
        with scan.source(self._work_path) as source:
            sha256 = input_sha256(source, [channel.name for channel in report.input.channels])
        if sha256 != report.input.sha256:
            raise BadRequest(
                f"OUT holds {scan.name!r} of another content of the scan: move it away, and run this again"
            )
        self.record(scan, JournalEntry(fingerprint))
        return True

    def job_of(self, scan: FolderScan, fingerprint: str) -> UUID | None:
        """Returns the job of this scan that an earlier run has recorded; None where there is none."""
        entry = self._entries.get(scan.name)
        return entry.job_id if entry is not None and entry.fingerprint == fingerprint else None

    def record(self, scan: FolderScan, entry: JournalEntry) -> None:
        """Writes an entry about a scan into the journal; it is on disk when this returns."""
        self._entries[scan.name] = entry
        job = None if entry.job_id is None else str(entry.job_id)
        _append(self._journal, {"scan": scan.name, "fingerprint": entry.fingerprint, "job": job})

    @contextmanager
    def writing(self, scan: FolderScan) -> Iterator[Path]:
        """Yields the path of a folder to make and fill; it gets the scan's name if the block ends without an error."""
        unfinished = self.folder / f".{scan.name}{_UNFINISHED}"
        try:
            yield unfinished
            unfinished.rename(self.folder / scan.name)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)

    def write_table(self, failures: Mapping[str, str]) -> Path:
        """Writes `results.csv` with all complete results and the failures of this run.

        Args:
            failures: The error code of each scan that failed, by its name.

        Returns:
            Its path.
        """
        unfinished = self.folder / f".{TABLE_FILE}{_UNFINISHED}"
        with unfinished.open("w", encoding="utf-8", newline="") as stream:
            write_table(stream, self._rows(failures))
        return unfinished.replace(self.folder / TABLE_FILE)

    def _rows(self, failures: Mapping[str, str]) -> Iterator[Row]:
        for name in sorted(self._entries.keys() | failures.keys()):
            if name in failures:
                yield failure_row(name, failures[name])
            elif (report := self._report(name)) is not None:
                yield from label_rows(name, report)

    def _report(self, name: str) -> Report | None:
        """Returns the report of a complete result; None where there is none, or a file of it has another size."""
        folder = self.folder / name
        try:
            # The report may be of a later version of the service, which describes more.
            report = Report.model_validate_json((folder / REPORT_FILE).read_bytes(), extra="ignore")
            sizes = {file: (folder / file).stat().st_size for file in report.checksums}
        except (OSError, ValidationError):
            return None
        complete = all(sizes[file] == checksum.size_bytes for file, checksum in report.checksums.items())
        return report if complete else None


@contextmanager
def open_results(folder: Path, request: Mapping[str, object], *, work_path: Path | None) -> Iterator[ResultFolder]:
    """Opens the folder of results for one run; another one that uses it is refused.

    Args:
        folder: The folder; made where it does not exist.
        request: The model and the options, which must be those of the runs before.
        work_path: The folder for temporary files; None: the system's.

    Raises:
        BadRequest: The folder belongs to another run or another request, or it holds files of something else.
    """
    if os.path.lexists(folder) and not folder.is_dir():
        raise BadRequest(f"OUT is a file: expected a folder, and {folder} is none")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / JOURNAL_FILE
    if not path.exists() and os.path.lexists(folder / TABLE_FILE):
        raise BadRequest(f"OUT holds {TABLE_FILE} of something else; choose another OUT")
    with path.open("a+", encoding="utf-8") as journal:
        try:
            fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadRequest("another run is at work in OUT") from None
        except OSError:
            pass  # a file system without locks
        entries = _read_journal(journal, request)
        for unfinished in folder.glob(f".*{_UNFINISHED}"):
            if unfinished.is_dir():
                shutil.rmtree(unfinished, ignore_errors=True)
            else:
                with suppress(OSError):
                    unfinished.unlink()
        yield ResultFolder(folder, journal, entries, work_path)


def _read_journal(journal: TextIO, request: Mapping[str, object]) -> dict[str, JournalEntry]:
    """Returns the last entry about each scan; a new journal begins with the request.

    Raises:
        BadRequest: The journal is of another request, or is no journal.
    """
    wanted = json.loads(json.dumps({"request": request}))
    journal.seek(0)
    text = journal.read()
    # Of a run that was killed, the last line may be a part of one.
    lines = text.split("\n")[:-1]
    if not lines:
        journal.truncate(0)
        _append(journal, wanted)
        return {}
    if not text.endswith("\n"):
        journal.write("\n")
    found = [entry for entry in map(_parsed, lines) if entry is not None]
    if not found or found[0] != wanted:
        raise BadRequest("OUT holds results of another model or other options; choose another OUT")
    try:
        return {
            str(entry["scan"]): JournalEntry(
                None if entry["fingerprint"] is None else str(entry["fingerprint"]),
                None if entry["job"] is None else UUID(str(entry["job"])),
            )
            for entry in found[1:]
        }
    except (KeyError, ValueError) as error:
        raise BadRequest(f"{JOURNAL_FILE} in OUT is damaged; choose another OUT") from error


def _parsed(line: str) -> dict[str, object] | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None


def _append(journal: TextIO, entry: Mapping[str, object]) -> None:
    journal.write(json.dumps(entry) + "\n")
    journal.flush()
    os.fsync(journal.fileno())
