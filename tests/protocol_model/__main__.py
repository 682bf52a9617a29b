"""`make model`: explores every scenario, then every variant of the protocol with one broken rule.

The exit status is 0 if all promised properties hold, and each variant violates the property that it should.
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from rich.console import Console

from protocol_model.explorer import STUCK, explore
from protocol_model.invariants import INVARIANTS
from protocol_model.protocol import Protocol, Scenario
from protocol_model.scenarios import SCENARIOS, VARIANTS, Variant, find_scenario, make_model

SCREEN = Console(width=140, highlight=False)


@dataclass(frozen=True)
class _Result:
    """The figures of one exploration, which leave its process without the states."""

    states: int
    steps: int
    seconds: float
    violations: Mapping[str, Sequence[str]]


def _explore(scenario: Scenario, protocol: Protocol, stop_at: str | None = None) -> _Result:
    start = time.perf_counter()
    found = explore(make_model(scenario, protocol), stop_at=stop_at)
    return _Result(len(found.states), found.steps, time.perf_counter() - start, found.violations)


def main(arguments: Sequence[str] | None = None) -> int:
    """Explores and prints; returns the exit status."""
    parser = argparse.ArgumentParser(prog="make model", description=__doc__)
    parser.add_argument("--only", default="", help="only scenarios and variants whose name contains this text")
    parser.add_argument("--ways", action="store_true", help="print the steps that lead each variant to its violation")
    options = parser.parse_args(arguments)
    SCREEN.print("Properties of every state:", *(f"  {name}" for name in (*INVARIANTS, STUCK)), sep="\n")
    with ProcessPoolExecutor(max_workers=2) as pool:
        scenarios = [scenario for scenario in SCENARIOS if options.only in scenario.name]
        # The largest first, so that both processes end at about the same time.
        explored = {scenario.name: pool.submit(_explore, scenario, Protocol()) for scenario in reversed(scenarios)}
        variants = [variant for variant in VARIANTS if options.only in variant.title]
        broken = [
            (variant, pool.submit(_explore, find_scenario(variant.scenario), variant.protocol, variant.violates))
            for variant in variants
        ]
        SCREEN.print("\nScenarios: states, steps, seconds")
        wrong = sum(_show_scenario(scenario, explored[scenario.name].result()) for scenario in scenarios)
        SCREEN.print("\nVariants with one broken rule: the violated property, and the steps of the shortest way to it")
        wrong += sum(_show_variant(variant, future.result(), ways=options.ways) for variant, future in broken)
    return int(wrong > 0)


def _show_scenario(scenario: Scenario, result: _Result) -> bool:
    """Prints a scenario's result; returns True if a promised property is violated."""
    SCREEN.print(f"  {scenario.name}: {result.states:,}, {result.steps:,}, {result.seconds:.0f}")
    for name in sorted(scenario.not_promised):
        SCREEN.print(f"    not promised here: {name}")
    for name, way in result.violations.items():
        _show_violation(name, way)
    return bool(result.violations)


def _show_variant(variant: Variant, result: _Result, *, ways: bool) -> bool:
    """Prints a variant's result; returns True if the exploration missed the fault."""
    way = result.violations.get(variant.violates)
    if way is None:
        SCREEN.print(f"  {variant.title}: NOT FOUND in {result.states:,} states of: {variant.scenario}")
        return True
    SCREEN.print(f"  {variant.title}: {variant.violates}, {len(way)} steps")
    if ways:
        _show_violation(variant.violates, way)
    return False


def _show_violation(name: str, way: Sequence[str]) -> None:
    SCREEN.print(f"    violated: {name}")
    for number, label in enumerate(way, 1):
        SCREEN.print(f"    {number:3}. {label}")


if __name__ == "__main__":
    sys.exit(main())
