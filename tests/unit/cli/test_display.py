import time
from dataclasses import fields
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from inference_service.cli.display import ProgressDisplay, job_table
from inference_service.core.errors import ErrorCode
from inference_service.core.remedies import REMEDIES
from inference_service.jobs.job_store import Job
from inference_service.jobs.schema import JobState


def test_the_table_of_a_job_shows_its_warnings() -> None:
    values: dict[str, Any] = {field.name: None for field in fields(Job)}
    warnings = [
        {"code": "single_slice", "message": "the scan is a single slice"},
        {"code": "monochrome1", "message": "values were not inverted"},
    ]
    job = Job(**{**values, "state": JobState.SUCCEEDED, "attempt": 1, "progress": 1.0, "warnings": warnings})
    output = StringIO()
    Console(file=output, width=80).print(job_table(job))
    lines = [line.strip() for line in output.getvalue().splitlines()]
    first = next(number for number, line in enumerate(lines) if line.startswith("warnings"))
    assert lines[first].endswith("single_slice: the scan is a single slice")
    assert lines[first + 1] == "monochrome1: values were not inverted"


def test_the_table_of_a_failed_job_says_what_to_do() -> None:
    values: dict[str, Any] = {field.name: None for field in fields(Job)}
    error = {"error_code": "input_corrupt", "error_message": "the file is truncated"}
    job = Job(**{**values, "state": JobState.FAILED, "attempt": 1, "progress": 0.0, **error})
    output = StringIO()
    Console(file=output, width=80).print(job_table(job))
    lines = [line.split() for line in output.getvalue().splitlines()]
    assert ["remedy", *REMEDIES[ErrorCode.INPUT_CORRUPT].split()] in lines


def test_plain_lines_come_for_each_activity_each_tenth_and_each_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 1.0, 2.0, 3.0, 62.0, 64.0, 124.0, 125.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(times))
    output = StringIO()
    display = ProgressDisplay(Console(file=output, width=80), {1: "the model"})
    for activity, share in (
        ("reading", 0.0),
        ("running", 0.5),
        ("running", 0.55),
        ("running", 0.61),
        ("running", 0.62),
        ("running", 0.62),
        ("running", 0.62),
        ("deciding", 0.62),
    ):
        display.show(1, activity, share)
    assert output.getvalue().splitlines() == [
        "the model:   0% reading",
        "the model:  50% running",
        "the model:  61% running",
        "the model:  62% running, for 63 s",
        "the model:  62% running, for 123 s",
        "the model:  62% deciding",
    ]


def test_a_detail_is_shown_on_a_terminal_alone() -> None:
    for terminal in (True, False):
        output = StringIO()
        screen = Console(file=output, width=120, force_terminal=terminal)
        with ProgressDisplay(screen, {1: "scans"}) as display:
            display.show(1, "2 of 9 done", 0.2, detail="case_3: windows")
            display.say("case_2: input_corrupt: " + "a" * 200)
        assert ("case_3: windows" in output.getvalue()) == terminal
        assert f"case_2: input_corrupt: {'a' * 200}\n" in output.getvalue()
