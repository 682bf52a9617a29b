"""The Celery task: one message, one attempt of one job, from the claim to the outcome in its row."""

import json
import logging
import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import UUID

from celery import Task
from celery.exceptions import Reject, SoftTimeLimitExceeded

from inference_service import jobs
from inference_service.engine import Engine
from inference_service.errors import (
    BadRequest,
    DatabaseUnavailable,
    InternalError,
    OutOfMemory,
    QueueUnavailable,
    ServiceError,
    TimeLimit,
    TransientError,
)
from inference_service.lease import Lease, LeaseLost
from inference_service.logs import logging_job
from inference_service.models import find_model
from inference_service.pipeline import MASK_FILE, REPORT_FILE, segment_file
from inference_service.queues import App, send
from inference_service.request import TASK_NAME, SegmentRequest, parse_request
from inference_service.settings import Settings
from inference_service.stages import StageClock
from inference_service.storage import Storage
from inference_service.tables import Database, connect

logger = logging.getLogger(__name__)

_CONTENT_TYPES = {MASK_FILE: "application/gzip", REPORT_FILE: "application/json"}
# Wait before a message goes back to the queue because Postgres, or for another attempt Redis, is out of reach.
_OUTAGE_PAUSE_S = 5.0


def register(app: App, runner: "JobRunner") -> None:
    """Adds the task to a worker's application."""

    @app.task(name=TASK_NAME, bind=True)
    def segment(task: "Task[..., None]", /, **message: object) -> None:
        try:
            runner.run(message, task_id=str(task.request.id))
        except (DatabaseUnavailable, QueueUnavailable) as error:
            logger.warning("the message goes back to its queue: %s", error)
            time.sleep(_OUTAGE_PAUSE_S)
            raise Reject(error.code, requeue=True) from error


