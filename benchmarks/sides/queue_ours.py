"""A worker of role gpu on a queue that never empties, with embedded servers and real messages: seconds a job."""

from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import UUID

from benchmarks.measurement import Run, Task
from benchmarks.onnx import PROVIDERS
from benchmarks.workspace import Workspace
from inference_service.client import Client
from inference_service.contract.task_message import SegmentRequest
from inference_service.embedded.servers import start_servers
from inference_service.embedded.service_process import start_worker
from inference_service.embedded.stack import settings_for
from inference_service.jobs.job_store import Job
from inference_service.jobs.schema import JobState
from inference_service.worker.deployment import prepare

_JOBS = 10
_LIMIT_S = 600.0


def run(task: Task) -> Run:
    """Measures the side."""
    if task.side.provider is None:
        raise ValueError(f"side {task.side.name} names no provider")
    with (
        TemporaryDirectory(dir=task.workspace) as name,
        start_servers(Path(name) / "servers", durable=False) as servers,
    ):
        settings = settings_for(servers.environment)
        prepare(settings)
        environment = {
            **servers.environment,
            "MODELS_PATH": str(Workspace(task.workspace).model(task.model, task.side.precision).parents[1]),
            "ONNX_PROVIDERS": f'["{PROVIDERS[task.side.provider]}"]',
            "REQUIRE_GPU": str(task.side.on_gpu).lower(),
            "WORKER_CONCURRENCY": str(task.side.jobs),
            "GPU_TF32": str(task.side.precision == "tf32").lower(),
        }
        with Client(settings) as client, start_worker("gpu", environment, folder=Path(name)) as worker:
            worker.wait_until_ready()
            request = SegmentRequest(input=client.upload(task.source), model=task.model)

            def finished(*submitted: UUID) -> list[Job]:
                jobs = [client.wait(job_id, timeout_s=_LIMIT_S) for job_id in submitted]
                failed = [job.error_message for job in jobs if job.state is not JobState.SUCCEEDED]
                if failed:
                    raise RuntimeError(f"expected every job to succeed: {failed[0]}")
                return jobs

            # The first job loads the model.
            (warm,) = finished(client.submit(request))
            jobs = finished(*[client.submit(request) for _ in range(_JOBS)])
    ends = sorted(job.finished_at for job in (warm, *jobs) if job.finished_at is not None)
    network_s = sum((job.timings_s or {}).get("network", 0.0) for job in jobs) / _JOBS
    stages = {
        stage: sum((job.timings_s or {}).get(stage, 0.0) for job in jobs) / _JOBS for stage in jobs[0].timings_s or {}
    }
    return Run((ends[-1] - ends[0]).total_seconds() / _JOBS, network_s, _JOBS, 0.0, 0.0, stages)
