"""The whole service on one machine without Docker: embedded servers, schema, buckets and one worker of each role."""

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
from inference_service.embedded.process import kill_group, signals_deferred, start_failure, stopped_with_parent
from inference_service.embedded.servers import start_servers
from inference_service.worker.deployment import prepare

_POLL_S = 0.1
# Period of checking the workers, and so of restarting one that ends at once.
_RESTART_S = 2.0
_START_LIMIT_S = 120
# A stopped stack does not wait for long jobs; their workers return them.
_STOP_LIMIT_S = 10
_GRACE_S = "0.5"
_ROLES = ("gpu", "cpu")
_ENVIRONMENT_FILE = "stack.env"


@dataclass(frozen=True)
class Stack:
    """A running stack.

    Attributes:
        settings: Settings with which a client reaches the stack.
        environment: These settings as environment variables, including passwords.
        workers: One worker of each role.
    """

    settings: Settings
    environment: Mapping[str, str] = field(repr=False)
    workers: Sequence["WorkerProcess"]


@contextmanager
def start_stack(data_path: Path, *, durable: bool = True) -> Iterator[Stack]:
    """Starts servers and workers, and stops them when the block ends.

    Args:
        data_path: Folder for data, logs and passwords. A second start uses the data of the first.
        durable: Whether data survive a crash of the machine; False is faster.

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
    """Returns the settings of this process, with the given variables in place of its own."""
    return Settings.model_validate({name.lower(): value for name, value in environment.items()})


@dataclass(eq=False)
class WorkerProcess:
    """A worker that runs as a process of its own.

    Attributes:
        role: Role of the worker.
        environment: Variables of the worker in addition to those of this process.
        folder: Folder for the worker's log and health file.
    """

    role: str
    environment: Mapping[str, str] = field(repr=False)
    folder: Path
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _asked_to_stop: bool = field(default=False, init=False)

    @property
    def log_path(self) -> Path:
        """The worker's log file."""
        return self.folder / f"worker-{self.role}.log"

    @property
    def health_path(self) -> Path:
        """The file that the worker touches while it consumes its queues."""
        return self.folder / f"worker-{self.role}.health"

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The worker's parent process."""
        if self._process is None:
            raise RuntimeError("the worker was not started")
        return self._process

    @property
    def pid(self) -> int:
        """Process id of the parent process; the worker's name contains it."""
        return self.process.pid

    def start(self) -> None:
        """Starts the worker, or starts it again after it has ended. The log is appended to."""
        self.health_path.unlink(missing_ok=True)
        with self.log_path.open("ab") as log, signals_deferred():
            self._process = subprocess.Popen(
                [*stopped_with_parent(), sys.executable, "-m", "inference_service", "worker", "--role", self.role],
                env={
                    **os.environ,
                    "SHUTDOWN_GRACE_S": _GRACE_S,
                    **self.environment,
                    "HEALTH_PATH": str(self.health_path),
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait_until_ready(self) -> None:
        """Waits until the worker consumes its queues.

        Raises:
            EmbeddedServerError: The worker ended, or is not ready in time.
        """
        deadline = time.monotonic() + _START_LIMIT_S
        while not self.health_path.exists():
            if self.process.poll() is not None:
                raise start_failure(f"the {self.role} worker ended at its start", self.log_path)
            if time.monotonic() > deadline:
                raise start_failure(f"the {self.role} worker is not ready after {_START_LIMIT_S} s", self.log_path)
            time.sleep(_POLL_S)

    def ask_to_stop(self) -> None:
        """Asks the worker to stop. It finishes its jobs, or returns them when its grace period is over."""
        if not self._asked_to_stop:
            self._asked_to_stop = True
            self.process.terminate()

    def stop(self) -> None:
        """Stops the worker, and kills it if that takes too long. Does nothing if it was not started."""
        if self._process is None:
            return
        self.ask_to_stop()
        try:
            self.wait_until_ended(_STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            kill_group(self.process)

    def wait_until_ended(self, limit_s: float) -> None:
        """Waits until the worker has ended.

        Raises:
            TimeoutExpired: The worker has not ended in time.
        """
        self.process.wait(limit_s)


@contextmanager
def start_worker(role: str, environment: Mapping[str, str], *, folder: Path) -> Iterator[WorkerProcess]:
    """Starts a worker, and stops it when the block ends. The arguments are those of WorkerProcess."""
    worker = WorkerProcess(role, environment, folder)
    try:
        worker.start()
        yield worker
    finally:
        worker.stop()


def run_stack(data_path: Path, *, screen: Console) -> None:
    """Runs the stack until Ctrl-C, shows how to reach it, and restarts workers that end.

    The environment variables are written to a file beside the data; only the file's owner can read it.
    """
    with start_stack(data_path) as stack:
        environment_path = data_path.absolute() / _ENVIRONMENT_FILE
        environment_path.touch(mode=0o600)
        environment_path.write_text("".join(f"{name}={value}\n" for name, value in stack.environment.items()))
        for worker in stack.workers:
            screen.print(f"log of the {worker.role} worker: {worker.log_path}")
        screen.print("The stack is running; press Ctrl-C to stop it. To use it from another terminal:")
        screen.print(f"  set -a; . {shlex.quote(str(environment_path))}; set +a", soft_wrap=True)
        screen.print("  inference-service submit ct.nii.gz --model ct-chest --wait")
        with suppress(KeyboardInterrupt):
            while True:
                time.sleep(_RESTART_S)
                for worker in stack.workers:
                    if worker.process.poll() is not None:
                        screen.print(f"the {worker.role} worker ended and is restarted")
                        worker.start()
        screen.print("stopping")