class JobRunner:
    """Runs jobs in a worker's child process, which opens its own connections and sessions on first use.

    Args:
        app: Sends a job again when another attempt is due.
        settings: The worker's.
        engine: What networks run on.
        worker: The worker's name, for rows and logs.
    """

    def __init__(self, app: App, settings: Settings, engine: Engine, *, worker: str) -> None:
        self._app, self._settings, self._engine, self._worker = app, settings, engine, worker

    @cached_property
    def _database(self) -> Database:
        return connect(self._settings)

    @cached_property
    def _storage(self) -> Storage:
        return Storage(self._settings)

    def run(self, message: Mapping[str, object], *, task_id: str) -> None:
        """Handles one message.

        Args:
            message: The task's keyword arguments, of any content.
            task_id: The Celery task's id, which stands in for a job_id that is missing or no UUID.

        Raises:
            DatabaseUnavailable: Nothing could be recorded: the message must stay in the queue.
            QueueUnavailable: Another attempt is due and could not be sent: likewise.
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
            jobs.create(self._database, job_id, request)
            claim = jobs.claim(
                self._database, job_id, worker=self._worker,
                lease_s=self._settings.lease_s, max_attempts=self._settings.max_attempts,
            )  # fmt: skip
            if claim is None:
                self._look_again_later(job_id)
            else:
                self._attempt(claim, refusal)

    def _look_again_later(self, job_id: UUID) -> None:
        """A job that runs elsewhere may be a dead worker's: its message must not be the last one."""
        job = jobs.get(self._database, job_id)
        if job is None or job.finished or job.request is None:
            logger.info("nothing to do: the job is finished, or being refused")
            return
        logger.info("the job runs elsewhere: its message comes back when the lease could have expired")
        send(self._app, job_id, parse_request(job.request), delay_s=self._settings.lease_s)

    def _attempt(self, claim: jobs.Claim, refusal: BadRequest | None) -> None:
        logger.info("attempt %d starts", claim.attempt)
        clock = StageClock()
        try:
            if claim.request is None:
                raise refusal or BadRequest("the job's row has no request")
            self._segment(claim, parse_request(claim.request), clock)
        except LeaseLost:
            logger.warning("attempt %d stops: another one holds the job", claim.attempt)
        except TransientError as error:
            self._try_again(claim, error, clock)
        except ServiceError as error:
            self._fail(claim, error, clock)
        except SoftTimeLimitExceeded:
            self._fail(claim, TimeLimit(f"the job ran longer than {self._settings.time_limit_s} s"), clock)
        except MemoryError:
            self._fail(claim, OutOfMemory("the job needs more memory than this worker has"), clock)
        except Exception:
            self._fail(claim, InternalError("something unforeseen went wrong; the worker's log says what"), clock)
            raise

    def _segment(self, claim: jobs.Claim, request: SegmentRequest, clock: StageClock) -> None:
        settings = self._settings
        model = find_model(settings.models_path, request.model, request.model_version)
        prefix = (request.output.prefix or str(claim.job_id)).removesuffix("/")
        keys = {name: f"{prefix}/{name}" for name in (MASK_FILE, REPORT_FILE)}
        with (
            Lease(self._database, claim, lease_s=settings.lease_s) as lease,
            TemporaryDirectory(prefix="job-", dir=settings.usable_work_path) as folder,
        ):
            source = Path(folder, "input")
            with clock.stage("fetch"):
                self._reserve_output(claim, prefix, keys)
                bucket = request.input.bucket or settings.minio_input_bucket
                self._storage.fetch(bucket, request.input.key, source, max_bytes=settings.max_input_bytes)
            report = segment_file(
                source, Path(folder), model, self._engine,
                max_voxels=settings.max_voxels, clock=clock, progress=lease.progress,
            )  # fmt: skip
            lease.progress("store", 0.0)
            with clock.stage("store"):
                lease.renew()
                self._store(Path(folder), keys)
            success = jobs.Success(
                result={"bucket": settings.minio_output_bucket, "mask": keys[MASK_FILE], "report": keys[REPORT_FILE]},
                model_name=report.model.name,
                model_version=report.model.version,
                model_sha256=report.model.sha256,
                providers=report.providers,
                timings_s=clock.seconds,
            )
            written = jobs.succeed(self._database, claim, success)
        if not written:
            raise LeaseLost("the lease was lost before the result was recorded")
        logger.info("succeeded on %s: %s", report.providers, _seconds(clock))

    def _reserve_output(self, claim: jobs.Claim, prefix: str, keys: Mapping[str, str]) -> None:
        """Makes sure that nothing is overwritten but what an earlier attempt of the same job has left."""
        bucket = self._settings.minio_output_bucket
        place = f"{bucket}/{prefix}"
        if claim.output_place == place:
            return
        taken = any(self._storage.exists(bucket, key) for key in keys.values())
        if taken or not jobs.reserve_output(self._database, claim, place):
            raise BadRequest("request.output.prefix: a result is there already, or another job is about to write it")

    def _store(self, folder: Path, keys: Mapping[str, str]) -> None:
        for name, key in keys.items():
            self._storage.store(
                self._settings.minio_output_bucket, key, folder / name, content_type=_CONTENT_TYPES[name]
            )

    def _try_again(self, claim: jobs.Claim, error: TransientError, clock: StageClock) -> None:
        if claim.attempt >= self._settings.max_attempts:
            self._fail(claim, error, clock)
            return
        delay_s = self._settings.retry_delay_s * 2 ** (claim.attempt - 1)
        logger.warning("attempt %d failed, another follows in %.0f s: %s", claim.attempt, delay_s, error)
        logger.debug("the cause", exc_info=error)
        if jobs.give_back(self._database, claim, delay_s=delay_s, detail=error.code):
            send(self._app, claim.job_id, parse_request(claim.request), delay_s=delay_s)

    def _fail(self, claim: jobs.Claim, error: ServiceError, clock: StageClock) -> None:
        logger.warning("%s: %s; %s", error.code, error.message, _seconds(clock))
        logger.debug("the cause", exc_info=error)
        if not jobs.fail(self._database, claim, error, timings_s=clock.seconds):
            logger.warning("attempt %d could not record its end: another one holds the job", claim.attempt)


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
