"""The CPUs and the memory that this process may use, within the limits of its cgroup (a container's limits)."""

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
    """Returns the number of CPUs that this process may use: its affinity, limited by the CPU quota of its cgroup."""
    return max(1, min(len(os.sched_getaffinity(0)), ceil(_quota_cpus() or os.cpu_count() or 1)))


def _quota_cpus() -> float | None:
    quotas = []
    for folder in _cgroup_folders("cpu"):
        with suppress(OSError, ValueError):  # no such cgroup, or "max", which is no limit
            if (folder / "cpu.max").exists():
                quota, period = (folder / "cpu.max").read_text().split()
            else:
                quota, period = ((folder / f"cpu.cfs_{part}_us").read_text() for part in ("quota", "period"))
            if int(quota) > 0:
                quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def _cgroup_folders(controller: str) -> Iterator[Path]:
    """Lists the cgroup of this process and its ancestors, for cgroup v1 and v2; each of them may have a limit.

    In a container the own cgroup is the root of the mounted hierarchy, so that is listed too.
    """
    yield from (_CGROUPS, _CGROUPS / controller)
    try:
        memberships = [line.split(":", 2) for line in _OWN_CGROUPS.read_text().splitlines()]
    except OSError:
        return
    for _, controllers, path in memberships:
        if not controllers or controller in controllers.split(","):
            root = _CGROUPS / (controller if controllers else "")
            group = root / path.lstrip("/")
            yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(root))


def has_bfloat16() -> bool:
    """Returns True if the CPU has bfloat16 instructions; emulated bfloat16 is slower than float32."""
    try:
        flags = re.findall(r"^(?:flags|Features)\s*:(.*)$", _CPUINFO.read_text(), re.MULTILINE)
    except OSError:
        return False
    return bool(flags) and not _BFLOAT16_FLAGS.isdisjoint(flags[0].split())


def available_memory_bytes(concurrency: int = 1) -> int:
    """Returns the bytes of memory that this process may still take without a process being killed for it.

    Args:
        concurrency: Number of processes, this one included, that share the machine's or container's memory equally.

    Returns:
        The smallest of three: the machine's available memory, the container's, and the rest of this process's share.
    """
    machine = _fields(_MEMINFO, unit=1024)
    total: float = machine["MemTotal"]
    available: float = machine["MemAvailable"]
    for folder in _cgroup_folders("memory"):
        limit, used = _cgroup_memory(folder)
        total = min(total, limit)
        available = min(available, limit - used)
    resident = int(_OWN_PAGES.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return int(max(0, min(available, total / concurrency - resident)))


def _cgroup_memory(folder: Path) -> tuple[float, int]:
    """Returns the memory limit of a cgroup, and its use without the cached files that the kernel can drop."""
    try:
        v2 = (folder / "memory.max").exists()
        limit_file = "memory.max" if v2 else "memory.limit_in_bytes"
        used_file = "memory.current" if v2 else "memory.usage_in_bytes"
        cached = _fields(folder / "memory.stat")["inactive_file" if v2 else "total_inactive_file"]
        return int((folder / limit_file).read_text()), int((folder / used_file).read_text()) - cached
    except (OSError, ValueError, KeyError):  # no such cgroup, or "max", which is no limit
        return inf, 0


def _fields(path: Path, *, unit: int = 1) -> dict[str, int]:
    lines = (line.replace(":", " ").split() for line in path.read_text().splitlines())
    return {line[0]: int(line[1]) * unit for line in lines if len(line) > 1 and line[1].isdigit()}
