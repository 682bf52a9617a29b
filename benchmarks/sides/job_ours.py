"""A whole job of the service's engine, from a scan's file to mask and report, the loading of the model included."""

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

from benchmarks.engine import check_precision, check_watched, task_execution, task_model
from benchmarks.labels import copy_labels
from benchmarks.measurement import Run, Task
from benchmarks.models import MAX_VOXELS
from benchmarks.watch import MemoryWatch, NetworkClock
from inference_service.contract.result_files import MASK_FILE
from inference_service.core.execution import ExecutionOptions
from inference_service.core.progress import StageClock
from inference_service.engine.model_registry import Model
from inference_service.engine.session import Session
from inference_service.engine.session_cache import LoadedModel, SessionCache
from inference_service.formats.read_limits import ReadLimits
from inference_service.segmentation.pipeline import ModelRun, segment_file
from inference_service.segmentation.resources import StageMonitor


def run(task: Task) -> Run:
    """Measures the side."""
    network = NetworkClock()
    memory = MemoryWatch()
    clock = StageClock()

    class WatchedSessions(SessionCache):
        def load(self, model: Model, execution: ExecutionOptions) -> LoadedModel:
            with memory.loading():
                return super().load(model, execution)

    with (
        TemporaryDirectory(dir=task.workspace) as target,
        patch.object(Session, "run", network.timed(Session.run)),
        patch.object(Session, "run_on_device", network.timed(Session.run_on_device)),
    ):
        start = time.perf_counter()
        model = ModelRun(task_model(task), task_execution(task), WatchedSessions())
        report = segment_file(
            task.source, Path(target), model, limits=ReadLimits(MAX_VOXELS), monitor=StageMonitor(clock)
        )
        seconds = time.perf_counter() - start
        memory.finish()
        if task.labels:
            copy_labels(Path(target) / MASK_FILE, task.labels)
    check_precision(task, report.precision)
    check_watched(memory, network)
    return Run(seconds, network.seconds, network.runs, memory.peak_mb, memory.above_model_mb, dict(clock.seconds))
