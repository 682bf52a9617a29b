"""The whole service on one machine without Docker: embedded servers, schema, buckets and a worker of each role."""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from inference_service.core.settings import Settings
from inference_service.embedded.process import kill_group, signals_held_back, start_failure, stopped_with_parent
from inference_service.embedded.servers import start_servers
from inference_service.worker.deployment import prepare

_POLL_S = 0.1
# Between looks at the workers, and so between the starts of one that cannot live.
_RESTART_S = 2.0
_START_LIMIT_S = 120
# A stopped stack does not wait for long jobs: their messages go back, and their leases run out.
_STOP_LIMIT_S = 10
_GRACE_S = "0.5"
_ROLES = ("gpu", "cpu")
_ENVIRONMENT_FILE = "stack.env"


@dataclass(frozen=True)
class Stack:
    """A running stack.

    Attributes:
        settings: How a client reaches it.
        environment: The same as environment variables, passwords included.
        workers: One of each role.
    """

    settings: Settings
    environment: Mapping[str, str] = field(repr=False)
    workers: Sequence["WorkerProcess"]


@contextmanager
def start_stack(data_path: Path, *, durable: bool = True) -> Iterator[Stack]:
    """Starts everything, and stops it when the block ends, however it ends.

    Args:
        data_path: Folder of data, logs and passwords; a second start finds what the first one stored.
        durable: Whether data must survive a crash of the machine.

    Raises:
        EmbeddedServerError: A server or a worker does not start.
    """
    with ExitStack() as stack:
        servers = stack.enter_context(start_servers(data_path, durable=durable))
        settings = settings_for(servers.environment)
        prepare(settings)
        workers = [stack.enter_context(start_worker(role, servers.environment, folder=data_path)) for role in _ROLES]
        for worker in workers:
            stack.callback(worker.ask_to_stop)
            worker.wait_until_ready()
        yield Stack(settings, servers.environment, workers)


def settings_for(environment: Mapping[str, str]) -> Settings:
    """The settings of this process with the servers of an environment in place of its own."""
    return Settings.model_validate({name.lower(): value for name, value in environment.items()})


@dataclass(eq=False)
class WorkerProcess:
    """A worker as a process of its own.

    Attributes:
        role: Its role.
        environment: What it gets besides this process's own variables.
        folder: For its log and its health file.
    """

    role: str
    environment: Mapping[str, str] = field(repr=False)
    folder: Path
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _asked_to_stop: bool = field(default=False, init=False)

    @property
    def log_path(self) -> Path:
        """Where its log goes."""
        return self.folder / f"worker-{self.role}.log"

    @property
    def health_path(self) -> Path:
        """The file that it touches while it consumes."""
        return self.folder / f"worker-{self.role}.health"

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """Its parent process."""
        if self._process is None:
            raise RuntimeError("the worker was not started")
        return self._process

    @property
    def pid(self) -> int:
        """Process id of the parent, which is also part of the worker's name."""
        return self.process.pid

    def start(self) -> None:
        """Starts it, once more where it has ended; the log goes on."""
        self.health_path.unlink(missing_ok=True)
        with self.log_path.open("ab") as log, signals_held_back():
            self._process = subprocess.Popen(
                [*stopped_with_parent(), sys.executable, "-m", "inference_service", "worker", "--role", self.role],
                env={
                    **os.environ, "SHUTDOWN_GRACE_S": _GRACE_S, **self.environment, "HEALTH_PATH": str(self.health_path)
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )  # fmt: skip

    def wait_until_ready(self) -> None:
        """Waits until it consumes.

        Raises:
            EmbeddedServerError: It ended, or does not get there in time.
        """
        deadline = time.monotonic() + _START_LIMIT_S
        while not self.health_path.exists():
            if self.process.poll() is not None:
                raise start_failure(f"the {self.role} worker ended at its start", self.log_path)
            if time.monotonic() > deadline:
                raise start_failure(f"the {self.role} worker is not ready after {_START_LIMIT_S} s", self.log_path)
            time.sleep(_POLL_S)

    def ask_to_stop(self) -> None:
        """Has it finish its jobs, or give them back where that takes longer than its time of grace."""
        if not self._asked_to_stop:
            self._asked_to_stop = True
            self.process.terminate()

    def stop(self) -> None:
        """Asks it to stop, and kills it where that takes too long; does nothing where none was started."""
        if self._process is None:
            return
        self.ask_to_stop()
        try:
            self.wait_until_ended(_STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            kill_group(self.process)

    def wait_until_ended(self, limit_s: float) -> None:
        """Waits until it has ended.

        Raises:
            TimeoutExpired: It has not in time.
        """
        self.process.wait(limit_s)


@contextmanager
def start_worker(role: str, environment: Mapping[str, str], *, folder: Path) -> Iterator[WorkerProcess]:
    """Starts a worker, and stops it when the block ends; the arguments are WorkerProcess's."""
    worker = WorkerProcess(role, environment, folder)
    try:
        worker.start()
        yield worker
    finally:
        worker.stop()


def run_stack(data_path: Path, *, screen: Console) -> None:
    """Runs the stack until Ctrl-C, and says how to reach it; a worker that ends is followed by another.

    The environment goes into a file beside the data that only its owner can read.
    """
    with start_stack(data_path) as stack:
        environment_path = data_path.absolute() / _ENVIRONMENT_FILE
        environment_path.touch(mode=0o600)
        environment_path.write_text("".join(f"{name}={value}\n" for name, value in stack.environment.items()))
        for worker in stack.workers:
            screen.print(f"worker's log: {worker.log_path}")
        screen.print("The stack runs; Ctrl-C stops it. To reach it from another terminal:")
        screen.print(f"  set -a; . {shlex.quote(str(environment_path))}; set +a", soft_wrap=True)
        screen.print("  inference-service submit ct.nii.gz --model ct-chest --wait")
        with suppress(KeyboardInterrupt):
            while True:
                time.sleep(_RESTART_S)
                for worker in stack.workers:
                    if worker.process.poll() is not None:
                        screen.print(f"the {worker.role} worker ended; another one starts")
                        worker.start()
        screen.print("stopping")
