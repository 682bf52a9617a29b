"""One server as our child process: its port, its log, readiness, stop, kill, and a second start on the same port.

What is run, and how to tell that it answers, is the caller's (`embedded.py`).
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
# Below the range from which the kernel takes clients' ports: otherwise a client that keeps trying could be given the
# port of a stopped server as its own, and the server could not come back.
PORTS = range(20_000, 32_000)
START_LIMIT_S = 30.0
STOP_LIMIT_S = 10.0
ANSWER_LIMIT_S = 2
POLL_S = 0.05
MAX_STARTS = 5
LOG_TAIL_CHARACTERS = 2000


@dataclass(frozen=True, kw_only=True)
class Account:
    """The user and group that a process runs as."""

    uid: int
    gid: int


@dataclass(kw_only=True)
class Server:
    """A server that can be stopped or killed, and started again on the same port and data.

    Attributes:
        name: What messages and the log call it.
        command: The command line for a port; no secret may be in it, as every user of the machine can read it.
        answers: Whether the server at a port answers and accepts the credentials.
        folder: The working directory.
        log_path: The file that its output is appended to.
        environment: All of its environment variables.
        account: Whom it runs as; None for the user of this process.
        lock: A file descriptor that it keeps open as long as it lives.
        port: Its port on 127.0.0.1; settled by the first start that succeeds.
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
    _settled: bool = field(default=False, init=False, repr=False)
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False, repr=False)

    @property
    def pid(self) -> int | None:
        """The process id, None while the server does not run."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self) -> None:
        """Start the server and wait until it answers.

        Call it from a thread that outlives the server: the kernel stops the server when that thread ends.

        Raises:
            EmbeddedServerError: It died, or does not answer in time.
        """
        self.spawn()
        self.wait_until_ready()

    def spawn(self) -> None:
        """Start the process without waiting for it; see `start`."""
        if self.pid is not None:
            raise EmbeddedServerError(f"{self.name} runs already, as process {self.pid}")
        if not self._settled:
            self.port = free_port()
        try:
            with self.log_path.open("ab") as log, signals_held_back():
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
        """Wait until the server answers; one that dies, as when its port was taken meanwhile, is tried again.

        Raises:
            EmbeddedServerError: It died too often, or does not answer in time.
        """
        deadline = time.monotonic() + START_LIMIT_S
        starts = 1
        # The second look at the process: what answered may be somebody else's server on a port that we lost.
        while self.pid is None or not self.answers(self.port) or self.pid is None:
            if time.monotonic() > deadline:
                raise start_failure(f"{self.name} does not answer after {START_LIMIT_S:.0f} s", self.log_path)
            if self.pid is None:
                if starts == MAX_STARTS:
                    raise start_failure(f"{self.name} died at start, {starts} times", self.log_path)
                # After a kill, Postgres refuses to start until the last of the old children is gone.
                time.sleep(POLL_S * 2**starts)
                starts += 1
                self.spawn()
            time.sleep(POLL_S)
        self._settled = True

    def stop(self) -> None:
        """Let the server shut down in order, and kill it where that takes too long; does nothing where none runs."""
        if self._process is None:
            return
        # All three shut down in order on it, dropping their clients; on SIGTERM Postgres would wait for them to leave.
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """Kill the server at once, as a crash would; does nothing where none runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


@contextmanager
def signals_held_back() -> Iterator[None]:
    """Has the handlers of signals that end us run after the block: what is started in it is known to who must stop it.

    `Popen` is for a moment a process without an object; a handler that raises there would leave it running.
    """
    caught: list[int] = []

    def pass_on() -> None:
        for number in caught:
            signal.raise_signal(number)

    # Each handler comes back whatever another one raises meanwhile, and last of all they learn what was caught.
    with ExitStack() as stack:
        stack.callback(pass_on)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            handler = signal.getsignal(number)
            # Only the main thread runs handlers, and only it may set them.
            if callable(handler) and current_thread() is main_thread():
                stack.callback(signal.signal, number, handler)
                signal.signal(number, lambda number, _frame: caught.append(number))
        yield


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that was started in a session of its own, with all that it started, and see them gone."""
    deadline = time.monotonic() + STOP_LIMIT_S
    with suppress(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(process.pid, signal.SIGKILL)
            process.poll()
            time.sleep(POLL_S)


def start_failure(problem: str, log_path: Path) -> EmbeddedServerError:
    """The error for a process that does not start.

    Its message is the problem and the last error in the process's log, on one line; a note has the end of the log.
    """
    text = log_path.read_text(encoding="utf-8", errors="replace")[-LOG_TAIL_CHARACTERS:]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if re.search("error|fatal|critical|failed", line, flags=re.IGNORECASE)]
    (last,) = (errors or lines or ["it is empty"])[-1:]
    error = EmbeddedServerError(f"{problem}; its log {log_path}: {last}")
    error.add_note(text)
    return error


def server_environment() -> dict[str, str]:
    """What every server gets: none of the user's variables, as several of them (PG…, RCLONE_…) change what they do."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on at this moment."""
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
    """A prefix to a command that has the kernel stop it when we are killed; empty where util-linux is too old."""
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        return ()
    prefix = (setpriv, "--pdeathsig", "INT", "--")
    probe = subprocess.run([*prefix, setpriv, "--version"], capture_output=True, check=False)
    return prefix if probe.returncode == 0 else ()
