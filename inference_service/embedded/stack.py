"""The whole service on one machine without Docker: embedded servers, schema, buckets and one worker of each role."""

import shlex
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from uuid import UUID

from rich.console import Console

from inference_service.client import Client
from inference_service.core.settings import Settings
from inference_service.embedded.process import HOST, free_port
from inference_service.embedded.servers import start_servers
from inference_service.embedded.service_process import (
    GatewayProcess,
    ServiceProcess,
    WorkerProcess,
    start_gateway,
    start_worker,
)
from inference_service.jobs.job_store import JobFilter
from inference_service.jobs.schema import JobState
from inference_service.worker.deployment import prepare

# Period of checking the workers, and so of restarting one that ends at once.
_RESTART_S = 2.0
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
    workers: Sequence[WorkerProcess]


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


def run_stack(data_path: Path, *, screen: Console) -> None:
    """Runs the stack and the HTTP gateway until Ctrl-C, shows how to reach them, and restarts processes that end.

    The environment variables are written to a file beside the data; only the file's owner can read it.
    """
    with ExitStack() as opened:
        stack = opened.enter_context(start_stack(data_path))
        processes: list[ServiceProcess] = [*stack.workers]
        if gateway := _open_gateway(stack, data_path, opened):
            processes.append(gateway)
            screen.print(f"Page: {gateway.address}/")
            if (newest := _newest_result(stack.settings)) is not None:
                screen.print(f"The newest result: {gateway.address}/#/jobs/{newest}")
            screen.print(f"HTTP API: {gateway.address}/v1/openapi.json describes it")
        environment_path = data_path.absolute() / _ENVIRONMENT_FILE
        environment_path.touch(mode=0o600)
        environment_path.write_text("".join(f"{name}={value}\n" for name, value in stack.environment.items()))
        for process in processes:
            screen.print(f"log of the {process.name}: {process.log_path}")
        screen.print("The stack is running; press Ctrl-C to stop it. To use it from another terminal:")
        screen.print(f"  set -a; . {shlex.quote(str(environment_path))}; set +a", soft_wrap=True)
        screen.print("  inference-service submit ct.nii.gz --model ct-chest --wait")
        with suppress(KeyboardInterrupt):
            while True:
                time.sleep(_RESTART_S)
                for process in processes:
                    if process.process.poll() is not None:
                        screen.print(f"the {process.name} ended and is restarted")
                        process.start()
        screen.print("stopping")


def _newest_result(settings: Settings) -> UUID | None:
    with Client(settings) as client:
        found = client.list(where=JobFilter([JobState.SUCCEEDED]), limit=1)
    return found[0].id if found else None


def _open_gateway(stack: Stack, data_path: Path, opened: ExitStack) -> GatewayProcess | None:
    """Starts the gateway on GATEWAY_PORT, or on another port if that is taken; None where it is not installed."""
    if find_spec("fastapi") is None:
        return None
    port = stack.settings.gateway_port
    with socket.socket() as probe:
        if probe.connect_ex((HOST, port)) == 0:
            port = free_port()
    return opened.enter_context(start_gateway(stack.environment, folder=data_path, port=port))
