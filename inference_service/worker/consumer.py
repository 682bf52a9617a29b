"""Celery's consumer, hardened: no message can end it, and no message's content reaches the log.

A message of the service's task is rewritten before Celery sees it, so that only known fields reach Celery and the
child processes. A message that breaks the contract goes to a child too, with the reason: the child writes the job's
row.
"""

import json
import logging
import re
from collections.abc import Callable
from uuid import UUID

from celery.worker.consumer import Consumer
from kombu import Message

from inference_service.contract.task_message import TASK_NAME
from inference_service.worker.redis_transport import CONNECTION_ERRORS, MAX_NESTING, nests_deeper

logger = logging.getLogger(__name__)

_MAX_BODY_BYTES = 256 * 1024
_MAX_ID_CHARACTERS = 64
_PRINTABLE_NAME = re.compile(r"[\w.]{1,100}", re.ASCII)
_JSON = "application/json"


class UnknownTask(Exception):
    """The message names another task, or none."""


class MissingJobId(Exception):
    """The message has no UUID under which its failure could be recorded."""


class SafeConsumer(Consumer):
    """Rejects a message that it cannot handle, and goes on with the next one."""

    def create_task_handler(self, *args: object, **kwargs: object) -> Callable[[Message], None]:
        """Returns the function that handles each message."""
        handle = super().create_task_handler()

        def on_task_received(message: Message) -> None:
            try:
                sanitise(message)
                handle(message)
            except CONNECTION_ERRORS:
                raise
            except Exception as error:
                self._reject(message, error)

        return on_task_received

    def on_unknown_message(self, body: object, message: Message) -> None:
        """Rejects a message that follows no protocol of Celery."""
        self._reject(message, UnknownTask())

    def on_unknown_task(self, body: object, message: Message, exc: Exception) -> None:
        """Rejects a task other than the service's."""
        self._reject(message, UnknownTask())

    def on_invalid_task(self, body: object, message: Message, exc: Exception) -> None:
        """Rejects a message from which Celery cannot make a task."""
        self._reject(message, exc)

    def on_decode_error(self, message: Message, exc: Exception) -> None:
        """Rejects a message that kombu cannot decode or decompress."""
        self._reject(message, exc)

    def _reject(self, message: Message, error: Exception) -> None:
        name = str(message.headers.get("task"))
        logger.error(
            "rejected a message (%s): task %s, %d bytes",
            type(error).__name__,
            name if _PRINTABLE_NAME.fullmatch(name) else "?",
            len(_body(message)),
        )
        if not message.acknowledged:
            message.reject_log_error(logger, CONNECTION_ERRORS)


def sanitise(message: Message) -> None:
    """Reduces a message to the fields of the contract.

    All other headers of Celery go: an eta, for example, would keep the message in memory.

    Raises:
        UnknownTask: The message is for another task.
        MissingJobId: Neither its header `id` nor its job_id is a UUID.
    """
    if message.headers.get("task") != TASK_NAME:
        raise UnknownTask
    kwargs = _arguments(message)
    # The job's id comes first, so that events of the Celery task refer to that job.
    task_id = _uuid(kwargs.get("job_id")) or _uuid(message.headers.get("id"))
    if task_id is None:
        raise MissingJobId
    message.headers = {"lang": "py", "task": TASK_NAME, "id": task_id}
    message.properties = {}
    message.body = json.dumps([[], kwargs, {}])
    message.content_type = _JSON
    message.content_encoding = "utf-8"


def _arguments(message: Message) -> dict[str, object]:
    body = _body(message)
    if message.content_type != _JSON:
        return _refused(f"the message's content type is not {_JSON}")
    if len(body) > _MAX_BODY_BYTES:
        return _refused(f"the message's body has more than {_MAX_BODY_BYTES} bytes")
    try:
        args, kwargs, _ = json.loads(body, object_hook=_plain_object)
    except (ValueError, TypeError, RecursionError):
        return _refused("the message's body is not JSON of the form [args, kwargs, embed]")
    if not isinstance(kwargs, dict):
        return _refused("the task's keyword arguments are not a JSON object")
    job_id = kwargs.get("job_id")
    if args or set(kwargs) - {"job_id", "request"}:
        return _refused("the task takes the keyword arguments job_id and request only", job_id)
    if nests_deeper(kwargs, MAX_NESTING):
        return _refused(f"the task's arguments nest deeper than {MAX_NESTING} levels", job_id)
    return kwargs


def _refused(reason: str, job_id: object = None) -> dict[str, object]:
    usable = isinstance(job_id, str) and len(job_id) <= _MAX_ID_CHARACTERS
    return {"job_id": job_id if usable else None, "refused": reason}


def _plain_object(value: dict[str, object]) -> dict[str, object]:
    if "__type__" in value:
        raise ValueError("kombu would turn this object into a type that JSON does not have")
    return value


def _body(message: Message) -> bytes:
    # Kombu stores whatever the queue item contained; its annotation promises more.
    body: object = message.body
    if isinstance(body, str):
        return body.encode(errors="replace")
    return body if isinstance(body, bytes) else b""


def _uuid(value: object) -> str | None:
    try:
        return str(UUID(value)) if isinstance(value, str) else None
    except ValueError:
        return None
