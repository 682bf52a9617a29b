"""Processes of the service itself beside the embedded servers: workers, and the HTTP gateway."""

import os
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from inference_service.embedded.process import HOST, kill_group, signals_deferred, start_failure, stopped_with_parent

_POLL_S = 0.1
_START_LIMIT_S = 120
# A stopped stack does not wait for long jobs; their workers return them.
_STOP_LIMIT_S = 10
_GRACE_S = "0.5"


@dataclass(eq=False)
class ServiceProcess(ABC):
    """A command of the service that runs as a process of its own, with a log.

    Attributes:
        environment: Variables of the process in addition to those of this one.
        folder: Folder for its files.
    """

    environment: Mapping[str, str] = field(repr=False)
    folder: Path
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _asked_to_stop: bool = field(default=False, init=False)

    @property
    @abstractmethod
    def name(self) -> str:
        """The name of the process in messages."""

    @property
    @abstractmethod
    def arguments(self) -> Sequence[str]:
        """The arguments of `inference-service`."""

    @property
    @abstractmethod
    def log_path(self) -> Path:
        """Its log file."""

    @property
    def further_environment(self) -> Mapping[str, str]:
        """Variables that the process needs in addition to its environment."""
        return {}

    @abstractmethod
    def is_ready(self) -> bool:
        """Returns True if the started process does its work."""

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The process."""
        if self._process is None:
            raise RuntimeError(f"the {self.name} was not started")
        return self._process

    @property
    def pid(self) -> int:
        """The process id."""
        return self.process.pid

    def start(self) -> None:
        """Starts the process, or starts it again after it has ended. The log is appended to."""
        with self.log_path.open("ab") as log, signals_deferred():
            self._process = subprocess.Popen(
                [*stopped_with_parent(), sys.executable, "-P", "-m", "inference_service", *self.arguments],
                env={**os.environ, **self.environment, **self.further_environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait_until_ready(self) -> None:
        """Waits until the process does its work.

        Raises:
            EmbeddedServerError: It ended, or is not ready in time.
        """
        deadline = time.monotonic() + _START_LIMIT_S
        while not self.is_ready():
            if self.process.poll() is not None:
                raise start_failure(f"the {self.name} ended at its start", self.log_path)
            if time.monotonic() > deadline:
                raise start_failure(f"the {self.name} is not ready after {_START_LIMIT_S} s", self.log_path)
            time.sleep(_POLL_S)

    def ask_to_stop(self) -> None:
        """Asks the process to stop. A worker finishes its jobs, or returns them when its grace period is over."""
        if not self._asked_to_stop:
            self._asked_to_stop = True
            self.process.terminate()

    def stop(self) -> None:
        """Stops the process, and kills it if that takes too long. Does nothing if it was not started."""
        if self._process is None:
            return
        self.ask_to_stop()
        try:
            self.wait_until_ended(_STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            kill_group(self.process)

    def wait_until_ended(self, limit_s: float) -> None:
        """Waits until the process has ended.

        Raises:
            TimeoutExpired: It has not ended in time.
        """
        self.process.wait(limit_s)


@dataclass(eq=False)
class WorkerProcess(ServiceProcess):
    """A worker; the process is its parent process, whose id is part of the worker's name.

    Attributes:
        role: Role of the worker.
    """

    role: str

    @property
    def name(self) -> str:
        """Names the role."""
        return f"{self.role} worker"

    @property
    def arguments(self) -> Sequence[str]:
        """Runs a worker of the role."""
        return ("worker", "--role", self.role)

    @property
    def log_path(self) -> Path:
        """One log for each role."""
        return self.folder / f"worker-{self.role}.log"

    @property
    def health_path(self) -> Path:
        """The file that the worker touches while it consumes its queues."""
        return self.folder / f"worker-{self.role}.health"

    @property
    def further_environment(self) -> Mapping[str, str]:
        """The health file, and a short grace period unless the environment has another one."""
        grace = self.environment.get("SHUTDOWN_GRACE_S", _GRACE_S)
        return {"SHUTDOWN_GRACE_S": grace, "HEALTH_PATH": str(self.health_path)}

    def start(self) -> None:
        """Starts the worker, which is ready when its health file exists again."""
        self.health_path.unlink(missing_ok=True)
        super().start()

    def is_ready(self) -> bool:
        """Returns True if the worker consumes its queues."""
        return self.health_path.exists()


@dataclass(eq=False)
class GatewayProcess(ServiceProcess):
    """The HTTP gateway on a port of 127.0.0.1.

    Attributes:
        port: The port.
    """

    port: int

    @property
    def name(self) -> str:
        """There is one gateway."""
        return "gateway"

    @property
    def arguments(self) -> Sequence[str]:
        """Runs the gateway."""
        return ("gateway",)

    @property
    def log_path(self) -> Path:
        """The log."""
        return self.folder / "gateway.log"

    @property
    def further_environment(self) -> Mapping[str, str]:
        """The port, and the address of this machine unless the environment has another one."""
        return {"GATEWAY_HOST": self.environment.get("GATEWAY_HOST", HOST), "GATEWAY_PORT": str(self.port)}

    @property
    def address(self) -> str:
        """The URL of the gateway."""
        return f"http://{HOST}:{self.port}"

    def is_ready(self) -> bool:
        """Returns True if the gateway takes connections."""
        with socket.socket() as probe:
            return probe.connect_ex((HOST, self.port)) == 0


@contextmanager
def start_worker(role: str, environment: Mapping[str, str], *, folder: Path) -> Iterator[WorkerProcess]:
    """Starts a worker, and stops it when the block ends. The arguments are those of WorkerProcess."""
    worker = WorkerProcess(environment, folder, role)
    try:
        worker.start()
        yield worker
    finally:
        worker.stop()


@contextmanager
def start_gateway(environment: Mapping[str, str], *, folder: Path, port: int) -> Iterator[GatewayProcess]:
    """Starts the gateway, waits until it takes connections, and stops it when the block ends.

    Raises:
        EmbeddedServerError: It does not start.
    """
    gateway = GatewayProcess(environment, folder, port)
    try:
        gateway.start()
        gateway.wait_until_ready()
        yield gateway
    finally:
        gateway.stop()
