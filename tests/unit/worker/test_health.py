import os
import time
from datetime import timedelta
from pathlib import Path

import pytest

from inference_service.worker.health import is_fresh

MINUTE = timedelta(minutes=1)


@pytest.mark.parametrize(("age_s", "fresh"), [(0, True), (50, True), (70, False), (10**6, False)])
def test_a_worker_is_healthy_while_its_file_is_fresh(tmp_path: Path, age_s: float, fresh: bool) -> None:
    path = tmp_path / "worker.health"
    path.touch()
    os.utime(path, (time.time() - age_s,) * 2)
    assert is_fresh(path, within=MINUTE) is fresh


def test_a_worker_without_a_file_is_not_healthy(tmp_path: Path) -> None:
    assert not is_fresh(tmp_path / "worker.health", within=MINUTE)
