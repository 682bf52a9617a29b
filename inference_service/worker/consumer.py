"""Celery's consumer, which no message can end and which never logs a message's content.

A message of our task is written anew before Celery sees it, so that nothing odd reaches Celery or a child process.
One that breaks the contract goes to the child as well, with the reason, because there the job's row is written.
"""

import json
import logging
import re
from collections.abc import Callable
from uuid import UUID

from celery.worker.consumer import Consumer
from kombu import Message

from inference_service.contract.task_message import TASK_NAME
from inference_service.worker.redis_transport import MOST_LEVELS, TROUBLE, nests_deeper

logger = logging.getLogger(__name__)

_MOST_BODY_BYTES = 256 * 1024
_MOST_ID_CHARACTERS = 64
_PRINTABLE_NAME = re.compile(r"[\w.]{1,100}", re.ASCII)
_JSON = "application/json"


class NotOurTask(Exception):
    """The message names another task, or none."""


class NoJobId(Exception):
    """The message has no UUID under which its failure could be recorded."""


class SafeConsumer(Consumer):
    """Refuses a message that it cannot handle, and takes the next one."""

    def create_task_handler(self, *args: object, **kwargs: object) -> Callable[[Message], None]:
        """The function that takes each message."""
        handle = super().create_task_handler()

        def on_task_received(message: Message) -> None:
            try:
                write_anew(message)
                handle(message)
            except TROUBLE:
                raise
            except Exception as error:
                self._refuse(message, error)

        return on_task_received

    def on_unknown_message(self, body: object, message: Message) -> None:
        """Rejects what follows no protocol of Celery."""
        self._refuse(message, NotOurTask())

    def on_unknown_task(self, body: object, message: Message, exc: Exception) -> None:
        """Rejects a task that is not ours."""
        self._refuse(message, NotOurTask())

    def on_invalid_task(self, body: object, message: Message, exc: Exception) -> None:
        """Rejects what Celery cannot make a task of."""
        self._refuse(message, exc)

    def on_decode_error(self, message: Message, exc: Exception) -> None:
        """Rejects what kombu cannot decode or decompress."""
        self._refuse(message, exc)

    def _refuse(self, message: Message, error: Exception) -> None:
        name = str(message.headers.get("task"))
        logger.error(
            "a message was refused (%s): task %s, %d bytes",
            type(error).__name__, name if _PRINTABLE_NAME.fullmatch(name) else "?", len(_body(message)),
        )  # fmt: skip
        if not message.acknowledged:
            message.reject_log_error(logger, TROUBLE)


def write_anew(message: Message) -> None:
    """Leaves of a message what the contract knows; none of Celery's many headers, an eta would keep it in memory.

    Raises:
        NotOurTask: It is for another task.
        NoJobId: Neither its header `id` nor its job_id is a UUID.
    """
    if message.headers.get("task") != TASK_NAME:
        raise NotOurTask
    kwargs = _arguments(message)
    # The job's id first: what Celery's parent process says of a task must be said of that job.
    task_id = _uuid(kwargs.get("job_id")) or _uuid(message.headers.get("id"))
    if task_id is None:
        raise NoJobId
    message.headers = {"lang": "py", "task": TASK_NAME, "id": task_id}
    message.properties = {}
    message.body = json.dumps([[], kwargs, {}])
    message.content_type, message.content_encoding = _JSON, "utf-8"


def _arguments(message: Message) -> dict[str, object]:
    body = _body(message)
    if message.content_type != _JSON:
        return _refused(f"the message's content type is not {_JSON}")
    if len(body) > _MOST_BODY_BYTES:
        return _refused(f"the message's body has more than {_MOST_BODY_BYTES} bytes")
    try:
        args, kwargs, _ = json.loads(body, object_hook=_plain)
    except (ValueError, TypeError, RecursionError):
        return _refused("the message's body is not JSON of the form [args, kwargs, embed]")
    if not isinstance(kwargs, dict):
        return _refused("the task's keyword arguments are not a JSON object")
    job_id = kwargs.get("job_id")
    if args or set(kwargs) - {"job_id", "request"}:
        return _refused("the task takes the keyword arguments job_id and request only", job_id)
    if nests_deeper(kwargs, MOST_LEVELS):
        return _refused(f"the task's arguments nest deeper than {MOST_LEVELS} levels", job_id)
    return kwargs


def _refused(reason: str, job_id: object = None) -> dict[str, object]:
    usable = isinstance(job_id, str) and len(job_id) <= _MOST_ID_CHARACTERS
    return {"job_id": job_id if usable else None, "refused": reason}


def _plain(value: dict[str, object]) -> dict[str, object]:
    if "__type__" in value:
        raise ValueError("kombu would make another type of this object than JSON has")
    return value


def _body(message: Message) -> bytes:
    # Kombu leaves there whatever the item held, which its type does not say.
    body: object = message.body
    if isinstance(body, str):
        return body.encode(errors="replace")
    return body if isinstance(body, bytes) else b""


def _uuid(value: object) -> str | None:
    try:
        return str(UUID(value)) if isinstance(value, str) else None
    except ValueError:
        return None
