import os
import time
from datetime import timedelta
from pathlib import Path

import pytest

from inference_service.worker.health import heartbeat_receiver, is_fresh

MINUTE = timedelta(minutes=1)


@pytest.mark.parametrize("consuming", [False, True])
def test_a_worker_has_a_heartbeat_only_while_it_consumes(tmp_path: Path, consuming: bool) -> None:
    path = tmp_path / "worker.health"
    recorded: list[bool] = []
    heartbeat_receiver(path, is_consuming=lambda: consuming, record=lambda: recorded.append(True))(sender=None)
    assert is_fresh(path, within=MINUTE) == consuming
    assert recorded == [True] * consuming


def test_a_heartbeat_without_a_health_file_is_recorded() -> None:
    recorded: list[bool] = []
    heartbeat_receiver(None, is_consuming=lambda: True, record=lambda: recorded.append(True))()
    assert recorded == [True]


@pytest.mark.parametrize(("age_s", "fresh"), [(0, True), (50, True), (70, False), (10**6, False)])
def test_a_worker_is_healthy_while_its_file_is_fresh(tmp_path: Path, age_s: float, fresh: bool) -> None:
    path = tmp_path / "worker.health"
    path.touch()
    os.utime(path, (time.time() - age_s,) * 2)
    assert is_fresh(path, within=MINUTE) is fresh


def test_a_worker_without_a_file_is_not_healthy(tmp_path: Path) -> None:
    assert not is_fresh(tmp_path / "worker.health", within=MINUTE)
