import errno
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from inference_service.core.errors import OutOfMemory
from inference_service.core.memory_budget import MemoryBudget

MIB = 2**20


def spare(mib: int) -> Callable[[int], int]:
    return lambda jobs: mib * MIB // jobs


def test_what_fits_is_allowed_and_what_does_not_is_out_of_memory() -> None:
    MemoryBudget(available=spare(1128)).require(1000 * MIB)
    with pytest.raises(OutOfMemory, match=r"need 1\.1 GiB of memory more, and this worker has 1\.1 GiB"):
        MemoryBudget(available=spare(1127)).require(1000 * MIB)


def test_jobs_share_the_memory() -> None:
    with pytest.raises(OutOfMemory):
        MemoryBudget(concurrency=2, available=spare(1128)).require(1000 * MIB)


def test_logits_are_kept_in_memory_where_they_fit(tmp_path: Path) -> None:
    budget = MemoryBudget(tmp_path, available=spare(128 + 64))
    held = budget.allocate((4, MIB, 2), reserved_bytes=32 * MIB)
    assert not isinstance(held, np.memmap)
    assert held.shape == (4, MIB, 2)
    assert held.dtype == np.dtype(np.float32)
    assert not held.any()
    assert budget.warnings == []


def test_logits_that_do_not_fit_are_kept_in_a_file_without_a_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    budget = MemoryBudget(tmp_path, available=spare(128 + 63))
    held = budget.allocate((4, MIB, 2), reserved_bytes=32 * MIB)
    assert isinstance(held, np.memmap)
    assert list(tmp_path.iterdir()) == []
    assert held.shape == (4, MIB, 2)
    assert held.dtype == np.dtype(np.float32)
    assert not held.any()
    held += 1.5
    assert (held == 1.5).all()
    assert budget.warnings == [
        "the logits of one window's depth need 32 MiB, and this worker has 31 MiB of memory for them: they were kept "
        "on disk"
    ]
    assert "kept on disk" in caplog.text


def test_without_a_disk_that_holds_them_it_is_out_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OutOfMemory):
        MemoryBudget(available=spare(130)).allocate((4, MIB, 2))
    with pytest.raises(OutOfMemory, match="nor is there room on the disk"):
        MemoryBudget(tmp_path / "missing", available=spare(130)).allocate((4, MIB, 2))

    def full(descriptor: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OutOfMemory, match="nor is there room on the disk"):
        MemoryBudget(tmp_path, available=spare(130)).allocate((4, MIB, 2))


def test_this_machine_has_room_for_a_little() -> None:
    MemoryBudget().require(MIB)
    assert not isinstance(MemoryBudget().allocate((2, 3)), np.memmap)
