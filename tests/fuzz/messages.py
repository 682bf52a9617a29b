"""Targets that read what comes through Redis: items of the queues, and the requests in them."""

import json
from base64 import b64encode
from uuid import UUID

from fuzz.target import Target
from inference_service.contract.task_message import CANCEL_TASK_NAME, MAX_MESSAGE_BYTES, TASK_NAME, parse_request
from inference_service.worker.messages.message_check import NoJob, cancelled_job, task_message

_JOB_ID = "7d444840-9dc0-11d1-b245-5ffdce74fad2"
_REQUEST = {
    "input": {"bucket": "volumes", "key": "ct/1/", "series": "1.2.3", "select": {"EchoTime": 4.6, "ImageType": "M"}},
    "model": "ct-chest",
    "model_version": "1",
    "priority": "urgent",
    "output": {"prefix": "masks/a", "formats": ["nifti", "dicom-seg"]},
    "options": {"reuse": True, "tolerate": ["gantry_tilt"], "modality_check": False},
}
_KWARGS = {"job_id": _JOB_ID, "request": _REQUEST}
_TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
_HEADERS = {"lang": "py", "task": TASK_NAME, "id": _JOB_ID, "compression": None}


def _read_item(data: bytes) -> None:
    """Reduces an item of a queue to the message that Celery sees: few fields, of bounded size."""
    message = task_message(data)
    assert message.keys() == {"body", "content-type", "content-encoding", "headers"}
    headers = message["headers"]
    assert isinstance(headers, dict)
    assert headers.keys() == {"lang", "task", "id"}
    UUID(headers["id"])
    args, kwargs, embedded = json.loads(str(message["body"]))
    assert (args, embedded) == ([], {})
    assert kwargs.keys() <= {"job_id", "request", "refused", "traceparent", "tracestate"}
    # Escapes can make a character of three bytes six characters long.
    assert len(str(message["body"])) <= 2 * MAX_MESSAGE_BYTES


def _read_cancellation(data: bytes) -> None:
    assert isinstance(cancelled_job(data), UUID)


def _item(body: object, headers: object, **properties: object) -> bytes:
    text = json.dumps(body)
    if properties.get("body_encoding") == "base64":
        text = b64encode(text.encode()).decode()
    envelope = {"body": text, "content-type": "application/json", "headers": headers, "properties": properties}
    return json.dumps(envelope).encode()


def item_of_protocol_2() -> bytes:
    """A valid message, as the Python client sends it."""
    return _item([[], _KWARGS, {}], _HEADERS, body_encoding="base64", delivery_tag="x")


def _item_seeds() -> list[bytes]:
    first_protocol = {"task": TASK_NAME, "id": _JOB_ID, "args": [], "kwargs": _KWARGS}
    return [
        item_of_protocol_2(),
        _item([[], _KWARGS, {}], _HEADERS),
        _item([[], _KWARGS, {}], {**_HEADERS, "traceparent": _TRACEPARENT, "tracestate": "vendor=a"}),
        _item([[], _KWARGS, {}], {**_HEADERS, "compression": "application/x-gzip"}),
        _item(first_protocol, {}),
        json.dumps({"oversized": 10**6, "end": f'"headers": {{"id": "{_JOB_ID}"}}'}).encode(),
    ]


def _cancellation_seeds() -> list[bytes]:
    kwargs = {"job_id": _JOB_ID}
    headers = {**_HEADERS, "task": CANCEL_TASK_NAME}
    return [
        _item([[], kwargs, {}], headers, body_encoding="base64"),
        _item([[], _KWARGS, {}], headers),
        _item({"task": CANCEL_TASK_NAME, "id": _JOB_ID, "args": [], "kwargs": kwargs}, {}),
    ]


def _read_request(data: bytes) -> None:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = data.decode("latin-1")
    parse_request(value)


TARGETS = (
    Target("item", _read_item, _item_seeds, refusals=(NoJob,)),
    Target("cancellation", _read_cancellation, _cancellation_seeds, refusals=(NoJob,)),
    Target("request", _read_request, lambda: [json.dumps(_REQUEST).encode()]),
)
