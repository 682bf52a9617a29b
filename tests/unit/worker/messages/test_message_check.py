"""Items of a queue become clean messages or are dropped."""

import json
import zlib
from collections.abc import Callable
from uuid import UUID, uuid4

import pytest
from queue_items import CLIENTS, protocol_1_item, python_headers, python_item

from inference_service.contract.task_message import CANCEL_TASK_NAME, MAX_MESSAGE_BYTES, TASK_NAME
from inference_service.worker.messages.message_check import NoJob, cancelled_job, nests_deeper, task_message

PATIENT = "MUELLER^HANS"
JOB_ID = str(uuid4())
REQUEST = {"input": {"key": "scan.nii.gz"}, "model": "ct-tissue"}
KWARGS = {"job_id": JOB_ID, "request": REQUEST}


def kwargs_of(message: dict[str, object]) -> dict[str, object]:
    args, kwargs, embed = json.loads(str(message["body"]))
    assert (args, embed) == ([], {})
    assert isinstance(kwargs, dict)
    return kwargs


def with_body(content: object, **changes: object) -> bytes:
    return python_item(JOB_ID, content, **changes)


def test_a_valid_message_keeps_its_arguments_and_loses_everything_else() -> None:
    headers = python_headers(JOB_ID, eta="2030-01-02T03:04:05+00:00", timelimit="a", expires="x", kwargsrepr=PATIENT)
    message = task_message(with_body([[], KWARGS, {"callbacks": [{"task": "celery.chord"}]}], headers=headers))
    assert message.keys() == {"body", "content-type", "content-encoding", "headers"}
    assert message["headers"] == {"lang": "py", "task": TASK_NAME, "id": JOB_ID}
    assert kwargs_of(message) == KWARGS


TRACE = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "tracestate": "vendor=a"}


def test_the_trace_context_in_the_headers_is_kept() -> None:
    headers = python_headers(JOB_ID, **TRACE, baggage=PATIENT)
    message = task_message(with_body([[], KWARGS, {}], headers=headers))
    assert message["headers"] == {"lang": "py", "task": TASK_NAME, "id": JOB_ID}
    assert kwargs_of(message) == KWARGS | TRACE
    assert kwargs_of(task_message(protocol_1_item(JOB_ID, REQUEST, headers=TRACE))) == KWARGS | TRACE
    refused = task_message(with_body(b"no JSON", headers=headers))
    assert kwargs_of(refused).keys() == {"job_id", "refused", *TRACE}


@pytest.mark.parametrize("parent", [PATIENT, 5, None, {}, "0" * 55, TRACE["traceparent"] + "\n"])
def test_a_malformed_trace_context_is_no_error(parent: object) -> None:
    headers = python_headers(JOB_ID, traceparent=parent, tracestate="vendor=a")
    assert kwargs_of(task_message(with_body([[], KWARGS, {}], headers=headers))) == KWARGS
    oversized = python_headers(JOB_ID, traceparent=TRACE["traceparent"], tracestate="x" * 513)
    kept = kwargs_of(task_message(with_body([[], KWARGS, {}], headers=oversized)))
    assert kept == KWARGS | {"traceparent": TRACE["traceparent"]}


@pytest.mark.parametrize("client", CLIENTS)
def test_messages_of_other_languages_are_taken(client: str) -> None:
    message = task_message(json.dumps(CLIENTS[client](JOB_ID, REQUEST)).encode())
    assert kwargs_of(message) == KWARGS
    assert message["headers"] == {"lang": "py", "task": TASK_NAME, "id": JOB_ID}


