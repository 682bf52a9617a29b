"""Shared by the fault tests: a service whose parts can be killed, and jobs that can be held in the middle."""

import gzip
import hashlib
import math
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count, pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import indent
from uuid import UUID, uuid4

import nibabel
import numpy as np
import psutil
from minio import Minio
from minio.error import InvalidResponseError, S3Error
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from sqlalchemy import func, update

from inference_service import Client
from inference_service.contract.manifest import Manifest
from inference_service.contract.task_message import (
    InputReference,
    OutputReference,
    Priority,
    RequestOptions,
    SegmentRequest,
)
from inference_service.embedded.servers import Servers
from inference_service.embedded.service_process import WorkerProcess, start_worker
from inference_service.embedded.stack import settings_for
from inference_service.jobs.database import connect
from inference_service.jobs.job_store import Job
from inference_service.jobs.schema import FINAL_STATES, JobState, StoredAttemptRow

LIMIT_S = 90.0
WINDOW = 32
# Short periods, so that a dead worker's job is requeued within LEASE_S + SWEEP_PERIOD_S.
PERIODS = {
    "LEASE_S": "3",
    "SWEEP_PERIOD_S": "0.5",
    "RETRY_DELAY_S": "0.2",
    "CPU_STANDBY_S": "3",
    "SHUTDOWN_GRACE_S": "1",
    "WORKER_CONCURRENCY": "1",
    "INTRA_OP_THREADS": "1",
    "ONNX_PROVIDERS": '["CPUExecutionProvider"]',
}
RESULTS = ("mask.nii.gz", "report.json", "preview.png")
# A held job stops before this window, so that its progress is above that of its start.
HELD_WINDOW = 5
HOLD = """
job_id = _job_id.get()
started = time.monotonic()
windows[job_id] = windows.get(job_id, 0) + 1
path = Path({folder!r}, job_id)
while windows[job_id] >= {window} and path.exists():
    with suppress(FileNotFoundError):
        if time.monotonic() - started >= float(path.read_text()):
            break
    time.sleep(0.02)
"""


def install_model(models: Path, name: str, *, layers: int, width: int = 48, **fields: object) -> None:
    """Installs a model that labels voxels above 0; convolutions that do not change the result make it slow."""
    weights = [
        numpy_helper.from_array(np.array([0.0, 1.0], np.float32).reshape(2, 1, 1, 1, 1), "slope"),
        numpy_helper.from_array(np.array([0.0, 0.37], np.float32), "offset"),
        numpy_helper.from_array(np.array(1e-30, np.float32), "nearly_zero"),
    ]
    nodes = [helper.make_node("Conv", ["volume", "slope", "offset"], ["decided"], kernel_shape=[1, 1, 1])]
    last = "volume"
    for layer in range(layers):
        channels = 1 if layer == 0 else width
        outputs = 2 if layer == layers - 1 else width
        shape = (outputs, channels, 3, 3, 3)
        weights.append(numpy_helper.from_array(np.full(shape, 1 / (27 * channels), np.float32), f"weights{layer}"))
        nodes.append(
            helper.make_node("Conv", [last, f"weights{layer}"], [f"layer{layer}"], kernel_shape=[3, 3, 3], pads=[1] * 6)
        )
        last = f"layer{layer}"
    if layers:
        nodes.append(helper.make_node("Mul", [last, "nearly_zero"], ["little"]))
        nodes.append(helper.make_node("Add", ["decided", "little"], ["logits"]))
    else:
        nodes.append(helper.make_node("Identity", ["decided"], ["logits"]))
    graph = helper.make_graph(
        nodes,
        "slow",
        [helper.make_tensor_value_info("volume", TensorProto.FLOAT, [1, 1, WINDOW, WINDOW, WINDOW])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 2, WINDOW, WINDOW, WINDOW])],
        weights,
    )
    content = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString()
    folder = models / name / "1"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(content)
    plain = {
        "name": name,
        "version": "1",
        "description": "For tests.",
        "licence": "Apache-2.0",
        "intended_use": "Tests.",
        "modality": "CT",
        "sha256": hashlib.sha256(content).hexdigest(),
        "orientation": "RAS",
        "channels": [{"name": "CT", "intensity": {"kind": "none"}}],
        "spacing_mm": (2.0, 2.0, 2.0),
        "window": (WINDOW, WINDOW, WINDOW),
        "overlap": 0.25,
        "activation": "softmax",
        "labels": [{"name": "below", "value": 0}, {"name": "above", "value": 1}],
    }
    manifest = Manifest.model_validate(plain | fields)
    (folder / "manifest.json").write_text(manifest.model_dump_json(exclude_unset=True))


