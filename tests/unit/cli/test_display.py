from dataclasses import fields
from io import StringIO
from typing import Any

from rich.console import Console

from inference_service.cli.display import job_table
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
