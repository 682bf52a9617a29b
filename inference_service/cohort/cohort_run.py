"""One run over a cohort: which scans are left to do, what became of each, and which failures end it."""

import errno
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from inference_service.cohort.result_folder import JournalEntry, ResultFolder
from inference_service.cohort.scan_folder import FolderScan
from inference_service.core.errors import (
    ConfigurationError,
    InputNotFound,
    InternalError,
    ServiceError,
    TransientError,
    redacted,
)

logger = logging.getLogger(__name__)

# A full disk, or a closed terminal: every further scan would fail as well.
_FATAL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EPIPE}


class Observer(Protocol):
    """Sees how a run goes on."""

    def show(self, done: int, share: float, detail: str) -> None:
        """Shows the number of scans that are done, the share of the work, 0…1, and the current work."""

    def failed(self, scan: str, error: ServiceError) -> None:
        """Shows that a scan has failed."""


class CohortRun:
    """A run over the scans of a folder.

    Args:
        scans: The scans.
        results: The folder of their results.
        observer: Sees the progress and the failures.

    Attributes:
        finished: Number of scans that this run has finished.
        skipped: Number of scans that an earlier run had finished.
        failures: The error of each scan that failed, by its name.
    """

    def __init__(self, scans: Sequence[FolderScan], results: ResultFolder, observer: Observer) -> None:
        self.scans = scans
        self.results = results
        self.finished = 0
        self.skipped = 0
        self.failures: dict[str, ServiceError] = {}
        self._observer = observer

    @property
    def done(self) -> int:
        """Number of scans with an outcome."""
        return self.finished + self.skipped + len(self.failures)

    def due(self) -> Iterator[tuple[FolderScan, str]]:
        """Yields the scans that are left to do, each with its fingerprint, and counts the others."""
        for scan in self.scans:
            due = None
            with self.attempt(scan):
                fingerprint = scan.fingerprint()
                if self.results.is_finished(scan, fingerprint):
                    self.skipped += 1
                else:
                    due = scan, fingerprint
            self.show(0.0, scan.name)
            if due is not None:
                yield due

    @contextmanager
    def attempt(self, scan: FolderScan) -> Iterator[None]:
        """Records an error of the block as the failure of the scan, unless every other scan would fail as well.

        Raises:
            TransientError: A service does not answer.
            ConfigurationError: A setting is wrong.
            OSError, InternalError: The disk is full or cannot be written to.
        """
        try:
            yield
        except (TransientError, ConfigurationError):
            raise
        except ServiceError as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno in _FATAL:
                raise
            self.fail(scan, error)
        except OSError as error:
            if error.errno in _FATAL:
                raise
            reason = os.strerror(error.errno) if error.errno else "input or output error"
            self.fail(scan, InputNotFound(f"a file of the scan cannot be read: {reason}"))
        except Exception as error:
            logger.error("unexpected error: %s", redacted(error))
            self.fail(scan, InternalError("an unexpected error occurred"))

    def finish(self, scan: FolderScan, fingerprint: str) -> None:
        """Counts a scan whose result is complete."""
        self.results.record(scan, JournalEntry(fingerprint))
        self.finished += 1
        self.show(0.0, scan.name)

    def fail(self, scan: FolderScan, error: ServiceError) -> None:
        """Counts a scan that failed; the next run tries it again."""
        self.failures[scan.name] = error
        self._observer.failed(scan.name, error)

    def show(self, running: float, detail: str) -> None:
        """Shows the progress.

        Args:
            running: The shares of the scans at work that are done, added up.
            detail: The current work.
        """
        self._observer.show(self.done, (self.done + running) / len(self.scans), detail)

    def write_table(self) -> Path:
        """Writes the table, and returns its path."""
        return self.results.write_table({name: error.code for name, error in self.failures.items()})
