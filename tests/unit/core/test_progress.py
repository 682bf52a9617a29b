import time
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_service.core.progress import STAGES, Stage, StageClock, overall_progress

# Not reported as progress, as they alternate with the windows.
WITHIN_WINDOWS = ("network", "map")


class FakeTime:
    """A clock that a test advances."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s

    def passes(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture
def fake_time(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    fake = FakeTime()
    monkeypatch.setattr(time, "perf_counter", fake)
    return fake


def test_times_of_a_stage_add_up_and_time_between_stages_is_not_counted(fake_time: FakeTime) -> None:
    clock = StageClock()
    with clock.stage("read"):
        fake_time.passes(2)
    fake_time.passes(100)
    with clock.stage("write"):
        fake_time.passes(3)
    with clock.stage("read"):
        fake_time.passes(5)
    assert clock.seconds == {"read": 7, "write": 3}


def test_nested_stages_do_not_count_for_the_outer_one(fake_time: FakeTime) -> None:
    clock = StageClock()
    with clock.stage("map"):
        fake_time.passes(1)
        with clock.stage("windows"):
            fake_time.passes(10)
            with clock.stage("fetch"):
                fake_time.passes(100)
            fake_time.passes(20)
        fake_time.passes(2)
        with clock.stage("map"):
            fake_time.passes(4)
    assert clock.seconds == {"map": 7, "windows": 30, "fetch": 100}


def test_a_stage_that_raises_is_counted(fake_time: FakeTime) -> None:
    clock = StageClock()

    def fail() -> None:
        with clock.stage("windows"):
            fake_time.passes(2)
            raise ZeroDivisionError

    with clock.stage("map"):
        with pytest.raises(ZeroDivisionError):
            fail()
        fake_time.passes(1)
    assert clock.seconds == {"map": 1, "windows": 2}


def test_a_stage_has_one_period_from_its_first_begin_to_its_last_end(monkeypatch: pytest.MonkeyPatch) -> None:
    now_ns = iter(range(100))
    monkeypatch.setattr(time, "time_ns", lambda: next(now_ns))
    clock = StageClock()
    with clock.stage("windows"):
        for _ in range(2):
            with clock.stage("network"):
                assert clock.periods == {"windows": (0, None), "network": (1, None)}
    assert clock.periods == {"windows": (0, 4), "network": (1, 3)}


def test_timed_counts_the_time_of_the_iterator(fake_time: FakeTime) -> None:
    clock = StageClock()

    def items() -> Iterator[str]:
        for item in "abc":
            fake_time.passes(10)
            yield item
        fake_time.passes(5)

    got = []
    with clock.stage("map"):
        for item in clock.timed("windows", items()):
            got.append(item)
            fake_time.passes(1)
    assert got == ["a", "b", "c"]
    assert clock.seconds == {"map": 3, "windows": 35}


def test_timed_does_not_read_ahead() -> None:
    source = iter([1, 2, 3])
    passed = StageClock().timed("windows", source)
    assert next(passed) == 1
    assert list(source) == [2, 3]


@pytest.mark.parametrize("stage", STAGES)
def test_progress_grows_within_a_stage(stage: Stage) -> None:
    assert 0 <= overall_progress(stage, 0) < overall_progress(stage, 0.5) < overall_progress(stage, 1) <= 1


@given(
    st.lists(st.tuples(st.sampled_from([stage for stage in STAGES if stage not in WITHIN_WINDOWS]), st.floats(0, 1)))
)
def test_progress_never_decreases(steps: list[tuple[Stage, float]]) -> None:
    steps.sort(key=lambda step: (STAGES.index(step[0]), step[1]))
    overall = [overall_progress(stage, share) for stage, share in steps]
    assert overall == sorted(overall)


def test_progress_covers_0_to_1_without_gaps() -> None:
    assert overall_progress(STAGES[0], 0) == 0
    assert overall_progress(STAGES[-1], 1) == 1
    own = [stage for stage in STAGES if stage not in WITHIN_WINDOWS]
    for before, after in pairwise(own):
        assert overall_progress(before, 1) == pytest.approx(overall_progress(after, 0))