def test_a_message_of_protocol_1_is_taken() -> None:
    assert kwargs_of(task_message(protocol_1_item(JOB_ID, REQUEST))) == KWARGS


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "a name twice": (
        lambda: with_body(f'[[], {{"job_id": "{JOB_ID}", "request": {{"a": 1, "a": 2}}}}, {{}}]'.encode()),
        "two fields of one name",
    ),
    "positional arguments": (lambda: with_body([[PATIENT], KWARGS, {}]), "job_id and request only"),
    "argument self": (lambda: with_body([[], {**KWARGS, "self": PATIENT}, {}]), "job_id and request only"),
    "argument refused": (
        lambda: with_body([[], {"job_id": JOB_ID, "refused": PATIENT}, {}]),
        "job_id and request only",
    ),
    "argument traceparent": (lambda: with_body([[], {**KWARGS, **TRACE}, {}]), "job_id and request only"),
    "long job_id": (lambda: with_body([[], {"job_id": PATIENT * 9, "colour": 1}, {}]), "job_id and request only"),
    "job_id a list": (lambda: with_body([[], {"job_id": [JOB_ID], "colour": 1}, {}]), "job_id and request only"),
    "kwargs a list": (lambda: with_body([[], [PATIENT], {}]), "not a JSON object"),
    "nested arguments": (
        lambda: with_body(f'[[], {{"job_id": "{JOB_ID}", "request": {"[" * 40}{"]" * 40}}}, {{}}]'.encode()),
        "deeper than 32 levels",
    ),
    "kombu's typed value": (
        lambda: with_body([[], {**KWARGS, "request": {"__type__": "decimal", "__value__": "x"}}, {}]),
        "not JSON of the form",
    ),
    "deeply nested body": (lambda: with_body(b"[" * 100_000), "not JSON of the form"),
    "body a number": (lambda: with_body(5), "not JSON of the form"),
    "body an object": (lambda: with_body({PATIENT: 1}), "not JSON of the form"),
    "body a string of three": (lambda: with_body("abc"), "not JSON of the form"),
    "body no JSON": (lambda: with_body(PATIENT.encode()), "not JSON of the form"),
    "body no base64": (lambda: with_body(5, body=PATIENT), "not JSON of the form"),
    "body null": (lambda: with_body(5, body=None), "not JSON of the form"),
    "properties empty": (lambda: with_body([[], KWARGS, {}], properties={}), "not JSON of the form"),
    "pickle": (lambda: with_body(b"cposix\n", **{"content-type": "application/x-python-serialize"}), "content type"),
    "protocol 1 with positional arguments": (
        lambda: with_body({"task": TASK_NAME, "id": JOB_ID, "args": [PATIENT], "kwargs": {}}, headers={}),
        "job_id and request only",
    ),
    "compressed": (
        lambda: with_body(zlib.compress(b"\0" * 10**6), headers=python_headers(JOB_ID, compression="application/gzip")),
        "compressed",
    ),
    "unknown compression": (
        lambda: with_body([[], KWARGS, {}], headers=python_headers(JOB_ID, compression=PATIENT)),
        "compressed",
    ),
    "protocol 1, compressed": (
        lambda: protocol_1_item(JOB_ID, REQUEST, headers={"compression": "application/x-bz2"}),
        "compressed",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_message_that_breaks_the_contract_gets_the_reason_for_arguments(name: str) -> None:
    make, reason = REFUSED[name]
    message = task_message(make())
    kwargs = kwargs_of(message)
    assert kwargs.keys() == {"job_id", "refused"}
    assert kwargs["job_id"] in (None, JOB_ID)
    assert reason in str(kwargs["refused"])
    assert message["headers"] == {"lang": "py", "task": TASK_NAME, "id": JOB_ID}
    assert PATIENT not in str(message)


def test_an_oversized_item_is_known_by_its_end() -> None:
    end = python_item(JOB_ID, [[], KWARGS, {}])[-4096:].decode()
    message = task_message(json.dumps({"oversized": MAX_MESSAGE_BYTES + 1, "end": end}).encode())
    assert str(MAX_MESSAGE_BYTES) in str(kwargs_of(message)["refused"])
    assert message["headers"] == {"lang": "py", "task": TASK_NAME, "id": JOB_ID}


@pytest.mark.parametrize("task_id", [None, 5, PATIENT])
def test_the_job_id_replaces_an_unusable_task_id(task_id: object) -> None:
    message = task_message(with_body([[], KWARGS, {}], headers=python_headers(JOB_ID, id=task_id)))
    assert message["headers"] == {"lang": "py", "task": TASK_NAME, "id": JOB_ID}


DROPPED = {
    "no JSON": PATIENT.encode(),
    "no text": b"\xff\xfe" + PATIENT.encode(),
    "a number": b"5",
    "deeply nested": b"[" * 100_000,
    "another object": json.dumps({PATIENT: 1}).encode(),
    "nested headers": b'{"headers": ' + b"[" * 900 + b"]" * 900 + b"}",
    "oversized without an id": json.dumps({"oversized": 5, "end": PATIENT}).encode(),
    "headers a list": python_item(JOB_ID, [[], KWARGS, {}], headers=[PATIENT]),
    "headers null": python_item(JOB_ID, [[], KWARGS, {}]).replace(b'"headers": {', b'"headers": null, "others": {'),
    "another task": python_item(JOB_ID, [[], KWARGS, {}], headers=python_headers(JOB_ID, task="some.other")),
    "a task of Celery": python_item(JOB_ID, [[], KWARGS, {}], headers=python_headers(JOB_ID, task="celery.map")),
    "task's name a patient": python_item(JOB_ID, [[], KWARGS, {}], headers=python_headers(JOB_ID, task=PATIENT)),
    "task's name a list": python_item(JOB_ID, [[], KWARGS, {}], headers=python_headers(JOB_ID, task=[PATIENT])),
    "protocol 1, another task": python_item(JOB_ID, {"task": "some.other", "id": JOB_ID}, headers={}),
    "no UUID": python_item(PATIENT, [[], {"job_id": PATIENT, "request": REQUEST}, {}]),
}


@pytest.mark.parametrize("name", DROPPED)
def test_an_item_without_a_job_is_dropped(name: str) -> None:
    with pytest.raises(NoJob) as raised:
        task_message(DROPPED[name])
    assert PATIENT not in str(raised.value)


CANCEL_HEADERS = python_headers(str(uuid4()), task=CANCEL_TASK_NAME)
CANCELLATIONS = {
    "protocol 2": python_item(JOB_ID, [[], {"job_id": JOB_ID}, {}], headers=CANCEL_HEADERS),
    "protocol 2, plain body": python_item(
        JOB_ID,
        None,
        headers=CANCEL_HEADERS,
        body=json.dumps([[], {"job_id": JOB_ID.upper()}, {"chord": None}]),
        properties={},
    ),
    "protocol 1": python_item(
        JOB_ID, {"task": CANCEL_TASK_NAME, "id": str(uuid4()), "args": [], "kwargs": {"job_id": JOB_ID}}, headers={}
    ),
}


@pytest.mark.parametrize("protocol", CANCELLATIONS)
def test_a_cancellation_names_its_job(protocol: str) -> None:
    assert cancelled_job(CANCELLATIONS[protocol]) == UUID(JOB_ID)


NO_CANCELLATIONS = {
    **DROPPED,
    "a job": with_body([[], KWARGS, {}]),
    "oversized": json.dumps({"oversized": 5, "end": f'"id": "{JOB_ID}"'}).encode(),
    "compressed": python_item(JOB_ID, [[], {"job_id": JOB_ID}, {}], headers={**CANCEL_HEADERS, "compression": "x"}),
    "a request too": python_item(JOB_ID, [[], KWARGS, {}], headers=CANCEL_HEADERS),
    "positional": python_item(JOB_ID, [[JOB_ID], {}, {}], headers=CANCEL_HEADERS),
    "refused": python_item(JOB_ID, [[], {"job_id": JOB_ID, "refused": PATIENT}, {}], headers=CANCEL_HEADERS),
    "nothing": python_item(JOB_ID, [[], {}, {}], headers=CANCEL_HEADERS),
    "no UUID": python_item(JOB_ID, [[], {"job_id": PATIENT}, {}], headers=CANCEL_HEADERS),
    "a list": python_item(JOB_ID, [[], {"job_id": [JOB_ID]}, {}], headers=CANCEL_HEADERS),
    "a number": python_item(JOB_ID, [[], {"job_id": 5}, {}], headers=CANCEL_HEADERS),
}


@pytest.mark.parametrize("name", NO_CANCELLATIONS)
def test_an_item_that_cancels_no_job_is_dropped(name: str) -> None:
    with pytest.raises(NoJob) as raised:
        cancelled_job(NO_CANCELLATIONS[name])
    assert PATIENT not in str(raised.value)


def test_a_cancellation_is_no_job() -> None:
    with pytest.raises(NoJob):
        task_message(CANCELLATIONS["protocol 2"])


@pytest.mark.parametrize(
    ("value", "levels"),
    [(5, 0), ("[[", 0), ([], 1), ({"a": 1}, 1), ([[1]], 2), ({"a": [{"b": {}}], "c": 1}, 4)],
)
def test_nests_deeper_counts_levels(value: object, levels: int) -> None:
    assert not nests_deeper(value, levels)
    assert levels == 0 or nests_deeper(value, levels - 1)
