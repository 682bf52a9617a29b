"""Runs tasks in the isolated process: with limits on its memory, time, network and writing, and without secrets."""

import json
import math
import os
import signal
import site
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from inference_service.core.errors import ConfigurationError, InternalError, OutOfMemory, TimeLimit, error_from_row
from inference_service.core.host import available_memory_bytes
from inference_service.importers.child_process import ChildProcess, DeadlineExceeded
from inference_service.importers.request import DEFAULT_TIME_LIMIT_S
from inference_service.importers.sandbox import namespace_prefix

Progress = Callable[[str, float], None]
"""Called with what is being done and the share that is done, 0…1; at least once a second while a task runs."""

# The variables of the environment that a process gets; settings may hold passwords.
_ENVIRONMENT = ("PATH", "LANG", "TZ", "VIRTUAL_ENV")
_ENVIRONMENT_PREFIXES = ("LC_", "LD_", "MKL_", "OMP_", "OPENBLAS_", "PYTHON")
MIN_MEMORY_BYTES = 2**32
"""The process may always take so much of addresses, of which PyTorch maps more than it uses."""
_MODULE = "inference_service.importers.isolated"
_LOG_BYTES = 4096
# Each task, as an error's sentence names it.
_NAMES = {
    "check_model": "loading the model",
    "describe": "reading the network",
    "describe_checkpoints": "reading the checkpoints",
    "export": "exporting a network",
    "measure": "comparing a network with PyTorch",
    "predict": "the source's own predictor",
    "read_postprocessing": "reading the postprocessing",
    "segment": "segmenting the scan by this service",
}


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


@dataclass(frozen=True)
class Isolation:
    """Where tasks run, and for how long.

    Attributes:
        scratch: A folder for temporary files.
        time_limit_s: The most seconds that one task may take.
    """

    scratch: Path
    time_limit_s: float = DEFAULT_TIME_LIMIT_S

    def run(
        self,
        action: str,
        arguments: Mapping[str, object],
        *,
        progress: Progress = no_progress,
        writes_to: Sequence[Path] = (),
    ) -> Ended:
        """Runs a task that reads a source, within all limits that this machine enforces, and waits for it.

        Args:
            action: An action of `isolated`.
            arguments: Its arguments, as JSON.
            progress: Called for each step.
            writes_to: The folders that it may write to, beside a home of its own that is removed in the end. This
                process must not write there by name afterwards, as the task may have left links.

        Raises:
            ServiceError: The error that the task ended with.
            TimeLimit: It took longer than allowed; it was ended with its children.
            OutOfMemory: The process was killed, or could not get memory.
            ConfigurationError: A package is missing.
            InternalError: The process failed otherwise.
        """
        with TemporaryDirectory(prefix="home-", dir=self.scratch, ignore_cleanup_errors=True) as home:
            limits = {
                "memory_bytes": max(MIN_MEMORY_BYTES, available_memory_bytes()),
                "writable": [str(folder.resolve()) for folder in (Path(home), *writes_to)],
            }
            environment = {**child_environment(), "HOME": home, "TMPDIR": home}
            task = {"action": action, "arguments": arguments, "limits": limits}
            return self._run(task, namespace_prefix(), environment, progress)

    def run_unlimited(
        self, action: str, arguments: Mapping[str, object], settings: Mapping[str, str], *, progress: Progress
    ) -> Ended:
        """Runs a task of this service itself, with its settings, and with no limit but the time.

        Args:
            action: An action of `isolated`.
            arguments: Its arguments, as JSON.
            settings: Variables of the environment that take the place of this process's.
            progress: Called for each step.

        Raises:
            ServiceError: See `run`.
        """
        task = {"action": action, "arguments": arguments, "limits": None}
        return self._run(task, (), {**os.environ, **settings}, progress)

    def _run(
        self, task: Mapping[str, object], prefix: Sequence[str], environment: Mapping[str, str], progress: Progress
    ) -> Ended:
        file, log = self.scratch / "task.json", self.scratch / "log.txt"
        file.write_text(json.dumps(task))
        # Without -P, Python would import modules of the working folder, which may be the source.
        command = [*prefix, sys.executable, "-P", "-m", _MODULE, str(file)]
        name = _NAMES.get(str(task["action"]), "the task")
        try:
            with ChildProcess(command, environment, log, self.time_limit_s) as process:
                last = _follow(process.lines(), progress)
                process.wait()
        except DeadlineExceeded as error:
            raise TimeLimit(
                f"{name} took longer than {self.time_limit_s:g} s and was ended; --time-limit allows more"
            ) from error
        _raise_error(name, last, process.status, log)
        result = last.get("result")
        return Ended(result if isinstance(result, Mapping) else {}, process.seconds, process.peak_bytes)


def child_environment() -> dict[str, str]:
    """Returns the part of this process's environment that the isolated process gets."""
    taken = {
        name: value
        for name, value in os.environ.items()
        if name in _ENVIRONMENT or name.startswith(_ENVIRONMENT_PREFIXES)
    }
    # Packages of the user are still found with another home; a source's folder gets no bytecode.
    return {"PYTHONUSERBASE": site.getuserbase(), **taken, "PYTHONDONTWRITEBYTECODE": "1"}


def _follow(lines: Iterable[bytes | None], progress: Progress) -> Mapping[str, object]:
    """Passes progress on, again for each second without any; returns the last message, empty if there is none."""
    last: Mapping[str, object] = {}
    activity, share = "", 0.0
    for line in lines:
        if line is not None:
            last = _parsed(line)
            if "activity" not in last:
                continue
            activity, share = str(last["activity"]), _share(last.get("share"))
        if activity:
            progress(activity, share)
    return last


def _parsed(line: bytes) -> Mapping[str, object]:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InternalError("the isolated process gave an answer that is not JSON") from error
    if not isinstance(message, dict):
        raise InternalError("the isolated process gave an answer that is no object")
    return message


def _share(value: object) -> float:
    """A share from 0 to 1, whatever the process said."""
    return min(max(float(value), 0.0), 1.0) if isinstance(value, int | float) and math.isfinite(value) else 0.0


def missing_package(name: str) -> ConfigurationError:
    """Returns the error for a package of the extra `import` that is not installed."""
    return ConfigurationError(
        f"{name} is not installed: importing a model needs the extra `import`, pip install 'inference-service[import]'"
    )


def _raise_error(name: str, last: Mapping[str, object], status: int, log: Path) -> None:
    """Raises the error that a task ended with, if it did."""
    error = last.get("error")
    if isinstance(error, list) and len(error) == 2:
        raise error_from_row(str(error[0]), str(error[1]))
    if "missing" in last:
        raise missing_package(str(last["missing"]))
    if status == -signal.SIGKILL:
        raise OutOfMemory(f"{name} was killed, most likely for the memory that it took")
    if status != 0 or "result" not in last:
        raise InternalError(f"{name} failed") from RuntimeError(_end_of(log))


def _end_of(log: Path) -> str:
    with suppress(OSError), log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _LOG_BYTES))
        return file.read().decode(errors="replace")
    return ""
