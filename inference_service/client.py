"""The upstream's side: submit jobs, follow them, download their results. Needs the base installation only."""

import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self
from uuid import UUID, uuid4

from sqlalchemy import Connection

from inference_service.contract.task_message import UPLOAD_PREFIX, InputReference, SegmentRequest
from inference_service.core.errors import BadRequest, ErrorCode, InputNotFound, QueueUnavailable
from inference_service.core.files import list_input
from inference_service.core.retry import retrying
from inference_service.core.settings import SUBMITTER_PATTERN, Settings, get_settings
from inference_service.core.tracing import TraceContext, current_context
from inference_service.jobs import job_store
from inference_service.jobs.database import Database, connect, is_database_outage
from inference_service.jobs.dispatch import dispatch
from inference_service.jobs.job_store import Job, JobFilter, PagePosition, Transition, UnsentJob
from inference_service.jobs.queues.celery_app import App, make_app, shares_of_tenants
from inference_service.jobs.queues.redis_state import RedisState, fetch_redis_state
from inference_service.jobs.redis_ownership import RedisOwnership
from inference_service.jobs.resubmission import failed_jobs, queue_again
from inference_service.jobs.schema import JobState
from inference_service.jobs.storage.object_storage import Storage
from inference_service.jobs.workers.worker_registry import Worker, list_workers

logger = logging.getLogger(__name__)

_TRANSFER_RETRY_S = 5.0
_POLL_S = 0.5
_CONTENT_TYPE = "application/octet-stream"
# Names in a row's result, in the order of the returned files. Jobs of older versions have no preview or no checksums.
_RESULTS = ("mask", "report", "preview", "scan")


