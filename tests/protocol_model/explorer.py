"""Explores every state that a model can reach, breadth first, and finds the shortest way to each violation.

Liveness is checked as reachability: from every state, steps that are no faults lead to the model's goal. This module
knows nothing of jobs.
"""

from array import array
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

import numpy as np

State = TypeVar("State", bound=Hashable)

STUCK = "the goal stays reachable"
"""Name of the property that is checked after all states are known."""


class Step(NamedTuple, Generic[State]):
    """One step of a model.

    Attributes:
        label: The event, in words.
        state: The state after it.
        details: Facts about the step, which an exploration collects.
    """

    label: str
    state: State
    details: tuple[Hashable, ...] = ()


@dataclass(frozen=True)
class Rule(Generic[State]):
    """A kind of event.

    Attributes:
        name: The name of the kind.
        steps: Yields the steps that are possible in a state.
        is_fault: Whether the goal must be reachable without it.
    """

    name: str
    steps: Callable[[State], Iterator[Step[State]]]
    is_fault: bool = False


@dataclass(frozen=True)
class Model(Generic[State]):
    """A state space and its properties.

    Attributes:
        initial: The first state.
        rules: The kinds of events.
        invariants: For each name, a predicate that is true in every state.
        goal: True in the states that must stay reachable.
    """

    initial: State
    rules: Sequence[Rule[State]]
    invariants: Mapping[str, Callable[[State], bool]]
    goal: Callable[[State], bool]


@dataclass
class Exploration(Generic[State]):
    """The states that were reached.

    Attributes:
        states: In the order in which they were found.
        steps: Number of steps between them.
        violations: For each violated property, the labels of the shortest way to a violation.
        details: What the steps told.
    """

    states: list[State]
    steps: int = 0
    violations: dict[str, list[str]] = field(default_factory=dict)
    details: set[Hashable] = field(default_factory=set)


def explore(model: Model[State], *, stop_at: str | None = None, max_states: int = 10_000_000) -> Exploration[State]:
    """Explores a model completely.

    Args:
        model: The model.
        stop_at: An invariant; the exploration ends at the first state that violates it.
        max_states: Bound of the states that are kept.

    Raises:
        MemoryError: The model has more states.
    """
    numbers = {model.initial: 0}
    found = Exploration([model.initial])
    parents = array("I", [0])
    sources, targets = array("I"), array("I")
    for number, state in enumerate(found.states):  # the list grows meanwhile
        violated = [name for name, holds in model.invariants.items() if not holds(state)]
        for name in violated:
            found.violations.setdefault(name, _way_to(model, found.states, parents, number))
        if stop_at in violated:
            return found
        for rule in model.rules:
            for step in rule.steps(state):
                target = numbers.setdefault(step.state, len(numbers))
                if target == len(found.states):
                    found.states.append(step.state)
                    parents.append(number)
                found.details.update(step.details)
                found.steps += 1
                if not rule.is_fault:
                    sources.append(number)
                    targets.append(target)
        if len(found.states) > max_states:
            raise MemoryError(f"the model has more than {max_states} states")
    stuck = _first_stuck(model, found.states, sources, targets)
    if stuck is not None:
        found.violations[STUCK] = _way_to(model, found.states, parents, stuck)
    return found


def _first_stuck(model: Model[State], states: list[State], sources: "array[int]", targets: "array[int]") -> int | None:
    """The first state from which no state of the goal can be reached; None where there is none."""
    reaches = np.fromiter((model.goal(state) for state in states), dtype=bool, count=len(states))
    origins = np.frombuffer(sources, dtype=np.uint32)
    ends = np.frombuffer(targets, dtype=np.uint32)
    known = -1
    while known != (known := int(reaches.sum())):
        reaches[origins[reaches[ends]]] = True
    return None if reaches.all() else int(np.argmin(reaches))


def _way_to(model: Model[State], states: list[State], parents: "array[int]", number: int) -> list[str]:
    """The labels of the steps from the initial state to another one."""
    labels: list[str] = []
    while number:
        before, after = states[parents[number]], states[number]
        labels.append(next(step.label for rule in model.rules for step in rule.steps(before) if step.state == after))
        number = parents[number]
    return labels[::-1]
