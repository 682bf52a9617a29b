import json
from uuid import uuid4

import pytest
from kombu import Message

from inference_service.contract.task_message import TASK_NAME
from inference_service.worker.message_check import MissingJobId, UnknownTask, nests_deeper, sanitise

JSON = "application/json"
JOB_ID = str(uuid4())
REQUEST = {"input": {"key": "scan.nii.gz"}, "model": "ct-tissue"}
KWARGS = {"job_id": JOB_ID, "request": REQUEST}


def message(body: object, *, content_type: str = JSON, **headers: object) -> Message:
    text = body if isinstance(body, str) else json.dumps(body)
    sent = Message(text, content_type=content_type, content_encoding="utf-8", postencode="utf-8", accept={JSON})
    sent.headers.update({"task": TASK_NAME, "id": JOB_ID}, **headers)
    sent.properties["reply_to"] = "MUELLER^HANS"
    return sent


def kwargs_after(sent: Message) -> dict[str, object]:
    sanitise(sent)
    args, kwargs, embed = sent.decode()
    assert (args, embed) == ([], {})
    assert isinstance(kwargs, dict)
    return kwargs


def test_a_valid_message_keeps_its_arguments_and_loses_everything_else() -> None:
    sent = message(
        [[], KWARGS, {"callbacks": [{"task": "celery.chord"}]}],
        eta="2030-01-02T03:04:05+00:00",
        timelimit="a",
        expires="x",
        kwargsrepr="MUELLER^HANS",
    )
    assert kwargs_after(sent) == KWARGS
    assert sent.headers == {"lang": "py", "task": TASK_NAME, "id": JOB_ID}
    assert sent.properties == {}


@pytest.mark.parametrize(
    ("body", "keeps_id", "reason"),
    [
        ([[1], KWARGS, {}], True, "job_id and request only"),
        ([[], {**KWARGS, "self": 1}, {}], True, "job_id and request only"),
        ([[], {"job_id": JOB_ID, "refused": "MUELLER^HANS"}, {}], True, "job_id and request only"),
        ([[], [JOB_ID], {}], False, "not a JSON object"),
        ([[], {"job_id": "x" * 65, "colour": 1}, {}], False, "job_id and request only"),
        ([[], {"job_id": [JOB_ID], "colour": 1}, {}], False, "job_id and request only"),
        (f'[[], {{"job_id": "{JOB_ID}", "request": {"[" * 40}{"]" * 40}}}, {{}}]', True, "deeper than 32 levels"),
        ([[], {**KWARGS, "request": "x" * 300_000}, {}], False, "262144 bytes"),
        ([[], {**KWARGS, "request": {"__type__": "decimal", "__value__": "x"}}, {}], False, "not JSON of the form"),
        ("[" * 100_000, False, "not JSON of the form"),
        (5, False, "not JSON of the form"),
        ({"a": 1}, False, "not JSON of the form"),
        ("MUELLER^HANS", False, "not JSON of the form"),
    ],
)
def test_arguments_that_break_the_contract_are_replaced_by_the_reason(
    body: object, keeps_id: bool, reason: str
) -> None:
    kwargs = kwargs_after(message(body))
    assert kwargs.keys() == {"job_id", "refused"}
    assert kwargs["job_id"] == (JOB_ID if keeps_id else None)
    assert reason in str(kwargs["refused"])
    assert "MUELLER" not in str(kwargs)


def test_a_body_of_another_content_type_is_not_parsed() -> None:
    kwargs = kwargs_after(message("cposix\nsystem\n", content_type="application/x-python-serialize"))
    assert "content type" in str(kwargs["refused"])


@pytest.mark.parametrize("task_id", [None, 5, "MUELLER^HANS"])
def test_the_job_id_replaces_an_unusable_task_id(task_id: object) -> None:
    sent = message([[], KWARGS, {}], id=task_id)
    assert kwargs_after(sent) == KWARGS
    assert sent.headers["id"] == JOB_ID


def test_a_message_without_any_uuid_is_rejected() -> None:
    with pytest.raises(MissingJobId):
        sanitise(message([[], {"job_id": "MUELLER^HANS"}, {}], id="7"))


@pytest.mark.parametrize("task", [None, "celery.map", 5, [TASK_NAME]])
def test_another_task_is_rejected(task: object) -> None:
    with pytest.raises(UnknownTask):
        sanitise(message([[], KWARGS, {}], task=task))


@pytest.mark.parametrize(
    ("value", "levels"),
    [(5, 0), ("[[", 0), ([], 1), ({"a": 1}, 1), ([[1]], 2), ({"a": [{"b": {}}], "c": 1}, 4)],
)
def test_nests_deeper_counts_levels(value: object, levels: int) -> None:
    assert not nests_deeper(value, levels)
    assert levels == 0 or nests_deeper(value, levels - 1)
