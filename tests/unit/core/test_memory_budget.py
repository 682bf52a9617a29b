import errno
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from inference_service.core.errors import OutOfMemory
from inference_service.core.memory_budget import MemoryBudget
from inference_service.core.report_warnings import ReportWarning, WarningCode

MIB = 2**20


def available(mib: int) -> Callable[[int], int]:
    return lambda concurrency: mib * MIB // concurrency


def test_require_raises_out_of_memory_above_the_available_memory() -> None:
    MemoryBudget(available=available(1128)).require(1000 * MIB)
    with pytest.raises(OutOfMemory, match=r"needs 1\.1 GiB more memory, and this worker has 1\.1 GiB available"):
        MemoryBudget(available=available(1127)).require(1000 * MIB)


def test_concurrent_jobs_share_the_memory() -> None:
    with pytest.raises(OutOfMemory):
        MemoryBudget(concurrency=2, available=available(1128)).require(1000 * MIB)


def test_an_array_that_fits_is_in_memory(tmp_path: Path) -> None:
    budget = MemoryBudget(tmp_path, available=available(128 + 64))
    array = budget.allocate((4, MIB, 2), reserved_bytes=32 * MIB)
    assert not isinstance(array, np.memmap)
    assert array.shape == (4, MIB, 2)
    assert array.dtype == np.dtype(np.float32)
    assert not array.any()
    assert budget.warnings == []


def test_an_array_that_does_not_fit_is_in_an_unnamed_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    budget = MemoryBudget(tmp_path, available=available(128 + 63))
    array = budget.allocate((4, MIB, 2), reserved_bytes=32 * MIB)
    assert isinstance(array, np.memmap)
    assert list(tmp_path.iterdir()) == []
    assert array.shape == (4, MIB, 2)
    assert array.dtype == np.dtype(np.float32)
    assert not array.any()
    array += 1.5
    assert (array == 1.5).all()
    message = (
        "the logits of one window's depth need 32 MiB, and this worker has 31 MiB of memory for them: they were kept "
        "on disk"
    )
    assert budget.warnings == [ReportWarning(WarningCode.LOGITS_ON_DISK, message)]
    assert "kept on disk" in caplog.text


def test_without_room_on_the_disk_it_is_out_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OutOfMemory):
        MemoryBudget(available=available(130)).allocate((4, MIB, 2))
    with pytest.raises(OutOfMemory, match="do not fit on the disk either"):
        MemoryBudget(tmp_path / "missing", available=available(130)).allocate((4, MIB, 2))

    def full(descriptor: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OutOfMemory, match="do not fit on the disk either"):
        MemoryBudget(tmp_path, available=available(130)).allocate((4, MIB, 2))


def test_a_small_array_fits_into_this_machine() -> None:
    MemoryBudget().require(MIB)
    assert not isinstance(MemoryBudget().allocate((2, 3)), np.memmap)
