"""What the tests by killing things share: a service whose parts can be killed, and a model slow enough to be hit."""

import gzip
import hashlib
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count, pairwise
from pathlib import Path
from textwrap import indent
from uuid import UUID

import numpy as np
import psutil
from minio import Minio
from onnx import TensorProto, helper, numpy_helper

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
from inference_service.embedded.stack import WorkerProcess, settings_for, start_worker
from inference_service.jobs.job_store import Job
from inference_service.jobs.schema import FINAL_STATES, JobState

LIMIT_S = 90.0
WINDOW = 32
# Every wait of the protocol, short: a dead worker's job is found within LEASE_S + SWEEP_PERIOD_S.
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


def install_model(models: Path, name: str, *, layers: int, width: int = 48, **fields: object) -> None:
    """Installs a model that labels voxels above 0; its convolutions, which change nothing, take their time."""
    nodes, weights = (
        [],
        [
            numpy_helper.from_array(np.array([0.0, 1.0], np.float32).reshape(2, 1, 1, 1, 1), "slope"),
            numpy_helper.from_array(np.array([0.0, 0.37], np.float32), "offset"),
            numpy_helper.from_array(np.array(1e-30, np.float32), "nearly_nothing"),
        ],
    )
    nodes.append(helper.make_node("Conv", ["volume", "slope", "offset"], ["decided"], kernel_shape=[1, 1, 1]))
    last = "volume"
    for layer in range(layers):
        channels, outputs = 1 if layer == 0 else width, 2 if layer == layers - 1 else width
        shape = (outputs, channels, 3, 3, 3)
        weights.append(numpy_helper.from_array(np.full(shape, 1 / (27 * channels), np.float32), f"weights{layer}"))
        nodes.append(
            helper.make_node("Conv", [last, f"weights{layer}"], [f"layer{layer}"], kernel_shape=[3, 3, 3], pads=[1] * 6)
        )
        last = f"layer{layer}"
    if layers:
        nodes.append(helper.make_node("Mul", [last, "nearly_nothing"], ["little"]))
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
        environment: What workers get.
        folder: For logs.
        scan: Uploaded.
        mask: Its mask by the slow model, undisturbed and unpacked.
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
        """A worker that is ready; killed where it does not end by itself."""
        folder = self.folder / f"worker-{next(self._numbers)}"
        folder.mkdir()
        with start_worker(role, {**self.environment, **environment}, folder=folder) as worker:
            worker.wait_until_ready()
            yield worker

    def submit(self, model: str = "slow", *, priority: Priority = Priority.ROUTINE, reuse: bool = False) -> UUID:
        """Submits a job of the scan."""
        return self.client.submit(
            SegmentRequest(
                input=self.scan,
                model=model,
                priority=priority,
                options=RequestOptions(reuse=reuse),
                output=OutputReference(),
            )
        )

    def until(self, job_id: UUID, reached: Callable[[Job], bool]) -> Job:
        """Waits until a job's row says so."""
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:
            job = self.client.status(job_id)
            assert job is not None
            if reached(job):
                return job
            assert not job.finished, f"{job.state} {job.error_code}: {job.error_message}"
            time.sleep(0.05)
        raise AssertionError(f"job {job_id} never got there: {job}")

    def half_done(self, job_id: UUID, *, attempt: int = 1) -> Job:
        """Waits until a job is in the middle of its windows."""
        return self.until(
            job_id, lambda job: job.attempt == attempt and job.stage in ("windows", "network") and job.progress > 0.15
        )

    def finished(self, job_id: UUID) -> Job:
        """Waits until a job is finished."""
        return self.client.wait(job_id, timeout_s=LIMIT_S)

    def until_queues(self, worker: WorkerProcess, queues: list[str]) -> None:
        """Waits until a worker consumes exactly these queues."""
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:
            for known in self.client.workers():
                if f"-{worker.pid}-" in known.name and known.queues == queues:
                    return
            time.sleep(0.1)
        raise AssertionError(self.client.workers())

    def cancel_all(self) -> None:
        """Cancels every unfinished job, so that a failed test leaves the next one's workers free."""
        for job in self.client.list():
            if not job.finished:
                self.client.cancel(job.id)

    def objects(self, job_id: UUID) -> dict[str, bytes]:
        """What lies at a job's place, by name."""
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
            response = storage.get_object("masks", name)
            found[name.removeprefix(f"{job_id}/")] = response.read()
            response.close()
        return found

    def story(self, job_id: UUID) -> list[tuple[str, int, str | None]]:
        """State, attempt and detail of each transition, after a look whether they can be true."""
        told = self.client.transitions(job_id)
        assert [change.from_state for change in told] == [None, *(change.to_state for change in told[:-1])]
        assert all(earlier.at <= later.at for earlier, later in pairwise(told))
        assert [change.to_state for change in told if JobState(change.to_state) in FINAL_STATES] == [told[-1].to_state]
        attempts = [change.attempt for change in told if change.to_state == JobState.RUNNING]
        assert attempts == list(range(1, len(attempts) + 1))
        return [(change.to_state, change.attempt, change.detail) for change in told]

    def assert_succeeded(self, *job_ids: UUID) -> None:
        """Each job has one good end, and exactly the objects of an undisturbed run."""
        for job_id in job_ids:
            job = self.finished(job_id)
            assert (job.state, job.error_message) == (JobState.SUCCEEDED, None)
            assert self.story(job_id)[-1][0] == JobState.SUCCEEDED
            objects = self.objects(job_id)
            assert sorted(objects) == sorted(RESULTS)
            assert gzip.decompress(objects["mask.nii.gz"]) == self.mask

    def assert_ended(self, job_id: UUID, state: JobState, code: str) -> None:
        """A job has one end, with a code, and no object."""
        job = self.finished(job_id)
        assert (job.state, job.error_code) == (state, code)
        assert self.story(job_id)[-1][0] == state
        deadline = time.monotonic() + LIMIT_S
        while self.objects(job_id) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert self.objects(job_id) == {}

    def lose_redis_data(self) -> None:
        """Redis crashes and comes back with nothing."""
        self.servers.redis.kill()
        for path in self.servers.redis.folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        self.servers.redis.start()


