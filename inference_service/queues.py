"""The two Redis queues and the Celery application that speaks to them."""

from uuid import UUID

from celery import Celery
from kombu import Queue
from kombu.exceptions import OperationalError

from inference_service.errors import QueueUnavailable
from inference_service.request import TASK_NAME, Priority, SegmentRequest
from inference_service.settings import Settings

# What other modules call the application.
App = Celery

PRIORITY_QUEUE = "priority"
OVERFLOW_QUEUE = "overflow"
_QUEUE_OF = {Priority.URGENT: PRIORITY_QUEUE, Priority.ROUTINE: OVERFLOW_QUEUE}

# From a job's soft limit, where it can still record its end, to the kill.
_HARD_LIMIT_MARGIN_S = 60
# A message is delivered again when it was not acknowledged for this long beyond the hard limit.
_VISIBILITY_MARGIN_S = 300
_SOCKET_TIMEOUT_S = 30
_PING_TIMEOUT_S = 5


def make_app(settings: Settings) -> App:
    """The Celery application, for a client to send with or a worker to run."""
    hard_limit_s = settings.time_limit_s + _HARD_LIMIT_MARGIN_S
    app = Celery("inference_service", broker=settings.broker_url, set_as_current=False)
    app.conf.update(
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        task_queues=[Queue(PRIORITY_QUEUE), Queue(OVERFLOW_QUEUE)],
        task_default_queue=OVERFLOW_QUEUE,
        task_create_missing_queues=False,
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_soft_time_limit=settings.time_limit_s,
        task_time_limit=hard_limit_s,
        worker_prefetch_multiplier=1,
        # On SIGQUIT, before running jobs are stopped and their messages go back to the queue.
        worker_soft_shutdown_timeout=settings.shutdown_grace_s,
        worker_redirect_stdouts=False,
        # The lease makes a redelivery harmless, so a blip of Redis need not kill a job in its middle.
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_connection_retry=True,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "visibility_timeout": hard_limit_s + _VISIBILITY_MARGIN_S,
            # Queues are drained in the order in which a worker names them; the default takes turns.
            "queue_order_strategy": "priority",
            "socket_timeout": _SOCKET_TIMEOUT_S,
            "socket_keepalive": True,
        },
    )
    return app


def ping(app: App) -> None:
    """Speaks to Redis once.

    Raises:
        QueueUnavailable: Redis does not answer or refuses.
    """
    try:
        with app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, interval_start=0, timeout=_PING_TIMEOUT_S)
    except OperationalError as error:
        raise QueueUnavailable("Redis does not answer, or refuses the credentials") from error


def send(app: App, job_id: UUID, request: SegmentRequest, *, delay_s: float | None = None) -> None:
    """Puts a job's message on the queue that its priority says.

    Raises:
        QueueUnavailable: Redis does not answer or refuses.
    """
    try:
        app.send_task(
            TASK_NAME,
            kwargs={"job_id": str(job_id), "request": request.model_dump(mode="json")},
            task_id=str(job_id),
            queue=_QUEUE_OF[request.priority],
            countdown=delay_s,
        )
    except OperationalError as error:
        raise QueueUnavailable("Redis does not answer, or refuses the credentials") from error
