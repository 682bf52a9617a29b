import ast
from pathlib import Path
from uuid import uuid4

import pytest

import inference_service
from inference_service.core.errors import InputCorrupt, JobCancelled
from inference_service.jobs.schema import FINAL_STATES, JobState
from inference_service.jobs.state_machine import NEXT_STATES, StateChange

PACKAGE = Path(inference_service.__file__).parent
MODULES = [path for path in PACKAGE.rglob("*.py") if path.name not in ("state_machine.py", "schema.py")]


def test_a_finished_job_is_at_most_queued_again_and_a_succeeded_one_never_changes() -> None:
    assert NEXT_STATES.keys() == set(JobState)
    assert {state for state in FINAL_STATES if NEXT_STATES[state]} == {JobState.FAILED, JobState.CANCELLED}
    assert all(NEXT_STATES[state] <= {JobState.QUEUED} for state in FINAL_STATES)


@pytest.mark.parametrize(
    ("from_state", "to_state"),
    [
        (from_state, to_state)
        for from_state in JobState
        for to_state in JobState
        if to_state not in NEXT_STATES[from_state]
    ],
)
def test_a_change_that_does_not_exist_is_refused(from_state: JobState, to_state: JobState) -> None:
    with pytest.raises(ValueError, match="cannot become"):
        StateChange(uuid4(), from_state, to_state, attempt=1)


def test_an_error_decides_the_final_state() -> None:
    job_id = uuid4()
    failed = StateChange.ended_by(InputCorrupt("x"), job_id, JobState.RUNNING, attempt=2)
    assert (failed.to_state, failed.detail, failed.attempt) == (JobState.FAILED, "input_corrupt", 2)
    cancelled = StateChange.ended_by(JobCancelled("x"), job_id, JobState.QUEUED, attempt=0)
    assert (cancelled.to_state, cancelled.detail) == (JobState.CANCELLED, "cancelled")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_no_other_module_writes_a_state(path: Path) -> None:
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    written = [
        keyword.arg
        for call in calls
        if isinstance(call.func, ast.Attribute) and call.func.attr == "values"
        for keyword in call.keywords
    ]
    assert not {"state", "from_state", "to_state"} & set(written)
