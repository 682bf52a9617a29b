"""Runs tasks in the isolated process, with a limit on its memory and without the secrets of this one."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, AnyStr

from inference_service.core.errors import ConfigurationError, InternalError, OutOfMemory, error_from_row
from inference_service.core.host import available_memory_bytes
from inference_service.importers.sandbox import network_prefix

Progress = Callable[[str, float], None]
"""Called with what is being done and the share that is done, 0…1."""

# The variables of the environment that a process gets; settings may hold passwords.
_ENVIRONMENT = ("PATH", "HOME", "LANG", "TMPDIR", "TZ", "VIRTUAL_ENV")
_ENVIRONMENT_PREFIXES = ("LC_", "LD_", "MKL_", "OMP_", "OPENBLAS_", "PYTHON")
MIN_MEMORY_BYTES = 2**32
"""The process may always take so much of addresses, of which PyTorch maps more than it uses."""
_LOG_LINES = 12


@dataclass(frozen=True)
class Ended:
    """An ended task.

    Attributes:
        result: What it returned.
        seconds: How long it took.
        peak_bytes: The most memory that its process had resident.
    """

    result: Mapping[str, object]
    seconds: float
    peak_bytes: int


def no_progress(activity: str, share: float) -> None:
    """A `Progress` that shows nothing."""


def run_task(
    action: str,
    arguments: Mapping[str, object],
    scratch: Path,
    *,
    progress: Progress = no_progress,
    writes_to: Sequence[Path] | None = None,
) -> Ended:
    """Runs a task and waits for it.

    Args:
        action: An action of `isolated`.
        arguments: Its arguments, as JSON.
        scratch: A folder for the task and the log.
        progress: Called for each step.
        writes_to: For a task that runs Python of a source: the folders that it may write to, beside a home of its
            own; it has no network. This process must not write there by name afterwards, as the task may have left
            links. None: the task is trusted.

    Raises:
        ServiceError: The error that the task ended with.
        OutOfMemory: The process was killed, or could not get memory.
        ConfigurationError: A package is missing.
        InternalError: The process failed otherwise.
    """
    task = scratch / "task.json"
    log = scratch / "log.txt"
    memory_bytes = max(MIN_MEMORY_BYTES, available_memory_bytes())
    environment = child_environment()
    # Without -P, Python would import modules of the working folder, which may be the source.
    command = [sys.executable, "-P", "-m", "inference_service.importers.isolated", str(task)]
    writable: list[str] = []
    if writes_to is not None:
        home = scratch / "home"
        home.mkdir(exist_ok=True)
        environment |= {"HOME": str(home), "TMPDIR": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
        command = [*network_prefix(), *command]
        writable = [str(folder.resolve()) for folder in (home, *writes_to)]
    content = {"action": action, "arguments": arguments, "memory_bytes": memory_bytes, "writable": writable}
    task.write_text(json.dumps(content))
    start = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=output, text=True, env=environment, start_new_session=True
        )
        try:
            last = _follow(process.stdout, progress)
            usage = wait_for(process)
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            if process.stdout is not None:
                process.stdout.close()
    _raise_error(last, process.returncode, log)
    result = last.get("result")
    return Ended(result if isinstance(result, Mapping) else {}, time.monotonic() - start, usage.ru_maxrss * 1024)


def child_environment() -> dict[str, str]:
    """Returns the part of this process's environment that the isolated process gets."""
    return {
        name: value
        for name, value in os.environ.items()
        if name in _ENVIRONMENT or name.startswith(_ENVIRONMENT_PREFIXES)
    }


def _follow(lines: IO[str] | None, progress: Progress) -> Mapping[str, object]:
    """Passes progress on; returns the last message, empty if there is none."""
    last: Mapping[str, object] = {}
    for line in lines or ():
        last = json.loads(line)
        if "activity" in last:
            progress(str(last["activity"]), float(str(last["share"])))
    return last


def missing_package(name: str) -> ConfigurationError:
    """Returns the error for a package of the extra `import` that is not installed."""
    return ConfigurationError(
        f"{name} is not installed: importing a model needs the extra `import`, pip install 'inference-service[import]'"
    )


def wait_for(process: subprocess.Popen[AnyStr]) -> resource.struct_rusage:
    """Waits for a process, and returns the resources that it used."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage


def _raise_error(last: Mapping[str, object], status: int, log: Path) -> None:
    error = last.get("error")
    if isinstance(error, Sequence):
        raise error_from_row(str(error[0]), str(error[1]))
    if "missing" in last:
        raise missing_package(str(last["missing"]))
    if status == -signal.SIGKILL:
        raise OutOfMemory("the process that ran the network was killed, most likely for the memory that it took")
    if status != 0 or "result" not in last:
        tail = log.read_text(errors="replace").splitlines()[-_LOG_LINES:]
        raise InternalError("the process that ran the network failed") from RuntimeError("\n".join(tail))