@dataclass
class Service:
    """Servers, a client and workers, each of which a test may kill.

    Attributes:
        servers: The servers.
        client: An upstream.
        environment: Environment of the workers.
        folder: Folder of the workers' logs and temporary files.
        scan: An uploaded scan.
        mask: The unpacked mask that an undisturbed run of the slow model gives for it.
    """

    servers: Servers
    client: Client
    environment: dict[str, str]
    folder: Path
    scan: InputReference
    mask: bytes = b""
    _numbers: Iterator[int] = field(default_factory=count)

    @contextmanager
    def worker(self, role: str = "cpu", **environment: str) -> Iterator[WorkerProcess]:
        """Starts a worker, waits until it is ready, and stops it when the block ends."""
        folder = self.folder / f"worker-{next(self._numbers)}"
        folder.mkdir()
        with start_worker(role, {**self.environment, **environment}, folder=folder) as worker:
            worker.wait_until_ready()
            yield worker

    def submit(
        self,
        model: str = "slow",
        *,
        priority: Priority = Priority.ROUTINE,
        reuse: bool = False,
        window_s: float = 0.0,
        trace_headers: Mapping[str, str] | None = None,
    ) -> UUID:
        """Submits a job for the scan.

        Args:
            model: Name of the model.
            priority: The job's priority.
            reuse: Whether the result of an earlier job may be reused.
            window_s: Least time of each window, beginning in the middle of the job. Infinity holds the job there.
            trace_headers: The job's trace context.
        """
        job_id = uuid4()
        if window_s:
            (self.folder / "holds" / str(job_id)).write_text(str(window_s))
        request = self.request(model, priority=priority, reuse=reuse)
        return self.client.submit(request, job_id=job_id, trace_headers=trace_headers)

    def request(self, model: str, *, priority: Priority = Priority.ROUTINE, reuse: bool = False) -> SegmentRequest:
        """Returns a request for the scan."""
        return SegmentRequest(
            input=self.scan,
            model=model,
            priority=priority,
            options=RequestOptions(reuse=reuse),
            output=OutputReference(),
        )

    def submit_held(self, *, priority: Priority = Priority.ROUTINE) -> UUID:
        """Submits a job whose attempts stop in the middle of their windows until it is released."""
        return self.submit(priority=priority, window_s=math.inf)

    def release(self, job_id: UUID) -> None:
        """Lets a held job go on."""
        (self.folder / "holds" / str(job_id)).unlink()

    def until(self, job_id: UUID, reached: Callable[[Job], bool]) -> Job:
        """Waits until `reached` is true of an unfinished or finished job."""
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:
            job = self.client.status(job_id)
            assert job is not None
            if reached(job):
                return job
            assert not job.finished, f"{job.state} {job.error_code}: {job.error_message}"
            time.sleep(0.05)
        raise AssertionError(f"the job did not reach the state in time: {job}")

    def half_done(self, job_id: UUID, *, attempt: int = 1) -> Job:
        """Waits until a held or slowed job is in the middle of its windows."""
        return self.until(job_id, lambda job: job.attempt == attempt and job.stage == "windows" and job.progress > 0.15)

    def finished(self, job_id: UUID) -> Job:
        """Waits until a job is finished."""
        return self.client.wait(job_id, timeout_s=LIMIT_S)

    def until_queues(self, worker: WorkerProcess, queues: list[str]) -> None:
        """Waits until a worker consumes exactly these queues."""
        wait_for(
            lambda: any(f"-{worker.pid}-" in known.name and known.queues == queues for known in self.client.workers()),
            self.client.workers,
        )

    def until_results_written(self, job_id: UUID) -> None:
        """Waits until a job has written its results to its worker's disk, and stores them next."""
        wait_for(lambda: any(self.folder.glob(f"inference-service-*/{job_id}-*/**/{RESULTS[0]}")))

    def has_temporary_files(self) -> bool:
        """Tells whether a worker has a temporary file of a job."""
        return any(self.folder.glob("inference-service-*/*"))

    def cancel_all(self) -> None:
        """Cancels every unfinished job, so that a failed test leaves the next one's workers free."""
        for job in self.client.list():
            if not job.finished:
                self.client.cancel(job.id)

    def objects(self, job_id: UUID) -> dict[str, bytes]:
        """Returns the objects of all attempts of a job, by key."""
        storage = Minio(
            self.environment["MINIO_ENDPOINT"],
            self.environment["MINIO_ACCESS_KEY"],
            self.environment["MINIO_SECRET_KEY"],
            secure=False,
            region=self.environment["MINIO_REGION"],
        )
        found = {}
        for item in storage.list_objects("masks", f"{job_id}/", recursive=True):
            name = str(item.object_name)
            # A sweep may remove the object meanwhile. rclone's answer to that is not understood as S3's.
            with suppress(S3Error, InvalidResponseError):
                response = storage.get_object("masks", name)
                found[name] = response.read()
                response.close()
        return found

    def results(self, job_id: UUID) -> dict[str, bytes]:
        """Returns the files of a job's result, by name; the client verifies them."""
        with TemporaryDirectory(dir=self.folder) as folder:
            return {path.name: path.read_bytes() for path in self.client.result(self.finished(job_id), Path(folder))}

    def hasten_removal(self) -> None:
        """Lets the next sweep remove the objects of lost attempts."""
        settings = settings_for(self.servers.environment)
        with closing(connect(settings)) as database, database.begin() as connection:
            connection.execute(update(StoredAttemptRow).values(remove_after=func.now()))

    def transitions(self, job_id: UUID) -> list[tuple[str, int, str | None]]:
        """Returns state, attempt and detail of each transition, after they are checked for consistency."""
        changes = self.client.transitions(job_id)
        assert [change.from_state for change in changes] == [None, *(change.to_state for change in changes[:-1])]
        assert all(earlier.at <= later.at for earlier, later in pairwise(changes))
        assert [change.to_state for change in changes if JobState(change.to_state) in FINAL_STATES] == [
            changes[-1].to_state
        ]
        attempts = [change.attempt for change in changes if change.to_state == JobState.RUNNING]
        assert attempts == list(range(1, len(attempts) + 1))
        return [(change.to_state, change.attempt, change.detail) for change in changes]

    def assert_succeeded(self, *job_ids: UUID, labels: NDArray[np.bool_] | None = None) -> None:
        """Checks that each job succeeded once, and has exactly the right result.

        Args:
            job_ids: The jobs.
            labels: The expected mask; None: that of an undisturbed run on the service's scan.
        """
        for job_id in job_ids:
            job = self.finished(job_id)
            assert (job.state, job.error_message) == (JobState.SUCCEEDED, None)
            assert self.transitions(job_id)[-1][0] == JobState.SUCCEEDED
            results = self.results(job_id)
            assert sorted(results) == sorted(RESULTS)
            mask = gzip.decompress(results["mask.nii.gz"])
            if labels is None:
                assert mask == self.mask
            else:
                assert np.array_equal(np.asanyarray(nibabel.Nifti1Image.from_bytes(mask).dataobj), labels)

    def assert_ended(self, job_id: UUID, state: JobState, code: str) -> None:
        """Checks that a job ended once, with this code, and that a sweep removes its objects."""
        job = self.finished(job_id)
        assert (job.state, job.error_code) == (state, code)
        assert self.transitions(job_id)[-1][0] == state
        self.hasten_removal()
        wait_for(lambda: self.objects(job_id) == {})

    def lose_redis_data(self) -> None:
        """Kills Redis and starts it without its data."""
        self.servers.redis.kill()
        for path in self.servers.redis.folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        self.servers.redis.start()


