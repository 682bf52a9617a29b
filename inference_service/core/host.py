"""What this process may use of the machine."""

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from math import ceil, inf
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")
_MEMINFO = Path("/proc/meminfo")
_CPUINFO = Path("/proc/cpuinfo")
_OWN_PAGES = Path("/proc/self/statm")
# x86's AVX512-BF16 and AMX, arm64's BF16.
_BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}


def usable_cpus() -> int:
    """CPUs that this process may use: its affinity, cut by the quota of its cgroup (a container's CPU limit)."""
    return max(1, min(len(os.sched_getaffinity(0)), ceil(_quota_cpus() or os.cpu_count() or 1)))


def _quota_cpus() -> float | None:
    quotas = []
    for folder in _cgroup_folders("cpu"):
        with suppress(OSError, ValueError):  # no such group, or "max": no limit
            if (folder / "cpu.max").exists():
                quota, period = (folder / "cpu.max").read_text().split()
            else:
                quota, period = ((folder / f"cpu.cfs_{part}_us").read_text() for part in ("quota", "period"))
            if int(quota) > 0:
                quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def _cgroup_folders(controller: str) -> Iterator[Path]:
    """This process's own group and those around it, of which each may have a limit; version 2's as well as 1's.

    A container sees its own group at the top, whatever path it has outside.
    """
    yield from (_CGROUPS, _CGROUPS / controller)
    try:
        own = [line.split(":", 2) for line in _OWN_CGROUPS.read_text().splitlines()]
    except OSError:
        return
    for _, controllers, path in own:
        if not controllers or controller in controllers.split(","):
            top = _CGROUPS / (controller if controllers else "")
            group = top / path.lstrip("/")
            yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(top))


def has_bfloat16() -> bool:
    """Whether the CPU computes in bfloat16: emulated, it would be slower than float32."""
    try:
        flags = re.findall(r"^(?:flags|Features)\s*:(.*)$", _CPUINFO.read_text(), re.MULTILINE)
    except OSError:
        return False
    return bool(flags) and not _BFLOAT16_FLAGS.isdisjoint(flags[0].split())


def available_memory_bytes(concurrency: int = 1) -> int:
    """Memory that this process may still take without another one being killed for it.

    Args:
        concurrency: How many processes share the machine's or the container's memory equally, this one included.

    Returns:
        The least of what the machine has available, what its container has, and what is left of this process's share.
    """
    machine = _fields(_MEMINFO, unit=1024)
    total: float = machine["MemTotal"]
    spare: float = machine["MemAvailable"]
    for folder in _cgroup_folders("memory"):
        limit, used = _cgroup_memory(folder)
        total, spare = min(total, limit), min(spare, limit - used)
    own = int(_OWN_PAGES.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return int(max(0, min(spare, total / concurrency - own)))


def _cgroup_memory(folder: Path) -> tuple[float, int]:
    """A group's limit, and what it uses but for cached files that can go at any time."""
    try:
        if (folder / "memory.max").exists():
            limit, used, reclaimable = "memory.max", "memory.current", "inactive_file"
        else:
            limit, used, reclaimable = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
        cached = _fields(folder / "memory.stat")[reclaimable]
        return int((folder / limit).read_text()), int((folder / used).read_text()) - cached
    except (OSError, ValueError, KeyError):  # no such group, or "max": no limit
        return inf, 0


def _fields(path: Path, *, unit: int = 1) -> dict[str, int]:
    lines = (line.replace(":", " ").split() for line in path.read_text().splitlines())
    return {line[0]: int(line[1]) * unit for line in lines if len(line) > 1 and line[1].isdigit()}
