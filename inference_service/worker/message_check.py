"""Checks each message before Celery sees it, so that only known fields reach Celery and the child processes.

A message that breaks the contract goes to a child too, with the reason: the child writes the job's row.
"""

import json
from uuid import UUID

from kombu import Message

from inference_service.contract.task_message import TASK_NAME

# Celery's own headers nest five levels. JSON that nests hundreds of levels can be neither written again nor pickled.
MAX_NESTING = 32

_MAX_BODY_BYTES = 256 * 1024
_MAX_ID_CHARACTERS = 64
_JSON = "application/json"


class UnknownTask(Exception):
    """The message names another task, or none."""


class MissingJobId(Exception):
    """The message has no UUID under which its failure could be recorded."""


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


def body_bytes(message: Message) -> bytes:
    """Returns a message's body; empty if it is neither bytes nor a string."""
    # Kombu stores whatever the queue item contained; its annotation promises more.
    body: object = message.body
    if isinstance(body, str):
        return body.encode(errors="replace")
    return body if isinstance(body, bytes) else b""


def nests_deeper(value: object, levels: int) -> bool:
    """Returns True if a JSON value nests deeper than a number of levels: `[[1]]` nests two levels."""
    layer = [value]
    for _ in range(levels):
        layer = [inner for outer in layer for inner in _children(outer)]
    return any(isinstance(item, dict | list) for item in layer)


def _arguments(message: Message) -> dict[str, object]:
    body = body_bytes(message)
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


def _uuid(value: object) -> str | None:
    try:
        return str(UUID(value)) if isinstance(value, str) else None
    except ValueError:
        return None


def _children(value: object) -> list[object]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []
