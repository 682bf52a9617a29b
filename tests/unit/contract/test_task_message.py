import json
import traceback
from contextlib import suppress
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field

from inference_service.contract.task_message import (
    Priority,
    RequestOptions,
    SegmentRequest,
    TaskMessage,
    parse_request,
)
from inference_service.core.errors import BadRequest

VALID: dict[str, object] = {"input": {"key": "ct/1.nii.gz"}, "model": "ct-chest"}
EXAMPLE: dict[str, object] = {
    "input": {"bucket": "volumes", "key": "ct/1.nii.gz"},
    "model": "ct-chest",
    "model_version": None,
    "priority": "routine",
    "output": {"prefix": "masks/2026-11", "formats": ["nifti"]},
    "options": {},
}
BAD_KEYS = [
    "", "/", "/a", "../x", "a/../x", "a/..", "..", ".", "./a", "a/./b", "a//b", "a//", "a\\b", "..\\x", "a\0b", "a\nb",
    "a\x1fb", "a\x7fb", "k" * 901,
]  # fmt: skip
BAD_BUCKETS = ["", "ab", "Upper", "under_score", "-ab", "ab-", "a/b", "../x", "b" * 64, "volumes\n", "ä-bucket"]

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
json_values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=12
)
keys = st.text(st.sampled_from("a./\\\0 ä"), max_size=8)
near_misses = st.fixed_dictionaries(
    {
        "input": st.fixed_dictionaries(
            {},
            optional={
                "key": keys | json_values,
                "bucket": st.text() | json_values,
                "channels": st.dictionaries(st.text(), st.fixed_dictionaries({"key": keys})) | json_values,
            },
        ),
        "model": st.just("ct-chest") | json_values,
    },
    optional={
        "model_version": json_values,
        "priority": st.sampled_from(["urgent", "routine", "URGENT"]) | json_values,
        "output": st.fixed_dictionaries({}, optional={"prefix": keys | json_values, "formats": json_values}),
        "options": json_values,
    },
)


def error_message(request: object) -> str:
    with pytest.raises(BadRequest) as caught:
        parse_request(request)
    return caught.value.message


def test_the_example_of_the_contract_is_parsed() -> None:
    request = parse_request(EXAMPLE)
    assert (request.input.bucket, request.input.key) == ("volumes", "ct/1.nii.gz")
    assert (request.model, request.model_version, request.priority) == ("ct-chest", None, Priority.ROUTINE)
    assert (request.output.prefix, request.output.formats) == ("masks/2026-11", ("nifti",))


def test_defaults() -> None:
    request = parse_request(VALID)
    assert (request.input.bucket, request.model_version, request.priority) == (None, None, Priority.ROUTINE)
    assert (request.output.prefix, request.output.formats) == (None, ("nifti",))


def test_a_request_survives_serialisation() -> None:
    request = parse_request(EXAMPLE)
    assert parse_request(json.loads(json.dumps(request.model_dump(mode="json")))) == request


def test_a_request_is_written_with_the_fields_of_the_first_version() -> None:
    """A field added later is missing here: it is left out at its default (`exclude_if`)."""
    assert parse_request(VALID).model_dump(mode="json") == {
        "input": {"bucket": None, "key": "ct/1.nii.gz", "series": None},
        "model": "ct-chest",
        "model_version": None,
        "priority": "routine",
        "output": {"prefix": None, "formats": ["nifti"]},
        "options": {"reuse": False, "tolerate": [], "modality_check": True},
    }


class NewerOptions(RequestOptions):
    newer: bool = Field(False, exclude_if=lambda value: not value)


class NewerRequest(SegmentRequest):
    options: NewerOptions = NewerOptions()


def test_an_option_of_a_later_version_is_refused_only_where_it_is_used() -> None:
    newer = NewerRequest.model_validate(VALID)
    assert parse_request(newer.model_dump(mode="json")) == parse_request(VALID)
    used = newer.model_copy(update={"options": NewerOptions(newer=True)})
    assert "request.options" in error_message(used.model_dump(mode="json"))


