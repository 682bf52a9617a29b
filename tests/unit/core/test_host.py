import os
from pathlib import Path

import pytest

from inference_service.core import host

GIB = 2**30


def write(path: Path, text: str | int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")
    return path


@pytest.fixture(autouse=True)
def sixteen_gib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with 16 GiB of memory, 10 GiB available, without cgroups; this process uses none."""
    kib = GIB // 1024
    meminfo = (
        f"MemTotal:       {16 * kib} kB\nMemFree:          1024 kB\nMemAvailable:   {10 * kib} kB\nHugePages_Total: 0"
    )
    monkeypatch.setattr(host, "_MEMINFO", write(tmp_path / "meminfo", meminfo))
    monkeypatch.setattr(host, "_OWN_PAGES", write(tmp_path / "statm", "100 0 0 0 0 0 0"))
    monkeypatch.setattr(host, "_CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(host, "_OWN_CGROUPS", tmp_path / "own")


def limit_v2(tmp_path: Path, limit: str | int, used: int, cached: int, group: str = "") -> None:
    folder = tmp_path / "cgroup" / group
    write(folder / "memory.max", limit)
    write(folder / "memory.current", used)
    write(folder / "memory.stat", f"anon 5\ninactive_file {cached}\nactive_file 7")


def limit_v1(tmp_path: Path, limit: str | int, used: int, cached: int, group: str = "") -> None:
    folder = tmp_path / "cgroup" / "memory" / group
    write(folder / "memory.limit_in_bytes", limit)
    write(folder / "memory.usage_in_bytes", used)
    write(folder / "memory.stat", f"cache 5\ntotal_inactive_file {cached}")


def test_without_a_limit_the_available_memory_of_the_machine_counts() -> None:
    assert host.available_memory_bytes() == 10 * GIB


@pytest.mark.parametrize("limit", [limit_v1, limit_v2])
def test_a_cgroup_limit_counts_without_its_used_memory_but_with_its_cached_files(tmp_path: Path, limit: object) -> None:
    assert callable(limit)
    limit(tmp_path, 8 * GIB, 7 * GIB, 2 * GIB)
    assert host.available_memory_bytes() == 3 * GIB


@pytest.mark.parametrize("unlimited", [(limit_v2, "max"), (limit_v1, 2**63 - 4096)])
def test_an_unlimited_cgroup_has_no_effect(tmp_path: Path, unlimited: tuple[object, str | int]) -> None:
    limit, value = unlimited
    assert callable(limit)
    limit(tmp_path, value, 7 * GIB, GIB)
    assert host.available_memory_bytes() == 10 * GIB


@pytest.mark.parametrize(("limit", "own"), [(limit_v1, "5:cpu,memory:/a/b"), (limit_v2, "0::/a/b")])
def test_the_lowest_limit_of_the_cgroup_and_its_ancestors_counts(tmp_path: Path, limit: object, own: str) -> None:
    assert callable(limit)
    write(tmp_path / "own", own)
    limit(tmp_path, 9 * GIB, 0, 0, group="a/b")
    limit(tmp_path, 6 * GIB, GIB, 0, group="a")
    limit(tmp_path, 8 * GIB, 0, 0)
    limit(tmp_path, GIB, 0, 0, group="elsewhere")
    assert host.available_memory_bytes() == 5 * GIB


def test_a_process_gets_at_most_its_share_minus_its_own_memory(tmp_path: Path) -> None:
    assert host.available_memory_bytes(2) == 8 * GIB
    write(tmp_path / "statm", f"9 {3 * GIB // os.sysconf('SC_PAGE_SIZE')} 0")
    assert host.available_memory_bytes(2) == 5 * GIB
    assert host.available_memory_bytes(8) == 0


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        ("processor: 0\nflags\t\t: fpu avx512f avx512_bf16 amx_tile", True),
        ("flags\t\t: fpu amx_bf16", True),
        ("Features\t: fp asimd bf16", True),
        ("flags\t\t: fpu avx2 avx512f", False),
        ("model name : bf16 in name only", False),
    ],
)
def test_bfloat16_is_read_from_the_cpu_flags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpuinfo: str, expected: bool
) -> None:
    monkeypatch.setattr(host, "_CPUINFO", write(tmp_path / "cpuinfo", cpuinfo))
    assert host.has_bfloat16() is expected


def test_usable_cpus_are_the_affinity_limited_by_the_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)))
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert host.usable_cpus() == 6
    v2 = tmp_path / "cgroup" / "cpu.max"
    v1 = tmp_path / "cgroup" / "cpu"
    write(v2, "250000 100000")
    assert host.usable_cpus() == 3
    write(v2, "max 100000")
    assert host.usable_cpus() == 6
    write(tmp_path / "own", "0::/a")
    write(tmp_path / "cgroup" / "a" / "cpu.max", "400000 100000")
    assert host.usable_cpus() == 4
    (tmp_path / "own").unlink()
    write(v1 / "cpu.cfs_quota_us", "50000")
    write(v1 / "cpu.cfs_period_us", "100000")
    assert host.usable_cpus() == 1
    write(v1 / "cpu.cfs_quota_us", "-1")
    assert host.usable_cpus() == 6
