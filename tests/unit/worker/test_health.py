import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from inference_service.worker.health import heartbeat_receiver, is_fresh, pause_reason

MINUTE = timedelta(minutes=1)


def receiver(
    path: Path | None, recorded: list[bool], *, working: bool = True, problem: list[str]
) -> Callable[..., None]:
    return heartbeat_receiver(
        path,
        is_working=lambda: working,
        find_problem=lambda: problem[-1] if problem else None,
        record=lambda: recorded.append(True),
    )


@pytest.mark.parametrize("working", [False, True])
def test_a_worker_has_a_heartbeat_only_while_it_works(tmp_path: Path, working: bool) -> None:
    path = tmp_path / "worker.health"
    recorded: list[bool] = []
    receiver(path, recorded, working=working, problem=[])(sender=None)
    assert is_fresh(path, within=MINUTE) == working
    assert recorded == [True] * working


def test_a_heartbeat_without_a_health_file_is_recorded() -> None:
    recorded: list[bool] = []
    receiver(None, recorded, problem=[])()
    assert recorded == [True]


def test_the_file_says_why_a_worker_is_paused(tmp_path: Path) -> None:
    path = tmp_path / "worker.health"
    problem = ["the disk is full"]
    beat = receiver(path, [], problem=problem)
    beat()
    assert pause_reason(path) == "the disk is full"
    problem.append("")
    beat()
    assert pause_reason(path) is None


@pytest.mark.parametrize(("age_s", "fresh"), [(0, True), (50, True), (70, False), (10**6, False)])
def test_a_worker_is_healthy_while_its_file_is_fresh(tmp_path: Path, age_s: float, fresh: bool) -> None:
    path = tmp_path / "worker.health"
    path.touch()
    os.utime(path, (time.time() - age_s,) * 2)
    assert is_fresh(path, within=MINUTE) is fresh


def test_a_worker_without_a_file_is_not_healthy(tmp_path: Path) -> None:
    assert not is_fresh(tmp_path / "worker.health", within=MINUTE)
