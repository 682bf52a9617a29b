"""Runs one attempt of a job, from fetching the scan to storing the results.

`outcome_recorder` records how the attempt ends.
"""

import errno
import logging
import os
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from pydantic import ValidationError

from inference_service.contract.input_options import InputOptions, check_channels
from inference_service.contract.report import Report
from inference_service.contract.result_files import REPORT_FILE, result_files
from inference_service.contract.task_message import ChannelReference, SegmentRequest, parse_request
from inference_service.core.errors import (
    BadRequest,
    GpuFailed,
    InputNotFound,
    InternalError,
    OutOfMemory,
    ResultDamaged,
    ServiceError,
    StorageRefused,
    StorageUnavailable,
    naming,
)
from inference_service.core.files import Checksum, Sources, input_sha256, list_files
from inference_service.core.progress import StageClock
from inference_service.engine.model_registry import Model
from inference_service.engine.session_cache import expected_precision
from inference_service.formats.read_limits import ReadLimits
from inference_service.jobs import attempts, job_store
from inference_service.jobs.lease import Lease, LeaseLost
from inference_service.jobs.request_scope import confine
from inference_service.jobs.storage import stored_attempts
from inference_service.jobs.storage.result_store import ResultStore, attempt_location
from inference_service.segmentation.crop_models import CropModels
from inference_service.segmentation.job_report import model_report
from inference_service.segmentation.pipeline import ModelRun, SegmentOptions, segment_file
from inference_service.segmentation.resources import StageMonitor
from inference_service.worker.job_context import JobContext
from inference_service.worker.outcome_recorder import OutcomeRecorder

logger = logging.getLogger(__name__)

_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}


@dataclass(frozen=True)
class _Work:
    """The inputs of one attempt.

    Attributes:
        request: The job's request.
        model: The model to run.
        crop_models: The models by which it crops the scan.
        folder: The folder of the fetched scans and the results.
        results: Stores the results.
        lease: The attempt's lease.
    """

    request: SegmentRequest
    model: Model
    crop_models: CropModels
    folder: Path
    results: ResultStore
    lease: Lease

    @property
    def sources(self) -> Sources:
        """The fetched scan, a file or a folder; or one for each channel that the request names."""
        if not self.request.input.channels:
            return self.folder / "input"
        return {name: self.folder / f"input-{number}" for number, name in enumerate(self.model.manifest.channel_names)}