def before_each_window(folder: Path, code: str) -> dict[str, str]:
    """Returns environment variables that make workers run code before each window of any network.

    Args:
        folder: Folder for the module that each Python process of a worker imports at its start.
        code: Lines of Python.
    """
    (folder / "sitecustomize.py").write_text(
        f"""
import time
from contextlib import suppress
from pathlib import Path
from inference_service.engine import session
from inference_service.core.errors import GpuFailed
from inference_service.core.log_config import _job_id

windows = {{}}

def run(self, given):
{indent(code, "    ")}
    return run_network(self, given)

run_network = session.Session.run
session.Session.run = run
"""
    )
    return {"PYTHONPATH": str(folder)}


def child_of(worker: WorkerProcess) -> int:
    """Returns the id of the process that runs a worker's jobs."""
    (child,) = psutil.Process(worker.pid).children()
    return child.pid


def kill(worker: WorkerProcess) -> None:
    """Kills all processes of a worker at once, like a power failure."""
    for process in (*psutil.Process(worker.pid).children(recursive=True), psutil.Process(worker.pid)):
        os.kill(process.pid, signal.SIGKILL)


def freeze(worker: WorkerProcess) -> None:
    """Suspends all processes of a worker."""
    for process in (psutil.Process(worker.pid), *psutil.Process(worker.pid).children(recursive=True)):
        process.suspend()


