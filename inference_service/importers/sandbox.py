"""Limits on a process that reads a source: no network, no signals to others, and writing only to folders of its own.

The kernel enforces them, by namespaces and by Landlock, where it has them. What they leave is stated: such a process
may read what its user may read, and may connect to the Unix sockets that its user may write to.
"""

import ctypes
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

# All processes of the namespace end with its first one. In a namespace of users, root could not read files of others:
# it keeps that right, and loses all others.
_OWN = ("--net", "--pid", "--fork", "--kill-child")
_AS_ROOT = ("unshare", *_OWN, "setpriv", "--bounding-set=-all,+dac_read_search", "--inh-caps=-all")
_UNSHARE = (_AS_ROOT, ("unshare", "--user", "--map-root-user", *_OWN), ("unshare", *_OWN))
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION = 1
_PATH_BENEATH = 1
_NO_NEW_PRIVILEGES = 38
# Rights of Landlock's files, each with the version that knows it first: to write, to remove, to make; to move between
# folders, to truncate, and to control devices.
_WRITE_FILE = 1 << 1
_TRUNCATE = (3, 1 << 14)
_RIGHTS = ((1, _WRITE_FILE), *((1, 1 << bit) for bit in range(4, 13)), (2, 1 << 13), _TRUNCATE, (5, 1 << 15))
# A device that the process makes could be a disk.
_MAKE_DEVICES = 1 << 6 | 1 << 11
# TCP, and abstract Unix sockets and signals of processes without these limits.
_TCP = (4, 0b11)
_SCOPES = (6, 0b11)
_NULL = Path("/dev/null")


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scopes", ctypes.c_uint64))


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("path", ctypes.c_int32))


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
def namespace_prefix() -> tuple[str, ...]:
    """Returns the command that runs another one without network and ends its children with it; empty: there is none."""
    if shutil.which("unshare") is None:
        return ()
    for command in _UNSHARE:
        if subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0:
            return command
    return ()


def find_limits() -> Limits:
    """Finds out which limits this machine enforces."""
    return Limits(network=bool(namespace_prefix()), writing=_landlock_version() > 0)


def restrict(folders: Sequence[Path]) -> None:
    """Lets this process, and those that it starts, write to some folders and to /dev/null alone.

    They open no TCP connections, and send no signals to other processes, where the version of Landlock knows these
    limits. Without Landlock, nothing changes.

    Raises:
        OSError: A folder is missing, or the kernel refuses the limit.
    """
    version = _landlock_version()
    if version <= 0:
        return
    rights = sum(_known(right, version) for right in _RIGHTS)
    handled = _Ruleset(rights, _known(_TCP, version), _known(_SCOPES, version))
    ruleset = _call(_CREATE_RULESET, ctypes.byref(handled), ctypes.sizeof(handled), 0)
    for folder in folders:
        _allow(ruleset, folder, rights & ~_MAKE_DEVICES)
    _allow(ruleset, _NULL, _WRITE_FILE | _known(_TRUNCATE, version))
    if ctypes.CDLL(None, use_errno=True).prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "the process keeps its privileges")
    _call(_RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


def _known(right: tuple[int, int], version: int) -> int:
    """The bits of a right, 0 where this version of Landlock does not know them."""
    since, bits = right
    return bits if version >= since else 0


def _allow(ruleset: int, path: Path, rights: int) -> None:
    opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
    rule = _PathBeneath(rights, opened)
    _call(_ADD_RULE, ruleset, _PATH_BENEATH, ctypes.byref(rule), 0)
    os.close(opened)


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