class AttemptRunner:
    """Runs one attempt, whose lease the worker holds.

    Args:
        context: The worker's context.
        claim: The attempt.
    """

    def __init__(self, context: JobContext, claim: attempts.Claim) -> None:
        self._context = context
        self._claim = claim
        self._execution = context.execution.on_cpu() if claim.on_cpu else context.execution
        self._clock = StageClock()
        self._outcome = OutcomeRecorder(context, claim, self._clock)
        self._span = context.tracing.start_attempt(claim.job_id, claim.attempt, claim.trace)

    def run(self, refusal: BadRequest | None) -> None:
        """Runs the attempt and records its outcome.

        Args:
            refusal: The error of the message, which is recorded if the job's row has no request.

        Raises:
            GpuFailed: The job is queued again, and this process must exit.
        """
        trace_id = self._claim.trace_id
        logger.info("attempt %d starts%s", self._claim.attempt, f" in trace {trace_id}" if trace_id else "")
        try:
            self._run(refusal)
        finally:
            self._span.end(self._clock)

    def _run(self, refusal: BadRequest | None) -> None:
        failure: ServiceError
        try:
            if self._claim.request is None:
                raise refusal or BadRequest("the job's row has no request")
            self._segment(confine(parse_request(self._claim.request), self._context.settings))
            return
        except LeaseLost as error:
            logger.warning("attempt %d stops: %s", self._claim.attempt, error)
            self._span.fail("lease_lost")
            return
        except Exception as error:
            failure = self._service_error(error)
            if isinstance(error, MemoryError):
                self._context.self_test.count_loss(self._claim.job_id)
        self._span.fail(failure.code)
        # The foreign traceback, and the arrays it kept alive, are released here.
        try:
            self._outcome.record_failure(failure)
        finally:
            # If the failure could not be recorded, the message or the expired lease leads to another attempt.
            if isinstance(failure, GpuFailed):
                raise failure

    def _service_error(self, error: Exception) -> ServiceError:
        """Maps an exception to the error that is recorded for the job."""
        if isinstance(error, ServiceError):
            return error
        if isinstance(error, MemoryError):
            return OutOfMemory("the job needs more memory than this worker has")
        if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
            # Transient, because another worker's disk may do, and so may this one later.
            return StorageUnavailable(f"the disk of the worker fails: {os.strerror(error.errno)}")
        logger.exception("attempt %d: unexpected error", self._claim.attempt)
        return InternalError("an unexpected error occurred; the worker's log has the details")

    def _end_by_force(self, reason: Exception) -> None:
        """Records why the lease's thread is about to kill this process."""
        self._span.fail(reason.code if isinstance(reason, ServiceError) else "lease_lost")
        self._span.end(self._clock)
        try:
            self._outcome.record_forced_end(reason)
        finally:
            self._context.tracing.close()

    def _segment(self, request: SegmentRequest) -> None:
        context = self._context
        settings = context.settings
        location = attempt_location(self._claim, settings.minio_output_bucket, request.output.prefix)
        files = result_files(request.output.formats, scan=request.output.scan)
        results = ResultStore(context.storage, location, files)
        with (
            Lease(
                context.database,
                self._claim,
                lease_s=settings.lease_s,
                time_limit_s=settings.time_limit_s,
                before_kill=self._end_by_force,
            ) as lease,
            context.scratch_space.folder(self._claim.job_id) as folder,
            context.models.lending(partial(lease.progress, "fetch")) as find,
        ):
            with self._clock.stage("fetch"):
                model = find(request.model, request.model_version)
                crop_models = CropModels.of(model, find)
            # The time that it takes to fetch a model is not the model's own.
            lease.limit_time(model.manifest.time_limit_s or settings.time_limit_s)
            if request.input.channels:
                check_channels(request.input.channels, model.manifest.channel_names)
            work = _Work(request, model, crop_models, folder, results, lease)
            self._fetch(work)
            success = self._reuse_result(work) or self._compute_result(work)
            recorded = self._outcome.record_success(success)
            lease.release()
        if not recorded:
            raise LeaseLost("another attempt holds the job, or the job has ended")

    def _fetch(self, work: _Work) -> None:
        """Fetches the scan of the request, or that of each channel within the limit on all of them."""
        scans = work.request.input
        sources = work.sources
        remaining_bytes = self._context.settings.max_input_bytes
        with self._clock.stage("fetch"):
            if isinstance(sources, Path):
                self._fetch_scan(scans.scans[0], sources, remaining_bytes)
                return
            for number, (name, target) in enumerate(sources.items()):
                work.lease.progress("fetch", number / len(sources))
                with naming(f"channel {name}"):
                    self._fetch_scan(scans.channels[name], target, remaining_bytes)
                files = list_files(target, max_bytes=remaining_bytes) if target.is_dir() else [target]
                remaining_bytes -= sum(file.stat().st_size for file in files)

    def _fetch_scan(self, scan: ChannelReference, target: Path, max_bytes: int) -> None:
        storage = self._context.storage
        fetch = storage.fetch_folder if scan.key.endswith("/") else storage.fetch
        fetch(scan.bucket or self._context.settings.minio_input_bucket, scan.key, target, max_bytes=max_bytes)

    def _reuse_result(self, work: _Work) -> attempts.Success | None:
        """Takes over the result of an earlier job with the same input, if the request allows it and there is one."""
        if not work.request.options.reuse:
            return None
        sha256 = input_sha256(work.sources, work.model.manifest.channel_names)
        manifest = work.model.manifest
        identity = job_store.ModelIdentity(
            model_name=manifest.name,
            model_version=manifest.version,
            model_sha256=manifest.networks_sha256,
            manifest_sha256=work.model.manifest_sha256,
            precision=expected_precision(work.model, self._execution),
        )
        earlier = self._context.retry_database(
            job_store.find_same_work,
            self._context.database,
            work.request,
            input_sha256=sha256,
            model=identity,
        )
        if earlier is None or earlier.result is None or earlier.checksums is None:
            return None
        try:
            with self._clock.stage("store"):
                work.results.fetch_earlier(earlier.result, earlier.checksums, work.folder)
        except (InputNotFound, ResultDamaged, StorageRefused) as error:
            logger.warning("the result of job %s is not reused: %s", earlier.id, error)
            return None
        if work.crop_models.crops and not _was_cropped_alike(work):
            logger.info("the result of job %s is not reused: its scan was cropped by other models", earlier.id)
            return None
        checksums = self._store(work)
        logger.info("reused the result of job %s", earlier.id)
        return attempts.Success(
            result=work.results.result,
            checksums=checksums,
            input_sha256=sha256,
            **asdict(identity),
            providers=earlier.providers or [],
            warnings=earlier.warnings,
            timings_s=self._clock.seconds,
            detail=f"reused {earlier.id}",
        )

    def _compute_result(self, work: _Work) -> attempts.Success:
        settings = self._context.settings
        report = segment_file(
            work.sources,
            work.folder,
            ModelRun(work.model, self._execution, self._context.sessions, work.crop_models),
            limits=ReadLimits(settings.max_voxels, settings.max_input_bytes),
            options=SegmentOptions(
                InputOptions.of(work.request),
                work.request.output.formats,
                work.request.output.scan,
                self._claim.job_id,
            ),
            monitor=StageMonitor(self._clock, work.lease.progress),
        )
        checksums = self._store(work)
        return attempts.Success(
            result=work.results.result,
            checksums=checksums,
            input_sha256=report.input.sha256,
            model_name=report.model.name,
            model_version=report.model.version,
            model_sha256=report.model.sha256,
            manifest_sha256=report.model.manifest_sha256,
            precision=report.precision,
            providers=report.providers,
            warnings=[asdict(warning) for warning in report.warnings],
            timings_s=self._clock.seconds,
        )

    def _store(self, work: _Work) -> dict[str, Checksum]:
        """Stores the results, after it is recorded that this attempt may have stored objects."""
        context = self._context
        work.lease.progress("store", 0.0)
        attempt = stored_attempts.StoredAttempt(self._claim.token, self._claim.job_id, work.results.location)
        with self._clock.stage("store"):
            if not context.retry_database(stored_attempts.record, context.database, attempt):
                raise LeaseLost("another attempt holds the lease")
            return work.results.store(work.folder, before_each=partial(work.lease.progress, "store", 0.0))


def _was_cropped_alike(work: _Work) -> bool:
    """Whether an earlier result's report names the models by which this job would crop the scan."""
    try:
        report = Report.model_validate_json((work.folder / REPORT_FILE).read_bytes())
    except ValidationError:
        # That of another version of this service.
        return False
    return report.model == model_report(work.model, work.crop_models)
