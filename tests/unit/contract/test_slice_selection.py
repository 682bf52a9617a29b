"""The selection of slices in a request."""

import json

import pytest

from inference_service.contract.input_options import InputOptions
from inference_service.contract.slice_selection import SELECTABLE
from inference_service.contract.task_message import parse_request
from inference_service.core.errors import BadRequest

REQUEST: dict[str, object] = {"input": {"key": "ct/"}, "model": "ct-chest"}


def with_selection(select: object) -> dict[str, object]:
    return {**REQUEST, "input": {"key": "ct/", "select": select}}


@pytest.mark.parametrize(
    "select",
    [
        {"TemporalPositionIdentifier": 2},
        {"EchoTime": 4.6, "EchoNumbers": "1"},
        {"ConvolutionKernel": "Br40f\\3", "AcquisitionTime": "101045.5"},
        {"ContrastBolusAgent": None},
    ],
    ids=str,
)
def test_a_selection_survives_serialisation(select: dict[str, object]) -> None:
    request = parse_request(with_selection(select))
    assert request.input.select == select
    assert InputOptions.of(request).select == select
    assert parse_request(json.loads(request.model_dump_json())) == request


def test_equal_selections_are_equal_in_any_order() -> None:
    one = parse_request(with_selection({"EchoTime": 4.6, "EchoNumbers": 1}))
    other = parse_request(with_selection({"EchoNumbers": 1, "EchoTime": 4.6}))
    assert one.model_dump_json() == other.model_dump_json()


def test_an_empty_selection_is_left_out() -> None:
    assert parse_request(with_selection({})) == parse_request(REQUEST)
    assert "select" not in parse_request(with_selection({})).model_dump()["input"]


@pytest.mark.parametrize("keyword", ["PatientName", "PatientID", "SeriesDescription", "StudyDate", "secret", ""])
def test_other_attributes_are_refused_with_the_allowed_ones(keyword: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_request(with_selection({"EchoTime": 4, keyword: "secret"}))
    assert caught.value.message == (f"request.input.select: unknown attribute; expected one of {', '.join(SELECTABLE)}")
    with pytest.raises(BadRequest, match=r"^input\.select: unknown attribute; expected one of Temporal"):
        InputOptions(select={keyword: "secret"})


def test_no_attribute_of_a_patient_or_person_is_allowed() -> None:
    assert not [
        keyword
        for keyword in SELECTABLE
        if any(word in keyword for word in ("Patient", "Name", "Description")) and keyword != "SequenceName"
    ]


@pytest.mark.parametrize(
    "value",
    [
        True,
        [1],
        {"secret": 1},
        "secret\n",
        "secret\0",
        "secret" * 50,
        1e16,
        -1e300,
        10**400,
        float("nan"),
        float("inf"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_other_values_are_refused_without_a_quote(value: object) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_request(with_selection({"EchoTime": value}))
    assert caught.value.message.startswith("request.input.select: EchoTime: expected a number, a text of at most 256")
    assert "secret" not in caught.value.message


@pytest.mark.parametrize("select", [None, [], "EchoTime=4", 1, dict.fromkeys(SELECTABLE[:9], 1)], ids=str)
def test_a_selection_is_an_object_with_few_attributes(select: object) -> None:
    with pytest.raises(BadRequest, match=r"request\.input\.select: expected"):
        parse_request(with_selection(select))
