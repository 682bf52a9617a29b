"""Segments a cohort by jobs: uploads one scan after another, keeps a few jobs at work, and fetches their results."""

import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar
from uuid import UUID, uuid4

from inference_service.client import Client
from inference_service.cohort.cohort_run import CohortRun
from inference_service.cohort.result_folder import JournalEntry
from inference_service.cohort.scan_folder import FolderScan
from inference_service.contract.task_message import SegmentRequest
from inference_service.core.errors import InputNotFound, StorageRefused, TransientError, error_from_row
from inference_service.core.retry import retrying
from inference_service.core.settings import Settings
from inference_service.jobs.job_store import Job

_POLL_S = 0.5

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class JobRun:
    """The jobs of one run.

    Args:
        run: The run.
        client: The client.
        request: The request; its input gets the place of each scan.
        settings: How long an outage may last, and the folder for temporary files.
        at_once: The most jobs that wait or run at a time.
    """

    def __init__(
        self, run: CohortRun, client: Client, request: SegmentRequest, settings: Settings, *, at_once: int
    ) -> None:
        self._run = run
        self._client = client
        self._request = request
        self._settings = settings
        self._at_once = at_once
        self._jobs: dict[UUID, tuple[FolderScan, str]] = {}
        self._progress: dict[UUID, float] = {}

    def submit_each(self, *, wait: bool) -> int:
        """Submits a job for each scan that has neither a result nor a job, and fetches the results of finished jobs.

        Args:
            wait: Whether to go on until every job is finished; otherwise this ends when all are submitted.

        Returns:
            The number of jobs that are not finished.

        Raises:
            TransientError, ConfigurationError, OSError, InternalError: See `CohortRun.attempt`.
        """
        for scan, fingerprint in self._run.due():
            with self._run.attempt(scan):
                self._start(scan, fingerprint)
            self._poll()
            while len(self._jobs) >= self._at_once:
                time.sleep(_POLL_S)
                self._poll()
        while wait and self._jobs:
            time.sleep(_POLL_S)
            self._poll()
        return len(self._jobs)

    def _start(self, scan: FolderScan, fingerprint: str) -> None:
        """Makes sure that a scan has a job."""
        job_id = self._run.results.job_of(scan, fingerprint)
        if job_id is None:
            job_id = uuid4()
            # Recorded first: a run that is killed in between gives no second job.
            self._run.results.record(scan, JournalEntry(fingerprint, job_id))
            known = None
        else:
            known = self._patiently(self._client.status, job_id)
        if known is None:
            self._run.show(self._at_work(), f"{scan.name}: upload")
            with scan.source(self._settings.usable_work_path) as source:
                uploaded = self._patiently(self._client.upload, source)
            placed = self._request.input.model_copy(update={"bucket": uploaded.bucket, "key": uploaded.key})
            request = self._request.model_copy(update={"input": placed})
            self._patiently(self._client.submit, request, job_id=job_id)
        self._jobs[job_id] = scan, fingerprint

    def _poll(self) -> None:
        """Looks at each job that is not finished, and deals with those that are now."""
        self._progress.clear()
        for job_id, (scan, fingerprint) in list(self._jobs.items()):
            job = self._patiently(self._client.status, job_id)
            if job is not None and not job.finished:
                self._progress[job_id] = job.progress
                continue
            del self._jobs[job_id]
            # A scan that fails begins with another job in the next run.
            with self._run.attempt(scan):
                self._collect(scan, fingerprint, job)
            if scan.name in self._run.failures:
                self._run.results.record(scan, JournalEntry(None))
        self._run.show(self._at_work(), f"{len(self._jobs)} jobs wait or run")

    def _collect(self, scan: FolderScan, fingerprint: str, job: Job | None) -> None:
        if job is None:
            self._run.fail(scan, InputNotFound("its job was deleted"))
        elif job.error_code is not None:
            self._run.fail(scan, error_from_row(job.error_code, job.error_message or ""))
        else:
            with self._run.results.writing(scan) as folder:
                self._patiently(self._client.result, job, folder)
            self._run.finish(scan, fingerprint)

    def _at_work(self) -> float:
        return sum(self._progress.values())

    def _patiently(
        self, call: Callable[Parameters, Result], *args: Parameters.args, **kwargs: Parameters.kwargs
    ) -> Result:
        """Calls a method of the client, again while a service is out."""
        return retrying(_is_outage, timeout_s=self._settings.outage_patience_s)(call, *args, **kwargs)


def _is_outage(error: BaseException) -> bool:
    return isinstance(error, TransientError) and not isinstance(error, StorageRefused)
