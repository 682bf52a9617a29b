"""Turns an item of a queue into the message that Celery sees, before anything else parses the item.

Celery and the child processes see known fields only. A message that breaks the contract but names its job goes to a
child too, with the reason: the child writes the job's row.
"""

import json
import re
from base64 import b64decode
from dataclasses import dataclass
from uuid import UUID

from inference_service.contract.task_message import CANCEL_TASK_NAME, MAX_MESSAGE_BYTES, TASK_NAME
from inference_service.core.tracing import TraceContext

# JSON that nests hundreds of levels can be neither written again nor pickled.
_MAX_NESTING = 32
_MAX_ID_CHARACTERS = 64
_JSON = "application/json"
_FORM = "the message's body is not JSON of the form [args, kwargs, embed]"
# In the end of an oversized item, which the script returns in its place: kombu writes the headers after the body.
_ID_HEADER = re.compile(r'"id"\s*:\s*"([0-9a-fA-F-]{36})"')


class NoJob(Exception):
    """The item names no job of this service, so its failure cannot be recorded."""


class _Unreadable(Exception):
    """The message's body cannot be read."""


@dataclass(frozen=True)
class _Call:
    """The call of a task.

    Attributes:
        task: Name of the task.
        task_id: Id of the Celery task.
        arguments: The keyword arguments that the child process gets.
    """

    task: object
    task_id: object
    arguments: dict[str, object]


def task_message(item: bytes, *, tenant: str | None = None) -> dict[str, object]:
    """Reduces an item to the fields of the contract, as a message of Celery's protocol 2 without properties.

    Its trace context becomes two further arguments. All else goes: an eta, for example, would keep it in memory.

    Args:
        item: The item.
        tenant: The tenant from whose list it was taken; it is added to the arguments of the task. None if the list
            is of no tenant.

    Raises:
        NoJob: The item is not a message, is for another task, or contains no UUID of a job.
    """
    envelope = _envelope(item)
    call = _call(envelope, ("job_id", "request"))
    if call.task != TASK_NAME:
        raise NoJob("it is for another task")
    # The job's id comes first, so that events of the Celery task refer to that job.
    task_id = _uuid(call.arguments.get("job_id")) or _uuid(call.task_id)
    if task_id is None:
        raise NoJob("it contains no UUID of a job")
    trace = TraceContext.from_headers(_object(envelope.get("headers")))
    arguments = call.arguments | (trace.headers if trace else {}) | ({"tenant": tenant} if tenant else {})
    return {
        "body": json.dumps([[], arguments, {}]),
        "content-type": _JSON,
        "content-encoding": "utf-8",
        "headers": {"lang": "py", "task": TASK_NAME, "id": task_id},
    }


def cancelled_job(item: bytes) -> UUID:
    """Reads the id of the job that a message cancels.

    Raises:
        NoJob: The item is not a message, is for another task, or its arguments are not the id of a job alone.
    """
    call = _call(_envelope(item), ("job_id",))
    if call.task != CANCEL_TASK_NAME:
        raise NoJob("it is for another task")
    if "refused" in call.arguments:
        raise NoJob(str(call.arguments["refused"]))
    job_id = _uuid(call.arguments.get("job_id"))
    if job_id is None:
        raise NoJob("it contains no UUID of a job")
    return UUID(job_id)


def nests_deeper(value: object, levels: int) -> bool:
    """Returns True if a JSON value nests deeper than a number of levels: `[[1]]` nests two levels."""
    layer = [value]
    for _ in range(levels):
        layer = [inner for outer in layer for inner in _children(outer)]
    return any(isinstance(item, dict | list) for item in layer)


def _envelope(item: bytes) -> dict[str, object]:
    try:
        envelope = json.loads(item.decode(errors="replace"))
    except (ValueError, RecursionError):
        envelope = None
    if not isinstance(envelope, dict):
        raise NoJob("it is not a JSON object")
    return envelope


def _call(envelope: dict[str, object], names: tuple[str, ...]) -> _Call:
    """Finds task, id and arguments, which protocol 2 of Celery has in the headers and protocol 1 in the body.

    Args:
        envelope: The item.
        names: The keyword arguments that the task takes.
    """
    if "oversized" in envelope:
        header = _ID_HEADER.search(str(envelope.get("end")))
        return _Call(TASK_NAME, header and header[1], _refused(f"the message has more than {MAX_MESSAGE_BYTES} bytes"))
    headers = _object(envelope.get("headers"))
    properties = _object(envelope.get("properties"))
    task = headers.get("task")
    task_id = headers.get("id")
    try:
        body = _body(envelope, headers, properties)
    except _Unreadable as error:
        if task is None:
            # Protocol 1, whose senders repeat the id in this property.
            return _Call(TASK_NAME, properties.get("correlation_id"), _refused(str(error)))
        return _Call(task, task_id, _refused(str(error)))
    if isinstance(body, dict) and "task" in body:
        return _Call(body["task"], body.get("id"), _arguments(body.get("args"), body.get("kwargs"), names))
    if isinstance(body, list) and len(body) == 3:
        return _Call(task, task_id, _arguments(body[0], body[1], names))
    return _Call(task, task_id, _refused(_FORM))


def _body(envelope: dict[str, object], headers: dict[str, object], properties: dict[str, object]) -> object:
    if headers.get("compression"):
        raise _Unreadable("the message's body is compressed")
    if envelope.get("content-type") != _JSON:
        raise _Unreadable(f"the message's content type is not {_JSON}")
    body = envelope.get("body")
    if not isinstance(body, str):
        raise _Unreadable(_FORM)
    try:
        content = b64decode(body) if properties.get("body_encoding") == "base64" else body
        return json.loads(content, object_pairs_hook=_plain_object)
    except (ValueError, RecursionError) as error:
        raise _Unreadable(_FORM) from error


def _arguments(args: object, kwargs: object, names: tuple[str, ...]) -> dict[str, object]:
    if not isinstance(kwargs, dict):
        return _refused("the task's keyword arguments are not a JSON object")
    job_id = kwargs.get("job_id")
    if args or set(kwargs) - set(names):
        return _refused(f"the task takes the keyword arguments {' and '.join(names)} only", job_id)
    if nests_deeper(kwargs, _MAX_NESTING):
        return _refused(f"the task's arguments nest deeper than {_MAX_NESTING} levels", job_id)
    return kwargs


def _refused(reason: str, job_id: object = None) -> dict[str, object]:
    usable = isinstance(job_id, str) and len(job_id) <= _MAX_ID_CHARACTERS
    return {"job_id": job_id if usable else None, "refused": reason}


def _plain_object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise _Unreadable("the message's body has an object with two fields of one name")
    if "__type__" in value:
        raise ValueError("kombu would turn this object into a type that JSON does not have")
    return value


def _object(value: object) -> dict[str, object]:
    return value if isinstance(value, dict) else {}


def _uuid(value: object) -> str | None:
    try:
        return str(UUID(value)) if isinstance(value, str) else None
    except ValueError:
        return None


def _children(value: object) -> list[object]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []
