"""A process of its own whose lines are read as they come, and which ends in time with all of its children."""

import os
import selectors
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from inference_service.core.errors import InternalError

# The answers of a process are short; what it says without end is cut off.
_MAX_LINE_BYTES = 2**24
_TICK_S = 1.0
_POLL_S = 0.02


class DeadlineExceeded(Exception):
    """A process did not end in time."""


class ChildProcess:
    """A process in a session of its own. When the block ends, it and its children are killed.

    Args:
        command: The command.
        environment: Its environment.
        log: A file that gets its standard error.
        time_limit_s: Seconds from now on after which `lines` and `wait` raise DeadlineExceeded.

    Attributes:
        status: The exit status, negative for a signal; set by `wait`.
        peak_bytes: The most memory that one of its processes had resident; set by `wait`.
        seconds: How long it ran; set by `wait`.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path, time_limit_s: float) -> None:
        self.status = 0
        self.peak_bytes = 0
        self.seconds = 0.0
        self._start = time.monotonic()
        self._deadline = self._start + time_limit_s
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.returncode is None:
            self._end()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def lines(self) -> Iterator[bytes | None]:
        """Yields each line of its standard output, and None for each second without one, until it ends.

        Raises:
            DeadlineExceeded: It did not end in time.
            InternalError: A line has no end.
        """
        assert self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        rest = b""
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            while True:
                if not selector.select(min(_TICK_S, self._remaining_s())):
                    # A child that it left behind may hold the pipe open.
                    if self._has_ended():
                        return
                    yield None
                    continue
                chunk = os.read(pipe, 2**16)
                *lines, rest = (rest + chunk).split(b"\n")
                yield from lines
                if not chunk:
                    return
                if len(rest) > _MAX_LINE_BYTES:
                    raise InternalError("the isolated process gave an answer without end")

    def wait(self) -> None:
        """Waits until the process has ended, and ends the children that it left.

        Raises:
            DeadlineExceeded: It did not end in time.
        """
        while not self._has_ended():
            time.sleep(min(_POLL_S, self._remaining_s()))
        self.seconds = time.monotonic() - self._start
        self._end()

    def _remaining_s(self) -> float:
        remaining_s = self._deadline - time.monotonic()
        if remaining_s <= 0:
            raise DeadlineExceeded
        return remaining_s

    def _has_ended(self) -> bool:
        """True if it has ended; it stays a zombie, so that its number is that of no other process."""
        return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None

    def _end(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        _, status, usage = os.wait4(self._process.pid, 0)
        self.status = self._process.returncode = os.waitstatus_to_exitcode(status)
        self.peak_bytes = usage.ru_maxrss * 1024
