"""Limits on a process that runs Python of a source: no network, and writing only to folders of its own.

The kernel enforces both, by a network namespace and by Landlock, where it has them. What they leave is stated: such a
process may read what its user may read.
"""

import ctypes
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

# Without privileges first: as root, a namespace of users may be forbidden.
_UNSHARE = (("unshare", "--user", "--map-root-user", "--net"), ("unshare", "--net"))
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION = 1
_PATH_BENEATH = 1
_NO_NEW_PRIVILEGES = 38
# Writing, truncating, and making, moving or removing files, as far as the version of Landlock knows these rights.
_WRITING = (1 << 1) | sum(1 << bit for bit in range(4, 13))
_LATER_RIGHTS = ((2, 1 << 13), (3, 1 << 14))
_DEVICES = Path("/dev")


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("folder", ctypes.c_int32))


@dataclass(frozen=True)
class Limits:
    """The limits that this machine enforces.

    Attributes:
        network: Whether the process has no network.
        writing: Whether it writes to folders of its own alone.
    """

    network: bool
    writing: bool


@cache
def network_prefix() -> tuple[str, ...]:
    """Returns the command that runs another one without network; empty where there is none."""
    if shutil.which("unshare") is None:
        return ()
    for command in _UNSHARE:
        if subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0:
            return command
    return ()


def find_limits() -> Limits:
    """Finds out which limits this machine enforces."""
    return Limits(network=bool(network_prefix()), writing=_landlock_version() > 0)


def restrict_writing(folders: Sequence[Path]) -> None:
    """Lets this process, and those that it starts, write to some folders alone; without Landlock, nothing changes.

    Raises:
        OSError: A folder is missing, or the kernel refuses the limit.
    """
    version = _landlock_version()
    if version <= 0:
        return
    rights = _WRITING | sum(right for since, right in _LATER_RIGHTS if version >= since)
    handled = ctypes.c_uint64(rights)
    ruleset = _call(_CREATE_RULESET, ctypes.byref(handled), ctypes.sizeof(handled), 0)
    for folder in (*folders, _DEVICES):
        opened = os.open(folder, os.O_PATH | os.O_CLOEXEC)
        rule = _PathBeneath(rights, opened)
        _call(_ADD_RULE, ruleset, _PATH_BENEATH, ctypes.byref(rule), 0)
        os.close(opened)
    if ctypes.CDLL(None, use_errno=True).prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "the process keeps its privileges")
    _call(_RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


def _landlock_version() -> int:
    try:
        return _call(_CREATE_RULESET, None, 0, _VERSION)
    except OSError:
        return 0


def _call(number: int, *arguments: object) -> int:
    result: int = ctypes.CDLL(None, use_errno=True).syscall(number, *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
