"""The Celery task: takes one message, records the job, claims it and runs one attempt."""

import logging
import time
from collections.abc import Mapping
from uuid import UUID

from celery import Task
from celery.exceptions import Reject
from celery.worker.request import Request

from inference_service.contract.task_message import TASK_NAME, SegmentRequest, parse_request
from inference_service.core.errors import BadRequest, DatabaseUnavailable, GpuFailed
from inference_service.core.log_config import logging_job
from inference_service.core.tracing import TraceContext
from inference_service.engine.runtime_errors import short_message
from inference_service.jobs import attempts, job_store
from inference_service.jobs.queues.celery_app import App
from inference_service.worker.attempt_runner import AttemptRunner
from inference_service.worker.job_context import JobContext

logger = logging.getLogger(__name__)

# Pause before a message that cannot be handled now goes back to its queue.
_REQUEUE_PAUSE_S = 5.0
# Pause before a message that is for other workers goes back to its queue.
_OTHERS_PAUSE_S = 1.0


class WorkerPaused(Exception):
    """This worker takes no jobs now: the message goes back to its queue."""


def register(app: App, handler: "TaskHandler", request_class: type[Request]) -> None:
    """Adds the task to a worker's application.

    Args:
        app: The application.
        handler: Handles the messages in the child processes.
        request_class: Celery's representation of a task in the parent process.
    """

    @app.task(name=TASK_NAME, bind=True, shared=False, Request=request_class)
    def segment(task: "Task[..., None]", /, **message: object) -> None:
        try:
            handler.handle(message, task_id=str(task.request.id))
        except DatabaseUnavailable as error:
            logger.warning("message returned to its queue: %s", error)
            raise _returned(error.code) from error
        except MemoryError as error:
            # A MemoryError would make Celery's parent process exit. If the job was claimed, its lease expires.
            logger.warning("message returned to its queue: out of memory")
            raise _returned("out_of_memory") from error
        except (WorkerPaused, attempts.LeftToAnother) as error:
            # Not for long: other workers may be there for the message, or not.
            raise _returned("left to other workers", pause_s=_OTHERS_PAUSE_S) from error
        except GpuFailed as error:
            # The job is already queued again. Further jobs on the GPU would fail in this process too.
            reason = short_message(str(error.__cause__))
            logger.warning("process exits and is replaced: %s: %s", error, reason)
            raise SystemExit(1) from error
        except Exception as error:
            # Celery would acknowledge the message, although its job may have no row yet.
            logger.exception("message returned to its queue: unexpected error")
            raise _returned("internal_error") from error


def _returned(reason: str, *, pause_s: float = _REQUEUE_PAUSE_S) -> Reject:
    """Returns, after a pause, the error by which Celery gives the message back to its queue."""
    time.sleep(pause_s)
    return Reject(reason, requeue=True)


class TaskHandler:
    """Handles the messages that reach a worker's child process."""

    def __init__(self, context: JobContext) -> None:
        self._context = context

    def handle(self, message: Mapping[str, object], *, task_id: str) -> None:
        """Records and claims the job of a message, and runs one attempt.

        Args:
            message: The task's keyword arguments, with any content.
            task_id: The Celery task's id. It replaces a job_id that is missing or not a UUID.

        Raises:
            DatabaseUnavailable: Nothing could be recorded; the message must stay in the queue.
            WorkerPaused: This worker takes no jobs now; the message must stay in the queue.
            LeftToAnother: The job avoids this worker; the message must stay in the queue.
            GpuFailed: The failure is recorded, and this process must exit.
        """
        if self._context.self_test.paused:
            raise WorkerPaused
        job_id = _uuid(message.get("job_id")) or _uuid(task_id)
        if job_id is None:
            logger.error("dropped a message whose job_id is not a UUID")
            return
        with logging_job(job_id):
            self._handle_job(job_id, message)

    def _handle_job(self, job_id: UUID, message: Mapping[str, object]) -> None:
        context = self._context
        refusal: BadRequest | None = None
        request: SegmentRequest | None = None
        try:
            request = _request(message)
        except BadRequest as error:
            refusal = error
        tenant = message.get("tenant")
        job_store.create(
            context.database,
            job_id,
            request,
            tenant=None if tenant is None else str(tenant),
            trace=TraceContext.from_headers(message),
        )
        claim = attempts.claim(
            context.database,
            job_id,
            worker=context.worker,
            lease_s=context.settings.lease_s,
            max_attempts=context.settings.max_attempts,
            alive_s=context.settings.cpu_standby_s,
        )
        if claim is None:
            logger.info("nothing to do: the job is finished, not due yet, or runs on another worker")
            return
        with logging_job(job_id, claim.trace_id):
            AttemptRunner(context, claim).run(refusal)


def _request(message: Mapping[str, object]) -> SegmentRequest:
    """Parses the request of a message. `message_check` has put the reason under `refused` if the message is invalid."""
    if "refused" in message:
        raise BadRequest(str(message["refused"]))
    return parse_request(message.get("request"))


def _uuid(value: object) -> UUID | None:
    try:
        return UUID(value) if isinstance(value, str) else None
    except ValueError:
        return None