def test_a_message_has_a_job_id_and_a_request() -> None:
    job_id = UUID(int=7)
    message = TaskMessage.model_validate_json(json.dumps({"job_id": str(job_id), "request": EXAMPLE}))
    assert (message.job_id, message.request) == (job_id, parse_request(EXAMPLE))


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ({**VALID, "secret": 1}, "request"),
        ({**VALID, "input": {"key": "a", "secret": "secret"}}, "request.input"),
        ({**VALID, "output": {"secret^name 1961": "secret"}}, "request.output"),
        ({**VALID, "options": {"secret\0": "secret"}}, "request.options"),
        ({**VALID, "options": {"tolerate": ["gantry_tilt", "secret"]}}, "request.options.tolerate.1"),
        ({"model": "secret"}, "request.input"),
        ({"input": {"key": "secret"}}, "request.model"),
        ({**VALID, "input": {}}, "request.input"),
        ({**VALID, "input": "secret"}, "request.input"),
        ({**VALID, "model": ["secret"]}, "request.model"),
        ({**VALID, "model": ""}, "request.model"),
        ({**VALID, "model": "secret" * 11}, "request.model"),
        ({**VALID, "model": None}, "request.model"),
        ({**VALID, "model_version": 1}, "request.model_version"),
        ({**VALID, "model_version": "secret" * 6}, "request.model_version"),
        ({**VALID, "priority": "secret"}, "request.priority"),
        ({**VALID, "priority": 0}, "request.priority"),
        ({**VALID, "output": {"formats": []}}, "request.output.formats"),
        ({**VALID, "output": {"formats": ["secret"]}}, "request.output.formats"),
        ({**VALID, "output": {"formats": "nifti"}}, "request.output.formats"),
        ({**VALID, "input": {"key": float("nan")}}, "request.input.key"),
        ({**VALID, "input": {"key": 10**400}}, "request.input.key"),
        ({**VALID, "model_version": float("inf")}, "request.model_version"),
        (["secret"], "request"),
        ("secret", "request"),
        (None, "request"),
    ],
)
def test_an_error_names_the_field_but_not_its_value(request_: object, field: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_request(request_)
    assert caught.value.message.startswith((f"{field}: ", f"{field}."))
    # The log has the cause too.
    assert "secret" not in "".join(traceback.format_exception(caught.value))


def test_the_error_for_an_unknown_field_lists_the_known_ones() -> None:
    assert error_message({**VALID, "modle": "ct-lung"}) == (
        "request: unknown field; expected no others than input, model, model_version, priority, output, options"
    )
    assert error_message({**VALID, "input": {"key": "a", "name": "MUELLER^HANS"}}) == (
        "request.input: unknown field; expected no others than bucket, series, select, key, channels"
    )


@pytest.mark.parametrize("key", BAD_KEYS)
@pytest.mark.parametrize("field", ["request.input.key", "request.output.prefix"])
def test_invalid_keys_are_refused(key: str, field: str) -> None:
    location = {"input": {"key": key}} if field == "request.input.key" else {"output": {"prefix": key}}
    message = error_message({**VALID, **location})
    assert message.startswith(f"{field}: ")
    assert key in ("", "/", ".", "..") or key not in message


@pytest.mark.parametrize("key", ["a", "a/", "ct/1.nii.gz", "a..b/...c", "mit Leerzeichen/ä.nii", "k" * 900])
def test_valid_keys_are_accepted(key: str) -> None:
    assert parse_request({**VALID, "input": {"key": key}}).input.key == key


def test_the_length_of_a_key_is_limited_in_bytes() -> None:
    assert error_message({**VALID, "input": {"key": "ä" * 900}}).startswith("request.input.key: ")


@pytest.mark.parametrize("bucket", BAD_BUCKETS)
def test_invalid_bucket_names_are_refused(bucket: str) -> None:
    assert error_message({**VALID, "input": {"key": "a", "bucket": bucket}}).startswith("request.input.bucket: ")


@pytest.mark.parametrize("bucket", ["abc", "volumes", "a.b-c.9", "b" * 63])
def test_valid_bucket_names_are_accepted(bucket: str) -> None:
    assert parse_request({**VALID, "input": {"key": "a", "bucket": bucket}}).input.bucket == bucket


def test_text_that_is_not_unicode_is_refused() -> None:
    assert error_message({**VALID, "model": "\ud800"}).startswith("request")


def nested(depth: int) -> object:
    value: object = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "request_",
    [
        {1, 2},
        {**VALID, "model": b"bytes"},
        {**VALID, "model": 10**5000},
        {(1, 2): "a"},
        nested(500),
        nested(100_000),
    ],
    ids=["set", "bytes", "huge integer", "tuple key", "nested deeply", "nested beyond recursion"],
)
def test_a_value_that_is_not_json_is_refused(request_: object) -> None:
    assert error_message(request_).startswith("request")


@given(json_values | near_misses)
@settings(max_examples=100)
def test_arbitrary_json_is_parsed_or_refused(request: object) -> None:
    with suppress(BadRequest):
        parsed = parse_request(request)
        for scan in parsed.input.scans:
            assert ".." not in scan.key.split("/")
            assert not scan.key.startswith("/")


