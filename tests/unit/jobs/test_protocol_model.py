"""The model of the protocol: its properties hold, each broken rule is found, and the code changes states as it does."""

import ast
from functools import cache
from pathlib import Path

import pytest
from protocol_model.explorer import Exploration, explore
from protocol_model.protocol import Change, Protocol, Scenario
from protocol_model.scenarios import EVENTS, SCENARIOS, VARIANTS, Variant, find_scenario, make_model
from protocol_model.state import World

import inference_service
from inference_service.jobs.state_machine import NEXT_STATES

PACKAGE = Path(inference_service.__file__).parent
# `make model` explores the others too: together they take minutes.
FAST = [scenario for scenario in SCENARIOS if not scenario.is_large]
WRITERS = ("change_state", "create_queued")


@cache
def explored(scenario: Scenario) -> Exploration[World]:
    return explore(make_model(scenario, Protocol()))


@pytest.mark.parametrize("scenario", FAST, ids=lambda scenario: scenario.name)
def test_the_protocol_keeps_its_promises(scenario: Scenario) -> None:
    assert explored(scenario).violations == {}


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.title)
def test_a_broken_rule_is_found(variant: Variant) -> None:
    model = make_model(find_scenario(variant.scenario), variant.protocol)
    assert variant.violates in explore(model, stop_at=variant.violates).violations


def test_every_event_and_every_rule_has_its_place() -> None:
    assert set().union(*(scenario.events for scenario in SCENARIOS)) == EVENTS
    broken = {
        name
        for variant in VARIANTS
        for name, value in vars(variant.protocol).items()
        if value != getattr(Protocol, name)
    }
    assert broken == set(vars(Protocol()))


@pytest.fixture(scope="module")
def changes() -> set[Change]:
    """All changes of a job's state that the fast scenarios make."""
    details = set().union(*(explored(scenario).details for scenario in FAST))
    return {change for change in details if isinstance(change, Change)}


def test_the_model_changes_states_as_the_state_machine_does(changes: set[Change]) -> None:
    assert {(change.before, change.after) for change in changes if change.before != "absent"} == {
        (str(before), str(after)) for before, following in NEXT_STATES.items() for after in following
    }


def test_the_same_functions_change_states_in_the_model_and_in_the_code(changes: set[Change]) -> None:
    modules = [path for path in PACKAGE.rglob("*.py") if path.name != "state_machine.py"]
    writers = {f"{path.stem}.{name}" for path in modules for name in state_writers(path.read_text(encoding="utf-8"))}
    assert {change.by for change in changes} == writers


def state_writers(source: str) -> set[str]:
    """The public functions of a module that change a job's state, themselves or through private functions."""
    functions = {node.name: node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)}
    called = {name: _called_names(function) for name, function in functions.items()}
    writers = set(WRITERS)
    while more := {name for name, names in called.items() if names & writers} - writers:
        writers |= more
    return {name for name in writers - set(WRITERS) if not name.startswith("_")}


def _called_names(function: ast.FunctionDef) -> set[str]:
    called = [node.func for node in ast.walk(function) if isinstance(node, ast.Call)]
    names = {name.id for name in called if isinstance(name, ast.Name)}
    return names | {name.attr for name in called if isinstance(name, ast.Attribute) and name.attr in WRITERS}
