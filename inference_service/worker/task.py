"""The Celery task: one message, one attempt of one job, from the claim to the outcome in its row."""

import json
import logging
import time
from collections.abc import Mapping
from functools import cached_property, partial
from pathlib import Path
from uuid import UUID

from celery import Task
from celery.exceptions import Reject
from celery.worker.request import Request

from inference_service.contract.input_options import InputOptions
from inference_service.contract.task_message import TASK_NAME, SegmentRequest, parse_request
from inference_service.core.errors import (
    BadRequest,
    DatabaseUnavailable,
    GpuError,
    GpuFailed,
    InputNotFound,
    InternalError,
    OutOfMemory,
    ServiceError,
    StorageUnavailable,
    TransientError,
)
from inference_service.core.execution import ExecutionOptions
from inference_service.core.files import input_sha256
from inference_service.core.log_config import logging_job
from inference_service.core.progress import StageClock
from inference_service.core.retry import retrying
from inference_service.core.settings import Settings
from inference_service.engine.model_registry import Model, find_model
from inference_service.engine.runtime_errors import short_message
from inference_service.engine.session_cache import SessionCache
from inference_service.jobs import attempts, job_store
from inference_service.jobs.celery_app import App
from inference_service.jobs.database import Database, connect
from inference_service.jobs.lease import Lease, LeaseLost
from inference_service.jobs.object_storage import DISK_FULL, Storage
from inference_service.jobs.result_store import ResultStore
from inference_service.segmentation.pipeline import segment_file
from inference_service.worker.scratch_space import ScratchSpace

logger = logging.getLogger(__name__)

# Wait before a message goes back to the queue because Postgres is out of reach.
_OUTAGE_PAUSE_S = 5.0
# Before another attempt.
_LONGEST_DELAY_S = 300.0


def register(app: App, runner: "JobRunner", request_class: type[Request]) -> None:
    """Adds the task to a worker's application.

    Args:
        app: The application.
        runner: Does the work, in the children.
        request_class: Celery's view of a task in the parent.
    """

    @app.task(name=TASK_NAME, bind=True, Request=request_class)
    def segment(task: "Task[..., None]", /, **message: object) -> None:
        try:
            runner.run(message, task_id=str(task.request.id))
        except DatabaseUnavailable as error:
            logger.warning("the message goes back to its queue: %s", error)
            time.sleep(_OUTAGE_PAUSE_S)
            raise Reject(error.code, requeue=True) from error
        except MemoryError as error:
            # Where it got so far, the lease runs out; Celery's parent process would end for it.
            logger.warning("the message goes back to its queue: there is no memory left")
            time.sleep(_OUTAGE_PAUSE_S)
            raise Reject("out_of_memory", requeue=True) from error
        except GpuFailed as error:
            # The job is queued again already. Whatever else this process ran on its GPU would fail too.
            reason = short_message(str(error.__cause__))
            logger.warning("this process ends, a new one takes its place: %s: %s", error, reason)
            raise SystemExit(1) from error


class JobRunner:
    """Runs jobs in a worker's child process, which opens its own connections and sessions on first use.

    Args:
        settings: The worker's.
        execution: What networks run on.
        scratch_space: For temporary files.
        worker: The worker's name, for rows and logs.
    """

    def __init__(
        self, settings: Settings, execution: ExecutionOptions, scratch_space: ScratchSpace, *, worker: str
    ) -> None:
        self._settings, self._execution, self._scratch_space, self._worker = settings, execution, scratch_space, worker

    @cached_property
    def _database(self) -> Database:
        return connect(self._settings)

    @cached_property
    def _storage(self) -> Storage:
        return Storage(self._settings, retry_for_s=self._settings.outage_patience_s)

    @cached_property
    def _sessions(self) -> SessionCache:
        return SessionCache()

    def run(self, message: Mapping[str, object], *, task_id: str) -> None:
        """Handles one message.

        Args:
            message: The task's keyword arguments, of any content.
            task_id: The Celery task's id, which stands in for a job_id that is missing or no UUID.

        Raises:
            DatabaseUnavailable: Nothing could be recorded: the message must stay in the queue.
            GpuFailed: That is recorded, and this process must not go on.
        """
        job_id = _uuid(message.get("job_id")) or _uuid(task_id)
        if job_id is None:
            logger.error("a message without a job_id that is a UUID was dropped")
            return
        with logging_job(job_id):
            refusal: BadRequest | None = None
            request: SegmentRequest | None = None
            try:
                request = _request(message)
            except BadRequest as error:
                refusal = error
            job_store.create(self._database, job_id, request)
            claim = attempts.claim(
                self._database, job_id, worker=self._worker,
                lease_s=self._settings.lease_s, max_attempts=self._settings.max_attempts,
            )  # fmt: skip
            if claim is None:
                logger.info("nothing to do: the job is finished, not due yet, or runs elsewhere")
                return
            attempt = _Attempt(
                claim, self._settings, self._execution, self._sessions, self._database, self._storage,
                self._scratch_space,
            )  # fmt: skip
            attempt.run(refusal)