def before_each_window(folder: Path, code: str) -> dict[str, str]:
    """What has workers run some code before each window of any network, as environment variables.

    Args:
        folder: For the file that each of a worker's Python processes reads at its start.
        code: Lines of Python.
    """
    (folder / "sitecustomize.py").write_text(
        f"""
import time
from pathlib import Path
from inference_service.engine import session
from inference_service.core.errors import GpuFailed

def run(self, windows):
{indent(code, "    ")}
    return running(self, windows)

running = session.Session.run
session.Session.run = run
"""
    )
    return {"PYTHONPATH": str(folder)}


def child_of(worker: WorkerProcess) -> int:
    """The process that runs a worker's jobs."""
    (child,) = psutil.Process(worker.pid).children()
    return child.pid


def kill(worker: WorkerProcess) -> None:
    """Kills a worker with all its processes, as a machine's end would."""
    for process in (*psutil.Process(worker.pid).children(recursive=True), psutil.Process(worker.pid)):
        os.kill(process.pid, signal.SIGKILL)


def freeze(worker: WorkerProcess, *, thaw: bool = False) -> None:
    """Stops all of a worker's processes, or lets them go on."""
    for process in (psutil.Process(worker.pid), *psutil.Process(worker.pid).children(recursive=True)):
        process.resume() if thaw else process.suspend()


def until_log_says(worker: WorkerProcess, *texts: str) -> None:
    """Waits until a worker's log contains one of these texts."""
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        if any(text in worker.log_path.read_text() for text in texts):
            return
        time.sleep(0.1)
    raise AssertionError(worker.log_path.read_text())


@contextmanager
def start_service(servers: Servers, folder: Path, scan: Path, *, slow_layers: int = 6) -> Iterator[Service]:
    """The service without a worker, on servers of its own, whose parts can be killed."""
    models = folder / "models"
    install_model(models, "slow", layers=slow_layers)
    install_model(models, "quick", layers=0)
    environment = {**servers.environment, **PERIODS, "MODELS_PATH": str(models), "TMPDIR": str(folder)}
    with ExitStack() as stack:
        client = stack.enter_context(Client(settings_for(servers.environment)))
        service = Service(servers, client, environment, folder, client.upload(scan))
        with service.worker():
            job_id = service.submit()
            assert service.finished(job_id).error_message is None
            service.mask = gzip.decompress(service.objects(job_id)["mask.nii.gz"])
        yield service
