"""A server as a child process: port, log, readiness, stop, kill, and restart on the same port.

The caller supplies the command and the readiness check.
"""

import os
import random
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from threading import current_thread, main_thread

from inference_service.core.errors import EmbeddedServerError

HOST = "127.0.0.1"
# Below the kernel's range of client ports. In that range, a client that reconnects to a stopped server could be given
# the server's own port, and the server could not start again.
PORTS = range(20_000, 32_000)
START_LIMIT_S = 30.0
STOP_LIMIT_S = 10.0
ANSWER_LIMIT_S = 2
POLL_S = 0.05
MAX_STARTS = 5
LOG_TAIL_CHARACTERS = 2000


@dataclass(frozen=True, kw_only=True)
class Account:
    """The user and group of a process."""

    uid: int
    gid: int


@dataclass(kw_only=True)
class Server:
    """A server process that can be stopped, killed and started again on the same port and data.

    Attributes:
        name: Name of the server in messages.
        command: Returns the command line for a port. It must contain no secret: all users can read it.
        answers: Returns whether the server on a port answers and accepts the credentials.
        folder: The working directory.
        log_path: File to which the server's output is appended.
        environment: The complete environment of the process.
        account: The user that the server runs as; None takes the user of this process.
        lock: A file descriptor that the process inherits and keeps open.
        port: The server's port on 127.0.0.1, fixed by the first successful start.
    """

    name: str
    command: Callable[[int], list[str]]
    answers: Callable[[int], bool]
    folder: Path
    log_path: Path
    environment: dict[str, str] = field(repr=False)
    account: Account | None = None
    lock: int
    port: int = 0
    _port_fixed: bool = field(default=False, init=False, repr=False)
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False, repr=False)

    @property
    def pid(self) -> int | None:
        """The process id; None while the server does not run."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self) -> None:
        """Starts the server and waits until it answers.

        Call it from a thread that lives longer than the server: the kernel stops the server when that thread ends.

        Raises:
            EmbeddedServerError: The server died, or does not answer in time.
        """
        self.spawn()
        self.wait_until_ready()

    def spawn(self) -> None:
        """Starts the process without waiting until it answers. The calling thread must live longer than the server."""
        if self.pid is not None:
            raise EmbeddedServerError(f"{self.name} is already running as process {self.pid}")
        if not self._port_fixed:
            self.port = free_port()
        try:
            with self.log_path.open("ab") as log, signals_deferred():
                self._process = subprocess.Popen(
                    [*stopped_with_parent(), *self.command(self.port)],
                    cwd=self.folder,
                    env=self.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=(self.lock,),
                    start_new_session=True,
                    user=self.account.uid if self.account else None,
                    group=self.account.gid if self.account else None,
                    extra_groups=[] if self.account else None,
                )
        except OSError as error:
            raise EmbeddedServerError(f"{self.name} cannot be started: {error}") from error

    def wait_until_ready(self) -> None:
        """Waits until the server answers. A server that dies is started again: its port may have been taken.

        Raises:
            EmbeddedServerError: The server died too often, or does not answer in time.
        """
        deadline = time.monotonic() + START_LIMIT_S
        starts = 1
        # The pid is checked again, because another program on the same port may have answered.
        while self.pid is None or not self.answers(self.port) or self.pid is None:
            if time.monotonic() > deadline:
                raise start_failure(f"{self.name} does not answer after {START_LIMIT_S:.0f} s", self.log_path)
            if self.pid is None:
                if starts == MAX_STARTS:
                    raise start_failure(f"{self.name} died at start, {starts} times", self.log_path)
                # After a kill, Postgres refuses to start until all processes of the old server have ended.
                time.sleep(POLL_S * 2**starts)
                starts += 1
                self.spawn()
            time.sleep(POLL_S)
        self._port_fixed = True

    def stop(self) -> None:
        """Shuts the server down, or kills it if that takes too long. Does nothing if it does not run."""
        if self._process is None:
            return
        # On SIGINT all three servers disconnect their clients and shut down; on SIGTERM Postgres waits for its clients.
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """Kills the server, as in a crash. Does nothing if it does not run."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


@contextmanager
def signals_deferred() -> Iterator[None]:
    """Delays the handlers of terminating signals until the block ends.

    Inside `Popen` the process exists before its object does. A handler that raises there would leave the process
    running, unknown to the code that has to stop it.
    """
    caught: list[int] = []

    def pass_on() -> None:
        for number in caught:
            signal.raise_signal(number)

    # All handlers are restored even if one of them raises; the caught signals are raised last.
    with ExitStack() as stack:
        stack.callback(pass_on)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            handler = signal.getsignal(number)
            # Only the main thread runs signal handlers and may set them.
            if callable(handler) and current_thread() is main_thread():
                stack.callback(signal.signal, number, handler)
                signal.signal(number, lambda number, _frame: caught.append(number))
        yield


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kills a process that has a session of its own, with all its children, and waits until they have ended."""
    deadline = time.monotonic() + STOP_LIMIT_S
    with suppress(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(process.pid, signal.SIGKILL)
            process.poll()
            time.sleep(POLL_S)


def start_failure(problem: str, log_path: Path) -> EmbeddedServerError:
    """Returns the error for a process that does not start.

    Its message has the problem and the last error of the log on one line. A note contains the end of the log.
    """
    text = log_path.read_text(encoding="utf-8", errors="replace")[-LOG_TAIL_CHARACTERS:]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if re.search("error|fatal|critical|failed", line, flags=re.IGNORECASE)]
    (last,) = (errors or lines or ["it is empty"])[-1:]
    error = EmbeddedServerError(f"{problem}; its log {log_path}: {last}")
    error.add_note(text)
    return error


def server_environment() -> dict[str, str]:
    """Returns a server's environment. The user's variables are left out, as some (PG…, RCLONE_…) configure servers."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}


def free_port() -> int:
    """Returns a TCP port of 127.0.0.1 that is free at this moment."""
    for port in random.sample(PORTS, k=100):
        with socket.socket() as probe:
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
    raise EmbeddedServerError(f"no port of {HOST} in {PORTS.start}-{PORTS.stop - 1} is free")


@cache
def stopped_with_parent() -> tuple[str, ...]:
    """Returns a command prefix that makes the kernel stop the command when this process dies.

    It is empty if setpriv of util-linux is missing or too old.
    """
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        return ()
    prefix = (setpriv, "--pdeathsig", "INT", "--")
    probe = subprocess.run([*prefix, setpriv, "--version"], capture_output=True, check=False)
    return prefix if probe.returncode == 0 else ()
