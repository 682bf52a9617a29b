"""What this process may use of the machine."""

import os
import re
from math import ceil
from pathlib import Path

_CGROUP_V2_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_CGROUP_V1_QUOTA = Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")
_CGROUP_V1_PERIOD = Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")
_CGROUP_V2_MEMORY = Path("/sys/fs/cgroup")
_CGROUP_V1_MEMORY = Path("/sys/fs/cgroup/memory")
_MEMINFO = Path("/proc/meminfo")
_CPUINFO = Path("/proc/cpuinfo")
_OWN_PAGES = Path("/proc/self/statm")
# x86's AVX512-BF16 and AMX, arm64's BF16.
_BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}


def usable_cpus() -> int:
    """CPUs that this process may use: its affinity, cut by the quota of its cgroup (a container's CPU limit)."""
    return max(1, min(len(os.sched_getaffinity(0)), ceil(_quota_cpus() or os.cpu_count() or 1)))


def _quota_cpus() -> float | None:
    try:
        if _CGROUP_V2_QUOTA.exists():
            quota, period = _CGROUP_V2_QUOTA.read_text().split()
        else:
            quota, period = _CGROUP_V1_QUOTA.read_text(), _CGROUP_V1_PERIOD.read_text()
        return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError):  # no cgroup, or "max": no limit
        return None


def has_bfloat16() -> bool:
    """Whether the CPU computes in bfloat16: emulated, it would be slower than float32."""
    try:
        flags = re.findall(r"^(?:flags|Features)\s*:(.*)$", _CPUINFO.read_text(), re.MULTILINE)
    except OSError:
        return False
    return bool(flags) and not _BFLOAT16_FLAGS.isdisjoint(flags[0].split())


def spare_memory_bytes(jobs: int = 1) -> int:
    """Memory that this process may still take without another one being killed for it.

    Args:
        jobs: How many processes share the machine's or the container's memory equally, this one included.

    Returns:
        The least of what the machine has available, what its container has, and what is left of this process's share.
    """
    machine = _fields(_MEMINFO, unit=1024)
    total, spare = machine["MemTotal"], machine["MemAvailable"]
    limit, used = _cgroup_memory()
    if limit is not None:
        total, spare = min(total, limit), min(spare, limit - used)
    own = int(_OWN_PAGES.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return max(0, min(spare, total // jobs - own))


def _cgroup_memory() -> tuple[int | None, int]:
    """The cgroup's limit, None where there is none, and what it uses but for cached files that can go at any time."""
    try:
        if (_CGROUP_V2_MEMORY / "memory.max").exists():
            folder, limit, used, reclaimable = _CGROUP_V2_MEMORY, "memory.max", "memory.current", "inactive_file"
        else:
            folder, limit = _CGROUP_V1_MEMORY, "memory.limit_in_bytes"
            used, reclaimable = "memory.usage_in_bytes", "total_inactive_file"
        cached = _fields(folder / "memory.stat")[reclaimable]
        return int((folder / limit).read_text()), int((folder / used).read_text()) - cached
    except (OSError, ValueError, KeyError):  # no cgroup, or "max": no limit
        return None, 0


def _fields(path: Path, *, unit: int = 1) -> dict[str, int]:
    lines = (line.replace(":", " ").split() for line in path.read_text().splitlines())
    return {line[0]: int(line[1]) * unit for line in lines if len(line) > 1 and line[1].isdigit()}
