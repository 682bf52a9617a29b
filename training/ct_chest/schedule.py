"""The learning rate of each step."""

import math
from typing import NamedTuple


class Cycle(NamedTuple):
    """A number of steps over which the learning rate falls from `highest` to 0 along half a cosine."""

    steps: int
    highest: float


CYCLES = (
    Cycle(6000, 6e-3),
    Cycle(2000, 3e-3),
    Cycle(2000, 2e-3),
    Cycle(1700, 2e-3),
    Cycle(900, 2e-3),
    Cycle(600, 2e-3),
)
STEPS = sum(cycle.steps for cycle in CYCLES)
# The step from which a network that is already trained continues.
LAST_CYCLE_BEGINS = STEPS - CYCLES[-1].steps
WARM_UP_STEPS = 50


def rate(step: int) -> float:
    """The learning rate of a step, 0 … STEPS - 1.

    Raises:
        ValueError: There is no such step.
    """
    before = step
    for cycle in CYCLES:
        if 0 <= before < cycle.steps:
            warmth = min(1.0, (before + 1) / WARM_UP_STEPS)
            return cycle.highest * warmth * 0.5 * (1 + math.cos(math.pi * before / cycle.steps))
        before -= cycle.steps
    raise ValueError(f"expected a step from 0 to {STEPS - 1}, got {step}")