class _Attempt:
    """One attempt, whose lease is held."""

    def __init__(
        self,
        claim: attempts.Claim,
        settings: Settings,
        execution: ExecutionOptions,
        sessions: SessionCache,
        database: Database,
        storage: Storage,
        scratch_space: ScratchSpace,
    ) -> None:
        self._claim, self._settings = claim, settings
        self._sessions = sessions
        self._execution = execution.on_cpu() if claim.on_cpu else execution
        self._database, self._storage, self._scratch_space = database, storage, scratch_space
        self._clock = StageClock()
        self._output: ResultStore | None = None
        self._retrying = retrying(
            lambda error: isinstance(error, DatabaseUnavailable), timeout_s=settings.outage_patience_s
        )  # fmt: skip

    def run(self, refusal: BadRequest | None) -> None:
        """Runs it, and records how it ends.

        Args:
            refusal: What is wrong with the message, should the row have no request.

        Raises:
            GpuFailed: The job is queued again, but this process must not go on.
        """
        logger.info("attempt %d starts", self._claim.attempt)
        failure: ServiceError
        try:
            if self._claim.request is None:
                raise refusal or BadRequest("the job's row has no request")
            self._segment(parse_request(self._claim.request))
            return
        except LeaseLost as error:
            logger.warning("attempt %d stops: %s", self._claim.attempt, error)
            self._abandon()
            return
        except Exception as error:
            failure = self._judged(error)
        # By now the frames of what is no error of ours are gone, and their arrays with them.
        try:
            if isinstance(failure, TransientError):
                self._try_again(failure)
            else:
                self._fail(failure)
        finally:
            # Recorded or not: then the message, or the lease, leads to another attempt.
            if isinstance(failure, GpuFailed):
                raise failure

    def _judged(self, error: Exception) -> ServiceError:
        """What an attempt's error means for its job."""
        if isinstance(error, ServiceError):
            return error
        if isinstance(error, MemoryError):
            return OutOfMemory("the job needs more memory than this worker has")
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            # Another worker, or this one later, may have room.
            return StorageUnavailable("the worker has no room left on its disk for temporary files")
        logger.exception("attempt %d: something unforeseen", self._claim.attempt)
        return InternalError("something unforeseen went wrong; the worker's log says what")

    def _segment(self, request: SegmentRequest) -> None:
        settings = self._settings
        model = find_model(settings.models_path, request.model, request.model_version)
        prefix = (request.output.prefix or str(self._claim.job_id)).removesuffix("/")
        self._output = output = ResultStore(
            self._storage, f"{settings.minio_output_bucket}/{prefix}", request.output.formats
        )
        with (
            Lease(
                self._database, self._claim, lease_s=settings.lease_s,
                time_limit_s=min(settings.time_limit_s, model.manifest.time_limit_s or settings.time_limit_s),
                before_kill=self._last_words,
            ) as lease,
            self._scratch_space.folder(self._claim.job_id) as folder,
        ):  # fmt: skip
            source = folder / "input"
            with self._clock.stage("fetch"):
                self._retrying(output.reserve, self._database, self._claim)
                bucket = request.input.bucket or settings.minio_input_bucket
                fetch = self._storage.fetch_folder if request.input.key.endswith("/") else self._storage.fetch
                fetch(bucket, request.input.key, source, max_bytes=settings.max_input_bytes)
            success = self._reuse(request, model, source, output, lease)
            success = success or self._compute(request, model, source, output, lease)
            written = self._retrying(attempts.succeed, self._database, self._claim, success)
            lease.release()
        if not written:
            raise LeaseLost("another one holds the job")
        logger.info("succeeded on %s: %s", success.providers, _seconds(self._clock))

    def _reuse(
        self, request: SegmentRequest, model: Model, source: Path, output: ResultStore, lease: Lease
    ) -> attempts.Success | None:
        """Takes an earlier job's result, where the request allows it and there is one."""
        if not request.options.reuse:
            return None
        sha256 = input_sha256(source)
        manifest = model.manifest
        earlier = self._retrying(
            job_store.find_same_work, self._database, request,
            input_sha256=sha256, model=(manifest.name, manifest.version, manifest.sha256),
        )  # fmt: skip
        if earlier is None or earlier.result is None:
            return None
        try:
            with self._clock.stage("store"):
                output.copy(earlier.result, before_each=partial(self._retrying, lease.renew))
        except InputNotFound:
            logger.info("the result of job %s is no longer there", earlier.id)
            return None
        logger.info("took the result of job %s", earlier.id)
        return attempts.Success(
            result=output.result,
            input_sha256=sha256,
            model_name=manifest.name,
            model_version=manifest.version,
            model_sha256=manifest.sha256,
            providers=earlier.providers or [],
            timings_s=self._clock.seconds,
            detail=f"reused {earlier.id}",
        )

    def _compute(
        self, request: SegmentRequest, model: Model, source: Path, output: ResultStore, lease: Lease
    ) -> attempts.Success:
        options = request.options
        report = segment_file(
            source, source.parent, model, self._execution,
            max_voxels=self._settings.max_voxels, max_bytes=self._settings.max_input_bytes,
            input_options=InputOptions(request.input.series, options.tolerate, options.modality_check),
            formats=request.output.formats, job_id=self._claim.job_id, sessions=self._sessions,
            clock=self._clock, progress=lease.progress,
        )  # fmt: skip
        lease.progress("store", 0.0)
        with self._clock.stage("store"):
            output.store(source.parent, before_each=partial(self._retrying, lease.renew))
        return attempts.Success(
            result=output.result,
            input_sha256=report.input.sha256,
            model_name=report.model.name,
            model_version=report.model.version,
            model_sha256=report.model.sha256,
            providers=report.providers,
            timings_s=self._clock.seconds,
        )

    def _try_again(self, error: ServiceError) -> None:
        if self._claim.attempts_left == 0:
            self._fail(error)
            return
        counted = self._settings.max_attempts - self._claim.attempts_left
        delay_s = min(self._settings.retry_delay_s * 2 ** (counted - 1), _LONGEST_DELAY_S)
        logger.warning("attempt %d failed, another follows in %.0f s: %s", self._claim.attempt, delay_s, error)
        logger.debug("the cause", exc_info=error)
        held = self._retrying(
            attempts.schedule_retry, self._database, self._claim,
            delay_s=delay_s, detail=error.code, on_cpu=isinstance(error, GpuError),
        )  # fmt: skip
        if not held:
            logger.warning("attempt %d ended late: another one holds the job", self._claim.attempt)

    def _fail(self, error: ServiceError) -> None:
        logger.warning("%s: %s; %s", error.code, error.message, _seconds(self._clock))
        logger.debug("the cause", exc_info=error)
        if self._record_failure(error) and self._output is not None:
            try:
                self._output.discard(self._database, self._claim.job_id)
            except (StorageUnavailable, DatabaseUnavailable) as problem:
                logger.warning("a sweeper will remove what the attempt may have stored: %s", problem)

    def _last_words(self, reason: Exception) -> None:
        if isinstance(reason, ServiceError):
            self._record_failure(reason)
        else:
            self._abandon()

    def _abandon(self) -> None:
        if self._output is not None:
            self._retrying(self._output.leave_to_sweep, self._database, self._claim.job_id)

    def _record_failure(self, error: ServiceError) -> bool:
        held = self._retrying(
            attempts.fail, self._database, self._claim, error, timings_s=dict(self._clock.seconds)
        )  # fmt: skip
        if not held:
            logger.warning("attempt %d could not record its end: another one holds the job", self._claim.attempt)
        return bool(held)


def _request(message: Mapping[str, object]) -> SegmentRequest:
    """The request of a message; `consumer` has looked at its arguments, and says in `refused` what is wrong."""
    if "refused" in message:
        raise BadRequest(str(message["refused"]))
    return parse_request(message.get("request"))


def _uuid(value: object) -> UUID | None:
    try:
        return UUID(value) if isinstance(value, str) else None
    except ValueError:
        return None


def _seconds(clock: StageClock) -> str:
    return json.dumps({stage: round(seconds, 3) for stage, seconds in clock.seconds.items()})
