"""The targets of `make fuzz` with their seeds, and the bounds that the fuzzer checks. Redis has an integration test."""

from collections.abc import Callable

import numpy as np
import pytest
from fuzz.target import MAX_CPU_S, MAX_MEMORY_BYTES, Pieces, Target, TooSlow, check
from fuzz.targets import TARGETS

from inference_service.core.errors import InputCorrupt

WITHOUT_SERVER = [target for target in TARGETS.values() if target.name != "redis"]


@pytest.mark.parametrize("target", WITHOUT_SERVER, ids=lambda target: target.name)
def test_seeds_are_accepted_or_refused(target: Target) -> None:
    accepted = [check(target, seed) for seed in target.seeds()]
    assert any(accepted)
    assert all(len(seed) <= target.max_input_bytes for seed in target.seeds())


@pytest.mark.parametrize("target", WITHOUT_SERVER, ids=lambda target: target.name)
@pytest.mark.parametrize("data", [b"", b"\0", b"\xff" * 100], ids=["empty", "zero", "ones"])
def test_inputs_of_no_format_are_accepted_or_refused(target: Target, data: bytes) -> None:
    check(target, data)


def target_that(run: Callable[[], object]) -> Target:
    def call(data: bytes) -> None:
        run()

    return Target("x", call, lambda: [])


def test_refusals_are_no_findings_and_other_errors_are() -> None:
    def refuse() -> None:
        raise InputCorrupt("x")

    def fail() -> None:
        raise KeyError("x")

    assert check(target_that(lambda: None), b"")
    assert not check(target_that(refuse), b"")
    with pytest.raises(KeyError):
        check(target_that(fail), b"")


def test_too_much_memory_is_a_finding() -> None:
    with pytest.raises(MemoryError):
        check(target_that(lambda: bytes(2 * MAX_MEMORY_BYTES)), b"")
    with pytest.raises(MemoryError):
        check(target_that(lambda: np.empty(2 * MAX_MEMORY_BYTES, np.uint8)), b"")
    assert check(target_that(lambda: bytes(MAX_MEMORY_BYTES // 2)), b"")


def test_too_much_time_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, MAX_CPU_S + 1])
    monkeypatch.setattr("time.process_time", lambda: next(times))
    with pytest.raises(TooSlow):
        check(target_that(lambda: None), b"")


def test_pieces_of_an_exhausted_input_are_empty() -> None:
    pieces = Pieces(b"\2ab\7c")
    assert (pieces.piece(), bool(pieces), pieces.piece(), bool(pieces)) == (b"ab", True, b"c", False)
    assert (pieces.byte(), pieces.piece(), pieces.rest()) == (0, b"", b"")