class Client:
    """Submits jobs to the service and follows them. One client may be shared between threads.

    Args:
        settings: Addresses and credentials of Redis, Postgres and the object storage; None reads the environment.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self._settings = settings or get_settings()
        self._common_place: str | None = None

    @cached_property
    def _app(self) -> App:
        return make_app(self._settings)

    @cached_property
    def _database(self) -> Database:
        return connect(self._settings)

    @cached_property
    def _ownership(self) -> RedisOwnership:
        return RedisOwnership(self._app, self._database, live_within_s=self._settings.cpu_standby_s)

    @cached_property
    def _storage(self) -> Storage:
        return Storage(self._settings, retry_for_s=_TRANSFER_RETRY_S)

    @property
    def deployment_id(self) -> UUID:
        """The id of the deployment whose jobs the database has."""
        return self._ownership.deployment_id

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        used = vars(self)
        for name in ("_app", "_database", "_storage"):
            if name in used:
                used[name].close()

    def upload(self, volume: Path) -> InputReference:
        """Stores a volume in the input bucket, under a new key that does not contain the file's name.

        Args:
            volume: A file, or a folder of files, which become objects under a prefix. A header whose voxels are in a
                file beside it is uploaded with that file. Of the names in a folder, an ending such as _0001 stays, by
                which nnU-Net tells channels.

        Raises:
            InputNotFound: The file does not exist, or the folder contains no file.
            InputTooLarge: The folder contains more files or bytes than a worker accepts.
            StorageUnavailable: The object storage does not answer or refuses.
            OSError: A file cannot be read.
        """
        bucket = self._settings.minio_input_bucket
        key = f"{UPLOAD_PREFIX}{uuid4()}"
        if not volume.exists():
            raise InputNotFound("there is no file or folder to upload")
        files = list_input(volume, max_bytes=self._settings.max_input_bytes)
        if files != [volume]:
            key += "/"
            self._storage.store_folder(bucket, key, files, content_type=_CONTENT_TYPE)
        else:
            self._storage.store(bucket, key, volume, content_type=_CONTENT_TYPE)
        return InputReference(bucket=bucket, key=key)

    def upload_channels(self, volumes: Mapping[str, Path]) -> InputReference:
        """Stores a scan for each channel of a model, as `upload` does.

        Args:
            volumes: A file or a folder for each channel, by the channel's name in the model's manifest.

        Raises:
            InputNotFound, InputTooLarge, StorageUnavailable, OSError: See `upload`.
        """
        return InputReference(channels={name: self.upload(volume).scans[0] for name, volume in volumes.items()})

    def submit(
        self,
        request: SegmentRequest,
        *,
        job_id: UUID | None = None,
        submitted_by: str | None = None,
        trace_headers: Mapping[str, str] | None = None,
        tenant: str | None = None,
        in_transaction: Callable[[Connection], None] | None = None,
    ) -> UUID:
        """Records a job and sends its message to a queue.

        Args:
            request: The job's input, model and options.
            job_id: None makes a new one. An id that is submitted twice is one job.
            submitted_by: Name that the job's row has for the submitter; None: the setting SUBMITTED_BY. It is not for
                patient data.
            trace_headers: The headers `traceparent` and `tracestate` of the W3C trace context; malformed ones are
                ignored. None: the current span of OpenTelemetry, if that is installed.
            tenant: The tenant in whose name the job is submitted; None: the setting TENANT.
            in_transaction: Called in the transaction that creates the job, for rows of an HTTP gateway; its errors
                undo the job.

        Returns:
            The job's id.

        Raises:
            BadRequest: The name of the submitter has other characters than letters, digits and `._@:/-`, or over 100;
                or the tenant is not in TENANTS.
            ConfigurationError: Redis belongs to another deployment.
            DatabaseUnavailable: It is unknown whether the job was recorded. Submit it again with the same id.
        """
        job_id = job_id or uuid4()
        name = submitted_by or self._settings.submitted_by
        if name is not None and not re.fullmatch(SUBMITTER_PATTERN, name):
            raise BadRequest("the name of the submitter may have at most 100 letters, digits and ._@:/-")
        tenant = tenant or self._settings.tenant
        if tenant is not None and tenant not in shares_of_tenants(self._app):
            raise BadRequest(f"the tenant {tenant!r:.50} is not in TENANTS")
        trace = current_context() if trace_headers is None else TraceContext.from_headers(trace_headers)
        redis = self._own_redis()
        if job_store.create(
            self._database,
            job_id,
            request,
            submitted_by=name,
            tenant=tenant,
            trace=trace,
            in_transaction=in_transaction,
        ):
            self._send(UnsentJob(job_id, request.model_dump(mode="json"), attempt=0, tenant=tenant), redis)
        return job_id

    def _own_redis(self) -> RedisState | QueueUnavailable:
        """The state of Redis, or the reason why this client cannot send messages now.

        Raises:
            ConfigurationError: Redis belongs to another deployment.
            DatabaseUnavailable: Postgres does not answer.
        """
        try:
            redis = fetch_redis_state(self._app)
            self._ownership.verify(redis)
            # With this deployment's id, it is a Redis of its workers, which may just have been restarted.
            if redis.owner is None and redis.place != self._common_place:
                self._ownership.require_common(redis)
                self._common_place = redis.place
        except QueueUnavailable as error:
            return error
        return redis

    def _send(self, job: UnsentJob, redis: RedisState | QueueUnavailable) -> None:
        try:
            if isinstance(redis, QueueUnavailable):
                raise redis
            dispatch(self._app, self._database, [job], redis, settings=self._settings)
        except QueueUnavailable as error:
            # The recorded job is safe: a worker sends its message when Redis answers again.
            logger.warning("job %s waits in Postgres: %s", job.id, error)

    def status(self, job_id: UUID) -> Job | None:
        """The current state of a job; None where it does not exist."""
        return job_store.get(self._database, job_id)

    def transitions(self, job_id: UUID) -> Sequence[Transition]:
        """All changes of the job's state, oldest first."""
        return job_store.transitions(self._database, job_id)

    def list(
        self,
        *,
        state: JobState | None = None,
        limit: int = 50,
        where: JobFilter | None = None,
        after: PagePosition | None = None,
    ) -> Sequence[Job]:
        """The jobs created last, newest first.

        Args:
            state: Only jobs in this state.
            limit: Largest number of jobs.
            where: Only such jobs; instead of `state`.
            after: The place of the last job of the page before.
        """
        where = where or JobFilter(None if state is None else [state])
        return job_store.latest(self._database, where, after=after, limit=limit)

    def workers(self) -> Sequence[Worker]:
        """The workers seen within a day, and the jobs that they run."""
        return list_workers(self._database)

    def queue_depths(self) -> Mapping[str, int]:
        """The number of messages that wait in each queue, or in a tenant's list of it.

        Raises:
            QueueUnavailable: Redis does not answer or refuses.
        """
        return fetch_redis_state(self._app).depths

    def wait(
        self, job_id: UUID, *, timeout_s: float | None = None, progress: Callable[[Job], None] = lambda job: None
    ) -> Job:
        """Waits until a job is finished.

        Args:
            job_id: The job.
            timeout_s: None waits without limit.
            progress: Called with the job at every poll, and with the finished job.

        Raises:
            KeyError: The job does not exist.
            TimeoutError: The job is not finished in time.
            DatabaseUnavailable: Postgres has not answered for OUTAGE_PATIENCE_S, or until the timeout.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            left_s = self._settings.outage_patience_s if deadline is None else max(0.0, deadline - time.monotonic())
            job = retrying(is_database_outage, timeout_s=left_s)(self.status, job_id)
            if job is None:
                raise KeyError(job_id)
            progress(job)
            if job.finished:
                return job
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"job {job_id} is not finished after {timeout_s} s")
            time.sleep(_POLL_S)

    def cancel(self, job_id: UUID) -> Job | None:
        """Cancels a queued job, or asks the worker of a running one to stop; None where the job does not exist."""
        return job_store.cancel(self._database, job_id)

    def retry(self, job_id: UUID) -> Job | None:
        """Queues a failed or cancelled job again, under the same id and with all its attempts.

        Returns:
            The job afterwards; None where it does not exist.

        Raises:
            BadRequest: The job has neither failed nor was it cancelled, or its row has no request.
        """
        redis = self._own_redis()
        job = queue_again(self._database, job_id)
        if job is None:
            return None
        self._send(job, redis)
        return self.status(job_id)

    def retry_failed(self, *, since: timedelta, code: ErrorCode | None = None) -> Iterator[UUID]:
        """Queues failed jobs again, one at each step of the iteration.

        Args:
            since: Only jobs that failed within this period.
            code: Only jobs that failed with this code; None: any code.

        Yields:
            The id of each job that is queued again.
        """
        for job_id in failed_jobs(self._database, since=since, code=code):
            try:
                job = self.retry(job_id)
            except BadRequest:
                continue  # someone else has retried it meanwhile
            if job is not None:
                yield job_id

    def result(self, job: Job, folder: Path) -> Sequence[Path]:
        """Downloads the results of a succeeded job, and verifies them by the checksums in the job's row.

        Args:
            job: The job, from `status` or `wait`.
            folder: The target folder; created where it does not exist.

        Returns:
            The written files: mask, report, preview, the scan if it was requested, then further formats of the mask.

        Raises:
            BadRequest: The job has no result.
            InputNotFound: An object of the result no longer exists.
            ResultDamaged: An object is not the one that the job has stored.
            StorageUnavailable: The object storage does not answer or refuses.
            OSError: A file cannot be written.
        """
        if job.result is None:
            raise BadRequest(f"job {job.id} has no result: it is {job.state}")
        folder.mkdir(parents=True, exist_ok=True)
        bucket = job.result["bucket"]
        files = []
        others = sorted(job.result.keys() - {"bucket", *_RESULTS})
        for name in (name for name in (*_RESULTS, *others) if name in job.result):
            key = job.result[name]
            files.append(folder / key.rsplit("/", 1)[-1])
            if job.checksums is None:
                self._storage.fetch(bucket, key, files[-1], max_bytes=self._settings.max_input_bytes)
            else:
                self._storage.fetch_verified(bucket, key, files[-1], job.checksums[name])
        return files