@pytest.mark.parametrize(
    ("formats", "expected"),
    [
        (["nifti"], ("nifti",)),
        (["dicom-seg"], ("nifti", "dicom-seg")),
        (["dicom-labelmap", "dicom-seg", "dicom-seg", "nifti"], ("nifti", "dicom-seg", "dicom-labelmap")),
    ],
)
def test_formats_are_sorted_and_contain_nifti(formats: list[str], expected: tuple[str, ...]) -> None:
    assert parse_request({**VALID, "output": {"formats": formats}}).output.formats == expected


def test_tolerances_are_distinct_and_sorted() -> None:
    tolerate = ["gantry_tilt", "uneven_spacing"] * 10_000
    assert parse_request({**VALID, "options": {"tolerate": tolerate}}).options.tolerate == (
        "uneven_spacing",
        "gantry_tilt",
    )


CHANNELS: dict[str, object] = {
    "T1": {"key": "a/t1.nii.gz"},
    "FLAIR": {"bucket": "research", "key": "a/", "series": "1.2", "select": {"EchoTime": 80}},
}


def test_a_request_names_a_scan_for_each_channel() -> None:
    request = parse_request({**VALID, "input": {"channels": CHANNELS}})
    assert list(request.input.channels) == ["T1", "FLAIR"]
    assert [(scan.bucket, scan.key) for scan in request.input.scans] == [(None, "a/t1.nii.gz"), ("research", "a/")]
    assert (request.input.channels["FLAIR"].series, request.input.channels["FLAIR"].select) == ("1.2", {"EchoTime": 80})
    assert parse_request(json.loads(json.dumps(request.model_dump(mode="json")))) == request
    assert "key" not in request.model_dump(mode="json")["input"]


def test_a_request_with_a_key_has_one_scan() -> None:
    (scan,) = parse_request({**VALID, "input": {"key": "a/", "series": "1.2"}}).input.scans
    assert (scan.bucket, scan.key, scan.series) == (None, "a/", "1.2")


@pytest.mark.parametrize("given", [{"bucket": None, "series": None, "select": {}}, {}])
def test_empty_fields_beside_the_channels_mean_nothing(given: dict[str, object]) -> None:
    request = parse_request({**VALID, "input": {"channels": CHANNELS, **given}})
    assert request == parse_request({**VALID, "input": {"channels": CHANNELS}})


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"key": "a", "channels": CHANNELS}, "request.input"),
        ({"channels": {}}, "request.input"),
        ({"key": None, "channels": CHANNELS}, "request.input.key"),
        ({"bucket": "secret-bucket", "channels": CHANNELS}, "request.input"),
        ({"series": "secret", "channels": CHANNELS}, "request.input"),
        ({"select": {"EchoTime": 1}, "channels": CHANNELS}, "request.input"),
        ({"channels": [{"key": "secret"}]}, "request.input.channels"),
        ({"channels": {"secret": None}}, "request.input.channels.*"),
        ({"channels": {"secret": {}}}, "request.input.channels.*.key"),
        ({"channels": {"secret": {"key": "../secret"}}}, "request.input.channels.*.key"),
        ({"channels": {"secret": {"key": "a", "bucket": "S"}}}, "request.input.channels.*.bucket"),
        ({"channels": {"secret": {"key": "a", "select": {"secret": 1}}}}, "request.input.channels.*.select"),
        ({"channels": {"": {"key": "a"}}}, "request.input.channels.*"),
        ({"channels": {"secret" * 11: {"key": "a"}}}, "request.input.channels.*"),
        ({"channels": {f"secret{n}": {"key": "a"} for n in range(17)}}, "request.input.channels"),
        ({"channels": {f"secret{n}": {"key": "a"} for n in range(5000)}}, "request.input.channels"),
        ({"channels": {"key": {"key": "a", "channels": {"secret": 1}}}}, "request.input.channels.*"),
    ],
)
def test_an_error_in_channels_quotes_no_name(given: dict[str, object], field: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_request({**VALID, "input": given})
    assert caught.value.message.startswith((f"{field}: ", f"{field}."))
    assert "secret" not in "".join(traceback.format_exception(caught.value))


def test_the_error_for_an_unknown_field_of_a_channel_lists_the_known_ones() -> None:
    assert error_message({**VALID, "input": {"channels": {"key": {"key": "a", "name": "MUELLER^HANS"}}}}) == (
        "request.input.channels.*: unknown field; expected no others than bucket, series, select, key"
    )