def resume(worker: WorkerProcess) -> None:
    """Resumes all processes of a frozen worker."""
    for process in (psutil.Process(worker.pid), *psutil.Process(worker.pid).children(recursive=True)):
        process.resume()


def until_log_says(worker: WorkerProcess, *texts: str) -> None:
    """Waits until a worker's log contains one of these texts."""
    wait_for(lambda: any(text in worker.log_path.read_text() for text in texts), worker.log_path.read_text)


def wait_for(
    condition: Callable[[], bool],
    describe: Callable[[], object] = lambda: "not reached in time",
    *,
    limit_s: float = LIMIT_S,
) -> None:
    """Waits until a condition is true.

    Args:
        condition: Asked every tenth of a second.
        describe: Gives the message of the failure.
        limit_s: The wait fails after this many seconds.
    """
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, describe()
        time.sleep(0.1)


def has_waiting_request(pid: int, port: int) -> bool:
    """Tells whether a process has sent a request that the suspended server on a local port has not read."""
    own_ports = {each.laddr.port for each in psutil.Process(pid).net_connections("tcp4")}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, _, queues, *_ = line.split()
        local_port = int(local.rpartition(":")[2], 16)
        remote_port = int(remote.rpartition(":")[2], 16)
        if local_port == port and remote_port in own_ports and int(queues.rpartition(":")[2], 16) > 0:
            return True
    return False


@contextmanager
def start_service(servers: Servers, folder: Path, scan: Path) -> Iterator[Service]:
    """Starts the service without a worker on these servers, which it may kill."""
    models = folder / "models"
    install_model(models, "slow", layers=2)
    install_model(models, "quick", layers=0)
    holds = folder / "holds"
    holds.mkdir()
    environment = {
        **servers.environment,
        **PERIODS,
        **before_each_window(folder, HOLD.format(folder=str(holds), window=HELD_WINDOW)),
        "MODELS_PATH": str(models),
        "TMPDIR": str(folder),
    }
    with ExitStack() as stack:
        client = stack.enter_context(Client(settings_for(servers.environment)))
        service = Service(servers, client, environment, folder, client.upload(scan))
        with service.worker():
            job_id = service.submit()
            assert service.finished(job_id).error_message is None
            service.mask = gzip.decompress(service.results(job_id)["mask.nii.gz"])
        yield service
